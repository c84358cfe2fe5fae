"""Few-shot classification: pairs, the fitted label layer, and what is saved of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import luthier
from luthier.batches import BatchPlan
from luthier.engine.classify import class_probabilities
from luthier.engine.embed import embeddings
from luthier.errors import UserError
from luthier.models.load import label_layer
from luthier.models.logistic import fit_label_layer
from luthier.models.network import Network
from luthier.prompts import prompt_row
from luthier.storage.files import read_json, read_json_lines
from luthier.tune.objectives import OBJECTIVES, Context, Learner
from tests import tiny as make

ROWS = [{"text": f"film {i} was {('dull', 'fun', 'so so')[i % 3]}", "label": "abc"[i % 3]} for i in range(60)]


def begun(net: Network, *, multi_label: bool = False, count: int = 14, **settings: Any) -> Learner:
    rows = make.rows(net, multi_label=multi_label, count=count)
    plan = BatchPlan(count, 4, 1, seed=0)
    return OBJECTIVES["contrastive"].model_validate(settings).begin(Context(net, rows, plan=plan))


@pytest.mark.parametrize("multi_label", [False, True])
def test_pairs_are_alike_where_a_label_is_shared(tiny: Callable[..., Path], multi_label: bool) -> None:
    net = make.network(tiny("bert"), "pooled", multi_label=multi_label)
    learner = begun(net, multi_label=multi_label, pairs=3)
    known = {tuple(row.tokens): row.example_streams for row in learner.context.rows}
    (made,) = learner.updates(5, [0, 1, 2])
    assert len(made) == 3 * 2 * 3
    for row in made:
        length = row.parts[0]
        one, other = known[tuple(row.tokens[:length])], known[tuple(row.tokens[length:])]
        assert row.example_streams["alike"] == float(one["label"] == other["label"])
        assert row.example_streams["weight"] == one["weight"] * other["weight"]
        assert row.tokens[:length] != row.tokens[length:]
    assert made == next(iter(learner.updates(5, [0, 1, 2]))), "the same on resuming"
    assert made != next(iter(learner.updates(6, [0, 1, 2])))


def test_a_label_of_one_row_has_no_pair_of_its_own(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("bert"), "pooled")
    learner = begun(net, count=3)
    (made,) = learner.updates(1, [0, 1, 2])
    assert [row.example_streams["alike"] for row in made] == [0.0] * 3


# ── The label layer ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("labels", [2, 5])
@pytest.mark.parametrize("inverse_strength", [1.0, 30.0])
def test_the_layer_is_scikit_learns_optimum(labels: int, inverse_strength: float) -> None:
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(0)
    x, weight = random.standard_normal((60, 8)), random.uniform(0.5, 2, 60)
    y = random.integers(0, labels, 60)
    theirs = LogisticRegression(C=inverse_strength, tol=1e-10, max_iter=5000)
    theirs.fit(x, y, sample_weight=weight)
    layer = label_layer(8, labels)
    fit_label_layer(layer, torch.tensor(x), torch.tensor(y), torch.tensor(weight), inverse_strength)
    if labels == 2:  # theirs has one vector for both labels, whose norm is held small in another way
        theirs = LogisticRegression(C=inverse_strength * 2, tol=1e-10, max_iter=5000).fit(x, y, sample_weight=weight)
    ours = torch.softmax(layer(torch.tensor(x, dtype=torch.float32)), dim=1)
    np.testing.assert_allclose(ours.numpy(), theirs.predict_proba(x), atol=1e-5)


def test_the_layer_of_several_labels_is_one_regression_each() -> None:
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(0)
    x, y = random.standard_normal((60, 8)), random.integers(0, 2, (60, 3)).astype(float)
    layer = label_layer(8, 3)
    fit_label_layer(layer, torch.tensor(x), torch.tensor(y), torch.ones(60))
    ours = torch.sigmoid(layer(torch.tensor(x, dtype=torch.float32)))
    for label in range(3):
        theirs = LogisticRegression(tol=1e-10, max_iter=5000).fit(x, y[:, label])
        np.testing.assert_allclose(ours[:, label].numpy(), theirs.predict_proba(x)[:, 1], atol=1e-5)


def test_embeddings_do_not_depend_on_what_runs_beside_them(tiny: Callable[..., Path]) -> None:
    for family in ("bert", "xlnet"):
        net = make.network(tiny(family), "pooled")
        rows = make.rows(net)
        together = embeddings(net, rows)
        alone = torch.cat([embeddings(net, [row]) for row in rows])
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together.norm(dim=1), torch.ones(len(rows)))


# ── Whole runs ───────────────────────────────────────────────────────────────────────────────────────────────────────


def recipe(model: Path, selection: Any) -> dict[str, Any]:
    return {
        "model": {"path": str(model), "dtype": "float32", "device": "cpu"},
        "task": "classify",
        "objective": {"contrastive": {"pairs": 2}},
        "selection": selection,
        "train": {"max_steps": 9, "epochs": 9, "batch_size": 8, "validate_every": 3, "learning_rate": 3e-3},
        "evaluate": {"baselines": ["majority"], "resamples": 200},
    }


@pytest.mark.parametrize("selection", [{"lora": {"rank": 4}}, "full"], ids=["lora", "full"])
def test_what_is_saved_answers_as_it_was_validated(tiny: Callable[..., Path], tmp_path: Path, selection: Any) -> None:
    run = luthier.train(recipe(tiny("bert"), selection), rows=ROWS, out=tmp_path / "run")
    log = read_json_lines(run.folder / "metrics.jsonl")
    best = next(row for row in log if row["kind"] == "validation" and row["step"] == run.manifest["best_step"])
    first = next(row for row in log if row["kind"] == "step")
    assert first["examples"] == 8 * 2 * 2
    assert best["accuracy"] > 0.8, "the words of these labels differ"
    saved = run.load()
    assert saved.network.head == "pooled" and "head.safetensors" in {p.name for p in run.model_folder.iterdir()}
    verdict = read_json(run.folder / "verdict.json")
    tuned = next(system for system in verdict["systems"] if system["name"] == "tuned")
    assert tuned["metrics"]["accuracy"]["value"] > 0.8
    # the layer was fitted to the weights that were saved
    again = load_file(run.model_folder / "head.safetensors")
    assert torch.equal(saved.network.label_layer.weight, again["weight"])


def test_merged_it_is_an_encoder_and_a_head_that_its_page_explains(tiny: Callable[..., Path], tmp_path: Path) -> None:
    import safetensors.torch
    import transformers
    from transformers import AutoModel

    run = luthier.train(recipe(tiny("bert"), {"lora": {"rank": 4}}), rows=ROWS, out=tmp_path / "run")
    folder = str(run.merge(tmp_path / "merged"))
    page = (tmp_path / "merged" / "README.md").read_text()
    assert "AutoModelForSequenceClassification` would make a new head" in page
    saved = run.load()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(["film 3 was fun"], return_tensors="pt")
    names: dict[str, Any] = {"AutoModel": AutoModel, "torch": torch, "safetensors": safetensors}
    names |= {"folder": folder, "inputs": {name: inputs[name] for name in ("input_ids", "attention_mask")}}
    exec("\n".join(line.strip() for line in page.splitlines() if line.startswith("    ")), names)
    (theirs,) = torch.softmax(names["scores"], dim=1).tolist()
    row = prompt_row({"text": "film 3 was fun"}, saved.network.tokenizer, saved.prompt_format)
    (ours,) = class_probabilities(saved.network, [row], False)
    assert theirs == pytest.approx(ours, abs=1e-5)


@pytest.mark.filterwarnings("error:Found missing adapter keys")
def test_peft_reads_the_adapter(tiny: Callable[..., Path], tmp_path: Path) -> None:
    import peft
    import transformers

    run = luthier.train(recipe(tiny("bert"), {"lora": {"rank": 4}}), rows=ROWS, out=tmp_path / "run")
    saved = run.load()
    body = transformers.AutoModel.from_pretrained(tiny("bert"), dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(body, run.model_folder).eval()
    rows = make.rows(saved.network)
    for row, ours in zip(rows, embeddings(saved.network, rows), strict=True):
        hidden = theirs(input_ids=torch.tensor([list(row.tokens)])).last_hidden_state[0]
        torch.testing.assert_close(torch.nn.functional.normalize(hidden.mean(dim=0), dim=0), ours, rtol=1e-4, atol=1e-5)


def test_a_damaged_head_is_told(tiny: Callable[..., Path], tmp_path: Path) -> None:
    run = luthier.train(recipe(tiny("bert"), {"lora": {"rank": 4}}), rows=ROWS, out=tmp_path / "run")
    head = run.model_folder / "head.safetensors"
    head.write_bytes(head.read_bytes()[:-4])
    with pytest.raises(UserError, match="the label head is damaged"):
        run.load()
