"""One base model answers many requests at once, each with its own adapter.

In: `Request`s, at any time and from any thread. Out: pieces of text to each one's listener. A thread of its own runs
one step after another: every running answer gets one token, and what is left of the step's tokens goes to prompts. A
new request joins at the next step, a finished one leaves at once (continuous batching, Yu et al. 2022, Orca).
"""

from __future__ import annotations

import gc
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch

from luthier.engine.serving.adapter_files import prefix_shape
from luthier.engine.serving.adapter_loading import Loaded
from luthier.engine.serving.adapters import Adapters, Entry
from luthier.engine.serving.drawing import Drawing, Drawn, next_tokens
from luthier.engine.serving.grammar import Grammars
from luthier.engine.serving.pool import Mark, PagePool, page_marks
from luthier.engine.serving.request import (
    Counters,
    End,
    EngineFacts,
    Piece,
    Reason,
    RefusedError,
    Request,
    Scores,
    Token,
    Trouble,
)
from luthier.engine.serving.settings import EngineSettings
from luthier.engine.serving.turns import Turns
from luthier.engine.serving.writer import Writer
from luthier.errors import UserError
from luthier.kernels import native
from luthier.kernels.blocks import CompiledBlocks, can_run
from luthier.kernels.fast import packed_hidden
from luthier.kernels.mixed import Group, mix_in
from luthier.kernels.pages import PAGE, Paged, PageMemory
from luthier.models.calibration import Calibration
from luthier.models.network import Network

logger = logging.getLogger(__name__)
Kind = Literal["write", "score", "embed"]
BUSY_SECONDS = 1.0
"""After which a request that found no room may try again."""
FETCHED_AHEAD = 8
"""Adapters that are loaded at once for requests that wait."""
BROKEN = "the model's scores are no numbers; the adapter or the model is broken"


@dataclass(eq=False)
class Ticket:
    """One request on its way. Only the engine's thread writes to it, but for `cancelled`."""

    request: Request
    listen: Callable[[Any], None]
    kind: Kind
    entry: Entry | None
    writer: Writer | None = None
    drawing: Drawing | None = None
    cancelled: bool = False
    virtual: int = 0
    """Positions of its adapter's prefix or prompt, which come first; their tokens are below zero."""
    tokens: list[int] = field(default_factory=list)
    """Those, the prompt's, and those that were written."""
    computed: int = 0
    """Tokens whose keys and values are in its pages."""
    cached: int = 0
    pages: list[int] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    loaded: Loaded | None = None
    sum_D: torch.Tensor | None = None
    """Of the hidden states so far, for an embedding."""

    def __post_init__(self) -> None:
        self.virtual = self.entry.plan.virtual[0] if self.entry is not None else 0
        self.tokens = [*range(-self.virtual, 0), *self.request.prompt]

    @property
    def flow(self) -> tuple[str, str]:
        return self.request.account, self.request.adapter or ""

    @property
    def origin(self) -> bytes:
        """What its keys and values depend on beside its tokens."""
        return self.entry.origin if self.entry is not None else b""

    @property
    def left(self) -> int:
        """Tokens that are to be computed before the next can be drawn."""
        return len(self.tokens) - self.computed

    @property
    def written(self) -> int:
        return len(self.tokens) - self.virtual - len(self.request.prompt)


