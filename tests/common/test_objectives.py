"""What every objective must pass, on every head and kind of model it fits. A new row of OBJECTIVES is picked up."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.batches import collate, micro_batches
from luthier.models.network import Network
from luthier.models.tiny import ENCODER_DECODERS, ENCODERS
from luthier.records import Row
from luthier.tasks import Form
from luthier.tune.objectives import OBJECTIVES, Context, Learner
from luthier.tune.objectives.sum import Part, Sum
from tests import tiny as make
from tests.common.preference_references import (
    reference_dpo,
    reference_grpo,
    reference_kto,
    reference_ppo,
    reference_reward,
)
from tests.common.teaching_references import reference_contrastive, reference_distil

KINDS = dict.fromkeys(ENCODERS, "encoder") | dict.fromkeys(ENCODER_DECODERS, "encoder-decoder")
FAMILIES = {
    "classes": ("llama", "gpt2", "bert", "roberta", "xlnet", "distilbert"),
    "score": ("llama", "gpt2", "bert", "roberta", "xlnet", "distilbert"),
    "pooled": ("bert", "roberta", "xlnet", "distilbert", "gpt2", "llama"),
    "tags": ("llama", "gpt2", "bert", "roberta", "xlnet", "distilbert"),
    "language": ("llama", "gpt2", "qwen3", "gemma3", "mistral", "mpt", "t5", "bart"),
}
PATHS = ("llama", "gemma3", "mpt", "bert", "xlnet")
"""A family for each way that a network computes scores: without padding or padded, read at the last token or the first,
embeddings that are scaled, a pooler. The support matrix (test_support.py) has the other families of each objective."""
PLAIN = ("classify", "contrastive", "regress", "sft", "tag")
"""An objective for each head, which is held against its reference on every family."""
CASES = [
    (name, form, family)
    for name, kind in OBJECTIVES.items()
    for form in kind.forms
    for family in FAMILIES[make.objective(name, form).head]
    if KINDS.get(family, "decoder") in make.objective(name, form).kinds and (name in PLAIN or family in PATHS)
]
ONE_FAMILY = list({(name, form): (name, form, family) for name, form, family in reversed(CASES)}.values())


class Case(NamedTuple):
    """A learner on a model a little away from its start, and the rows of an update."""

    learner: Learner
    net: Network
    rows: list[Row]
    whole: dict[str, torch.Tensor]
    """The gradient of all rows at once."""


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Case:
    name, form, family = request.param
    objective = make.objective(name, form)
    net = make.fresh(tiny(family), objective.head)
    if name == "reward":  # its gradient is a difference of hidden states, which a fresh small model has nearly the same
        with torch.no_grad():
            for weight in (p for p in net.model.parameters() if p.dim() == 2):
                weight.mul_(4)
    learner, rows = make.begin(objective, net, form=form)
    return Case(learner, net, rows, gradients(learner, [rows]))


def gradients(learner: Learner, groups: Sequence[Sequence[Row]]) -> dict[str, torch.Tensor]:
    """Of the mean loss over all the groups, as the loop accumulates it."""
    net = learner.context.network
    net.model.zero_grad(set_to_none=True)
    batches = [collate(group, net.device) for group in groups]
    weight = sum(learner.weight(batch) for batch in batches)
    for batch in batches:
        (learner.loss(batch).sum / weight).backward()
    return {name: p.grad.clone() for name, p in net.model.named_parameters() if p.grad is not None}


def loss_of(learner: Learner, rows: Sequence[Row]) -> float:
    with torch.no_grad():
        return float(learner.loss(collate(rows)).sum)


def without_weight(row: Row) -> Row:
    token_streams = {n: [0.0] * len(v) if is_weight(n) else v for n, v in row.token_streams.items()}
    example_streams = {n: 0.0 if is_weight(n) else v for n, v in row.example_streams.items()}
    return replace(row, token_streams=token_streams, example_streams=example_streams)


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    scale = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in theirs.values()]))
    for name, gradient in theirs.items():
        assert torch.linalg.vector_norm(ours[name] - gradient) <= tolerance * scale, name


def test_padding_does_not_change_the_loss(case: Case) -> None:
    learner, rows = case.learner, case.rows
    short = min(rows, key=lambda row: len(row.tokens))
    others = [row for row in rows if row is not short]
    assert max(len(row.tokens) for row in others) > 2 * len(short.tokens)
    alone = loss_of(learner, [short])
    among = loss_of(learner, rows) - loss_of(learner, others)
    hidden = loss_of(learner, [short, *map(without_weight, others)])
    assert hidden == pytest.approx(alone, rel=1e-5)
    assert among == pytest.approx(alone, rel=1e-4)  # a difference of large sums


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(budget=st.integers(1, 400), shuffle=st.randoms(use_true_random=False))
def test_cutting_a_batch_up_does_not_change_the_gradient(case: Case, budget: int, shuffle: object) -> None:
    mixed = list(case.rows)
    shuffle.shuffle(mixed)  # type: ignore[attr-defined]
    groups = micro_batches(mixed, budget)
    shuffle.shuffle(groups)  # type: ignore[attr-defined]
    assert_close(gradients(case.learner, groups), case.whole)


def test_no_weight_means_no_gradient_at_all(case: Case) -> None:
    learner, net, rows = case.learner, case.net, case.rows
    net.model.zero_grad(set_to_none=True)
    batch = collate([without_weight(row) for row in rows])
    assert learner.weight(batch) == 0
    learner.loss(batch).sum.backward()
    assert all(not p.grad.any() for p in net.model.parameters() if p.grad is not None)

    weighed, silent = rows[:3], [without_weight(row) for row in rows[3:]]
    assert_close(gradients(learner, [[*silent, *weighed]]), gradients(learner, [weighed]))


@pytest.mark.parametrize(("name", "form", "family"), ONE_FAMILY, ids=map("-".join, ONE_FAMILY))
def test_a_weight_of_three_is_the_row_three_times(
    name: str, form: Form, family: str, tiny: Callable[..., Path]
) -> None:
    """What the row is weighted in the data, through tokens and made rows to the gradient."""
    objective, weights = make.objective(name, form), (3, 1, 2, 1, 1, 4, 2)
    nets = [make.network(tiny(family), objective.head) for _ in range(2)]
    _, plain = make.begin(objective, nets[0], form=form, weights=[1] * len(weights))
    learner, weighted = make.begin(objective, nets[1], form=form, weights=weights)
    repeated = []
    for one, row in zip(plain, weighted, strict=True):
        assert one.tokens == row.tokens
        times = weight_of(row) / weight_of(one)
        assert times == round(times) >= 1
        tokens, whole = (
            {n: v for n, v in s.items() if not is_weight(n)} for s in (row.token_streams, row.example_streams)
        )
        tokens |= {n: v for n, v in one.token_streams.items() if is_weight(n)}
        whole |= {n: v for n, v in one.example_streams.items() if is_weight(n)}
        repeated += [replace(row, token_streams=tokens, example_streams=whole)] * round(times)
    assert len(repeated) > len(weighted)
    assert_close(gradients(learner, [weighted]), gradients(learner, [repeated]), 1e-6)


def is_weight(stream: str) -> bool:
    return stream.rpartition(".")[2] == "weight"


def weight_of(row: Row) -> float:
    return max(value for name, value in row.example_streams.items() if is_weight(name))


def reference_sft(net: Network, rows: Sequence[Row]) -> torch.Tensor:
    total = torch.zeros(())
    for row in rows:
        ids, weight = torch.tensor([list(row.tokens)]), torch.tensor(row.token_streams["weight"])
        if "desirable" in row.example_streams:  # a pair, of which the chosen answer is learned
            ids, weight = ids[:, : row.parts[0]], weight[: row.parts[0]] * row.example_streams["weight"]
            logits = net.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1]
        elif row.parts:  # a source, and what is written after it
            source, ids, weight = ids[:, : row.parts[0]], ids[:, row.parts[0] :], weight[row.parts[0] :]
            logits = net.model(input_ids=source, decoder_input_ids=ids).logits[0, :-1]
        else:
            logits = net.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        total = total + (losses * weight[1:]).sum()
    return total


def reference_lm(net: Network, rows: Sequence[Row]) -> torch.Tensor:
    """Every token but the first, whatever the rows mark."""
    total = torch.zeros(())
    for row in rows:
        ids = torch.tensor([list(row.tokens)])
        loss = net.model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss  # a mean
        total = total + loss * (len(row.tokens) - 1) * row.example_streams["weight"]
    return total


def reference_classify(net: Network, rows: Sequence[Row]) -> torch.Tensor:
    total = torch.zeros(())
    for row in rows:
        ids = torch.tensor([list(row.tokens)])
        logits = net.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        label = torch.tensor([row.example_streams["label"]])
        total = total + torch.nn.functional.cross_entropy(logits, label) * row.example_streams["weight"]
    return total


def reference_adversarial(net: Network, rows: Sequence[Row]) -> torch.Tensor:
    """The reversal as a formula: values are f, and the gradient is -share of f's."""
    share = 0.1 * (2 / (1 + math.exp(-10 * 1.0)) - 1)  # the only step of its plan
    domains = net.model.get_submodule("auxiliary.domains")
    total = torch.zeros(())
    for row in rows:
        ids = torch.tensor([list(row.tokens)])
        mask = torch.ones_like(ids)
        feature = net.model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[0].mean(0)
        score = domains((1 + share) * feature.detach() - share * feature)[0]
        domain = torch.tensor(row.example_streams["domain"])
        weight = row.example_streams["weight"]
        total = total + torch.nn.functional.binary_cross_entropy_with_logits(score, domain) * weight / 2
    return total + reference_classify(net, [row for row in rows if not row.example_streams["domain"]])


