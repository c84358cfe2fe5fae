"""Metrics that a recipe brings: plain functions, a checker, an embedding model; and the columns that metrics need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from luthier.errors import UserError
from luthier.evaluate.metrics import bring, metric_named, score
from luthier.planning.planner import prepare
from luthier.records import Prediction
from tests.tasks.runs import systems, whole_run

FUNCTIONS = '''
def length_error(predicted, expected, fields):
    """how many characters answers are off in length"""
    return abs(len(predicted) - len(expected)) + 0 * len(fields["references"])

length_error.higher_is_better = False

def short(predicted, expected, fields) -> bool:
    return len(predicted) < 3

def broken(predicted, expected, fields):
    return 1 / 0

def text(predicted, expected, fields):
    return "good"

def accuracy(predicted, expected, fields):
    return 1
'''


@pytest.fixture
def functions(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(FUNCTIONS)
    return tmp_path


def rows() -> list[Prediction]:
    pairs = [("warm", "war"), ("dull", "dull film"), ("a", "b")]
    return [Prediction(str(n), a, b, "", fields={"references": []}) for n, (a, b) in enumerate(pairs)]


def test_a_plain_function_is_a_metric(functions: Path) -> None:
    assert bring(["mine.py:length_error", "mine.py:short", "token_f1"], None, functions) == [
        "length_error",
        "short",
        "token_f1",
    ]
    metric = metric_named("length_error")
    assert score(rows(), "length_error") == 2 and not metric.higher_is_better and not metric.percent
    assert metric.description.startswith("how many characters")
    checker = metric_named("short")
    assert score(rows(), "short") == pytest.approx(1 / 3) and checker.right_or_wrong and checker.percent


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.py:lenght_error", "did you mean 'length_error'"),
        ("yours.py:length_error", "no such file"),
        ("mine.py:accuracy", "called like another metric"),
    ],
)
def test_a_function_that_is_not_there_is_told(functions: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bring([name], None, functions)


def test_a_function_that_fails_is_told_with_its_row(functions: Path) -> None:
    bring(["mine.py:broken", "mine.py:text"], None, functions)
    with pytest.raises(UserError, match="raised ZeroDivisionError"):
        score(rows(), "broken")
    with pytest.raises(UserError, match="gave 'good' where a finite number"):
        score(rows(), "text")


def test_embedding_similarity_is_the_cosine_of_the_nearest_reference(tiny: Callable[..., Path]) -> None:
    from luthier.evaluate.lookup import embed, load_embedder

    bring(["embedding_similarity"], str(tiny("bert")), Path())
    same = Prediction("a", "a warm film", "a warm film", "")
    other = Prediction("b", "a warm film", "two hours", "", fields={"references": ["dull plot"]})
    vectors = embed(load_embedder(str(tiny("bert")), Path()), ["a warm film", "two hours", "dull plot"])
    nearest = max(vectors[1] @ vectors[0], vectors[1] @ vectors[2])
    assert score([same], "embedding_similarity") == pytest.approx(1, abs=1e-5)
    assert score([other], "embedding_similarity") == pytest.approx(float(nearest), abs=1e-5)
    bring([], None, Path())


def test_a_whole_run_with_several_references_and_concepts(
    tiny: Callable[..., Path], functions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(functions)
    data = [
        {
            "concepts": ["film", f"plot {number}"],
            "target": f"the film has plot {number}",
            "references": [f"the film has plot {number}", f"plot {number} of a film"],
        }
        for number in range(60)
    ]
    columns = {"prompt": "concepts", "completion": "target"}
    names = ["mine.py:length_error", "mine.py:short", "concept_coverage", "bleu", "chrf", "rouge_l"]
    evaluate = {"metrics": names, "baselines": ["zero_shot"]}
    run = whole_run(
        functions, tiny("llama"), "generate", data, data={"columns": columns}, evaluate=evaluate, selection="full"
    )
    measured = systems(run)
    for system in ("tuned", "zero_shot"):
        assert measured[system].keys() == {"length_error", "short", *names[2:]}
        assert all(np.isfinite(list(measured[system].values())))
    tests = {row["metric"]: row["test"] for row in run.verdict["comparisons"]}
    assert tests["short"] == "McNemar, exact" and tests["length_error"] == "paired bootstrap"
    recipe = {"model": str(tiny("llama")), "data": str(functions / "rows.jsonl"), "task": "generate"}
    recipe["data"] = {"source": str(functions / "plain.jsonl")}
    (functions / "plain.jsonl").write_text(
        '{"prompt": "a", "completion": "b"}\n' * 3
        + "".join(f'{{"prompt": "p{n}", "completion": "c{n}"}}\n' for n in range(40))
    )
    with pytest.raises(UserError) as told:
        prepare(recipe | {"evaluate": {"metrics": ["concept_coverage", "embedding_similarity"]}})
    assert "needs a column `concepts`" in str(told.value) and "needs an embedding model" in str(told.value)
