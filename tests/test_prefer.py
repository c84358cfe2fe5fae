"""Task prefer from rows to verdict, on tiny models: pairs, single answers, a reward model; what is refused, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.chat import Conversation
from luthier.engine.generate import GREEDY
from luthier.errors import UserError
from luthier.planning.planner import prepare
from luthier.runs.run import Run
from luthier.storage.files import read_json, read_json_lines

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def pairs(count: int = 120) -> list[dict[str, Any]]:
    """The answer that says yes is the chosen one, and the shorter one as often as not."""
    made = []
    for i in range(count):
        prompt = f"say {WORDS[i % 10]} or {WORDS[i // 10 % 10]} {i}"
        yes, no = ("yes yes yes", "no") if i % 2 else ("yes", "no no no")
        made.append({"prompt": prompt, "chosen": yes, "rejected": no})
    return made


def singles(count: int = 120) -> list[dict[str, Any]]:
    rows = pairs(count)
    return [
        {"prompt": row["prompt"], "completion": row[("chosen", "rejected")[i % 3 == 0]], "label": i % 3 != 0}
        for i, row in enumerate(rows)
    ]


def recipe(model: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": {"path": str(model), "dtype": "float32", "device": "cpu"},
        "task": "prefer",
        "selection": {"lora": {"rank": 4}},
        "train": {"max_steps": 24, "validate_every": 12, "validation_rows": 8, "learning_rate": 5e-3, "batch_size": 8},
        "evaluate": {"resamples": 200},
        **changes,
    }


def systems(run: Run) -> dict[str, Any]:
    return {system["name"]: system for system in run.verdict["systems"]}


@pytest.mark.parametrize("objective", ["dpo", {"dpo": {"variant": "orpo"}}, "kto"])
def test_pairs_from_rows_to_verdict(objective: Any, tiny: Callable[..., Path], tmp_path: Path) -> None:
    run = luthier.train(recipe(tiny("llama"), objective=objective), rows=pairs(), out=tmp_path / "run")
    verdict, found = run.verdict, systems(run)
    assert list(found) == ["tuned", "untouched", "longer", "chance"]
    accuracy = {name: system["metrics"]["preference_accuracy"]["value"] for name, system in found.items()}
    assert accuracy["tuned"] == 1 and 0.2 < accuracy["longer"] < 0.8 and 0.2 < accuracy["chance"] < 0.8
    assert found["tuned"]["metrics"]["margin"]["value"] > 0
    assert found["longer"]["metrics"]["margin"]["value"] is None, "characters are no nats"
    assert {row["test"] for row in verdict["comparisons"]} == {"McNemar, exact"}
    assert verdict["labels"] == [] and not verdict["confusions"] and not found["tuned"]["classes"]
    assert "preference accuracy against" in verdict["sentence"]
    validations = [row for row in run.log if row["kind"] == "validation"]
    assert validations[-1]["preference_accuracy"] == 1 and validations[-1]["loss"] < validations[0]["loss"] < 0.7
    steps = [row for row in run.log if row["kind"] == "step"]
    assert steps[-1]["figures"]["preference_accuracy"] == 1
    predictions = read_json_lines(run.folder / "predictions.jsonl")
    assert {line["predicted"] for line in predictions if line["system"] == "tuned"} <= {"yes", "yes yes yes"}
    report, card = (run.folder / "report.html").read_text(), (run.folder / "README.md").read_text()
    assert "preference accuracy" in report and "always the longer answer" in report
    assert "tuned with Luthier to write answers that people prefer" in " ".join(card.split())
    assert "AutoModelForCausalLM" in card
    reply = Conversation(run.load(), GREEDY, 4).answer("say one")
    assert reply.prompt_tokens


def test_the_saved_margin_is_the_one_of_training(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """Implicit rewards from the saved adapter, switched on and off, equal those seen while training."""
    chosen = recipe(tiny("llama"), data={"splits": {}})
    chosen["train"] |= {"validation_rows": 1000}
    rows = {"train": pairs(), "validation": pairs(140)[120:], "test": [r | {"id": 1} for r in pairs(140)[120:]]}
    del chosen["data"]
    with pytest.raises(UserError, match="also in another split"):
        luthier.train(chosen, rows=rows, out=tmp_path / "run")
    rows = {"train": pairs(), "validation": pairs(140)[120:], "test": pairs(160)[140:]}
    run = luthier.train(chosen, rows=rows, out=tmp_path / "run")
    from luthier.evaluate.predict import predict

    prepared = prepare(chosen, rows=rows)
    saved = run.load()
    saved.network.comparison = prepared.recipe.chosen_objective.comparison  # type: ignore[assignment]
    saved.network.refer_to(lambda: saved.selection.off(saved.network))
    predictions = predict(saved.network, prepared.data.splits["validation"], saved.prompt_format, 1)
    best = next(r for r in run.log if r["kind"] == "validation" and r["step"] == run.manifest["best_step"])
    margins = [prediction.margin or 0.0 for prediction in predictions]
    assert sum(margins) / len(margins) == pytest.approx(best["margin"], rel=1e-4)


@pytest.mark.parametrize("selection", ["full", {"last_layers": {"layers": 1}}])
def test_other_selections_have_a_reference_too(selection: Any, tiny: Callable[..., Path], tmp_path: Path) -> None:
    run = luthier.train(recipe(tiny("llama"), selection=selection), rows=pairs(), out=tmp_path / "run")
    assert systems(run)["tuned"]["metrics"]["preference_accuracy"]["value"] == 1
    assert run.manifest["learned"]["tensors_learned"] > 0


def test_single_answers_from_rows_to_verdict(tiny: Callable[..., Path], tmp_path: Path) -> None:
    run = luthier.train(recipe(tiny("llama"), objective="kto"), rows=singles(), out=tmp_path / "run")
    found = systems(run)
    assert list(found) == ["tuned", "chance"] and "always 'wanted'" in found["chance"]["description"]
    values = {name: system["metrics"]["preference_accuracy"]["value"] for name, system in found.items()}
    assert values["tuned"] > 0.9 > values["chance"]
    assert {p["expected"] for p in read_json_lines(run.folder / "predictions.jsonl")} == {"wanted", "not wanted"}


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_reward_model_from_rows_to_verdict(family: str, tiny: Callable[..., Path], tmp_path: Path) -> None:
    run = luthier.train(recipe(tiny(family), objective="reward"), rows=pairs(), out=tmp_path / "run")
    found = systems(run)
    assert found["tuned"]["metrics"]["preference_accuracy"]["value"] == 1
    assert list(found) == ["tuned", *(["untouched"] if family == "llama" else []), "longer", "chance"]
    card = (run.folder / "README.md").read_text()
    assert "num_labels=1" in card and "score answers" in " ".join(card.split())
    saved = run.load()
    with pytest.raises(UserError, match="scores answers and writes none"):
        Conversation(saved, GREEDY, 4).answer("hi")


def test_an_encoder_without_bos_and_eos_scores_answers(tiny: Callable[..., Path], tmp_path: Path) -> None:
    """As BERT's own tokenizer is."""
    import shutil

    folder = tmp_path / "bert"
    shutil.copytree(tiny("bert"), folder)
    settings = read_json(folder / "tokenizer_config.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": None, "eos_token": None}))
    run = luthier.train(recipe(folder, objective="reward"), rows=pairs(), out=tmp_path / "run")
    assert systems(run)["tuned"]["metrics"]["preference_accuracy"]["value"] == 1
    prepared = prepare(recipe(folder, objective="reward"), rows=pairs())
    row, tokenizer = prepared.rows[0], prepared.tokenizer
    assert tokenizer.convert_ids_to_tokens(list(row.tokens[: row.parts[0]]))[0] == tokenizer.cls_token


# ── What is refused before weights are loaded ────────────────────────────────────────────────────────────────────────


def test_pairs_are_asked_for_where_they_are_needed(tiny: Callable[..., Path]) -> None:
    for objective in ("dpo", "reward"):
        with pytest.raises(UserError, match="learns from pairs of answers") as caught:
            prepare(recipe(tiny("llama"), objective=objective), rows=singles())
        assert "use objective: kto" in str(caught.value)


def test_objectives_of_other_tasks(tiny: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="does not fit task: prefer") as caught:
        prepare(recipe(tiny("llama"), objective="lm"), rows=pairs())
    assert "dpo or kto or reward or sft or sum" in str(caught.value)
    with pytest.raises(UserError, match="does not fit task: generate"):
        prepare({**recipe(tiny("llama"), objective="dpo"), "task": "generate"}, rows=pairs())


def test_an_encoder_cannot_write(tiny: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match="can't do task: prefer") as caught:
        prepare(recipe(tiny("bert")), rows=pairs())
    assert "objective: reward" in str(caught.value)
