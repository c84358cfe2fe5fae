"""What is captured is whole, without personal data, and never in a request's way."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.engine.serving.engine import Engine
from luthier.errors import UserError
from luthier.serve.capture import Answered, Capture
from luthier.serve.masking import Masking
from tests.prepare import postgres
from tests.serve.servers import ASKED, Served, serving, until
from tests.servers import closed_port

ASK = {"model": "formal", "messages": ASKED, "max_tokens": 4, "temperature": 0}
masks = pytest.mark.skipif(importlib.util.find_spec("presidio_analyzer") is None, reason="needs the extra personal")


def rows(path: Path, table: str = "answers") -> list[dict[str, Any]]:
    with contextlib.closing(sqlite3.connect(path)) as base:
        base.row_factory = sqlite3.Row
        return [dict(row) for row in base.execute(f"SELECT * FROM {table}")]


@pytest.fixture
def capturing(engine: Engine, adapters: dict[str, Path], tmp_path: Path) -> Iterator[tuple[Served, Path]]:
    path = tmp_path / "captured.db"
    with serving(engine, adapters, capture=f"sqlite:///{path}", mask=False) as server:
        yield server, path


def answered(number: int, text: str = "a warm film") -> Answered:
    turns = [{"role": "user", "content": text}]
    return Answered(f"chatcmpl-{number}", 0, "chat", "formal", "formal", "", turns, text[::-1], "stop", 3, 3, 0.1)


def test_answers_and_thumbs(capturing: tuple[Served, Path]) -> None:
    server, path = capturing
    whole = server.client.chat.completions.create(**ASK, n=2)  # type: ignore[call-overload]
    streamed = list(server.client.chat.completions.create(**ASK, stream=True))  # type: ignore[call-overload]
    label = server.post("/v1/classify", {"model": "reviews", "input": ["fun", "dull"]}).json()
    told = {"id": whole.id, "thumbs": "up", "comment": "nul \0 here"}
    assert server.post("/v1/feedback", told).status_code == 200
    assert server.post("/v1/feedback", {"id": label["id"], "thumbs": "down", "corrected": "yes"}).status_code == 200
    kept = {(row["id"], row["choice"]): row for row in rows(path)}
    assert kept.keys() == {(whole.id, 0), (whole.id, 1), (streamed[0].id, 0), (label["id"], 0), (label["id"], 1)}
    first = kept[whole.id, 0]
    assert first["answer"] == whole.choices[0].message.content == kept[streamed[0].id, 0]["answer"]
    assert json.loads(first["request"]) == ASKED and first["model"] == "formal" and first["new_tokens"] <= 4
    opinions = rows(path, "feedback")
    assert [(row["answer"], row["thumbs"], row["corrected"]) for row in opinions] == [
        (whole.id, "up", None),
        (label["id"], "down", "yes"),
    ]
    assert server.post("/v1/feedback", {"id": "chatcmpl-none", "thumbs": "up"}).status_code == 404
    assert server.post("/v1/feedback", {"id": whole.id}).status_code == 400
    assert server.post("/v1/feedback", {"id": whole.id, "thumbs": "sideways"}).status_code == 400


def test_without_capture_there_is_no_feedback(served: Served) -> None:
    reply = served.post("/v1/feedback", {"id": "chatcmpl-1", "thumbs": "up"})
    assert reply.status_code == 404 and "--capture" in reply.json()["error"]["message"]


@masks
def test_personal_data_is_masked_first(tmp_path: Path) -> None:
    path = tmp_path / "captured.db"
    capture = Capture(f"sqlite:///{path}", Masking())
    capture.start()
    capture.put(answered(1, "mail jane.roe@example.com, card 4111 1111 1111 1111"))
    until(lambda: capture.counts.captured == 1, 120)
    capture.stop(10)
    (row,) = rows(path)
    assert "[EMAIL]" in row["request"] and "[CARD]" in row["request"]
    for file in tmp_path.iterdir():
        assert b"jane.roe" not in file.read_bytes()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 512 KiB: what a database needs to begin."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this user may not mount a file system ({done.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_capture_and_no_request(
    engine: Engine, adapters: dict[str, Path], disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(engine, adapters, capture=f"sqlite:///{disk / 'captured.db'}", mask=False) as server:
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(b"x" * 1024)
                file.flush()
        for _ in range(20):
            assert server.client.chat.completions.create(**ASK).choices  # type: ignore[call-overload]
        until(lambda: "luthier_capture_failing 1.0" in server.get("/metrics").text)
        assert sum("capture fails" in record.message for record in caplog.records) == 1
        reply = server.post("/v1/feedback", {"id": "chatcmpl-1", "thumbs": "up"})
        assert reply.status_code == 503 and int(reply.headers["retry-after"]) > 1
        ballast.unlink()
        capture = server.service.capture
        assert capture is not None
        until(lambda: capture.counts.captured > 0 and not capture.counts.failing, 60)


def test_what_waits_is_written_when_the_server_stops(tmp_path: Path) -> None:
    capture = Capture(f"sqlite:///{tmp_path / 'captured.db'}", None)
    for number in range(500):
        capture.put(answered(number))
    capture.start()
    capture.stop(30)
    assert len(rows(tmp_path / "captured.db")) == 500


WRITER = """
import sys, time
from luthier.serve.capture import Answered, Capture

