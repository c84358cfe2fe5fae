"""Loopback servers for tests: a package index and a model hub, as small as their clients allow."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import socket
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""


@dataclass
class Server:
    url: str
    asked: list[str] = field(default_factory=list)
    """Every "METHOD /path" so far."""


@contextlib.contextmanager
def serving(answer: Callable[[str, Mapping[str, str]], Answer]) -> Iterator[Server]:
    """An HTTP server on a free loopback port; `answer` gets the path and the request's headers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append(f"{self.command} {self.path}")
            status, headers, body = answer(self.path, self.headers)  # type: ignore[arg-type]
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{http.server_address[1]}")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


ChatReply = tuple[int, dict[str, str], Any]
"""Status, headers, and what the body holds: JSON, or bytes as they are."""


@contextlib.contextmanager
def chat_server(answer: Callable[[dict[str, Any], int], ChatReply]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An HTTP server on a free loopback port; `answer` gets each request's body and its number from 0."""
    asked: list[dict[str, Any]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(asked)
                asked.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
            status, headers, value = answer(body, number)
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            for name, text in ({"Content-Length": str(len(data))} | headers).items():
                self.send_header(name, text)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # who waits no longer has gone
                self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}/v1", asked
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def said(text: str, usage: bool = True) -> ChatReply:
    value: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    if usage:
        value["usage"] = {"prompt_tokens": 20, "completion_tokens": 2}
    return 200, {}, value


def closed_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def package_index(
    files: Mapping[str, bytes],
    *,
    as_json: bool = False,
    hashes: Mapping[str, str | None] | None = None,
    yanked: tuple[str, ...] = (),
) -> contextlib.AbstractContextManager[Server]:
    """A simple index of one package "thing" with these files; `hashes` overrides what it says (None: nothing)."""

    def stated(name: str) -> str | None:
        return (hashes or {}).get(name, hashlib.sha256(files[name]).hexdigest())

    def page() -> Answer:
        if as_json:
            entries = [
                {
                    "filename": name,
                    "url": f"../../files/{name}",
                    "hashes": {"sha256": stated(name)} if stated(name) else {},
                    "yanked": name in yanked,
                }
                for name in files
            ]
            value = {"meta": {"api-version": "1.1"}, "name": "thing", "versions": [], "files": entries}
            return 200, {"Content-Type": "application/vnd.pypi.simple.v1+json"}, json.dumps(value).encode()
        links = [
            f'<a href="../../files/{name}{f"#sha256={stated(name)}" if stated(name) else ""}"'
            f"{' data-yanked' if name in yanked else ''}>{name}</a>"
            for name in files
        ]
        return 200, {"Content-Type": "text/html"}, f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()

    def answer(path: str, headers: Mapping[str, str]) -> Answer:
        if path == "/simple/thing/":
            return page()
        name = path.removeprefix("/files/")
        return (200, {}, files[name]) if name in files else (404, {}, b"no such page")

    return serving(answer)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def model_hub(
    models: Mapping[str, Mapping[str, bytes]], *, gated: tuple[str, ...] = ()
) -> contextlib.AbstractContextManager[Server]:
    """The routes of the model hub that `snapshot_download` asks, each model with one commit on `main`."""

    def refused(code: str, status: int) -> Answer:
        return status, {"X-Error-Code": code, "X-Error-Message": code}, b"{}"

    def answer(path: str, headers: Mapping[str, str]) -> Answer:
        path = path.partition("?")[0]
        name = "/".join(path.removeprefix("/api/models").strip("/").split("/")[:2])
        if name in gated:
            return refused("GatedRepo", 403)
        if name not in models:
            return refused("RepoNotFound", 404)
        files, rest = models[name], path.partition(name)[2].strip("/").split("/")
        if rest[0] in ("revision", "tree") and rest[-1] not in ("main", COMMIT):
            return refused("RevisionNotFound", 404)
        if path.startswith("/api/models/") and rest[0] in ("", "revision"):
            siblings = [{"rfilename": file} for file in files]
            value = {"id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
            return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()
        if path.startswith("/api/models/") and rest[0] == "tree":
            tree = [
                {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for file, data in files.items()
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(tree).encode()
        file = "/".join(rest[2:])
        if rest[0] != "resolve" or file not in files:
            return refused("EntryNotFound", 404)
        etag = hashlib.sha1(files[file]).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, files[file]

    return serving(answer)


def wheel(files: Mapping[str, bytes]) -> bytes:
    """A zip archive of these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as pack:
        for name, data in files.items():
            pack.writestr(name, data)
    return buffer.getvalue()


def sdist(files: Mapping[str, bytes]) -> bytes:
    """A tar.gz archive of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tape:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tape.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
