"""What clients, disks and operators do wrong ends for that request alone."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from luthier.engine.serving.engine import Engine
from luthier.serve import connection, guard
from tests.serve.servers import ASKED, Process, Served, process, raw, serving, until

LONG = {"model": "base", "messages": ASKED, "max_tokens": 200, "temperature": 1.0, "stop": []}


def streaming(url: str, **more: Any) -> requests.Response:
    return requests.post(f"{url}/v1/chat/completions", json={**LONG, **more, "stream": True}, stream=True, timeout=60)


def idle(served: Served) -> bool:
    facts = served.service.engine.facts()
    return not facts.running and not facts.waiting and not served.service.under_way


def test_a_client_that_leaves_frees_its_place(served: Served) -> None:
    """Both while it streams and while it waits for the whole; a request beside it ends well."""
    before = served.service.engine.facts().new_tokens
    with streaming(served.url, n=4) as reply:
        next(reply.iter_lines())
    with pytest.raises(requests.Timeout):
        requests.post(f"{served.url}/v1/chat/completions", json={**LONG, "n": 16}, timeout=0.05)
    assert served.client.chat.completions.create(model="formal", messages=ASKED, max_tokens=4).choices
    until(lambda: idle(served))
    assert served.service.engine.facts().new_tokens - before < 20 * 200
    assert not served.service.names.busy


def test_a_prompt_of_a_million_tokens(served: Served, engine: Engine, adapters: dict[str, Path]) -> None:
    body = {"model": "formal", "messages": [{"role": "user", "content": "film " * 10**6}]}
    assert served.post("/v1/chat/completions", body).status_code == 413
    with serving(engine, adapters, largest_body=2**26) as generous:
        began = time.monotonic()
        reply = generous.post("/v1/chat/completions", body)
        assert reply.status_code == 400 and reply.json()["error"]["code"] == "context_length_exceeded"
        ids = generous.post("/v1/completions", {"model": "formal", "prompt": [1] * 10**6})
        assert ids.status_code == 400 and ids.json()["error"]["code"] == "context_length_exceeded"
        assert time.monotonic() - began < 60


def test_a_flood_of_headers(served: Served) -> None:
    many = "".join(f"x-{number}: {'y' * 100}\r\n" for number in range(1000))
    for flood in (f"GET /health HTTP/1.1\r\nhost: localhost\r\n{many}\r\n", f"GET /{'x' * 10**6} HTTP/1.1\r\n\r\n"):
        answer = raw(served.url, flood.encode())
        assert answer.startswith(b"HTTP/1.1 431"), answer[:200]
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"
    answer = raw(served.url, b"\x16\x03\x01\x02\x00 this is no HTTP \r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400") and b'"error"' in answer
    assert served.get("/health").status_code == 200


def test_those_who_send_nothing(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.3)
    assert raw(served.url, b"") == b""
    assert raw(served.url, b"GET /health HTTP/1.1\r\nhost:").startswith(b"HTTP/1.1 408")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{"
    assert raw(served.url, head).startswith(b"HTTP/1.1 408")
    assert served.get("/health").status_code == 200


def test_ten_thousand_idle_connections(served: Served) -> None:
    """As many as the system allows to this process, which holds both ends of each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(10_000, (hard - 2000) // 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    host, port = served.url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
        began = time.monotonic()
        assert served.client.chat.completions.create(model="formal", messages=ASKED, max_tokens=4).choices
        assert time.monotonic() - began < 30
    assert count > 1000


def test_more_connections_than_may_be(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection.Connection, "most", 20)
    host, port = served.url.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
        until(lambda: raw(served.url, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").startswith(b"HTTP/1.1 503"))
    until(lambda: health(served.url) == 200)


def health(url: str) -> int:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"{url}/health", timeout=10).status_code
    return 0


def test_ten_times_the_load(engine: Engine, adapters: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what may wait, requests hear 503 at once; every other one ends well."""
    monkeypatch.setattr(engine, "settings", engine.settings.model_copy(update={"max_waiting": 8}))
    with serving(engine, adapters) as server, concurrent.futures.ThreadPoolExecutor(120) as pool:

        def ask(number: int) -> requests.Response:
            model = ("formal", "casual", "legal", "base")[number % 4]
            return server.post("/v1/chat/completions", LONG | {"model": model, "max_tokens": 30})

        replies = list(pool.map(ask, range(240)))
    assert {reply.status_code for reply in replies} == {200, 503}
    for reply in replies:
        if reply.status_code == 503:
            assert int(reply.headers["retry-after"]) >= 1 and reply.json()["error"]["type"] == "server_error"
        else:
            assert reply.json()["choices"][0]["finish_reason"] in ("stop", "length")


def test_an_answer_that_takes_too_long(engine: Engine, adapters: dict[str, Path]) -> None:
    with serving(engine, adapters, request_seconds=0.0001) as server:
        reply = server.post("/v1/chat/completions", LONG)
        assert reply.status_code == 503 and reply.headers["retry-after"]


# ── A process of its own ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def started(base: Path, adapters: dict[str, Path]) -> Iterator[Process]:
    with process(base, "--adapters", str(adapters["formal"].parent), "--drain-seconds", "20") as made:
        yield made


def test_a_server_stops_in_order(started: Process, base: Path) -> None:
    """What runs ends well, what comes is refused with 503, then the process ends with 0."""
    url, lines, chunks = started.url, started.lines, []
    body = {**LONG, "model": "formal", "n": 16}
    with requests.post(f"{url}/v1/chat/completions", json={**body, "stream": True}, stream=True, timeout=60) as reply:
        read = reply.iter_lines()
        next(read)
        started.signal(signal.SIGTERM)
        statuses = []

        def knock() -> None:
            while not statuses or statuses[-1] == 200:
                with contextlib.suppress(requests.ConnectionError):
                    statuses.append(requests.post(f"{url}/v1/chat/completions", json=body, timeout=20).status_code)

        knocking = threading.Thread(target=knock)
        knocking.start()
        chunks = [line for line in read if line]
        knocking.join(30)
    assert chunks[-1] == b"data: [DONE]" and b'"finish_reason":"' in b"".join(chunks)
    assert statuses[-1] == 503
    assert started.wait() == 0
    until(lambda: any('"event": "stopping"' in line for line in lines))


def test_told_twice_a_server_stops_at_once(started: Process) -> None:
    body = {**LONG, "model": "formal", "n": 16, "stream": True}
    with requests.post(f"{started.url}/v1/chat/completions", json=body, stream=True, timeout=60) as reply:
        next(reply.iter_lines())
        started.signal(signal.SIGTERM)
        until(lambda: any('"event": "stopping"' in line for line in started.lines))
        started.signal(signal.SIGTERM)
        assert started.wait() == 0
    assert not any("Traceback" in line for line in started.lines)


def test_an_address_that_is_taken(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.errors import UserError
    from luthier.serve.server import listen

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="can't listen there"):
            listen("127.0.0.1", taken.getsockname()[1])
