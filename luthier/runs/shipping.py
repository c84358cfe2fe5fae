"""Giving a model out: `luthier ship` copies what users need of a run whose gate is open, and refuses any other.

In: a finished run. Out: a folder with the model, its card, its figures, and shipped.json, which says what was shipped
when and on which conditions. Test rows stay in the run: the copied verdict.json holds figures and sentences alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from luthier.errors import Problem, UserError
from luthier.runs.run import VERDICT, Run
from luthier.storage import files
from luthier.version import __version__

SHIPPED, CARD, FOLDER = "shipped.json", "README.md", "shipped"
WITH_ROWS = ("mistakes",)
"""Keys of a verdict that hold test rows."""


@dataclass(frozen=True)
class Shipped:
    """What came of it."""

    ships: bool
    gate: Mapping[str, Any]
    folder: Path | None
    """Where the copy is; None where the gate refused."""

    @property
    def refusals(self) -> list[str]:
        """The conditions that are not met, each with its reason."""
        return [f"{row['condition']}: {row['reason']}" for row in self.gate["conditions"] if not row["met"]]


def ship(run: Path | str, to: Path | str | None = None) -> Shipped:
    """Copy the run's model for its users if every condition of `ship_if` is met; copy nothing otherwise.

    Args:
        to: The folder to write; `shipped/NAME` by default, NAME being the run folder's.

    Raises:
        UserError: the run has no verdict, no `ship_if`, or the folder is there already.
    """
    opened = Run.open(run)
    if not opened.complete or not (opened.folder / VERDICT).exists():
        mend = f"finish it: luthier train --resume {opened.folder}"
        raise UserError("is not finished, so nothing is known of its model", where=str(opened.folder), mend=mend)
    verdict, asked = opened.verdict, opened.resolved.get("ship_if", [])
    if not asked:
        mend = f"add conditions: luthier evaluate {opened.folder} ship_if='[\"accuracy >= 0.85\"]'"
        raise UserError("has no ship_if, so nothing says when its model may ship", where=str(opened.folder), mend=mend)
    gate = verdict.get("gate")
    if not gate or [row["condition"] for row in gate["conditions"]] != list(asked):
        what = "was judged on other conditions than its recipe has now"
        raise UserError(what, where=str(opened.folder), mend=f"judge it again: luthier evaluate {opened.folder}")
    if not gate["ships"]:
        return Shipped(False, gate, None)
    folder = Path(to) if to is not None else Path(FOLDER) / opened.folder.resolve().name
    if folder.exists():
        raise UserError(Problem("already exists", str(folder), "name another folder with --to"))
    with files.whole_folder(folder) as made:
        shutil.copytree(opened.model_folder, made / "model")
        shutil.copyfile(opened.folder / CARD, made / CARD)
        files.write_json(made / VERDICT, without_rows(verdict))
        files.write_json(made / SHIPPED, account(opened, gate, made))
    return Shipped(True, gate, folder)


def without_rows(verdict: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict's figures and sentences, without what holds rows of the test split."""
    findings = {
        name: {key: finding[key] for key in ("title", "sentence", "figures")}
        for name, finding in verdict.get("findings", {}).items()
    }
    return {**verdict, **{key: [] for key in WITH_ROWS}, "findings": findings}


def account(run: Run, gate: Mapping[str, Any], made: Path) -> dict[str, Any]:
    """What shipped.json says."""
    manifest = run.manifest
    return {
        "run": str(run.folder.resolve()),
        "shipped": datetime.now(UTC).isoformat(timespec="seconds"),
        "luthier": __version__,
        "base_model": manifest["model"]["path"],
        "fingerprint": manifest["fingerprint"],
        "gate": gate,
        "files": {
            str(path.relative_to(made)): files.file_fingerprint(path)
            for path in sorted(made.rglob("*"))
            if path.is_file()
        },
    }
