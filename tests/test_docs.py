"""What the pages say is so: their commands and Python run, their recipes parse, their links and keys exist.

Each page is run from top to bottom in a folder of its own, with small data and a tiny model under a real one's name.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from luthier import cli
from luthier.recipe import reference as recipe_reference
from luthier.recipe import yaml_reader
from luthier.recipe.reading import read_recipe
from luthier.recipe.recipe import Recipe
from tests.serve.servers import process

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, *(page for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if page.exists())]
WITH_RUN = ("models.md", "runs.md", "serve.md", "shipping.md", "tuning.md", "verdict.md")
"""Pages that go on from a recipe and a finished run, those of first-run.md."""
WITH_RECIPE = ("recipe.md", "data.md", "prepare.md", "privacy.md")
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
NOT_RUN = {
    "make demo": "sets up an environment of its own and takes minutes",
    "make test": "would run this test inside itself",
    "make lint": "is a part of make test",
    "make lock": "asks the package index for the newest versions",
    "pip install": "would change the environment that the tests run in",
}
"""Commands of the pages that no test can run, and why. Those of make must be targets of the Makefile."""
ADDRESS = "127.0.0.1:8000"
"""Where the pages have a server; in tests it is at a port of its own."""
page_ids = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}, line {self.line}"


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text[: each.start()].count("\n") + 1, each[1], each[2]) for each in found]


def prose(page: Path) -> str:
    """The page without its fenced blocks and without comments."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)


def between(page: str, start: str, end: str) -> str:
    """The part of a page between two comments."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return text.split(f"<!-- {start} -->\n")[1].split(f"<!-- {end} -->")[0]


# ── The folder that a page is run in ─────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> Path:
    """Data, a model, the recipe of first-run.md, and its run."""
    import luthier

    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(tiny("llama", layers=4), folder / MODEL)
    words = {"positive": "warm funny clever moving bright tender", "negative": "dull flat clumsy noisy bleak stale"}
    things = ("plot", "cast", "script", "score", "ending")
    rows = [(f"a {word} {thing}", label) for label, many in words.items() for word in many.split() for thing in things]
    write_csv(folder / "reviews.csv", rows)
    write_csv(folder / "new.csv", [(f"{text} indeed", label) for text, label in rows[::4]])
    write_csv(folder / "broken.csv", [rows[0], ("", "positive"), *rows[1:]])
    (folder / "texts.txt").write_text("a warm film\na dull film\n")
    questions = ({"prompt": f"What is {n} plus one?", "completion": str(n + 1)} for n in range(60))
    (folder / "questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in questions))
    pairs = [{"prompt": f"Say {n}.", "chosen": f"yes {n}", "rejected": "no " * (n % 4 + 1)} for n in range(60)]
    (folder / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in pairs))
    rated = (
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for row in pairs
        for name in ("chosen", "rejected")
    )
    (folder / "ratings.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rated))
    with contextlib.chdir(folder):
        assert cli.main(["init", "reviews.csv"]) == 0
        luthier.train("recipe.yaml", ["train.max_steps=4"], out="runs/reviews")
    return folder


def write_csv(path: Path, rows: list[tuple[str, str]]) -> None:
    path.write_text("text,label\n" + "".join(f'"{text}",{label}\n' for text, label in rows))


@page_ids
def test_every_block_of_a_page_works(
    page: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left_out = [] if page.name in WITH_RUN else ["runs"] if page.name in WITH_RECIPE else ["runs", "recipe.yaml"]
    shutil.copytree(folder, tmp_path / "here", ignore=shutil.ignore_patterns(*left_out))
    monkeypatch.chdir(tmp_path / "here")
    module = types.ModuleType("docs_page")  # classes look up their annotations in their module
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with contextlib.ExitStack() as servers:
        run_blocks(page, module, capsys, servers)


def run_blocks(
    page: Path, module: types.ModuleType, capsys: pytest.CaptureFixture[str], servers: contextlib.ExitStack
) -> None:
    """Every block in turn; a server that one starts answers the ones below, at the address that the page gives it."""
    address = ADDRESS
    for block in blocks(page):
        block = replace(block, text=block.text.replace(ADDRESS, address))
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), module.__dict__)
        elif block.language == "console":
            shows = "--show-command" in block.text
            before, _, started = (block.text, "", "") if shows else block.text.partition("$ luthier serve ")
            run_console(replace(block, text=before), capsys)
            if started:
                command, _, shown = started.partition("\n")
                server = servers.enter_context(process(*shlex.split(command)))
                address = server.url.removeprefix("http://")
                assert all(line.split()[0] in "".join(server.lines) for line in shown.splitlines()), f"{block}"
        elif block.language == "yaml":
            parse_recipe(block)
        elif block.language == "diff":
            check_diff(block)
        elif block.language in ("", "sh"):
            for line in filter(None, block.text.splitlines()):
                assert line.startswith(tuple(NOT_RUN)), f"{block}: nothing checks `{line}`"
        else:
            assert block.language == "text", f"{block}: nothing checks a block of {block.language}"


def run_console(block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the lines that start with a dollar; of every line shown below one, the first word must be in the output."""
    shown = ""
    for line in block.text.splitlines():
        if line.startswith("$ "):
            command, _, comment = line.partition("   #")
            expected = re.search(r"exit code (\d+)", comment)
            capsys.readouterr()
            code, redirected = run_command(command.removeprefix("$ "))
            printed = capsys.readouterr()
            shown = printed.out + printed.err + redirected
            assert code == (int(expected[1]) if expected else 0), f"{block}: {line}\n{shown}"
        elif line.strip() and not re.match(r"\s*\d", line):
            assert re.search(rf"(?m)^\s*{re.escape(line.split()[0])}", shown), f"{block}: no line like {line!r}"


