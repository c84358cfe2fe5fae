"""Checkpoints: all that a killed run needs to go on as if nothing had happened.

In: the optimizer's masters and state, the step, the hooks' state. Out: one folder a checkpoint, whole or absent.
Randomness needs no saving: the loop seeds every step from its number.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import UserError
from luthier.storage import files

if TYPE_CHECKING:
    import torch

    from luthier.tune.optimizers import Optimizer

WEIGHTS, STATE, MEAN, FACTS = "weights.safetensors", "optimizer.safetensors", "mean.safetensors", "state.json"


@dataclass
class Average:
    """The mean of the weights of several validations."""

    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    count: int = 0

    def add(self, weights: dict[str, torch.Tensor]) -> None:
        """Count these weights in."""
        self.count += 1
        for name, value in weights.items():
            if name in self.weights:
                self.weights[name].lerp_(value, 1 / self.count)
            else:
                self.weights[name] = value.clone()


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run; only the latest and the best are kept."""

    folder: Path
    fingerprint: str
    """Of the recipe, the data and the base model: a checkpoint of another run is refused."""

    def save(self, optimizer: Optimizer, step: int, hooks: dict[str, Any], average: Average | None = None) -> None:
        """Write the checkpoint of this step, then remove the one before."""
        from safetensors.torch import save_file

        with files.whole_folder(self.folder / f"step-{step:08d}") as folder:
            save_file({name: t.contiguous() for name, t in optimizer.weights().items()}, folder / WEIGHTS)
            save_file({name: t.contiguous() for name, t in optimizer.state().items()}, folder / STATE)
            averaged = average.count if average else 0
            if average and averaged:
                save_file(average.weights, folder / MEAN)
            facts = {"step": step, "fingerprint": self.fingerprint, "hooks": hooks, "averaged": averaged}
            files.write_json(folder / FACTS, facts)
        for older in self._steps()[:-1]:
            shutil.rmtree(older, ignore_errors=True)

    def save_best(self, optimizer: Optimizer, step: int) -> None:
        """Keep the weights of the best validation so far."""
        from safetensors.torch import save_file

        with files.whole_file(self.folder / f"best-{step:08d}.safetensors") as path:
            save_file({name: t.contiguous() for name, t in optimizer.weights().items()}, path)

    def load_best(self, optimizer: Optimizer, step: int) -> None:
        from safetensors.torch import load_file

        optimizer.load_weights(load_file(self.folder / f"best-{step:08d}.safetensors"))

    def keep_only_best(self, step: int) -> None:
        """Remove the weights of earlier bests, once a checkpoint that knows the new best is on disk."""
        for path in self.folder.glob("best-*.safetensors"):
            if path.name != f"best-{step:08d}.safetensors":
                path.unlink(missing_ok=True)

    def latest(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        steps = self._steps()
        return steps[-1] if steps else None

    def resume(self, optimizer: Optimizer, average: Average | None = None) -> tuple[int, dict[str, Any]] | None:
        """Load the newest checkpoint into optimizer and average. Returns its step and the hooks' state, or None.

        Raises:
            UserError: the checkpoint belongs to another recipe, data or base model, or its files are damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = self.latest()
        if folder is None:
            return None
        try:
            facts = files.read_json(folder / FACTS)
            step, fingerprint, hooks = int(facts["step"]), facts["fingerprint"], facts["hooks"]
        except (UserError, KeyError, TypeError, ValueError) as error:
            raise _damaged(folder, error) from None
        if fingerprint != self.fingerprint:
            raise UserError(
                "this checkpoint belongs to another recipe, other data or another base model",
                where=str(folder),
                mend="resume with the recipe, data and model of that run, or start a new run without --resume",
            )
        try:
            optimizer.load_weights(load_file(folder / WEIGHTS))
            optimizer.load_state(load_file(folder / STATE))
            if average is not None and facts["averaged"]:
                average.weights, average.count = load_file(folder / MEAN, str(optimizer.device)), facts["averaged"]
        except (SafetensorError, OSError, ValueError) as error:
            raise _damaged(folder, error) from None
        return step, hooks

    def remove(self) -> None:
        """Free the disk once the run is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"the checkpoint is damaged ({error})", where=str(folder), mend="remove this folder and resume again"
    )
