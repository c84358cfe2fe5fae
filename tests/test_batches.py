"""Which rows make which step, and how a step is cut."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.batches import BatchPlan, collate, micro_batches
from luthier.records import Row

plans = st.builds(
    BatchPlan,
    rows=st.integers(1, 60),
    batch_size=st.integers(1, 20),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 9),
)
lengths = st.lists(st.integers(1, 50), min_size=1, max_size=30)


def made(of_lengths: list[int]) -> list[Row]:
    return [
        Row(f"{i:03d}", list(range(i, i + n)), {"weight": [1.0] * n}, {"label": i}) for i, n in enumerate(of_lengths)
    ]


@given(plans)
def test_every_epoch_sees_every_row_once(plan: BatchPlan) -> None:
    per_epoch = plan.steps_per_epoch
    assert plan.steps == per_epoch * plan.epochs
    for epoch in range(int(plan.epochs)):
        seen = [row for step in range(per_epoch) for row in plan.rows_of(epoch * per_epoch + step + 1)]
        assert sorted(seen) == list(range(plan.rows))


@given(plans, st.data())
def test_a_step_does_not_depend_on_the_steps_before(plan: BatchPlan, data: st.DataObject) -> None:
    in_order = {step: plan.rows_of(step) for step in range(1, plan.steps + 1)}
    jumps = data.draw(st.permutations(sorted(in_order)))
    again = BatchPlan(plan.rows, plan.batch_size, plan.epochs, plan.seed)
    assert {step: again.rows_of(step) for step in jumps} == in_order
    assert all(1 <= len(rows) <= plan.batch_size for rows in in_order.values())


def test_epochs_and_seeds_are_shuffled_apart() -> None:
    def first_epochs(seed: int) -> list[list[int]]:
        plan = BatchPlan(rows=50, batch_size=50, epochs=2, seed=seed)
        return [plan.rows_of(1), plan.rows_of(2)]

    orders = [*first_epochs(0), *first_epochs(1)]
    assert len({tuple(order) for order in orders}) == 4


def test_steps_follow_epochs_and_max_steps() -> None:
    assert BatchPlan(rows=10, batch_size=4, epochs=1, seed=0).steps == 3
    assert BatchPlan(rows=10, batch_size=4, epochs=0.5, seed=0).steps == 2
    assert BatchPlan(rows=10, batch_size=4, epochs=0.01, seed=0).steps == 1
    assert BatchPlan(rows=10, batch_size=4, epochs=9, seed=0, max_steps=5).steps == 5
    assert BatchPlan(rows=10, batch_size=4, epochs=1, seed=0, max_steps=5).steps == 3


@given(lengths, st.integers(1, 300))
def test_micro_batches_keep_every_row_within_the_budget(of_lengths: list[int], budget: int) -> None:
    rows = made(of_lengths)
    groups = micro_batches(rows, budget)
    assert sorted(row.id for group in groups for row in group) == [row.id for row in rows]
    for group in groups:
        padded = max(len(row.tokens) for row in group) * len(group)
        assert padded <= budget or len(group) == 1


@given(lengths, st.integers(1, 300), st.randoms(use_true_random=False))
def test_micro_batches_do_not_depend_on_the_order_of_rows(of_lengths: list[int], budget: int, chance: object) -> None:
    rows = made(of_lengths)
    mixed = list(rows)
    chance.shuffle(mixed)  # type: ignore[attr-defined]
    assert micro_batches(mixed, budget) == micro_batches(rows, budget)


@given(lengths)
def test_collate_puts_rows_end_to_end(of_lengths: list[int]) -> None:
    rows = made(of_lengths)
    batch = collate(rows)
    assert len(batch) == len(rows)
    assert batch.lengths_E.tolist() == of_lengths
    assert batch.example_streams["label"].tolist() == list(range(len(rows)))
    assert batch.tokens_N.dtype == torch.long and batch.token_streams["weight"].dtype == torch.float32
    for index, row in enumerate(rows):
        mine = batch.example_N == index
        assert batch.tokens_N[mine].tolist() == list(row.tokens)
        assert batch.token_streams["weight"][mine].tolist() == row.token_streams["weight"]
