"""A process that is killed at any step of preparation leaves nothing that the next one could take for whole."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked and killed by a signal")

DRIVER = """
import json, os, signal, sys, traceback
from pathlib import Path

import numpy, sklearn.linear_model, sklearn.feature_extraction.text, cleanlab.filter, ftfy, torch, peft
import luthier.planning.planner, luthier.planning.tokens, luthier.prepare.report, luthier.prepare.preparation
import luthier.models.load
import luthier.evaluate.baselines, luthier.data_commands.show, luthier.prepare.made_up.vetting
import luthier.prepare.mislabelled
from luthier.cli import main
from luthier.texts.languages import detector
from luthier.prepare.steps import STEPS, AddStep, RowStep, SetStep

detector()  # loaded once for all

def end():
    os.kill(os.getpid(), signal.SIGKILL)

def at_call(number, function):
    "The function, whose so-manieth call ends the process."
    calls = 0
    def counted(*args, **more):
        nonlocal calls
        calls += 1
        if calls == number:
            end()
        return function(*args, **more)
    return counted

def arm(moment):
    "Lets this process be killed in the middle of a step, or of what is after all steps."
    name, _, how = moment.partition(" ")
    if name == "none":
        return
    if name == "finish":
        luthier.prepare.preparation.Preparation.write_weights = at_call(1, None)
    elif name == "move":
        os.replace = at_call(1, os.replace)
    elif name == "report":
        luthier.prepare.report.write_lines = at_call(2, luthier.prepare.report.write_lines)
    elif name == "tokens":
        luthier.planning.tokens.RowWriter.add = at_call(3, luthier.planning.tokens.RowWriter.add)
    elif issubclass(step := STEPS[name], RowStep):
        begin = step.begin
        step.begin = lambda self, context: at_call(2, begin(self, context))
    elif issubclass(step, AddStep):
        add = step.add
        step.add = lambda self, rows, write, *more: add(self, rows, at_call(5, write), *more)
    else:
        examine = step.examine
        def killed(self, rows, advance):
            examine(self, rows, at_call(1, advance) if how == "inside" else advance)
            end()
        step.examine = killed

def run(moment, home, command):
    child = os.fork()
    if child == 0:
        os.environ["LUTHIER_HOME"] = home
        code = 1
        try:
            arm(moment)
            code = main(command) or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)

def content(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(Path(folder).rglob("*"))
        if file.is_file() and file.suffix != ".lock" and not any(part.startswith(".") for part in file.parts)
    }

def both(moment, recipe, place, tokens):
    "The report and, where tokens are made, a command that makes them; either may be killed."
    commands = [["data", "report", recipe, "--out", f"{place}/out"]]
    if tokens:
        commands.append(["data", "show", recipe])
    return [run(moment, f"{place}/home", command) for command in commands]

def check(recipe, moments):
    tokens = "tokens" in moments
    assert set(both("none", recipe, f"{recipe}-whole", tokens)) == {0}
    expected = content(f"{recipe}-whole/out") | content(f"{recipe}-whole/home/prepared")
    for number, moment in enumerate(moments):
        place = f"{recipe}-killed-{number}"
        codes = both(moment, recipe, place, tokens)
        assert -signal.SIGKILL in codes, (moment, codes)
        for name, said in (content(f"{place}/out") | content(f"{place}/home/prepared")).items():
            assert said == expected[name], (moment, name, "after the kill")
        assert set(both("none", recipe, place, tokens)) == {0}, moment
        found = content(f"{place}/out") | content(f"{place}/home/prepared")
        assert found.keys() == expected.keys(), (moment, found.keys() ^ expected.keys())
        for name in expected:
            assert found[name] == expected[name], (moment, name)
        print("same after", moment, flush=True)

for recipe, moments in json.loads(sys.argv[1]).items():
    check(recipe, moments)
"""

RECIPES = {
    """
prepare:
  clean: {html: true}
  keep: {least_words: 2}
  deduplicate: {within: drop}
  weigh: {classes: balanced}
  augment: {characters: {share: 0.1}, words: {share: 0.1}}
""": ("clean", "keep", "deduplicate after", "weigh after", "augment", "move", "report"),
    """
prepare:
  labels: {check: weight, folds: 2}
  target: {texts: target.jsonl, weigh: true}
""": ("labels after", "target inside"),
    """
prepare: {anonymise: {models: {en: null, es: null}, kinds: [email, phone], workers: 1}}
""": ("anonymise",),
    "": ("tokens",),
}
"""What follows the model and the data, and the moments of the kills."""


def rows(count: int, seed: int) -> list[dict[str, str]]:
    draw = random.Random(seed)
    words = {"good": ["fine", "great", "warm", "bright", "kind"], "bad": ["dull", "poor", "cold", "grey", "mean"]}
    shared = ["film", "plot", "cast", "scene", "story", "music", "ending", "was", "is", "feels", "rather", "so", "very"]
    made = []
    for number in range(count):
        label = ("good", "bad")[number % 2]
        text = " ".join(draw.choices(shared + words[label], k=draw.randrange(8, 16)))
        made.append({"text": f"{text} cafÃ© <b>{number}</b> a{number % 7}@b.com", "label": label})
    return [*made, *({**row, "text": f"{row['text']}!"} for row in made[::40]), {"text": "x", "label": "bad"}]


def write(path: Path, several: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in several))


def test_a_kill_at_any_step_changes_nothing(tmp_path: Path, tiny: Callable[..., Path]) -> None:
    """Every file of the report, of the clean examples and of the tokens is the same, bit for bit."""
    write(tmp_path / "rows.jsonl", rows(300, 0))
    write(tmp_path / "target.jsonl", rows(120, 1))
    asked = {}
    for number, (steps, moments) in enumerate(RECIPES.items()):
        recipe = f"r{number}.yaml"
        (tmp_path / recipe).write_text(f"model: {tiny('llama')}\ndata: rows.jsonl\ntask: classify\n{steps}")
        asked[recipe] = moments
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", DRIVER, json.dumps(asked)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-3000:]
    assert done.stdout.count("same after") == sum(map(len, RECIPES.values()))
