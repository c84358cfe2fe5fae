"""The range test suggests a rate at which training works, sees where it diverges, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import luthier
from luthier.cli import main
from luthier.errors import Diverged, UserError
from luthier.planning.planner import prepare
from luthier.planning.prepared import Prepared
from luthier.progress import Progress
from luthier.rate_finder import RateTest, find_learning_rate, has_diverged, losses_at, read_curve, show


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("lr")
    words = ("dull", "flat", "bleak", "stale"), ("fun", "warm", "bright", "clever")
    rows = [{"text": f"a {words[i % 2][i % 4]} film, {i}", "label": ("bad", "good")[i % 2]} for i in range(120)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "model": {"path": str(tiny("bert")), "dtype": "float32", "device": "cpu"},
        "data": str(folder / "rows.jsonl"),
        "task": "classify",
        "selection": "full",
    }
    (folder / "recipe.yaml").write_text(json.dumps(values))
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def found(recipe: Path) -> RateTest:
    return luthier.find_learning_rate(recipe, highest=10.0)


def constant(prepared: Prepared, rate: float, steps: int = 40) -> list[float]:
    return losses_at(prepared, [rate] * steps, Progress())[0]


def test_the_suggestion_lies_where_training_works(recipe: Path, found: RateTest) -> None:
    assert found.suggestion is not None
    named = f"train.learning_rate={found.suggestion}"
    prepared = prepare(recipe, [named])
    used = prepare(recipe, [named, f"train.head_rate={prepared.recipe.head_rate}"])  # as a run with it would learn
    losses = constant(used, found.suggestion)
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    wild = constant(prepared, 10 * found.rates[-1])
    assert len(wild) < 40 or np.mean(wild[-5:]) > 1.5 * wild[0]


def test_the_curve_is_that_of_the_recipe(recipe: Path, found: RateTest) -> None:
    assert found.diverged and len(found.rates) == len(found.losses) == len(found.smoothed) < 100
    assert found.rates[0] == 1e-7 and found.rates[1] / found.rates[0] == pytest.approx(1e8 ** (1 / 99))
    again = luthier.find_learning_rate(recipe, highest=10.0)
    assert again == found
    assert found.losses[0] == pytest.approx(np.log(2), abs=0.2)


def test_nothing_is_written(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(recipe.parent.iterdir())
    assert main(["lr", str(recipe), "--steps", "20", "train.batch_size=8"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("rate     loss\n1.0e-07") and "lowest" in said
    assert not list(tmp_path.iterdir()) and sorted(recipe.parent.iterdir()) == before
    assert main(["lr", str(recipe), "--steps", "20", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["rates"]) == 20


class Interrupted(Progress):
    """Ctrl-C while rates are tried."""

    @contextlib.contextmanager
    def stage(self, title: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        def tell(done: int, note: str = "") -> None:
            if title == "trying rates":
                raise KeyboardInterrupt

        yield tell


def test_ctrl_c_is_clean(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("luthier.terminal.watcher", lambda quiet=False: Interrupted())
    assert main(["lr", str(recipe)]) == 130
    assert capsys.readouterr().err == "interrupted\n" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--lowest", "1", "--highest", "0.1"], "the rates do not rise from 1 to 0.1"),
        (["--steps", "5"], "5 steps are too few"),
        (["--stps", "50"], "did you mean '--steps'?"),
    ],
)
def test_mistakes_are_told(
    arguments: list[str], expected: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lr", str(recipe), *arguments]) == 2
    said = capsys.readouterr().err
    assert expected in said and "mend: " in said


# ── Reading a curve ──────────────────────────────────────────────────────────────────────────────────────────────────

RATES = np.geomspace(1e-7, 1, 100).tolist()


def curve(noise: float, seed: int = 0) -> list[float]:
    """Flat, falling from 1e-5 on, lowest at 1e-2, then up."""
    place = np.log10(RATES)
    fall = 0.5 / (1 + np.exp(-4 * (place + 3.5)))
    rise = np.where(place > -2, (place + 2) ** 2 * 3, 0)
    return (1 - fall + rise + noise * np.random.default_rng(seed).standard_normal(100)).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_noise_moves_the_suggestion_little(seed: int) -> None:
    found = read_curve(RATES, curve(0.05, seed), True)
    assert 1e-3 < found.lowest < 3e-2 and found.suggestion == float(f"{found.lowest / 10:.1e}")
    assert 1e-5 < found.steepest <= found.lowest
    said = show(found, "recipe.yaml")
    assert f"use it: luthier train recipe.yaml train.learning_rate={found.suggestion:g}" in said
    assert "suggested" in said and "steepest" in said and said.count("\n") < 30


def test_no_fall_no_suggestion() -> None:
    flat = (1 + 0.05 * np.random.default_rng(1).standard_normal(100)).tolist()
    found = read_curve(RATES, flat, False)
    assert replace(found, suggestion=None) == found
    assert "no suggestion: the loss did not fall" in show(found, "recipe.yaml")
    rising = read_curve(RATES, np.linspace(1, 9, 100).tolist(), True)
    assert rising.suggestion is None and rising.lowest == rising.steepest == RATES[0]


def test_divergence() -> None:
    assert not has_diverged([1.0, 0.9, 0.8] * 10)
    assert not has_diverged(np.linspace(0.7, 0.01, 60).tolist() + [0.5] * 20)  # above the lowest, below the start
    assert has_diverged(np.linspace(0.7, 0.3, 60).tolist() + [0.9] * 10)


def test_a_loss_that_is_no_number_from_the_start_is_told(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier import tuning

    made = tuning.network_to_tune

    def broken(*arguments: Any) -> Any:
        network = made(*arguments)
        next(iter(network.model.parameters())).data.fill_(float("nan"))
        return network

    monkeypatch.setattr(tuning, "network_to_tune", broken)
    with pytest.raises(Diverged, match="the loss became nan at step 1"):
        find_learning_rate(recipe)
    with pytest.raises(UserError):
        find_learning_rate(recipe, lowest=0)
