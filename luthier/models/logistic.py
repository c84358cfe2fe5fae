"""Logistic regression: a label layer fitted to embeddings whose labels are known.

In: embeddings [E, D], labels, weights. Out: the layer's weight and bias. The same optimum as scikit-learn's
`LogisticRegression`: the weighted sum of losses times `inverse_strength`, plus half the squared norm of the weights.

Shape letters: E rows, D width of an embedding, C labels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

MOST_ITERATIONS = 1000


def fit_label_layer(
    layer: nn.Linear,
    embedding_ED: torch.Tensor,
    label: torch.Tensor,
    weight_E: torch.Tensor,
    inverse_strength: float = 1.0,
) -> None:
    """Set the layer to the optimum for these rows, reached from zero, so that the same rows give the same layer.

    Args:
        label: Numbers of the classes [E], or zeros and ones [E, C] where a row may have several labels.
    """
    width, classes = layer.in_features, layer.out_features
    x_ED, weight_E = embedding_ED.double(), weight_E.double()
    losses = several_losses if label.dim() == 2 else single_losses
    flat = torch.zeros(classes * (width + 1), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [flat],
        max_iter=MOST_ITERATIONS,
        tolerance_grad=1e-9,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        weight_CD, bias_C = parts(flat, classes, width)
        loss = (losses(x_ED @ weight_CD.T + bias_C, label) * weight_E).sum() * inverse_strength
        loss = loss + weight_CD.square().sum() / 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    weight_CD, bias_C = parts(flat.detach(), classes, width)
    with torch.no_grad():
        layer.weight.copy_(weight_CD)
        layer.bias.copy_(bias_C - (bias_C.mean() if label.dim() == 1 else 0))


def parts(flat: torch.Tensor, classes: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    return flat[: classes * width].view(classes, width), flat[classes * width :]


Losses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def single_losses(scores_EC: torch.Tensor, label_E: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(scores_EC, label_E.long(), reduction="none")


def several_losses(scores_EC: torch.Tensor, label_EC: torch.Tensor) -> torch.Tensor:
    losses_EC = nn.functional.binary_cross_entropy_with_logits(scores_EC, label_EC.double(), reduction="none")
    return losses_EC.sum(dim=1)
