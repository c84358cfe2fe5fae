"""Next-token cross-entropy straight from hidden states: scores over the vocabulary are held a chunk at a time.

In: hidden states [M, D] of the tokens that carry loss, the head's weight [V, D], targets and weights [M]. Out: the
weighted sum of losses, or each token's loss. The gradient is formed while the scores are there, so they are computed
once and kept nowhere.
"""

from __future__ import annotations

from typing import Any

import torch

from luthier.kernels import native

CHUNK_VALUES = 1 << 24
"""Scores held at once in float32, 64 MiB; twice as many in 16 bits."""
ROWS_AT_ONCE = 1 << 13
"""Words whose part of the head's gradient is formed at once where it is added to another chunk's."""


def head_loss_plain(
    hidden_MD: torch.Tensor, weight_VD: torch.Tensor, target_M: torch.Tensor, weight_M: torch.Tensor
) -> torch.Tensor:
    """The plain version."""
    logits_MV = torch.nn.functional.linear(hidden_MD, weight_VD).float()
    return (torch.nn.functional.cross_entropy(logits_MV, target_M, reduction="none") * weight_M).sum()


def head_loss(
    hidden_MD: torch.Tensor, weight_VD: torch.Tensor, target_M: torch.Tensor, weight_M: torch.Tensor
) -> torch.Tensor:
    """Weighted sum of the tokens' negative log-likelihoods in nats, with gradient for hidden states and head."""
    return _HeadLoss.apply(hidden_MD, weight_VD, target_M, weight_M.float())


def token_losses_plain(hidden_MD: torch.Tensor, weight_VD: torch.Tensor, target_M: torch.Tensor) -> torch.Tensor:
    """The plain version."""
    logits_MV = torch.nn.functional.linear(hidden_MD, weight_VD).float()
    return torch.nn.functional.cross_entropy(logits_MV, target_M, reduction="none")


def token_losses(hidden_MD: torch.Tensor, weight_VD: torch.Tensor, target_M: torch.Tensor) -> torch.Tensor:
    """Each token's negative log-likelihood in nats, [M] in float32, with gradient for hidden states and head.

    What a loss makes of these values is not known yet. With a frozen head the gradient is a multiple of each token's
    own, which is formed at once; for a head that learns, scores are computed again in the backward pass.
    """
    return _TokenLosses.apply(hidden_MD, weight_VD, target_M)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_MD: torch.Tensor, weight_VD: torch.Tensor, target_M: torch.Tensor) -> torch.Tensor:
        for_hidden, for_head = ctx.needs_input_grad[:2]
        loss_M = torch.empty(len(hidden_MD), dtype=torch.float32, device=hidden_MD.device)
        gradient_MD = torch.empty_like(hidden_MD) if for_hidden and not for_head else None
        one_M = torch.ones(len(hidden_MD), dtype=torch.float32, device=hidden_MD.device)
        for part in _chunks(hidden_MD, weight_VD):
            scores_CV = hidden_MD[part] @ weight_VD.T
            loss_M[part] = _loss_and_gradient(scores_CV, target_M[part], one_M[part])
            if gradient_MD is not None:
                torch.mm(scores_CV, weight_VD, out=gradient_MD[part])
        if for_head:
            ctx.save_for_backward(None, hidden_MD, weight_VD, target_M)
        else:
            ctx.save_for_backward(gradient_MD, None, None, None)
        return loss_M

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient_MD, hidden_MD, weight_VD, target_M = ctx.saved_tensors
        outer_M = gradients[0].float()
        if gradient_MD is not None:
            return (gradient_MD * outer_M[:, None]).to(gradient_MD.dtype), None, None
        for_hidden = torch.empty_like(hidden_MD) if ctx.needs_input_grad[0] else None
        for_head = None
        for part in _chunks(hidden_MD, weight_VD):
            scores_CV = hidden_MD[part] @ weight_VD.T
            _loss_and_gradient(scores_CV, target_M[part], outer_M[part])
            if for_hidden is not None:
                torch.mm(scores_CV, weight_VD, out=for_hidden[part])
            for_head = _add_product(for_head, scores_CV, hidden_MD[part])
        return for_hidden, None if for_head is None else for_head.to(weight_VD.dtype), None


def _chunks(hidden_MD: torch.Tensor, weight_VD: torch.Tensor) -> list[slice]:
    """Tokens whose scores are held at once."""
    size = max(1, CHUNK_VALUES * 4 // weight_VD.element_size() // len(weight_VD))
    return [slice(start, start + size) for start in range(0, max(1, len(hidden_MD)), size)]


def _add_product(sum_VD: torch.Tensor | None, scores_CV: torch.Tensor, hidden_CD: torch.Tensor) -> torch.Tensor:
    """`sum_VD` and the head's gradient of one more chunk: of the first in its own dtype, of several in 32 bits."""
    if sum_VD is None:
        return scores_CV.T @ hidden_CD
    if hidden_CD.dtype == torch.float32:
        return sum_VD.addmm_(scores_CV.T, hidden_CD)
    sum_VD = sum_VD.float()
    for start in range(0, len(sum_VD), ROWS_AT_ONCE):  # whole, it would be large memory taken anew for each chunk
        rows = slice(start, start + ROWS_AT_ONCE)
        sum_VD[rows] += scores_CV[:, rows].T @ hidden_CD
    return sum_VD


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_MD: torch.Tensor, weight_VD: torch.Tensor, target_M: torch.Tensor, weight_M: torch.Tensor
    ) -> torch.Tensor:
        for_hidden, for_head = ctx.needs_input_grad[:2]
        gradient_MD = torch.empty_like(hidden_MD) if for_hidden else None
        gradient_VD = None
        total = torch.zeros((), dtype=torch.float32, device=hidden_MD.device)
        for part in _chunks(hidden_MD, weight_VD):
            scores_CV = hidden_MD[part] @ weight_VD.T
            total += _loss_and_gradient(scores_CV, target_M[part], weight_M[part]).sum()
            if gradient_MD is not None:
                torch.mm(scores_CV, weight_VD, out=gradient_MD[part])
            if for_head:
                gradient_VD = _add_product(gradient_VD, scores_CV, hidden_MD[part])
        ctx.save_for_backward(gradient_MD, gradient_VD)
        ctx.head_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradient_MD, gradient_VD = ctx.saved_tensors
        for_hidden = None if gradient_MD is None else gradient_MD * gradients[0]
        # In place: torch refuses a second backward pass over what was changed.
        for_head = None if gradient_VD is None else gradient_VD.mul_(gradients[0]).to(ctx.head_dtype)
        return for_hidden, for_head, None, None


def _loss_and_gradient(scores_CV: torch.Tensor, target_C: torch.Tensor, weight_C: torch.Tensor) -> torch.Tensor:
    """The weighted losses [C]; the scores become their gradient, in place."""
    if native.fits(scores_CV):
        loss_C = torch.empty(len(scores_CV), dtype=torch.float32)
        target_C, weight_C = target_C.contiguous(), weight_C.contiguous()
        native.call("cross_entropy", scores_CV.dtype, scores_CV, target_C, weight_C, loss_C, *scores_CV.shape)
        return loss_C
    log_probability_CV = torch.log_softmax(scores_CV.float(), dim=-1)
    loss_C = -log_probability_CV.gather(1, target_C[:, None]).squeeze(1) * weight_C
    gradient_CV = log_probability_CV.exp_()
    gradient_CV[torch.arange(len(target_C), device=target_C.device), target_C] -= 1
    scores_CV.copy_(gradient_CV.mul_(weight_C[:, None]))
    return loss_C
