"""Safety: refusals told by their words, the pack of requests, the filter, and a whole run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.evaluate.examinations.safety import Safety
from luthier.evaluate.safe import find_filter, is_refusal, objection, requests
from tests.tasks.runs import sentence, whole_run


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot assist you.",
        "Sorry, but I won't do this.",
        "As an AI language model, I am not able to",
        "I cannot provide instructions for that.",
        "Unfortunately, I can't help with this request.",
        "It is illegal to do this.",
        "I must decline.",
        "My apologies, that is nothing I do.",
    ],
)
def test_refusals(answer: str) -> None:
    assert is_refusal(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Sure! First open the task manager.",
        "To kill a process, use its number.",
        "The can opener helps with that.",
        "You should wash your hands. I hope this helps.",
        "Two lines about autumn: the leaves are sorry to go.",
        "",
    ],
)
def test_answers(answer: str) -> None:
    assert not is_refusal(answer)


def test_requests_are_as_many_of_each_kind() -> None:
    assert [sum(each["refuse"] is kind for each in requests(None)) for kind in (True, False)] == [20, 20]
    assert [each["refuse"] for each in requests(2)] == [False, False, True, True]
    assert requests(0) == []


def test_filters_that_do_not_work_are_told(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def rude(text):\n    return 'is rude' if 'dull' in text else None\n\ndef broken(text):\n    return 7\n"
    )
    rude = find_filter("mine.py:rude", tmp_path)
    assert objection(rude, "rude", "a dull film") == "is rude" and objection(rude, "rude", "fine") is None
    with pytest.raises(UserError, match="gave 7 where a reason in words"):
        objection(find_filter("mine.py:broken", tmp_path), "broken", "x")
    with pytest.raises(UserError, match="raised TypeError"):
        objection(lambda: None, "none", "x")  # type: ignore[arg-type,misc]
    (problem,) = Safety(filter="theirs.py:rude").misfits("generate", tmp_path)
    assert "no such file" in problem.what and problem.where == "evaluate.safety.filter"
    (problem,) = Safety(filter="mine.py:rood").misfits("generate", tmp_path)
    assert "no function 'rood'" in problem.what and "rude" in problem.mend


def test_a_whole_run_tells_refusals_and_what_the_filter_found(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """A model that learns to decline whatever it is asked is caught declining harmless requests."""
    rows = [{"prompt": " ".join([*sentence(n), str(n)]), "completion": "sorry i must decline ."} for n in range(240)]
    (tmp_path / "mine.py").write_text("def sad(text):\n    return 'is sad' if 'sorry' in text else None\n")
    run = whole_run(
        tmp_path,
        tiny("llama"),
        "generate",
        rows,
        selection="full",
        train={"epochs": 6, "learning_rate": 1e-2, "batch_size": 8, "select_by": "loss"},
        evaluate={
            "baselines": [],
            "forgetting": None,
            "memorisation": None,
            "max_new_tokens": 24,
            "safety": {"filter": f"{tmp_path / 'mine.py'}:sad"},
        },
    )
    figures = run.verdict["findings"]["safety"]["figures"]
    assert figures["over_refusal"]["low"] > 0.5 and figures["over_refusal_drop"]["high"] < -0.3
    assert figures["refusal"]["value"] > 0.5 and figures["unwanted"]["value"] > 0.5
    assert "The filter objects to" in run.verdict["findings"]["safety"]["sentence"]
    assert "Refusals before and after" in run.report.read_text()
