"""Files behind URLs, from real servers on loopback: what comes back, what is asked again, what stalls or breaks."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import UserError
from luthier.prepare.read import Dataset, DataSettings, read_data
from luthier.prepare.sources import remote
from tests.servers import Answer, closed_port, serving

ROWS = [{"text": f"film number {n}", "label": "ab"[n % 2]} for n in range(400)]
DATA = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.setattr(remote, "STALLED", 1.0)


def read(source: str, **chosen: Any) -> Dataset:
    return read_data(DataSettings(source=source, **chosen), "classify")


def error(source: str, **chosen: Any) -> str:
    with pytest.raises(UserError) as caught:
        read(source, **chosen)
    return str(caught.value)


def test_a_file_is_fetched_once_and_again_only_when_it_changed() -> None:
    content = {
        "/a.jsonl": DATA,
        "/a.csv.gz": gzip.compress(b"text,label\n" + b"".join(b"t%d,%c\n" % (n, b"ab"[n % 2]) for n in range(50))),
    }
    tag = {"ETag": '"one"'}

    def answer(path: str, headers: Mapping[str, str]) -> Answer:
        path = path.partition("?")[0]
        return (200, tag, content[path]) if path in content else (404, {}, b"")

    with serving(answer) as server:
        url = f"{server.url}/a.jsonl?token=geheim"
        found = read(url)
        assert found.facts["splits"] == read_data(ROWS, "classify").facts["splits"]
        assert "geheim" not in json.dumps(found.facts) and "token=***" in json.dumps(found.facts)
        assert read(url).key == found.key
        assert [asked.split()[0] for asked in server.asked].count("GET") == 1
        tag["ETag"] = '"two"'
        assert read(url).key != found.key
        assert read(f"{server.url}/a.csv.gz").facts["rows_read"] == 50
        both = read(server.url, splits={"train": "a.jsonl", "test": f"{server.url}/a.csv.gz"}, on_bad_row="skip")
        assert both.facts["rows_read"] == 450
        assert "the server has no such file (HTTP 404)" in error(f"{server.url}/b.jsonl")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda path, headers: (503, {}, b""), "cannot be fetched in 3 tries (HTTP 503)"),
        (lambda path, headers: (401, {}, b""), "the server refuses to give it (HTTP 401)"),
        (lambda path, headers: (200, {"Content-Length": str(len(DATA) + 9)}, DATA), "the connection broke off"),
        (lambda path, headers: (200, {}, b""), "is empty"),
    ],
)
def test_servers_that_do_not_give_it(answer: Callable[[str, Mapping[str, str]], Answer], expected: str) -> None:
    with serving(answer) as server:
        assert expected in error(f"{server.url}/a.jsonl")


def test_nobody_there() -> None:
    said = error(f"http://me:geheim@127.0.0.1:{closed_port()}/a.jsonl")
    assert "connection refused" in said and "geheim" not in said


class Stalling(http.server.BaseHTTPRequestHandler):
    """Sends half of what is asked for, then nothing, or next to nothing."""

    drips = resumes = False
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("Range", ""))
        start = int(self.asked[-1][6:-1]) if self.asked[-1] and self.resumes else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(DATA) - start))
        self.send_header("ETag", '"one"')
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(DATA[start : len(DATA) if start else len(DATA) // 2])
        for _ in range(0 if start else 30):
            time.sleep(0.1)
            if self.drips:
                try:
                    self.wfile.write(b" ")
                except OSError:
                    return

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def stalling() -> Iterator[str]:
    Stalling.drips = Stalling.resumes = False
    Stalling.asked.clear()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stalling)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/a.jsonl"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("drips", [False, True])
def test_a_server_that_stalls_is_given_up(stalling: str, drips: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    Stalling.drips = drips
    monkeypatch.setattr(remote, "SLOWEST", 10.0**7)
    started = time.monotonic()
    assert "cannot be fetched in 3 tries" in error(stalling)
    assert time.monotonic() - started < 60


def test_a_broken_download_goes_on_where_it_stopped(stalling: str) -> None:
    Stalling.resumes = True
    assert read(stalling).facts["rows_read"] == len(ROWS)
    assert Stalling.asked[-1] == "" or Stalling.asked[-2:].count(f"bytes={len(DATA) // 2}-") == 1


def test_other_file_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://shop/a.jsonl", "wb") as file:
        file.write(DATA)
    found = read("memory://shop/a.jsonl")
    assert found.facts["rows_read"] == len(ROWS) and found.key
    assert "no such file" in error("memory://shop/b.jsonl")
    assert "nonsense:// is not known" in error("nonsense://shop/b.jsonl")
    assert "variable SHOP is not set" in error("memory://${SHOP}/a.jsonl")
    monkeypatch.setenv("SHOP", "shop")
    assert read("memory://${SHOP}/a.jsonl").key


def test_s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("s3fs", reason="needs the extra `remote`")
    server = pytest.importorskip("moto.server", reason="moto and flask are not installed: no service to test against")
    port = closed_port()
    service = server.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    service.start()
    try:
        for name, value in (
            ("ENDPOINT_URL", f"http://127.0.0.1:{port}"),
            ("ACCESS_KEY_ID", "a"),
            ("SECRET_ACCESS_KEY", "b"),
        ):
            monkeypatch.setenv(f"AWS_{name}", value)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import s3fs

        files = s3fs.S3FileSystem()
        files.mkdir("shop")
        files.pipe("shop/a.jsonl", DATA)
        found = read("s3://shop/a.jsonl")
        assert found.facts["splits"] == read_data(ROWS, "classify").facts["splits"] and found.key
        assert "no such file" in error("s3://shop/b.jsonl")
        assert "s3://shop" in error("s3://shop")
    finally:
        service.stop()