class Engine:
    """Answers requests until it is stopped."""

    def __init__(self, network: Network, settings: EngineSettings | None = None) -> None:
        """The network's linear layers are wrapped for good: nothing else may use it from here on.

        Raises:
            UserError: a model that the kernels do not know.
        """
        settings = settings or EngineSettings()
        self.network, self.settings = network, settings
        if network.family is None or network.kind != "decoder" or network.head != "language":
            what = f"a {network.model.config.model_type} model with a {network.head} head can't be served"
            raise UserError(what, mend="serve a decoder that writes, of a family that docs/models.md lists as packed")
        network.model.eval()
        layers, _, key_heads, width = prefix_shape(network)
        count = max(1, settings.memory_tokens // PAGE)
        self.memory = PageMemory.empty(layers, count, key_heads, width, network.dtype, network.device)
        self.pool = PagePool(count)
        self.longest = min(network.window or count * PAGE, count * PAGE)
        """Tokens that a prompt and its answer may have together."""
        name, _ = network.blocks()
        self.mixer, linear = mix_in(network.model, (f"{name}.",))
        dtype = network.dtype if settings.adapter_dtype == "auto" else getattr(torch, settings.adapter_dtype)
        self.adapters = Adapters(network, linear, settings.adapter_memory, dtype, self._wake_up)
        self.compiled = CompiledBlocks(network.model, self.mixer, self.memory) if can_run(network.model) else None
        self.learned: list[tuple[slice, torch.Tensor]] = []
        """Of the step: rows whose vectors an adapter has learned, in place of token embeddings."""
        if self.compiled is None:
            network.model.get_input_embeddings().register_forward_hook(self._put_learned)
        self.grammars = Grammars(network.tokenizer)
        self.counters = Counters()
        self.running: list[Ticket] = []
        self.waiting: Turns[Ticket] = Turns()
        self._arrived: queue.SimpleQueue[Ticket] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._stopping = self._ended = False
        self._thread: threading.Thread | None = None

    # From any thread

    def start(self) -> None:
        gc.freeze()  # all that is there now stays: looking through it for what can go would hold up a step
        self.adapters.start()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def stop(self, drain_seconds: float = 0.0) -> None:
        """Take nothing more; what runs may end within the time, what is left then is cancelled."""
        self._stopping = True
        end = time.monotonic() + drain_seconds
        while time.monotonic() < end and (self.running or self._not_begun()):
            time.sleep(0.02)
        self._ended = True
        self._wake_up()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.adapters.stop()
        gc.unfreeze()

    def submit(self, request: Request, listen: Callable[[Piece | End], None]) -> Ticket:
        """Have an answer written. Raises `RefusedError` where it can't be taken."""
        grammar = self.grammars.begin(request.schema) if request.schema is not None else None
        ticket = self._ticket(request, listen, "write")
        ticket.writer = Writer(self.network.tokenizer, request.stop)
        ticket.drawing = Drawing(request.sampling, request.logprobs, grammar)
        return self._send(ticket)

    def score(self, adapter: str | None, prompt: Sequence[int], listen: Callable[[Scores | End], None]) -> Ticket:
        """Have an adapter's head score a text. Raises `RefusedError`."""
        ticket = self._ticket(Request(tuple(prompt), 0, adapter), listen, "score")
        if ticket.entry is None or not ticket.entry.plan.labels:
            if ticket.entry is not None:
                self.adapters.done(ticket.entry)
            raise RefusedError("bad_adapter", f"{adapter!r} writes text; it has no label head")
        return self._send(ticket)

    def embed(self, adapter: str | None, prompt: Sequence[int], listen: Callable[[Scores | End], None]) -> Ticket:
        """The mean of a text's last hidden states, scaled to length one. Raises `RefusedError`."""
        return self._send(self._ticket(Request(tuple(prompt), 0, adapter), listen, "embed"))

    def cancel(self, ticket: Any) -> None:
        ticket.cancelled = True
        self._wake_up()

    def calibration(self, adapter: str | None) -> Calibration | None:
        """What makes an adapter's scores mean what they say; None where nothing is known of it."""
        return self.adapters.calibration(adapter) if adapter is not None else None

    def facts(self) -> EngineFacts:
        adapters = self.adapters.list()
        return EngineFacts(
            **vars(self.counters),
            running=len(self.running),
            waiting=self._not_begun(),
            pages=self.pool.count,
            pages_free=self.pool.available,
            adapters_registered=len(adapters),
            adapters_resident=sum(adapter.resident for adapter in adapters),
            adapter_bytes=self.adapters.arena.used,
            adapter_budget=self.adapters.arena.size,
            adapter_loads=self.adapters.counts.loads,
        )

    def _ticket(self, request: Request, listen: Callable[[Any], None], kind: Kind) -> Ticket:
        entry = None
        try:
            entry = self.adapters.find(request.adapter) if request.adapter is not None else None
            ticket = Ticket(request, listen, kind, entry)
            self._check(ticket)
        except RefusedError:
            self.counters.refused += 1
            if entry is not None:
                self.adapters.done(entry)
            raise
        return ticket

    def _check(self, ticket: Ticket) -> None:
        if self._stopping:
            raise RefusedError("stopping", "the server is shutting down", BUSY_SECONDS)
        if self._not_begun() >= self.settings.max_waiting:
            what = f"{self.settings.max_waiting} requests wait already"
            raise RefusedError("busy", what, BUSY_SECONDS)
        length = len(ticket.request.prompt)
        if not length:
            raise RefusedError("too_long", "the prompt is empty")
        if len(ticket.tokens) + (ticket.kind == "write") > self.longest:
            own = f" beside {ticket.virtual:,} of the adapter" if ticket.virtual else ""
            room = self.longest - ticket.virtual
            what = f"the prompt is {length:,} tokens and at most {room:,} fit{own}, answer included"
            raise RefusedError("too_long", what)

    def _send(self, ticket: Ticket) -> Ticket:
        if ticket.entry is not None and self._not_begun() < FETCHED_AHEAD:
            self.adapters.fetch(ticket.entry)  # it comes in right after the step that runs now
        self._arrived.put(ticket)
        self._wake_up()
        return ticket

    def _not_begun(self) -> int:
        """Requests that wait, those among them that the engine's thread has not seen yet."""
        return len(self.waiting) + self._arrived.qsize()

    def _wake_up(self) -> None:
        self._wake.set()

    # The engine's own thread

    def _run(self) -> None:
        if self.compiled is not None:
            native.stay_alone()
        with torch.inference_mode():
            while not self._ended:
                self._wake.clear()
                while not self._arrived.empty():
                    ticket = self._arrived.get()
                    self.waiting.add(ticket.flow, ticket)
                self._let_go()
                batch = self._plan()
                if batch:
                    self._step(batch)
                elif not self._ended:
                    self._wake.wait(timeout=0.5)
            while not self._arrived.empty():
                ticket = self._arrived.get()
                self.waiting.add(ticket.flow, ticket)
            for ticket in [*self.running, *self.waiting.remove(lambda _: True)]:
                self._end(ticket, "cancelled")

    def _let_go(self) -> None:
        """Of those whose asker left or whose time is over."""
        now = time.monotonic()

        def over(ticket: Ticket) -> bool:
            return ticket.cancelled or (ticket.request.deadline is not None and ticket.request.deadline <= now)

        for ticket in [*filter(over, self.running), *self.waiting.remove(over)]:
            self._end(ticket, "cancelled" if ticket.cancelled else "deadline")

    def _plan(self) -> list[tuple[Ticket, int]]:
        """What the next step computes: answers with how many of their tokens."""
        batch = [(ticket, 1) for ticket in list(self.running) if ticket.left == 1 and self._has_room(ticket)]
        batch = [(ticket, count) for ticket, count in batch if ticket in self.running]  # later ones may have made room
        budget = self.settings.step_tokens - len(batch)
        for ticket in self.running:
            if ticket.left > 1 and budget > 0:
                count = min(ticket.left, budget)
                batch.append((ticket, count))
                budget -= count
        while budget > 0 and len(self.running) < self.settings.max_running:
            admitted = self._admit()
            if admitted is None:
                break
            count = min(admitted.left, budget)
            batch.append((admitted, count))
            budget -= count
        return batch

    def _has_room(self, ticket: Ticket) -> bool:
        """Whether there is a place for its next token, made by those who came last where there was none."""
        while len(ticket.pages) * PAGE < len(ticket.tokens):
            taken = self.pool.take(1)
            if taken is not None:
                ticket.pages += taken
            else:
                youngest = self.running[-1]
                self._put_back(youngest)
                if youngest is ticket:
                    return False
        return True

    def _put_back(self, ticket: Ticket) -> None:
        """It gives up its memory and begins again, with what it wrote, when there is room."""
        self.running.remove(ticket)
        self._free(ticket)
        self.counters.evicted += 1
        self.waiting.add(ticket.flow, ticket, first=True)

    def _admit(self) -> Ticket | None:
        """The next request that can run: whose turn it is, among those whose adapter is in memory."""
        asked, coming = 0, self._coming()
        for flow in self.waiting.in_order():
            ticket = self.waiting.head(flow)
            ticket.marks = page_marks(ticket.origin, ticket.tokens[:-1], ticket.marks)
            if ticket.kind != "embed" and self.pool.beyond(ticket.marks) in coming:
                continue  # in a moment it has less to compute
            if ticket.entry is not None:
                try:
                    if not self.adapters.ask(ticket.entry):
                        asked += 1
                        if asked == FETCHED_AHEAD:
                            return None
                        continue
                except RefusedError as error:
                    self.waiting.pop(flow)
                    self._end(ticket, "error", str(error), error.trouble)
                    return self._admit()
            if not self._begin(ticket):
                return None  # it comes next: others must not take the memory that it waits for
            return self.waiting.pop(flow)
        return None

    def _coming(self) -> set[Mark]:
        """What pages will hold that running answers are about to compute from their prompts."""
        reading = [ticket for ticket in self.running if ticket.left > 1 and ticket.kind != "embed"]
        return {mark for ticket in reading for mark in ticket.marks[ticket.computed // PAGE :]}

    def _begin(self, ticket: Ticket) -> bool:
        """Give it its pages, those of a start that is known among them, and its adapter."""
        found = [] if ticket.kind == "embed" else self.pool.find(ticket.marks)
        needed = -(-(len(ticket.tokens) + 1) // PAGE) - len(found)
        taken = self.pool.take(min(needed, self.pool.count - len(found)))
        if taken is not None and ticket.entry is not None:
            ticket.loaded = self.adapters.hold(ticket.entry)
            if ticket.loaded is None:  # it left a moment ago
                self.pool.give(taken)
                taken = None
        if taken is None:
            self.pool.give(found)
            return False
        ticket.pages = [*found, *taken]
        ticket.computed = len(found) * PAGE
        if not ticket.written:
            ticket.cached = max(0, ticket.computed - ticket.virtual)
            self.counters.cached_tokens += ticket.cached
            self.counters.prompt_tokens += len(ticket.request.prompt)
        if ticket.computed < ticket.virtual and ticket.entry is not None and ticket.entry.plan.method == "prefix":
            assert ticket.loaded is not None and ticket.loaded.virtual is not None
            self.memory.put(ticket.pages, ticket.computed, ticket.loaded.virtual[ticket.computed :])
            ticket.computed = ticket.virtual
        self.running.append(ticket)
        return True

    def _step(self, batch: list[tuple[Ticket, int]]) -> None:
        began = time.perf_counter()
        batch.sort(key=lambda each: each[0].origin)
        try:
            hidden_ND, packing = self._compute(batch)
            self._go_on(batch, hidden_ND, packing)
        except Exception as error:  # a step that fails must not take the server with it
            logger.exception("a step failed")
            for ticket, _ in batch:
                if ticket in self.running:
                    self._end(ticket, "error", f"the step failed: {type(error).__name__}")
        self.counters.steps += 1
        self.counters.step_seconds += time.perf_counter() - began

    def _compute(self, batch: Sequence[tuple[Ticket, int]]) -> tuple[torch.Tensor, Paged]:
        """Last hidden states of the step's tokens, [N, D]."""
        assert self.network.family is not None
        tokens: list[int] = []
        groups: list[Group] = []
        self.learned = []
        for ticket, count in batch:
            if ticket.loaded is not None and ticket.computed < ticket.virtual:
                assert ticket.loaded.virtual is not None
                vectors = ticket.loaded.virtual[ticket.computed : ticket.computed + count]
                self.learned.append((slice(len(tokens), len(tokens) + len(vectors)), vectors))
            if ticket.loaded is not None and ticket.loaded.row is not None:
                if groups and groups[-1].adapter is ticket.loaded.row and groups[-1].stop == len(tokens):
                    groups[-1].stop += count
                else:
                    groups.append(Group(ticket.loaded.row, len(tokens), len(tokens) + count))
            tokens += [max(0, token) for token in ticket.tokens[ticket.computed : ticket.computed + count]]
        self.mixer.use(groups)
        packing = Paged(
            tuple(count for _, count in batch),
            self.network.device,
            memory=self.memory,
            tables=tuple(ticket.pages for ticket, _ in batch),
            contexts=tuple(ticket.computed + count for ticket, count in batch),
        )
        tokens_N = torch.tensor(tokens, device=self.network.device)
        if self.compiled is not None:
            return self.compiled.hidden(tokens_N, packing, self.learned), packing
        return packed_hidden(self.network.model, self.network.family, tokens_N, packing), packing

    def _put_learned(self, _: Any, __: Any, embedded_1ND: torch.Tensor) -> None:
        for rows, vectors in self.learned:
            embedded_1ND[0, rows] = vectors

    def _go_on(self, batch: Sequence[tuple[Ticket, int]], hidden_ND: torch.Tensor, packing: Paged) -> None:
        """Note what is computed, and let every answer whose tokens all are have its next one."""
        ready: list[tuple[Ticket, int]] = []
        for (ticket, count), start in zip(batch, packing.starts, strict=True):
            before = max(0, ticket.virtual - ticket.computed)
            ticket.computed += count
            self.waiting.charge(ticket.flow, count)
            if ticket.kind == "embed":
                sum_D = hidden_ND[start + min(before, count) : start + count].float().sum(dim=0)
                ticket.sum_D = sum_D if ticket.sum_D is None else ticket.sum_D + sum_D
            else:
                self._remember(ticket)
            if not ticket.left:
                ready.append((ticket, start + count - 1))
        writing = [(ticket, place) for ticket, place in ready if ticket.kind == "write"]
        for ticket, place in ready:
            if ticket.kind != "write":
                self._tell_scores(ticket, hidden_ND[place])
        if not writing:
            return
        places = torch.tensor([place for _, place in writing], device=hidden_ND.device)
        head = self.network.token_logits if self.compiled is None else self.compiled.logits
        logits_SV = head(hidden_ND[places]).float()
        drawings = [ticket.drawing for ticket, _ in writing if ticket.drawing is not None]
        for (ticket, _), drawn in zip(writing, next_tokens(logits_SV, drawings), strict=True):
            self._write(ticket, drawn)

    def _remember(self, ticket: Ticket) -> None:
        """Let pages that are full now be found by others that begin alike."""
        full = ticket.computed // PAGE
        if len(ticket.marks) < full:
            ticket.marks = page_marks(ticket.origin, ticket.tokens[: full * PAGE], ticket.marks)
        for place in range(max(0, full - 1 - self.settings.step_tokens // PAGE), full):
            self.pool.remember(ticket.pages[place], ticket.marks[place])

    def _tell_scores(self, ticket: Ticket, hidden_D: torch.Tensor) -> None:
        if ticket.kind == "embed":
            assert ticket.sum_D is not None
            values_C = torch.nn.functional.normalize(ticket.sum_D, dim=0)
        else:
            assert ticket.loaded is not None and ticket.loaded.head_CD is not None
            values_C = ticket.loaded.head_CD.to(hidden_D.device) @ hidden_D.float()
        if not bool(values_C.isfinite().all()):
            self._end(ticket, "error", BROKEN)
            return
        self._leave(ticket)
        self.counters.finished += 1
        ticket.listen(Scores(tuple(values_C.tolist()), len(ticket.request.prompt)))

    def _write(self, ticket: Ticket, drawn: Drawn | None) -> None:
        """One more token of an answer, or its end."""
        request, writer, drawing = ticket.request, ticket.writer, ticket.drawing
        assert writer is not None and drawing is not None
        if drawn is None:
            self._end(ticket, "error", BROKEN)
            return
        if drawn.token in request.stop_ids:
            self._end(ticket, "stop")
            return
        ticket.tokens.append(drawn.token)
        self.counters.new_tokens += 1
        text = writer.add(drawn.token)
        told: tuple[Token, ...] = ()
        if request.logprobs is not None:
            told = (self._token(drawn),)
        elif request.tell_tokens:
            told = (Token(drawn.token),)
        if text or told:
            ticket.listen(Piece(text, told))
        if writer.stopped or (drawing.grammar is not None and drawing.grammar.ended):
            self._end(ticket, "stop")
        elif ticket.written >= request.max_new_tokens or len(ticket.tokens) >= self.longest:
            self._end(ticket, "length")

    def _token(self, drawn: Drawn) -> Token:
        decode = partial(self.network.tokenizer.decode, skip_special_tokens=False)
        top = tuple((token, decode([token]), value) for token, value in drawn.top)
        return Token(drawn.token, decode([drawn.token]), drawn.logprob, top)

    def _end(self, ticket: Ticket, reason: Reason, error: str | None = None, trouble: Trouble | None = None) -> None:
        self._leave(ticket)
        self.counters.finished += 1
        if ticket.writer is not None and reason != "error" and (rest := ticket.writer.end()):
            ticket.listen(Piece(rest))
        ticket.listen(End(reason, len(ticket.request.prompt), ticket.cached, ticket.written, error, trouble))

    def _leave(self, ticket: Ticket) -> None:
        if ticket in self.running:
            self.running.remove(ticket)
        self._free(ticket)
        if ticket.entry is not None:
            self.adapters.done(ticket.entry)

    def _free(self, ticket: Ticket) -> None:
        self.pool.give(ticket.pages)
        ticket.pages, ticket.computed = [], 0
        if ticket.loaded is not None and ticket.entry is not None:
            self.adapters.release(ticket.entry)
            ticket.loaded = None