def reference_regress(net: Network, rows: Sequence[Row]) -> torch.Tensor:
    total = torch.zeros(())
    for row in rows:
        ids = torch.tensor([list(row.tokens)])
        score = net.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, 0]
        total = total + (score - row.example_streams["score"]) ** 2 * row.example_streams["weight"]
    return total


def reference_tag(net: Network, rows: Sequence[Row]) -> torch.Tensor:
    total = torch.zeros(())
    for row in rows:
        ids = torch.tensor([list(row.tokens)])
        logits = net.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
        tags = torch.tensor(row.token_streams["tag"]).long()
        losses = torch.nn.functional.cross_entropy(logits, tags, reduction="none")
        total = total + (losses * torch.tensor(row.token_streams["weight"])).sum()
    return total


REFERENCES = {
    "sft": reference_sft,
    "classify": reference_classify,
    "lm": reference_lm,
    "regress": reference_regress,
    "tag": reference_tag,
    "contrastive": reference_contrastive,
    "distil": reference_distil,
    "adversarial": reference_adversarial,
    "selftrain": reference_classify,
    "dpo": reference_dpo,
    "grpo": reference_grpo,
    "ppo": reference_ppo,
    "kto": reference_kto,
    "reward": reference_reward,
}


def weight_in(name: str, row: Row) -> float:
    """What a row adds to the divisor of an objective."""
    weight = row.example_streams["weight"]
    if name == "lm":
        return weight * (len(row.tokens) - 1)
    if name == "sft" and "desirable" in row.example_streams:
        return weight * sum(row.token_streams["weight"][: row.parts[0]])
    if name in ("sft", "tag") or (name == "distil" and row.token_streams):
        return sum(row.token_streams["weight"])
    return weight * (2 if name == "kto" else 1)


