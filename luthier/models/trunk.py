"""The frozen trunk is computed once: hidden states below the first block that learns are kept on disk and reused, by
later epochs and by later runs on the same rows.

In: a network whose selection is applied. Out: the same network, whose `hidden` starts at the first block that learns
wherever the store knows the example. A row's states depend on its own tokens alone, so they are kept by row, under the
base model's fingerprint, the dtype and the depth; each is checked against its checksum when first read.

Shape letters: N tokens of all examples, T tokens of one example, D hidden size.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout

from luthier.errors import UserError
from luthier.kernels.attention import Packing
from luthier.kernels.fast import packed_hidden
from luthier.models.settings import TrunkSettings
from luthier.storage import files

if TYPE_CHECKING:
    from luthier.models.network import Network
    from luthier.records import Batch

VERSION = 1
"""Of the store's layout and of what its values mean."""
RECORD = struct.Struct("<16sQII")
"""An index entry: key of the tokens, first token's place in the data file, number of tokens, checksum."""
KEEP_FREE = 2**30
"""Bytes of the disk that the store never takes."""


class Trunk:
    """The frozen blocks of one network, and the store of what they give."""

    def __init__(self, network: Network, depth: int, store: TrunkStore) -> None:
        self.network, self.depth, self.store = network, depth, store
        self.blocks = list(network.blocks()[1])[:depth]

    def states(self, batch: Batch) -> torch.Tensor:
        """Hidden states [N, D] below the first block that learns, read or computed."""
        lengths = batch.lengths_E.tolist()
        rows = batch.tokens_N.split(lengths)
        keys = [key_of(row) for row in rows]
        known = [self.store.get(key) for key in keys]
        missing = [index for index, states in enumerate(known) if states is None]
        if missing:
            computed_ND = self._compute(torch.cat([rows[index] for index in missing]), [lengths[i] for i in missing])
            for index, states_TD in zip(missing, computed_ND.split([lengths[i] for i in missing]), strict=True):
                known[index] = states_TD
                self.store.put(keys[index], states_TD)
        return torch.cat([states.to(batch.tokens_N.device) for states in known if states is not None])

    @contextlib.contextmanager
    def standing_in(self, states_ND: torch.Tensor) -> Iterator[None]:
        """Inside the block the frozen blocks hand on these states instead of computing."""
        forwards = [block.__dict__.get("forward") for block in self.blocks]
        for block in self.blocks:
            block.forward = lambda hidden, *_, **__: hidden
        self.blocks[-1].forward = lambda *_, **__: states_ND[None]
        try:
            yield
        finally:
            for block, forward in zip(self.blocks, forwards, strict=True):
                _restore(block, forward)

    @torch.no_grad()
    def _compute(self, tokens_N: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """Run the model up to the last frozen block, and no further."""
        last = self.blocks[-1]
        own, forward = last.__dict__.get("forward"), last.forward

        def stop_here(*arguments: Any, **named: Any) -> Any:
            raise _Reached(forward(*arguments, **named))

        last.forward = stop_here
        assert self.network.family is not None
        try:
            packed_hidden(self.network.model, self.network.family, tokens_N, Packing(tuple(lengths), tokens_N.device))
        except _Reached as reached:
            return reached.hidden[0]
        finally:
            _restore(last, own)
        raise AssertionError("the model did not run its blocks")


class _Reached(Exception):
    """Carries the hidden states out of the model."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__("reached")
        self.hidden = hidden


def _restore(block: Any, forward: Any) -> None:
    if forward is None:
        block.__dict__.pop("forward", None)
    else:
        block.forward = forward


@dataclass(frozen=True)
class _Place:
    first: int
    count: int
    checksum: int


class TrunkStore:
    """Hidden states by row in two files that only grow: the states, and an index written after them."""

    def __init__(
        self,
        folder: Path,
        width: int,
        dtype: torch.dtype,
        most_bytes: int,
        say: Callable[[str], Any] = lambda line: None,
    ) -> None:
        """Open or make it. A store that another run is writing is read, and not written.

        What is damaged, cut off or of another layout is left out, computed anew, and said.
        """
        self.folder, self.width, self.dtype, self.most_bytes, self.say = folder, width, dtype, most_bytes, say
        self.token_bytes = width * dtype.itemsize
        self.reused = self.computed = 0
        self._said: set[str] = set()
        self._checked: set[bytes] = set()
        self._places: dict[bytes, _Place] = {}
        self._lock = FileLock(folder.with_suffix(".lock"))
        self.writes = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self.writes = True
        except Timeout:
            self._say_once("another run is writing the stored trunk; this one only reads it")
        except OSError as error:
            self._say_once(f"the trunk can't be stored ({error.strerror}); it is computed each time")
        self._open()

    @property
    def data(self) -> Path:
        return self.folder / "states.bin"

    @property
    def index(self) -> Path:
        return self.folder / "index.bin"

    def get(self, key: bytes) -> torch.Tensor | None:
        """The states [T, D] of a row; None where they are not there or not whole."""
        place = self._places.get(key)
        if place is None:
            return None
        with open(self.data, "rb") as file:
            file.seek(place.first * self.token_bytes)
            raw = bytearray(file.read(place.count * self.token_bytes))
        if key not in self._checked:
            if zlib.crc32(raw) != place.checksum:
                del self._places[key]
                self._say_once("parts of the stored trunk are damaged; they are computed anew")
                return None
            self._checked.add(key)
        self.reused += place.count
        return torch.frombuffer(raw, dtype=self.dtype).view(place.count, self.width)

    def put(self, key: bytes, states_TD: torch.Tensor) -> None:
        """Keep the states of a row; on a full disk or over the limit nothing more is kept, and that is said."""
        self.computed += len(states_TD)
        if not self.writes or key in self._places:
            return
        raw = states_TD.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        if (self._end + len(states_TD)) * self.token_bytes > self.most_bytes:
            self._stop_writing("the stored trunk has reached train.trunk_gib; further rows are computed each time")
            return
        place = _Place(self._end, len(states_TD), zlib.crc32(raw))
        try:
            with open(self.data, "r+b") as file:
                file.seek(place.first * self.token_bytes)
                file.write(raw)
            with open(self.index, "ab") as file:
                file.write(RECORD.pack(key, place.first, place.count, place.checksum))
        except OSError as error:
            self._stop_writing(f"the trunk can't be stored any further ({error.strerror}); the rest is computed")
            return
        self._end += place.count
        self._places[key] = place
        self._checked.add(key)

    def counts(self) -> dict[str, int]:
        """Tokens whose states were computed, and read, since it was opened."""
        return {"computed": self.computed, "reused": self.reused}

    def close(self) -> None:
        """Let another run write it."""
        self.writes = False
        self._lock.release()

    def _open(self) -> None:
        facts = {"version": VERSION, "width": self.width, "dtype": str(self.dtype)}
        header = self.folder / "store.json"
        self._end = 0
        try:
            whole = header.is_file() and files.read_json(header) == facts
        except UserError:
            whole = False
        if not whole:
            if header.exists():
                self._say_once("the stored trunk is of another layout; it is computed anew")
            if not self.writes:
                return
            try:
                for left in (self.data, self.index, header):
                    left.unlink(missing_ok=True)
                self.data.touch()
                self.index.touch()
                files.write_json(header, facts)
            except (OSError, UserError) as error:
                self._stop_writing(f"the trunk can't be stored ({error}); it is computed each time")
            return
        tokens = self.data.stat().st_size // self.token_bytes if self.data.exists() else 0
        raw = self.index.read_bytes() if self.index.exists() else b""
        kept = len(raw) - len(raw) % RECORD.size
        for key, first, count, checksum in RECORD.iter_unpack(raw[:kept]):
            if first + count <= tokens:
                self._places[key] = _Place(first, count, checksum)
                self._end = max(self._end, first + count)
        if kept < len(raw) or len(self._places) * RECORD.size < kept:
            self._say_once("a part of the stored trunk is missing; it is computed anew")
        if self.writes:  # entries that point nowhere would stand in the way of new ones
            self.data.touch()
            entries = [RECORD.pack(k, p.first, p.count, p.checksum) for k, p in self._places.items()]
            if b"".join(entries) != raw:
                self.index.write_bytes(b"".join(entries))

    def _stop_writing(self, why: str) -> None:
        self.writes = False
        self._lock.release()
        self._say_once(why)

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self.say(line)


def key_of(tokens_T: torch.Tensor) -> bytes:
    """A row's key: a hash of its tokens."""
    raw = tokens_T.detach().cpu().numpy().astype("<i8", copy=False).tobytes()
    return hashlib.blake2b(raw, digest_size=16).digest()


@contextlib.contextmanager
def stored_trunk(
    network: Network, settings: TrunkSettings, tokens: int, say: Callable[[str], Any]
) -> Iterator[Trunk | None]:
    """Inside the block the network has a store for its frozen blocks; None where there is nothing to gain.

    Args:
        tokens: Of all rows that will be trained on, for what is said about disk space.
    """
    depth = network.frozen_depth()
    if depth == 0 or network.family is None or network.family.pairs or not settings.store_trunk:
        yield None
        return
    width = network.model.config.get_text_config().hidden_size
    held = "" if network.quantisation is None else repr(network.quantisation)
    key = files.fingerprint(
        str(VERSION), network.base_fingerprint, str(network.dtype), str(depth), *filter(None, [held])
    )
    home = files.cache_folder() / "trunk"
    folder = home / key[:16]
    most = int(settings.trunk_gib * 2**30)
    _make_room(home, folder, most)
    there = next(parent for parent in (home, *home.parents) if parent.is_dir())
    most = min(most, max(0, shutil.disk_usage(there).free - KEEP_FREE) + _size(folder))
    store = TrunkStore(folder, width, network.dtype, most, say)
    needed = tokens * store.token_bytes
    blocks = len(network.blocks()[1])
    say(
        f"{depth} of {blocks} blocks are frozen: their output is kept in {folder} and computed once "
        f"(about {needed / 2**30:.1f} GiB of at most {most / 2**30:.0f})"
    )
    network.trunk = Trunk(network, depth, store)
    try:
        yield network.trunk
    finally:
        network.trunk = None
        store.close()


def _make_room(home: Path, mine: Path, most: int) -> None:
    """Remove stores that were not used for longest, until all of them together are within the limit."""
    stores = [folder for folder in home.glob("*") if folder.is_dir() and folder != mine] if home.is_dir() else []
    total = sum(map(_size, stores)) + _size(mine)
    for folder in sorted(stores, key=lambda folder: folder.stat().st_mtime):
        if total <= most:
            break
        with contextlib.suppress(Timeout), FileLock(folder.with_suffix(".lock"), timeout=0):
            total -= _size(folder)
            shutil.rmtree(folder, ignore_errors=True)
    if mine.is_dir():
        os.utime(mine, (time.time(), time.time()))


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*") if file.is_file()) if folder.is_dir() else 0
