"""Finding personal data with several processes.

In: batches of texts. Out: the spans of each text, in the order given. Each worker is a Python process of its own that
talks over its standard input and output, so nothing of the calling program is started twice. Workers read one batch
each at a time; errors come back as they are; they end with their caller, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any

from luthier.errors import UserError
from luthier.personal.finder import Finder, Span
from luthier.personal.settings import AnonymiseSettings, model_for
from luthier.pieces import pieces

TEXTS = 64
"""Texts that go to a worker at a time."""
ALONE = 2000
"""So many texts are looked at without workers: these take some seconds to start."""
HEAVY: tuple[str, ...] = ("torch", "transformers", "stanza")
"""What spaCy and presidio load where it is there, and none of our recognisers uses: a GiB and many seconds."""
LENGTH = struct.Struct("<Q")


class Worker:
    """One process with a finder."""

    def __init__(self, settings: AnonymiseSettings) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=child_environment(),
            start_new_session=True,  # an interrupt is for the caller, who ends this one
        )
        self.send(settings)

    def send(self, message: Any) -> None:
        assert self.process.stdin is not None
        write(self.process.stdin, message)

    def ask(self, texts: Sequence[str]) -> list[list[Span]]:
        """The spans of each text. Raises what the worker raised, or `UserError` where the process is gone."""
        assert self.process.stdout is not None
        try:
            self.send(list(texts))
            answer = read(self.process.stdout)
        except (EOFError, OSError, ValueError):  # the last one: a pipe that is closed
            code = self.process.wait()
            raise UserError(
                f"a process that looked for personal data ended by itself (exit code {code})",
                mend="it may have run out of memory: try again with prepare.anonymise.workers=1",
            ) from None
        if isinstance(answer, BaseException):
            raise answer
        spans: list[list[Span]] = answer
        return spans

    def end(self) -> None:
        self.process.kill()  # first, so that no thread still reads from it
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


class Search:
    """Workers: one for the first texts, as many as are wanted once there are texts enough. Use as a context.

    Args:
        alone: So many texts are left to the first worker.
    """

    def __init__(self, settings: AnonymiseSettings, alone: int = ALONE) -> None:
        self.settings, self.alone = settings, alone
        self.wanted = settings.workers or os.cpu_count() or 1
        self.workers: list[Worker] = []
        self.idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self.threads: ThreadPoolExecutor | None = None
        self.seen = 0

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """End every worker; safe to call twice. A later search starts new ones."""
        workers, self.workers, self.idle = self.workers, [], queue.SimpleQueue()
        threads, self.threads = self.threads, None
        for worker in workers:
            worker.end()  # threads that wait for its answer get an error then
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)

    def find(self, texts: Iterable[str]) -> Iterator[list[Span]]:
        """The spans of each text, in order; a few batches are read ahead, no more. On any error workers end."""
        try:
            yield from self.found(texts)
        except GeneratorExit:  # nobody asks for the rest
            raise
        except BaseException:
            self.close()
            raise

    def found(self, texts: Iterable[str]) -> Iterator[list[Span]]:
        waiting: deque[Future[list[list[Span]]]] = deque()
        for batch in pieces(texts, TEXTS):
            self.seen += len(batch)
            waiting.append(self.start().submit(self.ask, self.idle, batch))
            if len(waiting) >= 2 * len(self.workers):
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()

    @staticmethod
    def ask(idle: queue.SimpleQueue[Worker], batch: Sequence[str]) -> list[list[Span]]:
        worker = idle.get()
        try:
            return worker.ask(batch)
        finally:
            idle.put(worker)

    def start(self) -> ThreadPoolExecutor:
        """The threads that talk to the workers; more workers where it is time for them."""
        while len(self.workers) < (self.wanted if self.seen > self.alone else 1):
            self.workers.append(Worker(self.settings))
            self.idle.put(self.workers[-1])
        if self.threads is None:
            self.threads = ThreadPoolExecutor(self.wanted, thread_name_prefix="personal")
        return self.threads


def child_environment() -> dict[str, str]:
    """One thread for numbers in each worker; the import path of the caller."""
    paths = [path or os.getcwd() for path in sys.path]
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def write(stream: IO[bytes], message: Any) -> None:
    data = pickle.dumps(message)
    stream.write(LENGTH.pack(len(data)) + data)
    stream.flush()


def read(stream: IO[bytes]) -> Any:
    """The next message. Raises EOFError where the other side is gone."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    (length,) = LENGTH.unpack(head)
    data = stream.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)


def survives(error: Exception) -> bool:
    try:
        return isinstance(pickle.loads(pickle.dumps(error)), type(error))
    except Exception:
        return False


def serve() -> None:
    """A worker's life: settings, then batches until the caller is gone."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints goes to the errors, not between messages
    with contextlib.suppress(EOFError, BrokenPipeError):
        settings = read(source)
        if not any("trf" in (model_for(settings, language) or "") for language in settings.languages):
            sys.modules.update(dict.fromkeys(HEAVY))  # type: ignore[arg-type]  # None: not to be imported
        finder: Finder | None = None
        while True:
            batch = read(source)
            try:
                finder = finder or Finder(settings)
                write(sink, finder.find(batch))
            except BrokenPipeError:
                raise
            except Exception as error:
                write(sink, error if survives(error) else RuntimeError(repr(error)))


if __name__ == "__main__":
    serve()
