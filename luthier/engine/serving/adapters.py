"""Registered adapters, and which of them are in memory.

In: folders by name. Out: adapters that a step may use. Loading happens on a thread of its own while steps go on; when
memory is full, the one that was not used for longest leaves. What running answers use, and what is pinned, stays.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from luthier.engine.serving.adapter_files import AdapterPlan, look_at
from luthier.engine.serving.adapter_loading import AdapterLoader, Layout, Loaded
from luthier.engine.serving.arena import Arena
from luthier.engine.serving.request import AdapterFacts, RefusedError
from luthier.errors import nearest
from luthier.kernels.mixed import MixedLinear
from luthier.models.calibration import Calibration
from luthier.models.network import Network
from luthier.models.save import ADAPTER_WEIGHTS
from luthier.prompts import PromptFormat

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


@dataclass(eq=False)
class Entry:
    """A registered adapter."""

    name: str
    plan: AdapterPlan
    layout: Layout
    origin: bytes
    """Tells its keys and values from those of every other adapter that there ever was."""
    loaded: Loaded | None = None
    loading: bool = False
    failed: RefusedError | None = None
    open: int = 0
    """Requests that want it, waiting ones among them."""
    users: int = 0
    """Running answers, from whose feet it may not be pulled."""
    pinned: bool = False
    used: int = 0
    """When it was last used, by a clock that counts uses."""
    requests: int = 0
    removed: bool = False


@dataclass
class Counts:
    loads: int = 0
    left: int = 0


class Adapters:
    """All that are registered. Safe to call from any thread."""

    def __init__(
        self,
        network: Network,
        layers: dict[str, MixedLinear],
        budget: int,
        dtype: torch.dtype,
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called when an adapter came into memory, or can't."""
        self.network, self.layers, self.dtype, self.changed = network, layers, dtype, changed
        self.arena = Arena(budget, network.device)
        self._loader = AdapterLoader(network, layers, self.arena, dtype)
        self.entries: dict[str, Entry] = {}
        self.counts = Counts()
        self._leaving: list[Entry] = []
        self._clock = 0
        self._made = 0
        self._lock = threading.RLock()
        self._wanted: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    # What people do with them

    def register(self, name: str, folder: Path) -> AdapterFacts:
        """Check the folder's files and know them by this name.

        Raises:
            RefusedError: `taken`, `bad_adapter` (which tensor), or `over_budget`: alone it is larger than the memory.
        """
        with self._lock:
            if name in self.entries:
                raise RefusedError("taken", f"an adapter is called {name!r} already; remove it, or use another name")
        plan = look_at(Path(folder), self.layers, self.network)
        layout = self._loader.layout(plan)
        if layout.size > self.arena.size:
            what = f"adapter {name} needs {layout.size:,} bytes and all adapters together may have {self.arena.size:,}"
            raise RefusedError("over_budget", what)
        with self._lock:
            if name in self.entries:
                raise RefusedError("taken", f"an adapter is called {name!r} already; remove it, or use another name")
            self._made += 1
            self.entries[name] = Entry(name, plan, layout, self._made.to_bytes(8, "big"))
            return self._facts(self.entries[name])

    def remove(self, name: str) -> None:
        """Forget it; answers that use it go on to their end. Raises `RefusedError`."""
        with self._lock:
            entry = self._entry(name)
            del self.entries[name]
            entry.removed, entry.pinned = True, False
            self._leaving.append(entry)
            self._settle(entry)

    def pin(self, name: str, pinned: bool = True) -> None:
        """Load it and keep it, or let it leave again. Raises `RefusedError`."""
        with self._lock:
            entry = self._entry(name)
            entry.pinned = pinned
            if pinned:
                self._ask(entry)

    def list(self) -> list[AdapterFacts]:
        with self._lock:
            return [self._facts(entry) for entry in self.entries.values()]

    def get(self, name: str) -> AdapterFacts:
        """Raises `RefusedError` where there is none."""
        with self._lock:
            return self._facts(self._entry(name))

    def nearest(self, name: str) -> str:
        """A hint at what may have been meant."""
        with self._lock:
            return nearest(name, list(self.entries))

    def prompt_format(self, name: str) -> PromptFormat | None:
        """How it was prompted in training; None where that is not known."""
        with self._lock:
            return self._entry(name).plan.prompt_format

    def calibration(self, name: str) -> Calibration | None:
        with self._lock:
            return self._entry(name).plan.calibration

    def _entry(self, name: str) -> Entry:
        entry = self.entries.get(name)
        if entry is None:
            hint = self.nearest(name)
            raise RefusedError("unknown_adapter", f"no adapter is called {name!r}{f'; {hint}' if hint else ''}")
        return entry

    def _facts(self, entry: Entry) -> AdapterFacts:
        plan = entry.plan
        return AdapterFacts(
            entry.name,
            str(plan.folder),
            plan.method,
            plan.rank,
            len(plan.layers),
            entry.layout.size,
            plan.labels == 0,
            entry.loaded is not None,
            entry.pinned,
            entry.requests,
        )

    # What the engine does with them

    def find(self, name: str) -> Entry:
        """The entry for a request that is taken in; it says `done` at its end. Raises `RefusedError`."""
        with self._lock:
            entry = self._entry(name)
            entry.requests += 1
            entry.open += 1
            return entry

    def done(self, entry: Entry) -> None:
        """A request that `find` gave it to has ended."""
        with self._lock:
            entry.open -= 1
            self._settle(entry)

    def ask(self, entry: Entry) -> bool:
        """Whether it is in memory; else it is loaded as soon as there is room. Raises its `RefusedError` where it
        can't be."""
        with self._lock:
            return self._ask(entry)

    def fetch(self, entry: Entry) -> None:
        """Have it loaded as soon as there is room, for a request that will ask."""
        with self._lock:
            if entry.failed is None:
                self._ask(entry)

    def hold(self, entry: Entry) -> Loaded | None:
        """For a running answer: it stays until `release`. None where it is not in memory."""
        with self._lock:
            if entry.loaded is not None:
                entry.users += 1
                self._touch(entry)
            return entry.loaded

    def release(self, entry: Entry) -> None:
        with self._lock:
            entry.users -= 1

    def start(self) -> None:
        if not self.arena.used:
            self.arena.touch(sum(entry.layout.size for entry in self.entries.values()))
        self._thread = threading.Thread(target=self._load_all, name="adapters", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            self._wanted.put(None)
            self._thread.join()
            self._thread = None

    def _ask(self, entry: Entry) -> bool:
        failed = entry.failed
        if failed is not None:
            if failed.trouble == "over_budget":
                entry.failed = None  # by the next time, there may be room
            raise failed
        if entry.loaded is None and not entry.loading:
            entry.loading = True
            self._wanted.put(entry)
        return entry.loaded is not None

    def _touch(self, entry: Entry) -> None:
        self._clock += 1
        entry.used = self._clock

    def _settle(self, entry: Entry) -> None:
        """Of a removed one, give back the memory once nobody wants it any more."""
        if entry.removed and not entry.open and not entry.loading and entry in self._leaving:
            self._leaving.remove(entry)
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        if entry.loaded is not None:
            self.arena.give(entry.loaded.start, entry.loaded.size)
            entry.loaded = None
            self.counts.left += 1

    # The thread that loads

    def _load_all(self) -> None:
        while (entry := self._wanted.get()) is not None:
            try:
                self._load(entry)
            except RefusedError as error:
                entry.failed = error
            except (OSError, ValueError) as error:
                what = f"adapter {entry.name}: {ADAPTER_WEIGHTS} can't be read ({error})"
                entry.failed = RefusedError("bad_adapter", what)
            except Exception as error:  # one adapter must not keep all that come after it waiting
                logger.exception("adapter %s could not be loaded", entry.name)
                entry.failed = RefusedError("bad_adapter", f"adapter {entry.name}: {type(error).__name__}: {error}")
            finally:
                with self._lock:
                    entry.loading = False
                    self._settle(entry)
            self.changed()

    def _load(self, entry: Entry) -> None:
        start = self._make_room(entry)
        if start is None:
            return  # it is asked for again when a running answer has ended
        try:
            loaded = self._loader.load(entry.plan, entry.layout, start)
        except BaseException:
            with self._lock:
                self.arena.give(start, entry.layout.size)
            raise
        with self._lock:
            entry.loaded = loaded
            self.counts.loads += 1
            self._touch(entry)

    def _make_room(self, entry: Entry) -> int | None:
        """Where it may lie, once others have left; None where what stays leaves no room."""
        with self._lock:
            while (start := self.arena.take(entry.layout.size)) is None:
                idle = [e for e in self.entries.values() if e.loaded is not None and not e.users and not e.pinned]
                if not idle and any(e.users for e in (*self.entries.values(), *self._leaving)):
                    return None
                if not idle:
                    what = f"pinned adapters leave no room for {entry.name}"
                    raise RefusedError("over_budget", what, RETRY_SECONDS)
                self._drop(min(idle, key=lambda each: each.used))
            return start
