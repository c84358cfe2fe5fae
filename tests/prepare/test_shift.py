"""How far train is from a target, importance weights from it, and weights by class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.utils.class_weight import compute_sample_weight

from luthier.errors import UserError
from luthier.prepare import shift, target_texts
from luthier.prepare.read import Dataset, read_data
from luthier.prepare.shift import class_weights, delong, effective_rows, find_shift, importance_weights
from luthier.prepare.steps import PrepareSettings

SEA = ["river", "salmon", "net", "boat", "tide", "scale", "gill", "trout"]
SKY = ["orbit", "comet", "moon", "galaxy", "lens", "night", "planet", "sun"]
BOTH = ["the", "a", "of", "and", "is", "in", "on", "with", "by", "for"]


def texts_of(count: int, sea: float, seed: int = 0) -> list[str]:
    """Texts of which a share is about the sea, and the others about the sky."""
    draw = np.random.default_rng(seed)
    return [
        " ".join(
            [*draw.choice(SEA if draw.random() < sea else SKY, 3), *draw.choice(BOTH, 5), str(draw.integers(10**9))]
        )
        for _ in range(count)
    ]


chances = st.lists(st.floats(1e-6, 1 - 1e-6), min_size=1, max_size=50).map(np.array)


@given(chances, st.floats(0.01, 1))
def test_weights_have_mean_one_and_a_ceiling(values: np.ndarray, smoothing: float) -> None:
    weights = importance_weights(values, smoothing)
    assert weights.mean() == pytest.approx(1)
    assert (weights > 0).all()
    raw = values / (smoothing * values + (1 - smoothing) * (1 - values))
    assert raw.max() <= 1 / smoothing * (1 + 1e-9)
    assert (np.argsort(weights, kind="stable") == np.argsort(raw, kind="stable")).all()
    assert 1 - 1e-9 <= effective_rows(weights) <= len(values) * (1 + 1e-9)


@given(chances)
def test_the_ends_of_smoothing(values: np.ndarray) -> None:
    ratio = values / (1 - values)
    assert importance_weights(values, 0) == pytest.approx(ratio / ratio.mean())
    assert importance_weights(values, 1) == pytest.approx(np.ones(len(values)))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_class_weights_are_scikit_learns(classes: list[int]) -> None:
    weights = class_weights(np.array(classes))
    assert weights == pytest.approx(compute_sample_weight("balanced", classes))
    assert weights.mean() == pytest.approx(1)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=40), st.lists(st.integers(0, 9), min_size=2, max_size=40))
def test_the_area_is_scikit_learns(positive: list[int], negative: list[int]) -> None:
    auc, low, high = delong(np.array(positive, float), np.array(negative, float))
    assert auc == pytest.approx(roc_auc_score([1] * len(positive) + [0] * len(negative), positive + negative))
    assert 0 <= low <= auc <= high <= 1


def test_the_interval_holds_the_area_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    truth = 0.760250  # of two normals one deviation apart
    held = 0
    for _ in range(400):
        _, low, high = delong(draw.normal(1, 1, 60), draw.normal(0, 1, 60))
        held += low <= truth <= high
    assert 0.91 <= held / 400 <= 0.98


def test_texts_alike_are_not_told_apart_and_others_are() -> None:
    alike = find_shift(texts_of(400, 0.5), texts_of(300, 0.5, seed=1))
    assert alike.low < 0.5 < alike.high + 0.05 and alike.auc < 0.56
    apart = find_shift(texts_of(400, 0.1), texts_of(300, 0.9, seed=1))
    assert 0.85 < apart.auc < 0.95, "nine in ten of either side can be told"
    words = {each.word: each.z for each in apart.words}
    assert {word for word in words if words[word] > 2} == set(SEA) and {w for w in words if words[w] < -2} == set(SKY)
    assert all(each.target > each.train for each in apart.words if each.z > 2)


def test_the_order_of_texts_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shift, "MOST_FITTED", 120)  # so that some texts are scored that no model was fitted on
    train, target = texts_of(300, 0.2), texts_of(200, 0.8, seed=1)
    order = np.random.default_rng(0).permutation(300).tolist()
    told: list[int] = []
    there, here = (
        find_shift(train, target, advance=told.append),
        find_shift([train[row] for row in order], target[::-1]),
    )
    assert here.chances.tolist() == there.chances[order].tolist()
    assert (here.auc, here.words) == (there.auc, there.words) and told[-1] == 500
    assert there.auc > 0.75


def test_weights_bring_train_nearer_to_the_target() -> None:
    train, target = texts_of(600, 0.2), texts_of(300, 0.7, seed=1)
    weights = importance_weights(find_shift(train, target).chances, 0.1)
    is_sea = np.array([any(word in SEA for word in text.split()) for text in train])
    assert is_sea.mean() < 0.25
    assert np.average(is_sea, weights=weights) == pytest.approx(0.7, abs=0.12)


def test_too_few_texts() -> None:
    with pytest.raises(ValueError, match="19 and 30"):
        find_shift(texts_of(19, 0.5), texts_of(30, 0.5))


# ── The steps ────────────────────────────────────────────────────────────────────────────────────────────────────────


def prepared(texts: list[str], base: Path | None = None, labels: list[str] | None = None, **steps: Any) -> Dataset:
    labels = labels or [("odd", "even")[len(text) % 2] for text in texts]
    rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
    return read_data(rows, "classify", base=base, prepare=PrepareSettings.model_validate(steps))


def finding_of(data: Dataset, name: str) -> dict[str, Any]:
    (step,) = (step for step in data.facts["steps"] if step["step"] == name)
    assert step["rows_in"] == step["rows_out"]
    found: dict[str, Any] = json.loads(json.dumps(step["finding"]))
    return found


def write(path: Path, texts: list[str], name: str = "text") -> Path:
    path.write_text("".join(json.dumps({name: text}) + "\n" for text in texts), encoding="utf-8")
    return path


def test_the_distance_to_a_file_and_weights_from_it(tmp_path: Path) -> None:
    write(tmp_path / "target.jsonl", texts_of(300, 0.9, seed=1))
    train = texts_of(400, 0.2)
    plain = prepared(train, tmp_path, target={"texts": "target.jsonl"})
    finding = finding_of(plain, "target")
    assert finding["figures"]["domain_auc"]["value"] > 0.75 and "effective_share" not in finding["figures"]
    assert {each.weight for each in plain.splits["train"]} == {1.0}
    weighed = prepared(train, tmp_path, target={"texts": "target.jsonl", "weigh": True})
    weights = {each.fields["text"]: each.weight for each in weighed.splits["train"]}
    sea = [weight for text, weight in weights.items() if set(text.split()) & set(SEA)]
    sky = [weight for text, weight in weights.items() if set(text.split()) & set(SKY)]
    assert min(sea) > max(sky) and np.mean(list(weights.values())) == pytest.approx(1)
    share = finding_of(weighed, "target")["figures"]["effective_share"]["value"]
    assert share == pytest.approx(effective_rows(np.array(list(weights.values()))) / len(weights))


def test_the_distance_to_a_split() -> None:
    found = finding_of(prepared(texts_of(400, 0.5), target={"texts": "test"}), "target")
    assert 0.3 < found["figures"]["domain_auc"]["value"] < 0.7
    few = finding_of(prepared(texts_of(60, 0.5), target={"texts": "validation"}), "target")
    assert few["sentence"].startswith("Not measured") and not few["figures"]


def test_what_a_target_can_not_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prepare\.target\.weigh.*rows of test would decide"):
        prepared(texts_of(60, 0.5), tmp_path, target={"texts": "test", "weigh": True})
    with pytest.raises(UserError, match=r"prepare\.target\.texts"):
        prepared(texts_of(60, 0.5), tmp_path, target={"texts": "missing.jsonl"})
    write(tmp_path / "few.jsonl", texts_of(5, 0.5))
    with pytest.raises(UserError, match="5 of the target"):
        prepared(texts_of(60, 0.5), tmp_path, target={"texts": "few.jsonl", "weigh": True})
    write(tmp_path / "odd.jsonl", texts_of(30, 0.5), "wording")
    with pytest.raises(UserError, match="wording"):
        prepared(texts_of(60, 0.5), tmp_path, target={"texts": "odd.jsonl"})
    assert prepared(texts_of(60, 0.5), tmp_path, target={"texts": "odd.jsonl", "columns": {"text": "wording"}})


def test_a_sample_of_a_long_target_does_not_depend_on_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target_texts, "MOST_KEPT", 10)
    texts = texts_of(50, 0.5)
    there, here = write(tmp_path / "a.jsonl", texts), write(tmp_path / "b.jsonl", texts[::-1])
    read = [target_texts.target_texts(str(path), {}, "classify", tmp_path) for path in (there, here)]
    assert len(read[0]) == 10 and read[0] == read[1]


def test_a_target_of_conversations(tmp_path: Path) -> None:
    def rows(texts: list[str]) -> list[dict[str, Any]]:
        return [{"prompt": text, "completion": "yes"} for text in texts]

    path = tmp_path / "target.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(texts_of(100, 0.9, seed=1))), encoding="utf-8")
    prepare = PrepareSettings.model_validate({"target": {"texts": str(path)}})
    data = read_data(rows(texts_of(200, 0.1)), "generate", prepare=prepare)
    assert finding_of(data, "target")["figures"]["domain_auc"]["value"] > 0.8


def test_balanced_classes() -> None:
    texts = texts_of(200, 0.5)
    data = prepared(texts, labels=["rare" if row % 10 == 0 else "frequent" for row in range(200)], weigh={})
    train = list(data.splits["train"])
    sums = {name: sum(each.weight for each in train if each.fields["label"] == name) for name in ("rare", "frequent")}
    assert sums["rare"] == pytest.approx(sums["frequent"]) == pytest.approx(len(train) / 2)
    finding = finding_of(data, "weigh")
    assert finding["figures"]["balanced_share"]["value"] < 0.5
    assert data.facts["splits"]["train"]["weights"]["highest"] > 4


def test_rows_of_several_labels_are_not_balanced() -> None:
    rows = [{"text": text, "label": ["odd", "even"]} for text in texts_of(60, 0.5)]
    with pytest.raises(UserError, match="several labels"):
        read_data(rows, "classify", prepare=PrepareSettings.model_validate({"weigh": {}}))