def read_by(number: int, row: Row) -> Row | None:
    """The row as this part of a sum has made it; None where it reads other rows."""
    token_streams, example_streams = (
        {name.removeprefix(f"{number}."): value for name, value in streams.items() if name.startswith(f"{number}.")}
        for streams in (row.token_streams, row.example_streams)
    )
    return (
        replace(row, token_streams=token_streams, example_streams=example_streams)
        if example_streams["weight"]
        else None
    )


def reference_sum(net: Network, rows: Sequence[Row], parts: Sequence[Part]) -> torch.Tensor:
    """Each part's mean over its own rows, times what it counts; all times the first part's divisor, as a loss sum."""
    total, divisors = torch.zeros(()), []
    for number, part in enumerate(parts):
        own = [bare for row in rows if (bare := read_by(number, row)) is not None]
        divisors.append(sum(weight_in(part.name, row) for row in own))
        total = total + part.weight * divisors[0] / divisors[-1] * REFERENCES[part.name](net, own)
    return total


def test_equals_a_plain_reference(case: Case) -> None:
    """A new objective needs a reference of its own here: that is the point."""
    learner, net, rows = case.learner, case.net, case.rows
    kinds = type(learner.objective).__mro__
    name = next(key for kind in kinds for key, named in OBJECTIVES.items() if named is kind)
    net.model.zero_grad(set_to_none=True)
    summed = isinstance(learner.objective, Sum)
    reference = reference_sum(net, rows, learner.objective.parts) if summed else REFERENCES[name](net, rows)
    weight = learner.weight(collate(rows))
    (reference / weight).backward()
    theirs = {n: p.grad.clone() for n, p in net.model.named_parameters() if p.grad is not None}
    # Advantages cancel in the sum, so it may be small beside its terms: their mean is what is held to a millionth.
    assert loss_of(learner, rows) == pytest.approx(float(reference.detach()), rel=1e-5, abs=1e-6 * weight)
    assert_close(case.whole, theirs)