def answered(number, text):
    turns = [{"role": "user", "content": text}]
    return Answered(f"chatcmpl-{number}", 0, "chat", "formal", "formal", "", turns, text[::-1], "stop", 3, 3, 0.1)

capture = Capture(sys.argv[1], None)
capture.start()
number = 0
while True:
    for _ in range(100):
        number += 1
        capture.put(answered(number, "film " * 200))
    while capture.waiting > 500:
        time.sleep(0.001)
    print(capture.counts.captured, flush=True)
"""


def test_a_kill_leaves_whole_rows(tmp_path: Path) -> None:
    """All that was told as captured is there, nothing half, and the next server goes on."""
    path = tmp_path / "captured.db"
    for _ in range(2):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, f"sqlite:///{path}"], stdout=subprocess.PIPE, text=True
        )
        try:
            assert writer.stdout is not None
            told = 0
            while told < 300:
                told = int(writer.stdout.readline())
        finally:
            os.kill(writer.pid, signal.SIGKILL)
            rest = writer.communicate()[0].split()
        told = max([told, *map(int, rest[:-1])])
        kept = rows(path)
        assert len(kept) >= told
        assert all(row["answer"] == ("film " * 200)[::-1] and json.loads(row["request"]) for row in kept)
        with contextlib.closing(sqlite3.connect(path)) as base:
            assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        path.unlink()
        for left in tmp_path.glob("captured.db-*"):
            left.unlink()


def test_a_database_that_can_not_be_opened(tmp_path: Path) -> None:
    for url, said in (
        (f"sqlite:///{tmp_path}/no/such/folder/x.db", "can't be opened"),
        ("nonsense", "no database URL"),
        ("postgresql://user:hidden@127.0.0.1:1/x", "can't be opened"),
    ):
        with pytest.raises(UserError, match=said) as told:
            Capture(url, None)
        assert "hidden" not in str(told.value)


def test_postgres(engine: Engine, adapters: dict[str, Path]) -> None:
    if reason := postgres.why_not():
        pytest.skip(reason)
    with postgres.running(closed_port()) as server_of_rows:
        url = server_of_rows.url()
        with serving(engine, adapters, capture=url, mask=False) as server:
            reply = server.client.chat.completions.create(**ASK)  # type: ignore[call-overload]
            told = {"id": reply.id, "thumbs": "up", "comment": "nul \0 here"}
            assert server.post("/v1/feedback", told).status_code == 200
        import psycopg

        with psycopg.connect(url) as base:
            assert base.execute("SELECT answer, thumbs, comment FROM feedback").fetchall() == [
                (reply.id, "up", "nul � here")
            ]
            assert base.execute("SELECT count(*) FROM answers").fetchone() == (1,)


def test_capture_never_waits(tmp_path: Path) -> None:
    """With a database that is locked by another, requests go on, and rows come when it is free."""
    path = tmp_path / "captured.db"
    capture = Capture(f"sqlite:///{path}", None)
    locker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    locker.execute("BEGIN EXCLUSIVE")
    capture.start()
    putting = threading.Thread(target=lambda: [capture.put(answered(number)) for number in range(12_000)])
    putting.start()
    putting.join(10)
    assert not putting.is_alive() and capture.counts.lost > 0
    locker.execute("COMMIT")
    locker.close()
    until(lambda: capture.waiting == 0, 60)
    capture.stop(30)
    assert len(rows(path)) + capture.counts.lost == 12_000
