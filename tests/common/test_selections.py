"""What every selection must pass, on every kind of model. A new row of SELECTIONS is picked up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch

from luthier.errors import UserError
from luthier.models.describe import describe_model
from luthier.models.network import Network
from luthier.models.quantise import parameter_count
from luthier.models.save import load_saved, save_model
from luthier.models.settings import ModelSettings
from luthier.models.tiny import ENCODER_DECODERS
from luthier.records import Row
from luthier.selection import SELECTIONS, Selection
from luthier.tune.moved import MovedCheck
from luthier.tune.optimizers import Optimizer, OptimizerSettings
from tests import tiny as make

FAMILIES = [
    *(("classes", family) for family in ("llama", "gpt2", "bert", "roberta", "xlnet", "distilbert")),
    *(("tags", family) for family in ("bert", "gpt2")),
    *(("language", family) for family in ("llama", "gpt2", "qwen3", "gemma3", "mpt")),
    *(("pooled", family) for family in ("bert", "gpt2")),
]
"""Every way that blocks are built, under some head of each kind; test_support.py has the other families and heads."""
CASES = [(name, head, family) for name in SELECTIONS for head, family in FAMILIES]
CASES += [
    (name, "language", family)
    for name, kind in SELECTIONS.items()
    for family in ENCODER_DECODERS
    if "encoder-decoder" in kind.kinds
]


@dataclass
class Tuned:
    """A network after three steps of the real loop, and what was seen on the way."""

    net: Network
    selection: Selection
    plain_rows: list[Row]
    """As the base model's own tokenizer cuts them."""
    rows: list[Row]
    """As it cuts them with what the selection added to it."""
    moved: MovedCheck
    optimizer: Optimizer
    before: torch.Tensor
    """Output of the base model."""
    applied: torch.Tensor
    """Output right after `apply`."""
    start: dict[str, torch.Tensor]
    """Every parameter right after `apply`."""
    adapted: torch.Tensor
    """Output after the steps."""

    @cached_property
    def base_output(self) -> torch.Tensor:
        """The base model's output, under the head as it is after the steps."""
        if not self.net.new_parameters:
            return self.before
        base = make.fresh(self.net.folder or Path(), self.net.head, self.selection.quantisation)
        ours = dict(self.net.model.named_parameters())
        theirs = dict(base.model.named_parameters())
        for name in self.net.new_parameters:
            theirs[name].data.copy_(ours[name].data)
        return make.output(base, self.plain_rows)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def tuned(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Tuned:
    name, head, family = request.param
    selection = make.small(name)
    net = make.fresh(tiny(family), head, selection.quantisation)
    if refused := selection.refusal(describe_model(tiny(family)), head):
        with pytest.raises(UserError) as told:
            selection.apply(net)
        assert told.value.problems == [refused] and "use selection" in refused.mend
        pytest.skip(f"refused: {refused.what}")
    plain_rows = make.rows(net)
    before = make.output(net, plain_rows)
    selection.apply(net)
    applied = make.output(net, plain_rows)
    rows = make.rows(net)
    assert (rows == plain_rows) == (not selection.added_tokens())
    start_output = make.output(net, rows)
    start = {n: p.detach().clone() for n, p in net.model.named_parameters()}
    optimizer = Optimizer(net, OptimizerSettings())
    moved = MovedCheck(net, optimizer)
    rate = 1e-1 if head == "pooled" else 1e-2  # embeddings of length one move less than scores do
    assert len(make.run_steps(net, optimizer, rows, 3, learning_rate=rate)) == 3
    adapted = make.output(net, rows)
    assert (adapted - start_output).abs().max() > 1e-3
    return Tuned(net, selection, plain_rows, rows, moved, optimizer, before, applied, start, adapted)


def known(scores: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """The scores without those of added tokens."""
    return scores[..., : before.shape[-1]]


def test_output_is_unchanged_right_after_apply(tuned: Tuned) -> None:
    assert torch.equal(known(tuned.applied, tuned.before), tuned.before) == tuned.selection.starts_as_base
    assert torch.isfinite(tuned.applied).all()


def test_only_what_is_selected_moves_and_all_of_it(tuned: Tuned) -> None:
    parameters = dict(tuned.net.model.named_parameters())
    moved = {name for name, start in tuned.start.items() if not torch.equal(start, parameters[name])}
    assert moved == {name for name, parameter in parameters.items() if parameter.requires_grad}
    counts = tuned.moved.check(tuned.net, tuned.optimizer)
    assert counts["tensors_learned"] == len(moved)
    assert counts["parameters_learned"] == sum(parameters[name].numel() for name in moved)
    assert counts["parameters"] == parameter_count(tuned.net.model)


def test_a_label_head_always_learns(tuned: Tuned) -> None:
    if tuned.net.head == "classes":
        prefix = f"{tuned.net.model.base_model_prefix}."
        head = {name: p for name, p in tuned.net.model.named_parameters() if not name.startswith(prefix)}
        assert head and all(p.requires_grad for p in head.values())


def test_off_is_the_base_model_and_on_again_is_not(tuned: Tuned) -> None:
    with tuned.selection.off(tuned.net):
        off = make.output(tuned.net, tuned.plain_rows)
    expected = tuned.base_output
    assert torch.equal(known(off, expected), expected)
    assert torch.equal(make.output(tuned.net, tuned.rows), tuned.adapted)
    parameters = dict(tuned.net.model.named_parameters())
    assert all(tuned.optimizer.parameters[name] is parameters[name] for name in tuned.optimizer.parameters)


def test_save_load_gives_the_same_output(tuned: Tuned, tmp_path: Path) -> None:
    prompt_format = make.prompt_format(tuned.net)
    folder = tmp_path / "model"
    save_model(tuned.net, tuned.selection, prompt_format, folder)
    saved = load_saved(folder, ModelSettings(path="", dtype="float32", device="cpu"))
    assert torch.equal(make.output(saved.network, tuned.rows), tuned.adapted)
    assert saved.selection == tuned.selection
    assert saved.prompt_format == prompt_format
    mask = {name: parameter.requires_grad for name, parameter in tuned.net.model.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in saved.network.model.named_parameters()} == mask
    assert make.prompt_format(saved.network) == prompt_format, "the template travels with the tokenizer"
    with saved.selection.off(saved.network):
        off, expected = make.output(saved.network, tuned.plain_rows), tuned.base_output
        assert torch.equal(known(off, expected), expected), "off is the base, not the tuned"
    assert torch.equal(make.output(saved.network, tuned.rows), tuned.adapted)


def test_merge_equals_adapted(tuned: Tuned) -> None:
    """Last of this module's tests: the network stays merged."""
    if not tuned.selection.mergeable:
        with pytest.raises(UserError) as told:
            tuned.selection.merge(tuned.net)
        assert "selection: lora" in str(told.value)
        assert torch.equal(make.output(tuned.net, tuned.rows), tuned.adapted)
        return
    tuned.selection.merge(tuned.net)
    torch.testing.assert_close(make.output(tuned.net, tuned.rows), tuned.adapted, rtol=1e-5, atol=1e-5)
    base = make.loaded(tuned.net.folder or Path(), tuned.net.head)
    assert [name for name, _ in tuned.net.model.named_parameters()] == [n for n, _ in base.model.named_parameters()]
