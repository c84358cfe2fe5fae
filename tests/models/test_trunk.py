"""The stored trunk: the same losses with it, computed once, and rebuilt where it is damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from luthier.models.settings import TrunkSettings
from luthier.models.trunk import RECORD, TrunkStore, key_of, stored_trunk
from luthier.selection import Selection
from luthier.selection.head import LabelHead
from luthier.selection.last_layers import LastLayers
from luthier.storage import files
from luthier.tasks import Head
from luthier.tune.optimizers import Optimizer, OptimizerSettings
from tests import tiny as make

Tiny = Callable[..., Path]
CASES: list[tuple[str, Head]] = [
    ("llama", "language"),
    ("gemma3", "language"),
    ("gpt2", "classes"),
    ("bert", "classes"),
    ("roberta", "classes"),
    ("distilbert", "classes"),
]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))


def train(
    folder: Path, head: Head, settings: TrunkSettings, selection: Selection | None = None
) -> tuple[list[float], dict[str, int], list[str]]:
    """Losses of six steps, what was computed and reused, and what was said."""
    net = make.network(folder, head)
    (selection or LastLayers(layers=2)).apply(net)
    said: list[str] = []
    with stored_trunk(net, settings, 1000, said.append) as trunk:
        steps = make.run_steps(net, Optimizer(net, OptimizerSettings()), make.rows(net), 6)
        counts = trunk.store.counts() if trunk else {}
    assert net.trunk is None
    return [step.loss for step in steps], counts, said


@pytest.mark.parametrize(("family", "head"), CASES)
def test_the_same_losses_computed_once(family: str, head: Head, tiny: Tiny) -> None:
    without, nothing, _ = train(tiny(family), head, TrunkSettings(store_trunk=False))
    first, counts, said = train(tiny(family), head, TrunkSettings())
    second, again, _ = train(tiny(family), head, TrunkSettings())
    assert nothing == {}
    assert first == pytest.approx(without, rel=1e-6)
    assert second == pytest.approx(without, rel=1e-6)
    assert counts["reused"] > counts["computed"] > 0
    assert again["computed"] == 0
    assert "1 of 3 blocks are frozen" in said[0]


@pytest.mark.parametrize("family", [family for family, head in CASES if head == "classes"])
def test_a_head_alone_learns_on_a_body_that_runs_once(family: str, tiny: Tiny) -> None:
    without, _, _ = train(tiny(family), "classes", TrunkSettings(store_trunk=False), LabelHead())
    stored, counts, said = train(tiny(family), "classes", TrunkSettings(), LabelHead())
    again, more, _ = train(tiny(family), "classes", TrunkSettings(), LabelHead())
    assert stored == pytest.approx(without, rel=1e-6) and again == pytest.approx(without, rel=1e-6)
    assert counts["computed"] == sum(len(row.tokens) for row in make.rows(make.network(tiny(family), "classes")))
    assert counts["reused"] > 0 and more["computed"] == 0
    assert "3 of 3 blocks are frozen" in said[0]


def test_nothing_is_stored_where_everything_learns(tiny: Tiny) -> None:
    _, counts, said = train(tiny("llama"), "language", TrunkSettings(), LastLayers(layers=3))
    assert counts == {} and not said


def only_store() -> Path:
    (folder,) = [path for path in (files.cache_folder() / "trunk").iterdir() if path.is_dir()]
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "states.bin").write_bytes((folder / "states.bin").read_bytes()[:1000]), "missing"),
        (lambda folder: (folder / "states.bin").write_bytes(b"\1" * (folder / "states.bin").stat().st_size), "damaged"),
        (lambda folder: (folder / "index.bin").write_bytes((folder / "index.bin").read_bytes()[:-5]), "missing"),
        (lambda folder: (folder / "states.bin").unlink(), "missing"),
        (lambda folder: files.write_json(folder / "store.json", {"version": 0}), "another layout"),
        (lambda folder: (folder / "store.json").write_text("{"), "another layout"),
    ],
)
def test_a_damaged_store_is_computed_anew_and_said(damage: Callable[[Path], object], message: str, tiny: Tiny) -> None:
    expected, _, _ = train(tiny("llama"), "language", TrunkSettings())
    damage(only_store())
    losses, counts, said = train(tiny("llama"), "language", TrunkSettings())
    assert losses == pytest.approx(expected, rel=1e-6)
    assert counts["computed"] > 0
    assert any(message in line for line in said), said
    assert train(tiny("llama"), "language", TrunkSettings())[1]["computed"] == 0


def test_another_models_store_is_never_read(tiny: Tiny) -> None:
    train(tiny("llama"), "language", TrunkSettings())
    _, counts, _ = train(tiny("llama", seed=1), "language", TrunkSettings())
    assert counts["computed"] > 0
    assert len([path for path in (files.cache_folder() / "trunk").iterdir() if path.is_dir()]) == 2


def test_the_limit_holds_and_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    store = TrunkStore(tmp_path / "store", 4, torch.float32, 10 * 16, said.append)
    for number in range(5):
        store.put(key_of(torch.tensor([number])), torch.full((3, 4), float(number)))
    store.close()
    assert [store.get(key_of(torch.tensor([n]))) is not None for n in range(5)] == [True, True, True, False, False]
    assert (tmp_path / "store" / "states.bin").stat().st_size <= 160
    assert said == ["the stored trunk has reached train.trunk_gib; further rows are computed each time"]


def test_a_full_disk_is_survived_and_said(tmp_path: Path) -> None:
    """/dev/full is a disk that is always full."""
    said: list[str] = []
    store = TrunkStore(tmp_path / "store", 4, torch.float32, 1 << 20, said.append)
    store.data.unlink()
    store.data.symlink_to("/dev/full")
    store.put(key_of(torch.tensor([1])), torch.ones(3, 4))
    assert store.get(key_of(torch.tensor([1]))) is None
    assert len(said) == 1 and "No space left on device" in said[0]
    store.close()


def test_two_runs_at_once_share_one_store(tmp_path: Path) -> None:
    said: list[str] = []
    writer = TrunkStore(tmp_path / "store", 4, torch.bfloat16, 1 << 20)
    writer.put(key_of(torch.tensor([1])), torch.ones(3, 4, dtype=torch.bfloat16))
    reader = TrunkStore(tmp_path / "store", 4, torch.bfloat16, 1 << 20, said.append)
    reader.put(key_of(torch.tensor([2])), torch.ones(2, 4, dtype=torch.bfloat16))
    found = reader.get(key_of(torch.tensor([1])))
    assert found is not None and torch.equal(found, torch.ones(3, 4, dtype=torch.bfloat16))
    assert reader.get(key_of(torch.tensor([2]))) is None
    assert said == ["another run is writing the stored trunk; this one only reads it"]
    writer.close()
    assert (tmp_path / "store" / "index.bin").stat().st_size == RECORD.size


def test_old_stores_make_room(tiny: Tiny, tmp_path: Path) -> None:
    old = files.cache_folder() / "trunk" / "old"
    old.mkdir(parents=True)
    (old / "states.bin").write_bytes(b"\0" * 2**20)
    train(tiny("llama"), "language", TrunkSettings(trunk_gib=0.0005))
    assert not old.exists()
