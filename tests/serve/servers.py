"""Servers for tests: real uvicorn on a loopback port, in a thread around one engine, or as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import requests

import luthier
from luthier.engine.serving.engine import Engine
from luthier.serve.server import Server, configured, listen
from luthier.serve.service import Service
from luthier.serve.settings import ServeSettings

SECONDS = 120
"""For a server to start: generous, because machines are shared."""
ASKED: list[Any] = [{"role": "user", "content": "a warm film"}]


@dataclass
class Served:
    """A server that answers."""

    url: str
    service: Service
    key: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0, timeout=60)

    def post(self, path: str, body: Any, **options: Any) -> requests.Response:
        return requests.post(f"{self.url}{path}", json=body, timeout=60, **{"headers": self.headers, **options})

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(f"{self.url}{path}", timeout=60, **{"headers": self.headers, **options})


@contextlib.contextmanager
def serving(engine: Engine, adapters: dict[str, Path], **settings: Any) -> Iterator[Served]:
    """A server of its own around an engine that several share."""
    service = Service(engine, ServeSettings(port=0, **settings), "base")
    registered = {facts.name for facts in engine.adapters.list()}
    for name, folder in adapters.items():
        if name in registered:
            service.names.add(name, "v1", name, None, False)
        else:
            service.add(name, folder)
    listener = listen("127.0.0.1", 0)
    ready = threading.Event()
    server = Server(configured(service), service, ready.set)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])), daemon=True)
    thread.start()
    assert ready.wait(SECONDS)
    try:
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", service)
    finally:
        server.should_exit = True
        thread.join(SECONDS)
        listener.close()
        service.rendering.stop()
        if service.capture is not None:
            service.capture.stop(10)
        assert not thread.is_alive()


@dataclass
class Process:
    """`luthier serve` as a user starts it."""

    process: subprocess.Popen[str]
    url: str = ""
    lines: list[str] = field(default_factory=list)

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def wait(self) -> int:
        return self.process.wait(SECONDS)


@contextlib.contextmanager
def process(*options: str | Path) -> Iterator[Process]:
    """Yields once it listens. Killed by its id at the end."""
    command = [sys.executable, "-m", "luthier", "serve", *map(str, options), "--port", "0", "--dtype", "float32"]
    environment = os.environ | {"PYTHONPATH": str(Path(luthier.__file__).parents[1])}
    made = Process(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment))
    told: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        assert made.process.stderr is not None
        for line in made.process.stderr:
            made.lines.append(line)
            if line.startswith("serving "):
                told.put(line)
        told.put("")

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        line = told.get(timeout=SECONDS)
        assert line, "".join(made.lines)
        made.url = line.split(" at ")[1].split()[0]
        yield made
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(made.process.pid, signal.SIGKILL)
        made.process.wait()
        reader.join(SECONDS)


def until(true: Any, seconds: float = 30.0) -> None:
    """Wait for something that happens on another thread."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


def raw(url: str, data: bytes, seconds: float = 30.0) -> bytes:
    """What a server answers to these bytes."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        parts = []
        with contextlib.suppress(ConnectionError, TimeoutError):
            while part := connection.recv(65536):
                parts.append(part)
    return b"".join(parts)
