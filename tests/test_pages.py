"""The pages of a real run in a real browser: light, dark, narrow, printed, by keyboard, without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import luthier
from tests.browser import barriers, brightness, needs_browser, not_reached_by_keyboard, opened

pytestmark = needs_browser
PAGES = ("report.html", "data.html")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., Path]) -> Path:
    """A run with all that goes on a page: curves, confusion, calibration, slices, conditions."""
    folder = tmp_path_factory.mktemp("pages")
    words = {"bad": ("dull", "flat", "slow"), "good": ("bright", "warm", "quick")}
    rows = [
        {
            "text": f"film {n} was {words[label][n % 3]} from day {n * 7 % 31}",
            "label": label,
            "source": ("a", "b")[n % 2],
        }
        for n in range(600)
        for label in [("bad", "good")[n // 2 % 2]]
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "model": {"path": str(tiny("bert")), "dtype": "float32", "device": "cpu"},
        "data": {"source": str(folder / "rows.jsonl"), "test_fraction": 0.3, "validation_fraction": 0.2},
        "task": "classify",
        "train": {"max_steps": 12, "batch_size": 8, "validate_every": 3},
        "evaluate": {"baselines": ["majority", "tfidf"], "resamples": 200, "fairness": {"slices": ["source"]}},
        "ship_if": ["accuracy >= 0.99"],
    }
    luthier.train(recipe, out=folder / "run")
    return folder / "run"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_everybody_can_read_it(run: Path, name: str, scheme: str) -> None:
    with opened((run / name).as_uri(), color_scheme=scheme, offline=True) as page:
        assert (brightness(page) > 200) if scheme == "light" else (brightness(page) < 60)
        assert barriers(page) == []
        assert not_reached_by_keyboard(page) == []
        page.emulate_media(media="print")
        assert brightness(page) > 200, "paper is white"
        assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("name", PAGES)
def test_it_fits_a_telephone(run: Path, name: str) -> None:
    with opened((run / name).as_uri(), viewport={"width": 340, "height": 700}, offline=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 340
