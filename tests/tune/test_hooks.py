"""The best step and early stopping, on figures made up for each rule."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.tune.hooks import Best, EarlyStopping, refuse_climbing_loss, validation_steps


def fed(best: Best, *figures: tuple[float, float]) -> list[bool]:
    return [best.update(step, {"accuracy": share, "loss": loss}) for step, (share, loss) in enumerate(figures, 1)]


def test_a_clear_gain_wins_whatever_the_loss() -> None:
    best = Best("accuracy", True, is_share=True, rows=400)
    assert fed(best, (0.60, 0.7), (0.80, 0.9)) == [True, True]
    assert best.step == 2


def test_within_chance_the_loss_decides() -> None:
    best = Best("accuracy", True, is_share=True, rows=160)
    assert fed(best, (0.794, 0.474), (0.781, 0.398), (0.80, 0.41)) == [True, True, False]
    assert best.step == 2


def test_it_never_slides_below_one_standard_error_of_the_best_ever_seen() -> None:
    best = Best("accuracy", True, is_share=True, rows=100)
    fed(best, (0.80, 0.5), (0.77, 0.4), (0.74, 0.3), (0.71, 0.2))
    assert best.step == 2  # one standard error of 80% on 100 rows is 4 points


def test_a_figure_that_is_no_share_goes_by_its_own_value() -> None:
    best = Best("loss", False, rows=160)
    taken = [best.update(step, {"loss": loss}) for step, loss in enumerate((1.0, 0.8, 0.9, 0.8), 1)]
    assert taken == [True, True, False, False]


def test_patience_counts_validations_without_gain_and_the_state_survives_json() -> None:
    best = Best("loss", False)
    for step, loss in enumerate((1.0, 1.1, 1.2), 1):
        best.update(step, {"loss": loss})
    again = Best(**json.loads(json.dumps(asdict(best), allow_nan=False)))
    assert again == best
    assert again.should_stop(EarlyStopping(patience=2)) and not again.should_stop(EarlyStopping(patience=3))


def test_the_last_step_is_always_validated() -> None:
    assert validation_steps(10, 9, None) == {3, 6, 9, 10}
    assert validation_steps(5, 100, 2) == {2, 4, 5}


def test_a_climbing_loss_stops_the_run_and_says_where_the_best_weights_are(tmp_path: Path) -> None:
    best = Best("accuracy", True)
    falling = [2.0 - 0.01 * step for step in range(100)]
    refuse_climbing_loss(falling, best, tmp_path)
    refuse_climbing_loss([0.01] * 40 + [0.2] * 40, best, tmp_path)  # both are next to nothing
    noisy = [1.0, 3.0] * 50
    refuse_climbing_loss(noisy, best, tmp_path)
    climbing = [1.0] * 40 + [1.0 + 0.1 * step for step in range(40)]
    best.update(30, {"accuracy": 0.7, "loss": 1.0})
    with pytest.raises(UserError, match=r"climbs: 1.000 over .* step 30, .*checkpoints"):
        refuse_climbing_loss(climbing, best, tmp_path)