def run_command(command: str) -> tuple[int, str]:
    """Exit code of a `luthier` command, and what it wrote to a file by `>`; `<` gives it a file to read."""
    words = shlex.split(command)
    assert words[0] == "luthier", f"only luthier's own commands are run: {command}"
    source = target = None
    if "<" in words:
        source = words.pop(words.index("<") + 1)
        words.remove("<")
    if ">" in words:
        target = words.pop(words.index(">") + 1)
        words.remove(">")
    written = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(Path(source).read_text() if source else ""))
        with contextlib.redirect_stdout(written) if target else contextlib.nullcontext():
            code = cli.main(words[1:])
    if target:
        Path(target).write_text(written.getvalue())
    return code, written.getvalue()


def parse_recipe(block: Block) -> None:
    Path("block.yaml").write_text(block.text)
    values, _, _ = yaml_reader.read_file(Path("block.yaml"))
    recipe, _ = read_recipe(values)
    assert recipe.resolved()


def check_diff(block: Block) -> None:
    """What a diff says is there is there."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "luthier").rglob("__init__.py"))
    for line in block.text.splitlines():
        assert line.startswith("+") or line[1:] in code, f"{block}: no longer so: {line}"


def test_commands_that_are_not_run_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in NOT_RUN:
        program, target = command.split()
        assert program != "make" or re.search(rf"^{target}:", makefile, re.MULTILINE), command


# ── Words that must exist ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_recipe_reference_is_what_the_code_says() -> None:
    written = between("recipe.md", "generated by python -m luthier.recipe.reference", "end of generated")
    assert written.strip() == recipe_reference.markdown().strip(), "python -m luthier.recipe.reference prints it"


def test_every_command_is_described() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in DOCS)
    missing = [name for name in sub_commands() if f"luthier {name}" not in text]
    assert not missing


def sub_commands() -> dict[str, Any]:
    (commands,) = (action for action in cli.build_parser()._actions if isinstance(action.choices, dict))
    return dict(commands.choices)


@page_ids
def test_commands_in_the_text_are_spelt_right(page: Path) -> None:
    for span in re.findall(r"`luthier ([^`]+)`", prose(page)):
        name, *given = shlex.split(span)
        assert name in sub_commands(), f"{page.name}: luthier {name}"
        if given and not given[0].startswith("-"):  # not just a command and its option
            cli.parse([name, *given])


@page_ids
def test_keys_in_the_text_exist(page: Path) -> None:
    keys = {".".join(path) for path in every_key(Recipe)}
    for span in re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)(?:[:=][^`]*)?`", prose(page)):
        if span.split(".")[0] in Recipe.model_fields and not span.endswith(
            (".csv", ".html", ".json", ".jsonl", ".safetensors")
        ):
            assert span in keys, f"{page.name}: there is no key `{span}`"


def every_key(kind: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, info in kind.model_fields.items():
        yield (*above, name)
        if deeper := recipe_reference.section_in(info.annotation):
            yield from every_key(deeper, (*above, name))


@page_ids
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("http://", "https://")):
            continue
        path, _, heading = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name}: {target} is not there"
        assert not heading or heading in headings(linked), f"{page.name}: {target} has no such heading"


def headings(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_index_names_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in DOCS if page.name != "README.md" and f"({page.name})" not in index] == []


@page_ids
def test_a_page_opens_by_saying_what_it_is_for(page: Path) -> None:
    title, _, opening, *_ = page.read_text(encoding="utf-8").splitlines()
    assert title.startswith("# ") and opening.strip().endswith((".", ","))


def first_column(table: str) -> set[str]:
    """The words in backticks of a table's first column."""
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    return {word for row in rows for word in re.findall(r"`([^`]+)`", row)}


def test_files_and_keys_that_the_tables_name(folder: Path) -> None:
    run = folder / "runs" / "reviews"
    verdict = json.loads((run / "verdict.json").read_text())
    facts = json.loads((run / "manifest.json").read_text())["data_facts"]
    files = {path.name + "/" * path.is_dir() for path in run.iterdir()}
    assert first_column(between("runs.md", "files of a run: checked against a real one", "end of files")) == files
    table = between("verdict.md", "keys of verdict.json: checked against a real one", "end of keys")
    assert first_column(table) == verdict.keys()
    (systems,) = (line for line in table.splitlines() if line.startswith("| `systems`"))
    assert set(re.findall(r"`(\w+)`", systems)) == {"systems", "value", "low", "high", *verdict["systems"][0]}
    (compared,) = (line for line in table.splitlines() if line.startswith("| `comparisons`"))
    assert set(re.findall(r"`(\w+)`", compared)) == {"comparisons", *verdict["comparisons"][0]}
    table = between("data.md", "keys of data_facts: checked against a real one", "end of keys")
    assert first_column(table) == facts.keys()
