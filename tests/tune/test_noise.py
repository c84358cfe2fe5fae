"""Noise on the embeddings: its size, only while training, and none where embeddings are a fixed feature."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier.batches import collate
from luthier.errors import UserError
from luthier.tune.noise import NoiseSettings, add_noise
from tests import tiny as make

Tiny = Callable[..., Path]


@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_noise_has_its_size_and_is_only_there_while_training(tiny: Tiny, family: str) -> None:
    net = make.network(tiny(family), "language")
    make.small("full").apply(net)
    seen: list[torch.Tensor] = []
    embeddings = net.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, inputs, out: seen.append(out.detach()))
    add_noise(net, NoiseSettings(neftune_alpha=5))
    embeddings.register_forward_hook(lambda module, inputs, out: seen.append(out.detach()))
    batch = collate(make.rows(net))
    net.model.eval()
    net.hidden(batch)
    assert torch.equal(seen[0], seen[1])
    net.train_mode()
    net.hidden(batch)
    noise = seen[3] - seen[2]
    if family == "mpt":
        noise = noise[net.padded(batch)[1].bool()]
    limit_N = 5 / (batch.lengths_E[batch.example_N] * noise.shape[-1]).sqrt()
    share = noise.reshape(-1, noise.shape[-1]) / limit_N[:, None]
    assert 0.97 < float(share.abs().max()) <= 1.0 + 1e-5
    assert float(share.std()) == pytest.approx(3**-0.5, rel=0.05)


def test_noise_under_a_frozen_trunk_is_refused(tiny: Tiny) -> None:
    net = make.network(tiny("llama"), "language")
    make.small("last_layers").apply(net)
    with pytest.raises(UserError, match="lowest on"):
        add_noise(net, NoiseSettings(neftune_alpha=5))
