"""The judge, asked over HTTP on loopback: preferences, place favourites, replies outside the form, failures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.evaluate.examinations.judge import Judge, found, verdict
from luthier.planning.planner import prepare
from luthier.records import Prediction
from tests.servers import ChatReply, chat_server, said
from tests.tasks.runs import whole_run

Reply = Callable[[str, str], str]


@contextlib.contextmanager
def judging(reply: Reply, status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A chat endpoint whose reply depends on answers A and B; its address, and every request's body and key."""

    def answer(body: dict[str, Any], number: int) -> ChatReply:
        first, _, second = body["messages"][1]["content"].partition("Answer A:\n")[2].partition("\n\nAnswer B:\n")
        return status, {}, said(reply(first, second), usage=False)[2]

    with chat_server(answer) as served:
        yield served


def pairs(count: int = 40) -> list[tuple[Prediction, Prediction]]:
    """Answers of two lengths: the tuned one is longer in three rows of four."""
    made = []
    for n in range(count):
        long, short = f"a long answer {n}", f"no {n}"
        tuned, base = (long, short) if n % 4 else (short, long)
        made.append((Prediction(str(n), "right", tuned, f"asked {n}"), Prediction(str(n), "right", base, f"asked {n}")))
    return made


def asked(reply: Reply, status: int = 200, **settings: Any) -> Any:
    with judging(reply, status) as (url, requests):
        judge = Judge(url=url, model="wise", key_variable=None, wait_seconds=0.01, retries=1, **settings)
        return found(judge.compare(pairs(), lambda done: None), "wise", 500, 0), requests


def longer(first: str, second: str) -> str:
    return "A" if len(first) > len(second) else "B"


def test_a_judge_with_a_taste() -> None:
    finding, requests = asked(longer)
    rate, agreement = finding.figures["judge_win_rate"], finding.figures["judge_agreement"]
    assert rate.value == 0.75 and 0.5 < rate.low < 0.75 < rate.high < 1
    assert agreement.value == 1
    assert "prefers the tuned model's answers" in finding.sentence and len(requests) == 80
    assert requests[0]["model"] == "wise" and requests[0]["temperature"] == 0


def test_a_judge_that_always_takes_the_first_says_nothing() -> None:
    finding, _ = asked(lambda first, second: "A")
    assert finding.figures["judge_win_rate"].value == 0.5 and finding.figures["judge_agreement"].value == 0
    assert "no clear preference" in finding.sentence and "little agreement" in finding.sentence
    assert ["whichever comes first", "40", "100.0%"] in finding.blocks[0].rows


def test_replies_outside_the_form_are_counted_and_left_out() -> None:
    finding, _ = asked(lambda first, second: "I can't say." if "1" in first else longer(first, second))
    outside = sum("1" in str(n) for n in range(40))
    assert finding.details["outside"] == outside and f"{outside} of 40 rows" in finding.sentence
    nothing, _ = asked(lambda first, second: "Both are fine, A perhaps")
    assert "no verdict" in nothing.sentence and not nothing.figures


FORMS = {"A": "tuned", " b.": "base", "**A**": "tuned", "Tie": "tie", "T": "tie", "Answer B": "base"}


@pytest.mark.parametrize(
    ("reply", "expected"), [*FORMS.items(), ("", None), ("AB", None), ("A is better than B", None)]
)
def test_forms_of_replies(reply: str, expected: str | None) -> None:
    assert verdict(reply, True) == expected
    swapped = {"tuned": "base", "base": "tuned"}.get(expected or "", expected)
    assert verdict(reply, False) == swapped


def test_a_whole_run_is_judged_and_one_whose_judge_fails_still_ends(
    tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret")
    rows = [{"prompt": f"count {n}", "completion": f"the count is {n}"} for n in range(60)]
    with judging(longer) as (url, requests):
        judge = {"url": url, "model": "wise", "key_variable": "JUDGE_KEY", "test_rows": 5}
        evaluate = {"judge": judge, "baselines": [], "metrics": ["token_f1"]}
        run = whole_run(tmp_path, tiny("llama"), "generate", rows, evaluate=evaluate, selection="full")
    finding = run.verdict["findings"]["judge"]
    assert "wise" in finding["sentence"] and {each["key"] for each in requests} <= {"Bearer secret"}
    assert len((run.folder / "judge.jsonl").read_text().splitlines()) == 5
    assert "secret" not in "".join(file.read_text() for file in run.folder.glob("*.json*"))
    with judging(longer, status=401) as (url, _):
        again = run.evaluate([f"evaluate.judge.url={url}"])
    sentence = again["findings"]["judge"]["sentence"]
    assert "gave no verdict" in sentence and "401" in sentence


def test_what_cannot_work_is_told_before_any_model_is_loaded(tiny: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"prompt": "p{n}", "completion": "c"}}\n' for n in range(40)))
    judge = {"url": "localhost:1", "model": "wise", "key_variable": "NOT_SET_ANYWHERE"}
    recipe = {"model": str(tiny("llama")), "data": str(tmp_path / "rows.jsonl"), "task": "generate"}
    with pytest.raises(UserError) as told:
        prepare(recipe | {"evaluate": {"judge": judge}})
    assert "no http address" in str(told.value) and "NOT_SET_ANYWHERE is not set" in str(told.value)
