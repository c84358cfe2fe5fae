"""The command line: what each command prints, how fast help is, and what a program that reads it gets.

One tiny classifier and one tiny writer are trained for all tests.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.chat import Conversation
from luthier.cli import main
from luthier.engine.generate import GREEDY
from luthier.errors import Problem, UserError, nearest
from luthier.planning.planner import prepare
from luthier.runs.run import Run
from luthier.storage.files import read_json
from luthier.version import __version__

COMMANDS = ("init", "check", "lr", "train", "evaluate", "chat", "runs", "merge", "schema")


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, **options)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> Path:
    """A folder with data and two recipes."""
    home = tmp_path_factory.mktemp("home")
    rows = [{"text": f"film {i} was {('dull', 'fun')[i % 2]}", "label": ("bad", "good")[i % 2]} for i in range(60)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    pairs = [{"prompt": f"what is {i}?", "completion": "a film"} for i in range(40)]
    (home / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    common = f"model: {{path: {tiny('llama')}, dtype: float32, device: cpu}}\n"
    train = (
        "train: {max_steps: 4, validate_every: 2, validation_rows: 4, validation_new_tokens: 4, learning_rate: 1e-2}\n"
    )
    judge = "evaluate: {baselines: [BASELINE], resamples: 200, max_new_tokens: 6}\n"
    (home / "labels.yaml").write_text(
        f"{common}data: {home}/rows.jsonl\ntask: classify\n{train}{judge.replace('BASELINE', 'majority')}"
    )
    (home / "writer.yaml").write_text(
        f"{common}data: {home}/pairs.jsonl\ntask: generate\n{train}{judge.replace('BASELINE', 'zero_shot')}"
    )
    return home


@pytest.fixture(scope="module")
def labels(home: Path) -> Path:
    """A finished run of a classifier."""
    assert main(["train", str(home / "labels.yaml"), "--out", str(home / "runs" / "labels")]) == 0
    return home / "runs" / "labels"


@pytest.fixture(scope="module")
def writer(home: Path) -> Path:
    """A finished run of a model that writes."""
    arguments = ["train", str(home / "writer.yaml"), "--out", str(home / "runs" / "writer")]
    assert main([*arguments, "train.max_length=64"]) == 0  # an override after an option
    return home / "runs" / "writer"


# ── Without torch ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    script = (
        "import sys, time; started = time.perf_counter()\n"
        "from luthier.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'transformers', 'pydantic', 'yaml'} & sys.modules.keys()\n"
        "print(f'{time.perf_counter() - started} {sorted(heavy)}')\n"
    )
    for arguments in (["--help"], ["train", "--help"], ["--version"]):
        said = python("-c", script, *arguments).stdout.splitlines()
        seconds, _, heavy = said[-1].partition(" ")
        assert float(seconds) < 0.5 and heavy == "[]", said[-1]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    said = capsys.readouterr().out
    assert caught.value.code == 0 and all(f"    {command} " in said for command in COMMANDS)
    with pytest.raises(SystemExit):
        main([])
    assert "usage: luthier" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"luthier {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["trian"], "unknown command 'trian'\n    mend: did you mean 'train'?"),
        (["fly"], "use one of: chat, check"),
        (["check"], "the following arguments are required: recipe"),
        (["train", "r.yaml", "--num-train-epochs", "3"], "mend: settings are written without dashes: train.epochs=3"),
        (["train", "r.yaml", "--lora_r=8"], "mend: settings are written without dashes: selection.lora.rank=8"),
        (["check", "r.yaml", "--seed", "1"], "mend: settings are written without dashes: seed=1"),
        (["train", "r.yaml", "--epochs", "--lr", "3"], "mend: settings are written without dashes: train.epochs=..."),
        (["train", "r.yaml", "--epoch=1"], "; settings are written without dashes, such as train.epochs=3"),
        (["runs", "--jsn"], "unknown argument '--jsn'\n    mend: did you mean '--json'?"),
        (["chat", "run", "--seed", "x"], "invalid int value: 'x'"),
        (["runs", "a", "b", "c"], "two runs can be compared"),
        (["runs", "nowhere"], "nowhere: no such folder"),
        (["chat", "nowhere"], "nowhere: is not a run folder"),
        (["merge", "nowhere", "out"], "nowhere: is not a run folder"),
        (["evaluate", "nowhere"], "nowhere: is not a run folder"),
        (["train", "--resume", "nowhere"], "nowhere: is not a run folder"),
        (["init"], "no data file is given"),
    ],
)
def test_mistakes_exit_with_2_and_a_mend(
    arguments: list[str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and expected in said.err and "mend: " in said.err, said.err
    assert not list(tmp_path.iterdir())


def test_problems_are_worded_in_one_way() -> None:
    problem = Problem("no such file", "data.csv", "did you mean 'date.csv'?")
    assert str(problem) == "data.csv: no such file\n    mend: did you mean 'date.csv'?"
    assert str(UserError([problem, Problem("it broke")])) == f"{problem}\nit broke"
    assert nearest("lorra", ["lora", "full"]) == "did you mean 'lora'?"
    assert nearest("xyz", ["lora", "full"]) == "use one of: full, lora" and nearest("x", []) == ""


def test_schema_is_json_and_a_closed_pipe_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "Luthier recipe"
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-m", "luthier", "schema"], stdout=write, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(write)
    assert process.stderr == "" and process.returncode == 0


# ── check ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_check_as_text(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(home / "labels.yaml")]) == 0
    said = capsys.readouterr().out
    rows = said.split("rows       train ")[1]
    for part in (
        "model ",
        "window 256",
        "learns     lora",
        "bad ",
        "good ",
        "█",
        "1 exact copies",
        "of training, 4 steps",
    ):
        assert part in said, part
    assert "validation" in rows and "no rows at max_length 256" in said


def test_check_as_json(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = ["check", str(home / "labels.yaml"), "--json", "train.max_length=6", "num_train_epochs=2"]
    assert main(cut) == 2
    assert "rows of train lose text to max_length (6 tokens)" in capsys.readouterr().err
    assert main([*cut, "train.most_truncated=1"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert said.err == ""
    assert found["max_length"] == 6 and sum(found["truncated_rows"].values()) == sum(found["rows"].values()) == 60
    assert sum(count for _, _, count in found["tokens"]["histogram"]) == found["rows"]["train"]
    assert found["warnings"] == ["num_train_epochs is called train.epochs here"]
    assert found["memory_suffices"] and found["training_seconds"] >= 0 and found["data"]["duplicates_dropped"] == 1


# ── train, evaluate, runs ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_run_folder_is_complete(labels: Path) -> None:
    names = {path.name for path in labels.iterdir()}
    assert names == {
        *("recipe.yaml", "resolved.json", "manifest.json", "metrics.jsonl", "model"),
        *("verdict.json", "predictions.jsonl", "errors.jsonl", "report.html", "README.md"),
        *("data.html", "data.json", "kept_aside.jsonl", "near_copies.jsonl"),
    }
    manifest = read_json(labels / "manifest.json")
    assert manifest["status"] == "complete" and manifest["seconds"] > 0 and manifest["learned"]["tensors_learned"] > 0
    assert {"train", "validation", "test"} == manifest["data"].keys()


def test_the_default_folder_is_the_next_free_one(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from luthier.runs.run import create_run

    monkeypatch.chdir(tmp_path)
    assert [str(create_run(None, "demo", "", {}).folder) for _ in range(2)] == ["runs/demo-1", "runs/demo-2"]


def test_a_run_that_fails_before_its_first_step_leaves_nothing(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    arguments = ["train", str(home / "labels.yaml"), "--out", str(out), "selection.lora.targets=[q_pro]"]
    assert main(arguments) == 2
    assert "did you mean 'q_proj'?" in capsys.readouterr().err and not out.exists()


def test_plain_lines_when_not_a_terminal(home: Path, labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(labels)]) == 0  # complete: its verdict is shown again
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert "majority class" in said.out and f"report: {labels}/report.html" in said.out


def test_auto_resume_takes_the_run_that_is_there(home: Path, labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", str(home / "labels.yaml"), "--out", str(labels), "--auto-resume"]
    assert main(arguments) == 0
    assert main([*arguments, "seed=5"]) == 2
    assert "is complete, and was made with another recipe" in capsys.readouterr().err


def test_progress_in_a_log_and_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier import terminal

    monkeypatch.setattr(terminal, "LINE_EVERY", 0.0)
    monkeypatch.setattr(terminal, "QUICK", 0.0)
    with terminal.PlainLines().stage("training", 2000) as tell:
        tell(1000, "loss [0.1]")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("training: 1,000 of 2,000, loss [0.1], ") and lines[0].endswith(" left")
    assert lines[1] == "training: done in 0.0s (loss [0.1])"
    with terminal.Terminal().stage("training [x]", 20) as tell:
        tell(10, "loss [0.1]")
    assert "training [x]: done in 0.0s (loss [0.1])" in capsys.readouterr().err


def test_verdict_as_json(labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(labels), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == read_json(labels / "verdict.json")


def test_evaluate_again(labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in labels.rglob("*") if path.is_file()}
    out = tmp_path / "again"
    assert main(["evaluate", str(labels), "--out", str(out), "--json", "evaluate.resamples=300"]) == 0
    verdict = json.loads(capsys.readouterr().out)
    first = read_json(labels / "verdict.json")
    assert verdict["systems"][0]["metrics"]["accuracy"]["value"] == first["systems"][0]["metrics"]["accuracy"]["value"]
    made = {"verdict.json", "predictions.jsonl", "errors.jsonl", "report.html", "README.md"}
    assert {path.name for path in out.iterdir()} == made
    assert (out / "predictions.jsonl").read_bytes() == (labels / "predictions.jsonl").read_bytes()
    assert {path: path.read_bytes() for path in labels.rglob("*") if path.is_file()} == before
    for arguments, expected in (
        ([str(labels), "train.epochs=3"], "would judge something else"),
        ([str(labels), "data.test_fraction=0.5"], "together with --out FOLDER"),
        ([str(labels), "--out", str(labels.parent.parent)], "holds other files"),
    ):
        assert main(["evaluate", *arguments]) == 2
        assert expected in capsys.readouterr().err


def test_runs_are_listed(labels: Path, writer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(labels.parent)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["run", "status", "task"] and len(lines) == 3
    assert "labels  complete  classify" in lines[1] and "lora" in lines[1] and "accuracy" in lines[1]
    assert main(["runs", str(labels), "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)
    assert line["run"] == str(labels) and line["metric"] == "accuracy" and 0 <= line["value"] <= 1


def test_no_runs_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == "no runs in runs/\n"


def test_two_runs_are_compared(labels: Path, writer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(labels), str(writer)]) == 0
    said = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line}
    assert lines["task"] == ["classify", "generate"] and lines["train.max_length"] == ["-", "64"]
    assert lines["exact_match"][0] == "-" and "different test rows" in said
    assert main(["runs", str(labels), str(labels), "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert compared["settings"] == {} and compared["same_test_rows"]
    assert compared["metrics"]["accuracy"][0] == compared["metrics"]["accuracy"][1]


# ── chat and merge ───────────────────────────────────────────────────────────────────────────────────────────────────


def chat(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["chat", *arguments]) == 0
    return capsys.readouterr().out


def test_chat_labels_with_the_prompt_of_training(labels: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = prepare(labels / "resolved.json")
    example, row = prepared.data.splits["train"][0], prepared.tokenised["train"].rows[0]
    message = example.fields["text"]
    answer = json.loads(chat(capsys, str(labels), "-m", message, "--json", "--show-prompt"))
    assert answer["prompt_tokens"] == list(row.tokens)
    assert answer["answer"] in ("bad", "good") and set(answer["probabilities"]) == {"bad", "good"}
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    said = chat(capsys, str(labels), "-m", message, "--show-prompt")
    share = max(answer["probabilities"].values())
    assert said == f"{answer['answer']} ({share:.0%})\nprompt tokens: {list(row.tokens)}\n"


def test_chat_writes_with_the_prompt_of_training(writer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = prepare(writer / "resolved.json")
    example, row = prepared.data.splits["train"][0], prepared.tokenised["train"].rows[0]
    message = example.fields["messages"][0]["content"]
    said = chat(capsys, str(writer), "-m", message, "--json", "--show-prompt", "--max-new-tokens", "5")
    answer = json.loads(said)
    learned = next(index for index, weight in enumerate(row.token_streams["weight"]) if weight)
    assert answer["prompt_tokens"] == list(row.tokens[:learned]) and "probabilities" not in answer
    assert chat(capsys, str(writer), "-m", message, "--max-new-tokens", "5") == f"{answer['answer']}\n"
    arguments = [str(writer), "-m", message, "--temperature", "1", "--top-p", "0.9", "--seed", "3"]
    assert chat(capsys, *arguments, "--json") == chat(capsys, *arguments, "--json")


def test_chat_labels_lines_of_a_pipe(
    labels: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("a fun film\n\na dull film\n/exit\nnever read\n"))
    answers = [json.loads(line) for line in chat(capsys, str(labels), "--json").splitlines()]
    assert len(answers) == 2 and all(answer["answer"] in ("bad", "good") for answer in answers)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-m", " "], "the message is empty"),
        (["-m", "hi", "--temperature", "-1"], "--temperature: -1 is below 0"),
        (["-m", "hi", "--top-p", "0", "--max-new-tokens", "0"], "--max-new-tokens: 0 is below 1"),
        (["-m", "what is it? " * 300], "the model's window is 256"),
    ],
)
def test_chat_refuses(writer: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(writer), *arguments]) == 2
    assert expected in capsys.readouterr().err


def test_a_dialogue_remembers_and_forgets(writer: Path) -> None:
    conversation = Conversation(Run.open(writer).load(), GREEDY, 3)
    assert "/new" in conversation.greeting
    first = conversation.answer("what is 1?").prompt_tokens
    assert conversation.answer("what is 1?").prompt_tokens == first, "task generate takes each message by itself"
    conversation.forget()
    assert not conversation.messages


def test_merged_weights_load_anywhere(labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    import transformers

    out = tmp_path / "merged"
    assert main(["merge", str(labels), str(out)]) == 0
    assert capsys.readouterr().out == f"written: {out}\n"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    answer = json.loads(chat(capsys, str(labels), "-m", "a fun film", "--json"))
    with torch.inference_mode():
        logits = model(**tokenizer("a fun film", return_tensors="pt")).logits[0]
    names = [model.config.id2label[index] for index in range(2)]
    expected = [answer["probabilities"][name] for name in names]
    assert torch.allclose(logits.softmax(-1), torch.tensor(expected), atol=1e-4)
    assert main(["merge", str(labels), str(out)]) == 2
    assert "already exists" in capsys.readouterr().err


def test_python_says_the_same(home: Path, labels: Path) -> None:
    import luthier

    written = {file: file.stat().st_mtime_ns for file in labels.rglob("*")}
    run = luthier.train(resume=labels)
    assert isinstance(run, luthier.Run) and run.verdict == read_json(labels / "verdict.json")
    now = {file: file.stat().st_mtime_ns for file in labels.rglob("*")}
    assert now == written, "a complete run is read, not made again"
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        luthier.trian  # noqa: B018
