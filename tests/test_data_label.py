"""`luthier data label`: a teacher behind real HTTP or on this machine, and where each row goes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import luthier
from luthier.cli import main
from luthier.teachers.endpoint import shares_along
from tests.servers import ChatReply, chat_server, said

LABELS = ["negative", "positive", "neutral"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    rows = [{"review": f"a {('dull', 'warm', 'odd')[n % 3]} film {n}", "stars": n} for n in range(30)]
    rows += [{"review": "", "stars": 31}, {"review": ["a"], "stars": 32}]
    (tmp_path / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    return tmp_path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def with_tokens(text: str, tokens: Sequence[tuple[str, Mapping[str, float]]]) -> ChatReply:
    status, headers, value = said(text)
    value["choices"][0]["logprobs"] = {
        "content": [
            {
                "token": token,
                "logprob": math.log(others[token]),
                "top_logprobs": [{"token": each, "logprob": math.log(share)} for each, share in others.items()],
            }
            for token, others in tokens
        ]
    }
    return status, headers, value


def likely(body: dict[str, Any], number: int) -> ChatReply:
    text = body["messages"][-1]["content"]
    if "odd" in text:
        return said("I can't say")
    if "warm" in text:
        return with_tokens("positive", [("pos", {"pos": 0.9, "neg": 0.06, "ne": 0.04}), ("itive", {"itive": 1.0})])
    return with_tokens("Negative", [("Ne", {"Ne": 0.9, "pos": 0.1}), ("gative", {"gative": 0.6, "utral": 0.4})])


def label(url: str, *more: str) -> int:
    given = ["--labels", ",".join(LABELS), "--endpoint", url, "--name", "m", "--timeout", "0.5", *more]
    return main(["data", "label", "new.jsonl", "--text", "review", *given])


def test_log_probabilities_decide_where_a_row_goes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with chat_server(likely) as (url, asked):
        assert label(url, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        labelled, people, rest = (
            lines(folder / name) for name in ("new-labelled.jsonl", "for_people.jsonl", "not_labelled.jsonl")
        )
        assert [row["confidence"] for row in labelled] == [pytest.approx(0.9)] * 10
        assert {(row["label"], row["labelled_by"]) for row in labelled} == {("positive", "m")}
        assert labelled[0]["review"] == "a warm film 1" and labelled[0]["stars"] == 1
        assert {(row["guess"], row["confidence"]) for row in people} == {("negative", 0.54)} and len(people) == 10
        assert people[0]["text"] == "a dull film 0" and people[0]["place"] == "new.jsonl, line 1"
        reasons = Counter(row["reason"].partition(":")[0] for row in rest)
        assert reasons["the answer names no label, or several"] == 10 and len(rest) == 13
        assert [row["answer"] for row in rest if "answer" in row] == ["I can't say"] * 10
        assert len(labelled) + len(people) + len(rest) == 33 == sum(told["files"].values())
        assert len(asked) == 30 and asked[0]["logprobs"] is True and "key" in asked[0] and asked[0]["key"] is None
        assert label(url) == 2 and "is there already" in capsys.readouterr().err
        assert label(url, "--out", "again/all.jsonl", "--sure", "0.5") == 0
        assert len(asked) == 30 and len(lines(folder / "again" / "all.jsonl")) == 20


def test_agreement_of_samples_and_true_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"{('dull', 'warm')[n % 2]} {n}", "label": LABELS[n % 2]} for n in range(12)]
    (folder / "new.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def answer(body: dict[str, Any], number: int) -> ChatReply:
        if "logprobs" in body:
            return 400, {}, b"logprobs is not known here"
        unsure = "dull" in body["messages"][-1]["content"] and body.get("seed", 0) > 3
        return said("positive" if unsure or "warm" in body["messages"][-1]["content"] else "negative")

    with chat_server(answer) as (url, _):
        given = ["--labels", "negative,positive", "--endpoint", url, "--name", "m", "--truth", "label"]
        assert main(["data", "label", "new.jsonl", *given]) == 0
    printed = capsys.readouterr().out
    labelled, people = lines(folder / "new-labelled.jsonl"), lines(folder / "for_people.jsonl")
    assert {(row["label"], row["true_label"], row["confidence"]) for row in labelled} == {("positive", "positive", 1)}
    assert {(row["guess"], row["confidence"]) for row in people} == {("negative", 0.6)}
    assert "--sure 0.8  labels  50.0% of the rows, 100.0% of them right" in printed


def test_failures_are_kept_aside_and_asked_again_by_the_next_start(folder: Path) -> None:
    import time

    mended = False

    def answer(body: dict[str, Any], number: int) -> ChatReply:
        text = body["messages"][-1]["content"]
        if not mended and text.endswith("film 1"):
            time.sleep(1)  # longer than it is waited for
        if not mended and text.endswith("film 4"):
            return 200, {}, b"\xff nonsense"
        if not mended and text.endswith("film 7") and number % 3:
            return 502, {}, b"busy"
        return likely(body, number)

    with chat_server(answer) as (url, asked):
        assert label(url) == 0
        first = len(asked)
        reasons = [row["reason"] for row in lines(folder / "not_labelled.jsonl") if "film" in str(row["row"])]
        assert sum("no answer within 0.5 s (tried 5 times)" in reason for reason in reasons) == 1
        assert sum("something else than a chat completion" in reason for reason in reasons) == 1
        mended = True
        assert label(url, "--out", "again.d/all.jsonl") == 0
        assert len(asked) - first <= 3
    assert len(lines(folder / "again.d" / "all.jsonl")) == 10


def test_a_kill_loses_no_answer(folder: Path) -> None:
    running: list[subprocess.Popen[bytes]] = []

    def answer(body: dict[str, Any], number: int) -> ChatReply:
        if number == 20:
            running[0].kill()
        return likely(body, number)

    with chat_server(answer) as (url, asked):
        given = ["--labels", ",".join(LABELS), "--endpoint", url, "--name", "m", "--parallel", "1", "--text", "review"]
        environment = {**os.environ, "PYTHONPATH": str(Path(luthier.__file__).parent.parent)}
        command = [sys.executable, "-m", "luthier", "data", "label", "new.jsonl", *given]
        running.append(subprocess.Popen(command, env=environment))
        assert running[0].wait() != 0
        assert not (folder / "new-labelled.jsonl").exists() and len(asked) == 21
        assert label(url) == 0
        assert len(asked) <= 21 + 11
    assert len(lines(folder / "new-labelled.jsonl")) == 10


def test_what_is_wrong_is_said_before_anything_is_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def failed(*arguments: str) -> str:
        assert main(["data", "label", "new.jsonl", *arguments]) == 2
        return capsys.readouterr().err

    there = ("--endpoint", "http://127.0.0.1:9/v1", "--name", "m", "--text", "review")
    assert "two or more labels" in failed("--labels", "a", *there)
    assert "no share from 0 to 1" in failed("--labels", "a,b", "--sure", "80", *there)
    assert "needs the name of a model" in failed("--labels", "a,b", "--endpoint", "http://x/v1")
    assert "no http address" in failed("--labels", "a,b", "--endpoint", "x", "--name", "m")
    assert "no column 'stars2'" in failed("--labels", "a,b", *there, "--truth", "stars2")
    assert "no column" in failed("--labels", "a,b", *there[:4], "--text", "reviews")
    (folder / "shown.jsonl").write_text('{"text": "x", "label": "c"}\n{"text": "y", "label": "b"}\n')
    assert "other labels: c" in failed("--labels", "a,b", *there, "--examples", "shown.jsonl")
    assert not (folder / "new-labelled.jsonl").exists()


def test_a_model_on_this_machine(folder: Path, tiny: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "shown.jsonl").write_text('{"text": "fun", "label": "positive"}\n{"text": "bad", "label": "negative"}\n')
    given = ["--labels", "negative,positive", "--model", str(tiny("llama")), "--text", "review", "--sure", "0.5"]
    assert main(["data", "label", "new.jsonl", *given, "--examples", "shown.jsonl"]) == 0
    labelled = lines(folder / "new-labelled.jsonl")
    assert len(labelled) == 30 and all(0.5 <= row["confidence"] <= 1 for row in labelled)
    assert main(["data", "label", "new.jsonl", *given, "--examples", "shown.jsonl", "--out", "b/b.jsonl"]) == 0
    assert lines(folder / "b" / "b.jsonl") == labelled


def test_texts_are_judged_alike_alone_and_together(folder: Path, tiny: Callable[..., Path]) -> None:
    from luthier.endpoint.replies import Replies
    from luthier.teachers.base import Wording
    from luthier.teachers.model import open_model

    texts = ["a warm film", "dull, lifeless and far too long", "fun"]
    for examples in ([], [("two hours of waste and nothing else to be said of it", "no")] * 6):
        wording = Wording(["no", "yes indeed"], examples=examples)
        with Replies() as replies, open_model(str(tiny("llama")), replies, "teacher") as teacher:
            together = teacher.judged(texts, wording)
            alone = [teacher.judged([text], wording)[0] for text in texts]
        assert [each.shares for each in together] == [pytest.approx(each.shares, abs=0.02) for each in alone]


@given(
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=2, max_size=5, unique=True),
    st.data(),
)
def test_shares_along_an_answer_are_those_of_its_tree(labels: list[str], data: st.DataObject) -> None:
    """Letter by letter: the answer's share is the product along its path, and what leaves it is shared out."""
    weights = data.draw(st.lists(st.floats(0.05, 1), min_size=len(labels), max_size=len(labels)))
    exact = {label: weight / sum(weights) for label, weight in zip(labels, weights, strict=True)}
    answer = data.draw(st.sampled_from(labels))
    tokens, said_so_far = [], ""
    for letter in answer:
        open_now = {label: share for label, share in exact.items() if label.startswith(said_so_far)}
        nexts: Counter[str] = Counter()
        for name, share in open_now.items():
            if len(name) > len(said_so_far):
                nexts[name[len(said_so_far)]] += share / sum(open_now.values())
        tokens.append((letter, {each: math.log(share) for each, share in nexts.items()}))
        said_so_far += letter
    found = shares_along(tokens, labels)
    assume(not any(one != other and one.startswith(other) for one in labels for other in labels))
    assert found is not None and found[answer] == pytest.approx(exact[answer])
    for label in labels:  # labels that leave the answer together share what was left there
        left = next((n for n in range(len(answer)) if label[n : n + 1] != answer[n]), len(answer))
        together = [each for each in labels if each[: left + 1] == label[: left + 1]]
        assert sum(found[each] for each in together) == pytest.approx(sum(exact[each] for each in together))
