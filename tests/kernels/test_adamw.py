"""AdamW in one pass over memory against torch's own, and the norm of gradients against theirs in 64 bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.kernels import native
from luthier.kernels.adamw import EXACT_STATE, STRETCH, AdamW, Move, gradient_norm

pytestmark = pytest.mark.skipif(native.library() is None, reason=str(native.why_not()))
many = settings(max_examples=30, deadline=None)
shapes = st.lists(
    st.one_of(st.tuples(st.integers(1, 9), st.integers(1, 70)), st.tuples(st.integers(1, 2 * STRETCH + 3))), min_size=1
)
dtypes = st.sampled_from([torch.float32, torch.bfloat16])


def drawn(sizes: list[tuple[int, ...]], seed: int, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(size, generator=generator) for size in sizes]


@many
@given(
    sizes=shapes,
    seed=st.integers(0, 1000),
    halves=st.lists(st.booleans(), min_size=1),
    decay=st.sampled_from([0.0, 0.1]),
    divide=st.sampled_from([None, 3.7]),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
)
def test_steps_are_torchs_own(
    sizes: list[tuple[int, ...]], seed: int, halves: list[bool], decay: float, divide: float | None, scale: float
) -> None:
    ours, theirs = ([w.clone().requires_grad_() for w in drawn(sizes, seed)] for _ in range(2))
    own = AdamW(ours, 1e-2, (0.9, 0.99), 1e-8, weight_decay=decay)
    torchs = torch.optim.AdamW(theirs, 1e-2, (0.9, 0.99), 1e-8, weight_decay=decay, foreach=False)
    own.rounded = {w: w.detach().bfloat16() for w in ours[::2]}
    for number in range(3):
        for place, gradient in enumerate(drawn(sizes, seed + number + 1, scale)):
            if place == number:
                ours[place].grad = theirs[place].grad = None  # it does not move in this step
                continue
            gradient = gradient.bfloat16() if halves[place % len(halves)] else gradient
            ours[place].grad_dtype = None
            ours[place].grad, theirs[place].grad = gradient, gradient.float() / (divide or 1.0)
        own.grad_scale = None if divide is None else torch.tensor(divide)
        own.step()
        torchs.step()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-5, atol=1e-6)
        assert own.state[our].keys() == torchs.state[their].keys()
        if not own.state[our]:  # it never moved
            continue
        for kind, size in zip(("step", *EXACT_STATE), (0.0, scale, scale**2), strict=True):
            found, expected = (each.state[weight][kind] for each, weight in ((own, our), (torchs, their)))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * size)  # sums that all but cancel out
    for weight, rounded in own.rounded.items():
        assert weight.grad is None or torch.equal(weight.detach().bfloat16(), rounded)


@many
@given(count=st.integers(1, 2 * STRETCH + 3), seed=st.integers(0, 1000), number=st.integers(1, 2000))
def test_the_compiled_step_is_the_plain_one(count: int, seed: int, number: int) -> None:
    weight, gradient, mean, square = drawn([(count,)] * 4, seed)
    moved = weight.clone().requires_grad_()
    moved.grad = gradient
    state = {"step": torch.tensor(number - 1.0), "exp_avg": mean.clone(), "exp_avg_sq": square.abs()}
    plain = Move(1e-2, 1 - 1e-3, 0.9, 0.999, 1e-8, number, 1.0)
    own = AdamW([moved], plain.rate, (0.9, 0.999), 1e-8, weight_decay=0.1)
    own.state[moved] = state
    own.step()
    moments = mean, square.abs()
    plain.update(weight, gradient, *moments)
    torch.testing.assert_close(moved.detach(), weight, rtol=1e-5, atol=1e-6)
    for kind, moment in zip(EXACT_STATE, moments, strict=True):
        torch.testing.assert_close(state[kind], moment, rtol=1e-5, atol=1e-6)


@many
@given(sizes=shapes, seed=st.integers(0, 1000), scale=st.sampled_from([1e-12, 1.0, 1e12]), halves=dtypes)
def test_the_norm_is_that_of_all_gradients_together(
    sizes: list[tuple[int, ...]], seed: int, scale: float, halves: torch.dtype
) -> None:
    gradients = [g.to(halves if place % 2 else torch.float32) for place, g in enumerate(drawn(sizes, seed, scale))]
    exact = torch.cat([g.double().flatten() for g in gradients]).norm()
    torch.testing.assert_close(gradient_norm(gradients).double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_shows_in_the_norm(wrong: float, dtype: torch.dtype) -> None:
    gradient = torch.zeros(3 * STRETCH, dtype=dtype)
    gradient[STRETCH + 1] = wrong
    assert not torch.isfinite(gradient_norm([gradient]))


def test_gradients_that_lie_turned_are_read_as_they_are() -> None:
    ours, theirs = (torch.ones(40, 30, requires_grad=True) for _ in range(2))
    ours.grad, theirs.grad = (torch.arange(1200.0).view(30, 40).T for _ in range(2))
    AdamW([ours], 1e-2, (0.9, 0.99), 1e-8).step()
    torch.optim.AdamW([theirs], 1e-2, (0.9, 0.99), 1e-8).step()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient_norm([theirs.grad]), theirs.grad.norm())
