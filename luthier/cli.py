"""The command line: one sub-command a stage. Parse, call, print; a stage is imported when it is asked for.

Exit codes: 0 done, 1 `ship` refused by the gate, 2 something the user can mend, 130 interrupted (and resumable).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.data_commands.cli import add_data_commands
from luthier.errors import Problem, Stopped, UserError, nearest, raise_all
from luthier.serve.cli import add_serve_commands
from luthier.tasks import TASKS
from luthier.version import __version__

if TYPE_CHECKING:
    from luthier.chat import Conversation
    from luthier.endpoint.talking import RemoteConversation

REFUSED, USER_ERROR, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    try:
        parsed = parse(arguments)
        command: Callable[[argparse.Namespace], int | None] = parsed.run_command
        code = command(parsed) or 0
        sys.stdout.flush()  # so that a reader who went away is noticed here, not while Python shuts down
        return code
    except UserError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return USER_ERROR
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`luthier schema | head`): nothing is left to tell it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class Parser(argparse.ArgumentParser):
    """argparse, with the nearest command offered for a mistyped one."""

    def error(self, message: str) -> Any:
        if "invalid choice" in message and self._subparsers is not None:
            choices = self._subparsers._group_actions[0].choices or ()
            wrong = message.partition("invalid choice: ")[2].partition(" (")[0].strip("'")
            raise UserError(f"unknown command '{wrong}'", mend=nearest(wrong, [str(choice) for choice in choices]))
        raise UserError(message, mend=f"see: {self.prog} --help")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, overrides after options included (argparse alone takes them only before)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    if not given:
        parser.print_help()
        parser.exit(USER_ERROR)
    parsed, rest = parser.parse_known_args(given)
    stray = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(parsed, "overrides")]
    if stray:
        takes_settings = hasattr(parsed, "overrides")
        options = [word for word in parsed.options if word.startswith("--")]
        hint = as_setting(stray) if takes_settings else ""
        if not hint and stray[0].startswith("-"):
            hint = nearest(stray[0].partition("=")[0], options)
            if hint.startswith("use ") and takes_settings:
                hint += "; settings are written without dashes, such as train.epochs=3"
        raise UserError(f"unknown argument '{stray[0]}'", mend=hint or f"see: luthier {given[0]} --help")
    if rest:
        parsed.overrides += rest
    return parsed


def as_setting(words: Sequence[str]) -> str:
    """How `--learning-rate 1e-4`, as other tools take it, is written here; empty where no setting is called so."""
    from luthier.recipe.aliases import setting_called

    option, equals, value = words[0].partition("=")
    name = setting_called(option.lstrip("-").replace("-", "_")) if option.startswith("--") else None
    if name is None:
        return ""
    if not equals:
        value = words[1] if len(words) > 1 and not words[1].startswith("--") else "..."
    return f"settings are written without dashes: {name}={value}"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="luthier", description="Fine-tune language models on your data, and prove that it helped.")
    parser.add_argument("--version", action="version", version=f"luthier {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int | None], about: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run_command=run, options=sub._option_string_actions)
        return sub

    def recipe_arguments(sub: argparse.ArgumentParser, nargs: str | None = None) -> None:
        sub.add_argument("recipe", nargs=nargs, help="recipe file (YAML)")
        sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="laid over the recipe")

    sub = command("init", run_init, "Write a commented recipe for your own file.")
    sub.add_argument("data", nargs="?", help="your data file")
    sub.add_argument("--task", help=f"{', '.join(TASKS)}; asked or guessed when left out")
    sub.add_argument("--model", help="hub id, folder, .gguf file or pypi:PACKAGE")
    sub.add_argument("--out", default="recipe.yaml", help="the recipe to write (default: recipe.yaml)")

    sub = command("check", run_check, "Validate recipe, model and data, and estimate memory and time.")
    recipe_arguments(sub)
    sub.add_argument("--json", action="store_true", help="print one JSON object")

    sub = command("lr", run_lr, "Find a learning rate: try rising ones on a few batches, keep nothing.")
    recipe_arguments(sub)
    sub.add_argument("--lowest", type=float, default=1e-7, help="rate of the first step (default: 1e-7)")
    sub.add_argument("--highest", type=float, default=1.0, help="rate of the last step (default: 1)")
    sub.add_argument("--steps", type=int, default=100, help="how many to take at most (default: 100)")
    sub.add_argument("--json", action="store_true", help="print one JSON object")

    sub = command("train", run_train, "Tune a model and judge it: from a recipe to a verdict.")
    recipe_arguments(sub, "?")
    sub.add_argument("--out", help="run folder (default: the next free runs/NAME-1, -2, ...)")
    sub.add_argument("--resume", metavar="RUN", help="go on with an interrupted run")
    sub.add_argument("--auto-resume", action="store_true", help="with --out: go on with the run that is there, if any")
    sub.add_argument("--ignore-memory", action="store_true", help="start even if memory seems not to suffice")
    sub.add_argument("--json", action="store_true", help="print the verdict as JSON")

    sub = command("evaluate", run_evaluate, "Judge a finished run again.")
    sub.add_argument("run", help="run folder")
    sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="evaluate.* (and data.* with --out)")
    sub.add_argument("--out", help="write verdict and report here instead of into the run")
    sub.add_argument("--json", action="store_true", help="print the verdict as JSON")

    sub = command("chat", run_chat, "Talk to a run's model or to a server, or have it label lines.")
    sub.add_argument("run", nargs="?", help="run folder")
    sub.add_argument("--server", metavar="URL", help="a server's address instead of a run (luthier serve)")
    sub.add_argument(
        "--model", metavar="NAME", help="with --server: the adapter, or the base model (default: the first)"
    )
    sub.add_argument("--key-variable", metavar="NAME", help="with --server: the environment variable with its API key")
    sub.add_argument("--message", "-m", help="one message, then stop")
    sub.add_argument("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default)")
    sub.add_argument("--top-p", type=float, default=1.0)
    sub.add_argument("--max-new-tokens", type=int, default=256)
    sub.add_argument("--seed", type=int, default=None)
    sub.add_argument("--json", action="store_true", help="print each answer as a JSON object")
    sub.add_argument("--show-prompt", action="store_true", help="print the prompt's token ids as well")

    sub = command("runs", run_runs, "List runs, or compare two.")
    sub.add_argument("runs", nargs="*", metavar="RUN", help="a folder of runs to list, or two runs to compare")
    sub.add_argument("--json", action="store_true")

    sub = command("compare", run_compare, "Set the results of two or more runs side by side, row by row.")
    sub.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders; the first is what the others are held against"
    )
    sub.add_argument("--json", action="store_true", help="print one JSON object")

    sub = command("ship", run_ship, "Copy a run's model for its users, if it meets the recipe's ship_if.")
    sub.add_argument("run", help="run folder")
    sub.add_argument("--to", metavar="FOLDER", help="folder to write (default: shipped/NAME)")
    sub.add_argument("--json", action="store_true", help="print one JSON object")

    sub = command("merge", run_merge, "Write runs' models as plain weights for from_pretrained.")
    sub.add_argument("runs", nargs="+", metavar="RUN", help="run folder; several of one base model become one model")
    sub.add_argument("out", help="folder to write")
    sub.add_argument(
        "--weights",
        type=weights,
        metavar="0.7,0.3",
        help="what each run counts (default: all as much, together 1); below 0, unlearn: --weights=1,-0.5",
    )

    add_serve_commands(command, commands)
    add_data_commands(commands)
    command("schema", run_schema, "Print the recipe's JSON schema, for editors.")
    return parser


def split_overrides(arguments: argparse.Namespace) -> None:
    """`luthier train --resume RUN train.x=1` has an override where the recipe would be."""
    if arguments.recipe is not None and "=" in arguments.recipe and not Path(arguments.recipe).exists():
        arguments.overrides.insert(0, arguments.recipe)
        arguments.recipe = None


def run_init(arguments: argparse.Namespace) -> int | None:
    from luthier.recipe.scaffold import Answers, write_recipe

    interactive = sys.stdin.isatty() and sys.stderr.isatty()
    data, task, model = arguments.data, arguments.task, arguments.model
    if data is None:
        if not interactive:
            raise UserError("no data file is given", mend="luthier init reviews.csv --task classify")
        data = input("Your data file: ").strip()
    written = write_recipe(
        Answers(data=data, task=task, model=model),
        Path(arguments.out),
        ask=(lambda question: input(f"{question} ").strip()) if interactive else None,
    )
    print(written.summary)
    print(f"written: {arguments.out}\nnext: luthier check {arguments.out}")
    return None


def run_check(arguments: argparse.Namespace) -> int | None:
    from luthier import check_report, terminal
    from luthier.planning.planner import prepare
    from luthier.stages import check_stages

    prepared = prepare(arguments.recipe, arguments.overrides, progress=terminal.watcher(arguments.json))
    check_stages(prepared)
    found = check_report.report(prepared)
    print(json.dumps(found, indent=2, ensure_ascii=False) if arguments.json else check_report.show(found))
    return None


def wait_politely() -> None:
    """On a busy machine have torch's waiting threads sleep; to be called before torch is loaded.

    Waiting threads spin by default: quickest when the cores are free, many times slower when they are not (LOG.md).
    """
    import psutil

    if "OMP_WAIT_POLICY" not in os.environ and psutil.cpu_percent(interval=0.2) > 50:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def run_lr(arguments: argparse.Namespace) -> int | None:
    wait_politely()
    from dataclasses import asdict

    from luthier import rate_finder, terminal

    found = rate_finder.find_learning_rate(
        arguments.recipe,
        arguments.overrides,
        lowest=arguments.lowest,
        highest=arguments.highest,
        steps=arguments.steps,
        progress=terminal.watcher(arguments.json),
    )
    shown = " ".join(shlex.quote(word) for word in (arguments.recipe, *arguments.overrides))
    print(json.dumps(asdict(found)) if arguments.json else rate_finder.show(found, shown))
    return None


def run_train(arguments: argparse.Namespace) -> int | None:
    wait_politely()
    from luthier import pipeline, terminal

    split_overrides(arguments)
    out, resume = arguments.out, arguments.resume
    if arguments.auto_resume and out is not None and (Path(out) / "manifest.json").exists():
        out, resume = None, out
    run = pipeline.train(
        arguments.recipe,
        arguments.overrides,
        out=out,
        resume=resume,
        ignore_memory=arguments.ignore_memory,
        progress=terminal.watcher(),
    )
    show_verdict(run.verdict, arguments.json)
    if not arguments.json:
        print(f"\nreport: {run.report}\ntry it: luthier chat {run.folder}")
    return None


def run_evaluate(arguments: argparse.Namespace) -> int | None:
    wait_politely()
    from luthier import pipeline, terminal

    verdict = pipeline.evaluate(
        arguments.run, arguments.overrides, out=arguments.out, progress=terminal.watcher(arguments.json)
    )
    show_verdict(verdict, arguments.json)
    return None


def show_verdict(verdict: dict[str, Any], as_json: bool) -> None:
    from luthier.evaluate.pages.summary import findings, gate_lines, table

    if as_json:
        print(json.dumps(verdict, ensure_ascii=False))
        return
    print(f"\n{table(verdict)}\n\n{verdict['sentence']}")
    if verdict.get("privacy"):
        print(verdict["privacy"]["sentence"])
    for line in findings(verdict):
        print(line)
    if verdict.get("gate"):
        print(f"\n{gate_lines(verdict['gate'])}")


def run_chat(arguments: argparse.Namespace) -> int | None:
    check_chat_numbers(arguments)
    if (arguments.run is None) == (arguments.server is None):
        raise UserError("talk to whom?", mend="luthier chat RUN, or luthier chat --server http://127.0.0.1:8000")
    conversation = remote_conversation(arguments) if arguments.server is not None else local_conversation(arguments)

    def answer(message: str) -> None:
        stream = None if arguments.json else lambda piece: print(piece, end="", flush=True)
        reply = conversation.answer(message, stream)
        if arguments.json:
            print(json.dumps(reply.as_dict(arguments.show_prompt), ensure_ascii=False), flush=True)
            return
        print(reply.shown if not reply.streamed else "")
        if arguments.show_prompt:
            print(f"prompt tokens: {list(reply.prompt_tokens)}")

    if arguments.message is not None:
        answer(arguments.message)
        return None
    interactive = sys.stdin.isatty()
    if interactive:
        print(conversation.greeting, file=sys.stderr)
    while True:
        try:
            line = input("> ") if interactive else sys.stdin.readline()
        except EOFError:
            return None
        if not line and not interactive:
            return None
        if line.strip() in ("/exit", "/quit"):
            return None
        if line.strip() == "/new":
            conversation.forget()
        elif line.strip():
            try:
                answer(line.strip())
            except UserError as error:
                if not interactive:
                    raise
                print(f"error: {error}", file=sys.stderr)  # one message too long does not end the conversation


def local_conversation(arguments: argparse.Namespace) -> Conversation:
    from luthier.chat import Conversation
    from luthier.engine.generate import Sampling
    from luthier.runs.run import Run

    sampling = Sampling(arguments.temperature, arguments.top_p, arguments.seed)
    return Conversation(Run.open(arguments.run).load(), sampling, arguments.max_new_tokens)


def remote_conversation(arguments: argparse.Namespace) -> RemoteConversation:
    from luthier.endpoint.talking import connect

    key = os.environ.get(arguments.key_variable) if arguments.key_variable is not None else None
    if arguments.key_variable is not None and not key:
        raise UserError(f"the environment variable {arguments.key_variable} is not set", where="--key-variable")
    sampling = {"temperature": arguments.temperature, "top_p": arguments.top_p, "max_tokens": arguments.max_new_tokens}
    sampling |= {"seed": arguments.seed} if arguments.seed is not None else {}
    return connect(arguments.server, arguments.model, key, sampling)


def check_chat_numbers(arguments: argparse.Namespace) -> None:
    """Sampling numbers out of range, all at once, before the model is loaded."""
    wrong = []
    if arguments.temperature < 0:
        wrong.append(Problem(f"{arguments.temperature:g} is below 0", "--temperature", "0 takes the likeliest token"))
    if not 0 < arguments.top_p <= 1:
        wrong.append(Problem(f"{arguments.top_p:g} is not above 0 and at most 1", "--top-p", "1 leaves nothing out"))
    if arguments.max_new_tokens < 1:
        wrong.append(Problem(f"{arguments.max_new_tokens} is below 1", "--max-new-tokens"))
    raise_all(wrong)


def run_runs(arguments: argparse.Namespace) -> int | None:
    from luthier.runs.run import MANIFEST, Run, compare_runs, list_runs
    from luthier.runs.table import show_comparison, show_list

    if len(arguments.runs) == 2:
        compared = compare_runs(Run.open(arguments.runs[0]), Run.open(arguments.runs[1]))
        print(json.dumps(compared, ensure_ascii=False) if arguments.json else show_comparison(compared))
        return None
    if len(arguments.runs) > 2:
        raise UserError("two runs can be compared at a time", mend="luthier runs runs/a-1 runs/b-1")
    folder = Path(arguments.runs[0] if arguments.runs else "runs")
    if arguments.runs and not folder.is_dir():
        raise UserError("no such folder", where=str(folder), mend="name a folder of runs, or one run")
    found = [Run(folder)] if (folder / MANIFEST).exists() else list_runs(folder)
    lines = [run.summary() for run in found]
    print(json.dumps(lines, ensure_ascii=False) if arguments.json else show_list(lines, folder))
    return None


def run_compare(arguments: argparse.Namespace) -> int | None:
    from luthier.runs import comparing

    compared = comparing.compare(arguments.runs)
    print(json.dumps(compared, ensure_ascii=False) if arguments.json else comparing.show(compared))
    return None


def run_ship(arguments: argparse.Namespace) -> int | None:
    from luthier.runs.shipping import ship

    shipped = ship(arguments.run, arguments.to)
    if arguments.json:
        folder = None if shipped.folder is None else str(shipped.folder)
        print(json.dumps({"ships": shipped.ships, "folder": folder, "gate": shipped.gate}, ensure_ascii=False))
    elif shipped.ships:
        print(f"shipped: {shipped.folder}")
    else:
        print(f"{arguments.run} does not ship:", file=sys.stderr)
        for refusal in shipped.refusals:
            print(f"  {refusal}", file=sys.stderr)
    return None if shipped.ships else REFUSED


def run_merge(arguments: argparse.Namespace) -> int | None:
    from luthier import terminal
    from luthier.runs.merging import merge

    print(f"written: {merge(arguments.runs, arguments.out, arguments.weights, terminal.watcher())}")
    return None


def weights(text: str) -> list[float]:
    """Numbers between commas. Raises `ValueError` where one is none, which argparse tells."""
    return [float(number) for number in text.split(",")]


def run_schema(arguments: argparse.Namespace) -> int | None:
    from luthier.recipe.schema import schema

    print(json.dumps(schema(), indent=2, ensure_ascii=False))
    return None


if __name__ == "__main__":
    sys.exit(main())
