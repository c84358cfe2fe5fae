"""A teacher: runs that learn from one, formulas that the common checks do not try, teachers that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional

import luthier
from luthier.batches import collate
from luthier.errors import UserError
from luthier.kernels import cross_entropy
from luthier.records import Row
from luthier.storage.files import read_json_lines
from luthier.tune.objectives import OBJECTIVES, Learner
from tests import tiny as make
from tests.common.teaching_references import scores
from tests.common.test_objectives import assert_close, gradients, loss_of

ROWS = [{"text": f"film {i} was {('dull', 'fun')[i % 2]}", "label": ("bad", "good")[i % 2]} for i in range(60)]
TALK = [{"prompt": f"what is {i}", "completion": f"it is {i}"} for i in range(60)]
WHERE = "objective.distil.teacher"


def recipe(model: Path, task: str = "classify", **more: Any) -> dict[str, Any]:
    return {
        "model": {"path": str(model), "dtype": "float32", "device": "cpu"},
        "task": task,
        "selection": {"lora": {"rank": 4}},
        "train": {"max_steps": 4, "batch_size": 4, "validation_rows": 4, "validation_new_tokens": 4},
        "evaluate": {"baselines": ["majority"] if task == "classify" else [], "resamples": 200, "max_new_tokens": 4},
        **more,
    }


def taught(model: Path, teacher: Path | str, task: str = "classify", **settings: Any) -> dict[str, Any]:
    return recipe(model, task, objective={"distil": {"teacher": str(teacher), **settings}})


def classifier(tiny: Callable[..., Path], folder: Path, labels: tuple[str, ...]) -> Path:
    """A classifier as transformers keeps it, with its labels in this order."""
    net = make.network(tiny("bert"), "classes")
    config = net.model.config
    config.id2label, config.label2id = dict(enumerate(labels)), {label: n for n, label in enumerate(labels)}
    torch.manual_seed(5)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(folder)
    net.tokenizer.save_pretrained(folder)
    return folder


def refused(values: dict[str, Any], rows: Any = ROWS) -> str:
    with pytest.raises(UserError) as caught:
        luthier.train(values, rows=rows)
    assert all(problem.mend for problem in caught.value.problems)
    return str(caught.value)


# ── Runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_classifier_learns_from_a_run_with_another_tokenizer(tiny: Callable[..., Path], tmp_path: Path) -> None:
    teacher = luthier.train(recipe(tiny("bert")), rows=ROWS, out=tmp_path / "teacher")
    run = luthier.train(taught(tiny("llama"), teacher.folder), rows=ROWS, out=tmp_path / "run")
    steps = [row for row in read_json_lines(run.folder / "metrics.jsonl") if row["kind"] == "step"]
    assert len(steps) == 4
    for step in steps:
        plain, divergence = step["figures"]["plain_loss"], step["figures"]["divergence"]
        assert step["loss"] == pytest.approx(0.5 * plain + 0.5 * 4 * divergence, rel=1e-5)
    assert run.resolved["objective"]["distil"]["temperature"] == 2.0


def test_one_that_writes_learns_from_a_run_and_from_a_plain_model(tiny: Callable[..., Path], tmp_path: Path) -> None:
    teacher = luthier.train(recipe(tiny("llama", seed=1), "generate"), rows=TALK, out=tmp_path / "teacher")
    for number, path in enumerate((teacher.folder, tiny("llama", seed=2), "base")):
        run = luthier.train(taught(tiny("llama"), path, "generate"), rows=TALK, out=tmp_path / str(number))
        steps = [row["figures"] for row in read_json_lines(run.folder / "metrics.jsonl") if row["kind"] == "step"]
        at_start = steps[0]["divergence"]
        assert at_start == pytest.approx(0, abs=1e-6) if path == "base" else at_start > 1e-3
        assert steps[-1]["divergence"] > 0


def test_base_teaches_beside_a_stored_trunk(tiny: Callable[..., Path], tmp_path: Path) -> None:
    values = taught(tiny("llama"), "base", "generate") | {"selection": {"last_layers": {"layers": 1}}}
    values["train"]["epochs"] = 2
    logs = []
    for stored in (True, False):
        values["train"]["store_trunk"] = stored
        run = luthier.train(values, rows=TALK, out=tmp_path / str(stored))
        logs.append([row["loss"] for row in read_json_lines(run.folder / "metrics.jsonl") if row["kind"] == "step"])
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)


# ── Formulas ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def begun(
    tiny: Callable[..., Path], teacher: Path, head: Any, *, multi_label: bool = False, **settings: Any
) -> tuple[Learner, list[Row]]:
    net = make.network(tiny("llama"), head, multi_label=multi_label)
    form = "generate" if head == "language" else "classify"
    objective = OBJECTIVES["distil"].model_validate({"teacher": str(teacher), **settings}).for_form(form)
    return make.begin(objective, net, multi_label=multi_label)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize(("alpha", "temperature"), [(0.0, 2.0), (1.0, 1.0), (0.3, 4.0)])
def test_tokens_of_a_larger_teacher(
    tiny: Callable[..., Path], direction: str, alpha: float, temperature: float
) -> None:
    folder = tiny("qwen3", layers=4, seed=3)
    learner, rows = begun(tiny, folder, "language", direction=direction, alpha=alpha, temperature=temperature)
    net, teacher = learner.context.network, make.network(folder, "language")
    total = torch.zeros(())
    for row in rows:
        with torch.no_grad():
            theirs = functional.log_softmax(scores(teacher, row.tokens)[:-1] / temperature, dim=-1)
        given = scores(net, row.tokens)[:-1]
        ours = functional.log_softmax(given / temperature, dim=-1)
        first, second = (ours, theirs) if direction == "forward" else (theirs, ours)
        divergence = functional.kl_div(first, second, log_target=True, reduction="none").sum(dim=-1)
        plain = functional.cross_entropy(given, torch.tensor(row.tokens[1:]), reduction="none")
        loss = (1 - alpha) * plain + alpha * temperature**2 * divergence
        total = total + (loss * torch.tensor(row.token_streams["weight"][1:])).sum()
    net.model.zero_grad()
    (total / learner.weight(collate(rows))).backward()
    expected = {name: p.grad.clone() for name, p in net.model.named_parameters() if p.grad is not None}
    assert loss_of(learner, rows) == pytest.approx(float(total.detach()), rel=1e-5)
    assert_close(gradients(learner, [rows]), expected)


def test_scores_are_compared_some_tokens_at_a_time(tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    learner, rows = begun(tiny, tiny("llama", seed=3), "language")
    whole = gradients(learner, [rows])
    assert any("embed" in name for name in whole), "the head learns as well"
    monkeypatch.setattr(cross_entropy, "CHUNK_VALUES", 4 * 5 * learner.context.network.model.config.vocab_size)
    assert_close(gradients(learner, [rows]), whole)


def test_labels_in_another_order_and_the_teacher_does_not_learn(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = classifier(tiny, tmp_path / "teacher", make.LABELS[::-1])
    learner, rows = begun(tiny, folder, "classes")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = learner.teacher.network.tokenizer  # type: ignore[attr-defined]
    for row, example in zip(rows, learner.context.examples, strict=True):
        ids = torch.tensor([tokenizer(example.fields["text"])["input_ids"]])
        expected = model(input_ids=ids).logits[0].detach().flip(0)
        torch.testing.assert_close(torch.tensor(row.example_streams["teacher"]), expected, rtol=1e-5, atol=1e-5)
    network = learner.teacher.network  # type: ignore[attr-defined]
    gradients(learner, [rows])
    assert not any(p.requires_grad or p.grad is not None for p in network.model.parameters())
    assert not any(module.training for module in network.model.modules())


def test_several_labels(tiny: Callable[..., Path], tmp_path: Path) -> None:
    learner, rows = begun(tiny, Path("base"), "classes", multi_label=True)
    net, total = learner.context.network, 0.0
    for row in rows:
        with net.as_reference():
            taught = torch.sigmoid(scores(net, row.tokens) / 2)
        given = scores(net, row.tokens).detach()
        ours = torch.sigmoid(given / 2)
        divergence = taught * (taught / ours).log() + (1 - taught) * ((1 - taught) / (1 - ours)).log()
        target = torch.tensor(row.example_streams["label"])
        plain = functional.binary_cross_entropy_with_logits(given, target)
        total += float(0.5 * plain + 0.5 * 4 * divergence.mean()) * row.example_streams["weight"]
    assert loss_of(learner, rows) == pytest.approx(total, rel=1e-5)


def test_a_larger_table_of_the_same_tokens_is_cut(tiny: Callable[..., Path], tmp_path: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny("llama", seed=1))
    model.resize_token_embeddings(model.config.vocab_size + 24)
    model.save_pretrained(tmp_path / "padded")
    make.network(tiny("llama"), "language").tokenizer.save_pretrained(tmp_path / "padded")
    learner, rows = begun(tiny, tmp_path / "padded", "language")
    plain, _ = begun(tiny, tiny("llama", seed=1), "language")
    assert loss_of(learner, rows) == pytest.approx(loss_of(plain, rows), rel=1e-5)


# ── Teachers that do not fit ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_teacher_that_is_not_there(tiny: Callable[..., Path], tmp_path: Path) -> None:
    said = refused(taught(tiny("llama"), tmp_path / "nowhere"))
    assert "nowhere" in said and "no such file or folder" in said and WHERE in said


def test_a_teacher_of_other_labels(tiny: Callable[..., Path], tmp_path: Path) -> None:
    said = refused(taught(tiny("llama"), classifier(tiny, tmp_path / "t", ("good", "poor", "so so"))))
    assert "other labels: it does not know bad; the data have no poor, so so" in said and WHERE in said


def test_a_teacher_of_another_kind(tiny: Callable[..., Path], tmp_path: Path) -> None:
    assert "the teacher is no classifier" in refused(taught(tiny("bert"), tiny("llama")))
    assert "does not write text" in refused(taught(tiny("llama"), tiny("bert"), "generate"), TALK)
    assert "no label head of these labels yet" in refused(taught(tiny("llama"), "base"))


def test_a_teacher_of_another_vocabulary(tiny: Callable[..., Path], tmp_path: Path) -> None:
    transformers.AutoModelForCausalLM.from_pretrained(tiny("llama")).save_pretrained(tmp_path / "t")
    tokenizer = make.network(tiny("llama"), "language").tokenizer
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "t")
    said = refused(taught(tiny("llama"), tmp_path / "t", "generate"), TALK)
    assert "the teacher has another vocabulary" in said and "'<new>'" in said


def test_another_teacher_is_not_resumed_with(tiny: Callable[..., Path], tmp_path: Path) -> None:
    objective = OBJECTIVES["distil"].model_validate({"teacher": "teacher"})
    classifier(tiny, tmp_path / "teacher", make.LABELS)
    before = objective.outside(tmp_path)
    assert objective.outside(tmp_path) == before
    (tmp_path / "teacher" / "config.json").write_text((tmp_path / "teacher" / "config.json").read_text() + " ")
    weights = tmp_path / "teacher" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert objective.outside(tmp_path) != before


def test_the_task_must_fit(tiny: Callable[..., Path]) -> None:
    values = recipe(tiny("llama"), "generate", objective={"selftrain": {"unlabelled": "x.jsonl"}})
    assert "does not fit task: generate" in refused(values, TALK)
