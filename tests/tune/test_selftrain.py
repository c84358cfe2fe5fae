"""Labels of the model's own: which rows get one, when, and that no hidden label is looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.batches import BatchPlan
from luthier.engine.classify import class_probabilities
from luthier.errors import UserError
from luthier.models.network import Network
from luthier.records import Row
from luthier.storage.files import read_json_lines
from luthier.tune.objectives import OBJECTIVES, Context, Learner
from tests import tiny as make

ROWS = [{"text": f"film {i} was {('dull', 'fun')[i % 2]}", "label": ("bad", "good")[i % 2]} for i in range(60)]
WHERE = "objective.selftrain.unlabelled"


def begun(net: Network, unlabelled: Sequence[Row], *, multi_label: bool = False, **settings: Any) -> Learner:
    rows = make.rows(net, multi_label=multi_label)
    prompt_format = make.prompt_format(net, multi_label=multi_label)
    objective = OBJECTIVES["selftrain"].model_validate({"unlabelled": "texts.jsonl", **settings})
    plan = BatchPlan(len(rows), 2, 3, seed=0)
    return objective.begin(Context(net, rows, prompt_format=prompt_format, plan=plan, more={"unlabelled": unlabelled}))


@pytest.mark.parametrize("multi_label", [False, True])
def test_rows_above_the_confidence_get_the_models_label(tiny: Callable[..., Path], multi_label: bool) -> None:
    net = make.network(tiny("bert"), "classes", multi_label=multi_label)
    with torch.no_grad():
        net.model.classifier.weight.mul_(20)
    others = [make.unlabelled(row) for row in make.rows(net, multi_label=multi_label, count=14)]
    chances = dict(zip((row.id for row in others), class_probabilities(net, others, multi_label), strict=True))
    sure = {id_: min(max(p, 1 - p) for p in each) if multi_label else max(each) for id_, each in chances.items()}
    least = sorted(sure.values())[7]
    learner = begun(net, others, multi_label=multi_label, confidence=least, share=0.8, after=0)
    seen: set[str] = set()
    for step in (1, 2):
        net.train_mode()
        (made,) = learner.updates(step, [0, 1])
        for row in made[2:]:
            id_ = row.id.partition("-")[0]
            seen.add(id_)
            values, label = chances[id_], row.example_streams["label"]
            expected = [float(p >= 0.5) for p in values] if multi_label else values.index(max(values))
            assert label == expected and row.example_streams["weight"] > 0
    assert seen == {id_ for id_, value in sure.items() if value >= least}, "two steps of 8 see all 14 rows"


def test_the_share_and_the_first_epochs(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("bert"), "classes")
    others = [make.unlabelled(row) for row in make.rows(net, count=14)]
    learner = begun(net, others, confidence=0.01, share=0.75, after=1.5, weight_of_unlabelled=0.25)
    sizes = [len(next(iter(learner.updates(step, [0, 1])))) for step in range(1, 9)]
    assert sizes == [2] * 6 + [2 + 6] * 2, "4 steps an epoch, 1.5 epochs first, then 3 unlabelled for each labelled"
    (made,) = learner.updates(8, [0, 1])
    assert {row.example_streams["weight"] for row in made[2:]} <= {0.25, 0.125, 0.5}


# ── Whole runs ───────────────────────────────────────────────────────────────────────────────────────────────────────


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(model: Path, unlabelled: Path, **settings: Any) -> dict[str, Any]:
    return {
        "model": {"path": str(model), "dtype": "float32", "device": "cpu"},
        "task": "classify",
        "selection": {"lora": {"rank": 4}},
        "objective": {"selftrain": {"unlabelled": str(unlabelled), "confidence": 0.51, "after": 0.5, **settings}},
        "train": {"max_steps": 8, "batch_size": 8, "validation_rows": 4, "learning_rate": 3e-3},
        "evaluate": {"baselines": ["majority"], "resamples": 200},
    }


def weights(run: Any) -> dict[str, torch.Tensor]:
    return {name: p for name, p in run.load().network.model.named_parameters() if p.requires_grad}


def test_hidden_labels_are_not_looked_at(tiny: Callable[..., Path], tmp_path: Path) -> None:
    texts = [f"the film number {i} is {('fun', 'dull')[i % 2]} to see" for i in range(40)]
    runs = []
    for name, labels in {"right": ("good", "bad"), "wrong": ("bad", "good"), "strange": ("x", None)}.items():
        file = write(tmp_path / f"{name}.jsonl", [{"review": t, "label": labels[i % 2]} for i, t in enumerate(texts)])
        runs.append(luthier.train(recipe(tiny("bert"), file), rows=ROWS, out=tmp_path / name))
    first, *others = (weights(run) for run in runs)
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)
    steps = [row for row in read_json_lines(runs[0].folder / "metrics.jsonl") if row["kind"] == "step"]
    assert "confident" not in steps[0]["figures"] and 0 <= steps[-1]["figures"]["confident"] <= 1
    assert steps[0]["examples"] == 8 and steps[-1]["examples"] > 8


def test_a_run_says_that_it_learned_from_no_unlabelled_row(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from luthier.progress import Progress

    file = write(tmp_path / "texts.jsonl", [{"text": f"a film of {i} hours"} for i in range(9)])
    for name, settings, expected in (
        ("never", {"confidence": 1.0}, ["the model was never 100% sure of a label"]),
        ("early", {"after": 2}, ["training ended before `after`"]),
        ("some", {"confidence": 0.01}, []),
    ):
        said: list[str] = []
        progress = Progress()
        progress.say = said.append  # type: ignore[method-assign]
        values = recipe(tiny("bert"), file, **settings)
        luthier.train(values, rows=ROWS, out=tmp_path / name, progress=progress)
        found = [each for each in said if "no unlabelled row was learned from" in each]
        assert len(found) == len(expected) and all(why in found[0] for why in expected)
    parts = [{"classify": {}}, {"selftrain": {"unlabelled": str(file)}}]
    both = OBJECTIVES["sum"].model_validate({"parts": parts}).for_form("classify")
    assert both.remarks([{"selftrain.confident": 0.1, "classify.loss": 1.0}]) == []
    (remark,) = both.remarks([{"selftrain.confident": 0.0, "classify.loss": 1.0}])
    assert remark.startswith("selftrain: no unlabelled row") and "90% sure" in remark


def test_texts_of_the_data_are_left_out(
    tiny: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from luthier.planning.planner import prepare
    from luthier.progress import Progress

    said: list[str] = []
    progress = Progress()
    progress.say = said.append  # type: ignore[method-assign]
    new = [{"text": "a film that nobody knows"}]
    file = write(tmp_path / "texts.jsonl", [{"text": row["text"]} for row in ROWS] + new)
    prepared = prepare(recipe(tiny("bert"), file), rows=ROWS, progress=progress)
    assert len(prepared.more["unlabelled"]) == 1 and any("60 rows of unlabelled are in the data" in s for s in said)
    other = write(tmp_path / "other.jsonl", new * 2)
    assert prepare(recipe(tiny("bert"), other), rows=ROWS).fingerprint != prepared.fingerprint
    with pytest.raises(UserError, match="every row is in the recipe's own data"):
        prepare(recipe(tiny("bert"), write(tmp_path / "all.jsonl", [{"text": ROWS[0]["text"]}])), rows=ROWS)


def test_unlabelled_rows_that_can_not_be_read(tiny: Callable[..., Path], tmp_path: Path) -> None:
    def refused(values: dict[str, Any]) -> str:
        with pytest.raises(UserError) as caught:
            luthier.train(values, rows=ROWS)
        assert all(problem.mend for problem in caught.value.problems)
        return str(caught.value)

    said = refused(recipe(tiny("bert"), tmp_path / "none.jsonl"))
    assert WHERE in said and "none.jsonl" in said
    file = write(tmp_path / "texts.jsonl", [{"word": "a film"}])
    assert "no column for `text`" in refused(recipe(tiny("bert"), file))
    said = refused(recipe(tiny("bert"), file, columns={"text": "wrod"}))
    assert f"{WHERE}, " in said and "no column 'wrod'" in said and "did you mean 'word'" in said
    said = refused(recipe(tiny("bert"), file, columns={"text": "word", "label": "word"}))
    assert "objective.selftrain.columns" in said and "no field 'label'" in said