def test_reads_only_streams_it_names(case: Case) -> None:
    """Those that its learner adds by itself aside."""
    learner, rows = case.learner, case.rows
    objective, data = learner.objective, learner.context.rows[0]
    token_streams = {*objective.token_streams, *(rows[0].token_streams.keys() - data.token_streams.keys())}
    example_streams = {*objective.example_streams, *(rows[0].example_streams.keys() - data.example_streams.keys())}
    bare = [
        replace(
            row,
            token_streams={n: v for n, v in row.token_streams.items() if n in token_streams},
            example_streams={n: v for n, v in row.example_streams.items() if n in example_streams},
        )
        for row in rows
    ]
    assert loss_of(learner, bare) == loss_of(learner, rows)


def test_several_labels_equal_a_plain_reference(tiny: Callable[..., Path]) -> None:
    objective = OBJECTIVES["classify"]()
    net = make.network(tiny("bert"), "classes", multi_label=True)
    rows = make.rows(net, multi_label=True)
    learner = objective.begin(Context(net, rows))
    total = 0.0
    for row in rows:
        logits = net.model(input_ids=torch.tensor([list(row.tokens)])).logits[0]
        target = torch.tensor(row.example_streams["label"])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        total += float(loss.detach()) * row.example_streams["weight"]
    assert loss_of(learner, rows) == pytest.approx(total, rel=1e-5)


def test_smoothed_answers_equal_torchs_own_smoothing(tiny: Callable[..., Path]) -> None:
    net = make.network(tiny("llama"), "language")
    rows = make.rows(net)
    total = 0.0
    for row in rows:
        ids = torch.tensor([list(row.tokens)])
        logits = net.model(input_ids=ids).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none", label_smoothing=0.2)
        total += float((losses * torch.tensor(row.token_streams["weight"])[1:]).sum().detach())
    objective = OBJECTIVES["sft"].model_validate({"label_smoothing": 0.2})
    learner = objective.begin(Context(net, rows))
    assert loss_of(learner, rows) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_long_rows_are_scored_in_chunks(
    family: str, tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.kernels import cross_entropy
    from luthier.models import network

    objective = OBJECTIVES["sft"]()
    net = make.network(tiny(family), "language")
    rows = make.rows(net)
    learner = objective.begin(Context(net, rows))
    whole = gradients(learner, [rows])
    monkeypatch.setattr(cross_entropy, "CHUNK_VALUES", 5 * net.model.config.vocab_size)
    monkeypatch.setattr(network, "LOSS_CHUNK", 5)
    assert_close(gradients(learner, [rows]), whole)


def test_a_tokenizer_that_pads_on_the_left_changes_nothing(tiny: Callable[..., Path]) -> None:
    """GPT-2 counts positions from the left: padding there would shift every text."""
    for head in ("classes", "language"):
        net = make.network(tiny("gpt2"), head)  # type: ignore[arg-type]
        rows = make.rows(net)
        learner = make.fitting_objective(net).begin(Context(net, rows))
        before = loss_of(learner, rows)
        net.tokenizer.padding_side = "left"
        assert loss_of(learner, rows) == before
