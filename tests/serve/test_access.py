"""Who may ask what, how much, and what is told of it in the log."""

from __future__ import annotations

import io
import json
import logging
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from luthier.cli import main
from luthier.engine.serving.engine import Engine
from luthier.errors import UserError
from luthier.serve import logs
from luthier.serve.access import LOOK_EVERY, Key, Keys, hashed, new_key, read_keys, revoke_key
from luthier.serve.limits import Limits
from luthier.serve.refusals import Refusal
from luthier.serve.settings import ServeSettings, is_loopback, size_of
from tests.serve.servers import ASKED, Served, serving, until

ASK = {"model": "formal", "messages": ASKED, "max_tokens": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keys")
    return {"keys": folder / "keys.json", "admin_keys": folder / "admin.json"}


@pytest.fixture(scope="module")
def keys(files: dict[str, Path]) -> dict[str, str]:
    made = {
        "alice": new_key(files["keys"], "alice"),
        "bob": new_key(files["keys"], "bob", ["formal", "leg*"]),
        "slow": new_key(files["keys"], "slow", requests_per_minute=2),
        "small": new_key(files["keys"], "small", tokens_per_minute=40),
        "leaving": new_key(files["keys"], "leaving"),
    }
    return made | {"ops": new_key(files["admin_keys"], "ops")}


@pytest.fixture(scope="module")
def guarded(
    engine: Engine, adapters: dict[str, Path], files: dict[str, Path], keys: dict[str, str]
) -> Iterator[Served]:
    with serving(engine, adapters, **files, cors=("https://page.example",), largest_body=20_000) as server:
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_no_key(guarded: Served, keys: dict[str, str]) -> None:
    for headers in ({}, bearer("lk-wrong"), {"authorization": keys["alice"]}, bearer(keys["ops"])):
        reply = guarded.post("/v1/chat/completions", ASK, headers=headers)
        assert reply.status_code == 401 and reply.headers["www-authenticate"] == "Bearer"
        assert reply.json()["error"]["code"] == "invalid_api_key"
    assert guarded.get("/metrics").status_code == 401
    assert guarded.get("/health").status_code == guarded.get("/").status_code == 200


def test_what_a_key_may_ask(guarded: Served, keys: dict[str, str]) -> None:
    def status(name: str, model: str) -> int:
        return guarded.post("/v1/chat/completions", ASK | {"model": model}, headers=bearer(keys[name])).status_code

    assert status("alice", "casual") == status("bob", "formal") == status("bob", "legal") == 200
    assert status("bob", "casual") == status("bob", "base") == status("bob", "nothing") == 403
    seen = [each["id"] for each in guarded.get("/v1/models", headers=bearer(keys["bob"])).json()["data"]]
    assert seen == ["formal", "legal"]
    reply = guarded.post("/v1/chat/completions", ASK | {"model": "legol"}, headers=bearer(keys["bob"]))
    assert reply.status_code == 404 and "casual" not in reply.text and "did you mean legal" in reply.text


def test_requests_a_minute(guarded: Served, keys: dict[str, str]) -> None:
    replies = [guarded.post("/v1/chat/completions", ASK, headers=bearer(keys["slow"])) for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 200, 429]
    assert 20 <= int(replies[2].headers["retry-after"]) <= 31
    assert replies[2].json()["error"]["code"] == "rate_limit_exceeded"


def test_tokens_a_minute(guarded: Served, keys: dict[str, str]) -> None:
    """What was written counts against the next request."""
    longer = ASK | {"max_tokens": 40, "stop": None}
    statuses = []
    for _ in range(4):
        statuses.append(guarded.post("/v1/chat/completions", longer, headers=bearer(keys["small"])).status_code)
    assert statuses[0] == 200 and statuses[-1] == 429


def test_leaving_early_is_no_way_around_it(guarded: Served, files: dict[str, Path], keys: dict[str, str]) -> None:
    """What was written to a client that left counts as well."""
    key = new_key(files["keys"], "leaver", tokens_per_minute=60)
    until(lambda: guarded.get("/v1/models", headers=bearer(key)).status_code == 200)
    body = ASK | {"max_tokens": 200, "n": 4, "temperature": 1.5, "stream": True}
    with requests.post(f"{guarded.url}/v1/chat/completions", json=body, headers=bearer(key), stream=True) as reply:
        for _, _ in zip(range(200), reply.iter_lines(), strict=False):
            pass
    until(lambda: guarded.post("/v1/chat/completions", ASK, headers=bearer(key)).status_code == 429)


def test_buckets_fill_up() -> None:
    limits, key = Limits(), Key("a", "h", requests_per_minute=600)
    for _ in range(600):
        limits.take_request(key)
    with pytest.raises(Refusal):
        limits.take_request(key)
    time.sleep(0.15)
    limits.take_request(key)


def test_a_revoked_key_ends(guarded: Served, files: dict[str, Path], keys: dict[str, str]) -> None:
    def status() -> int:
        return guarded.post("/v1/chat/completions", ASK, headers=bearer(keys["leaving"])).status_code

    assert status() == 200
    revoke_key(files["keys"], "leaving")
    until(lambda: status() == 401, LOOK_EVERY + 5)


def test_a_file_of_keys_that_breaks_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = new_key(path, "alice")
    keys = Keys(path)
    path.write_text("{")
    keys._looked -= 2 * LOOK_EVERY
    assert keys.find(f"Bearer {key}").name == "alice"


def test_keys_are_hashed_at_rest(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = new_key(path, "alice", ["formal"], 60, 1000)
    assert key not in path.read_text() and hashed(key) in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_keys(path)[0].may_ask("formal") and not read_keys(path)[0].may_ask("casual")
    with pytest.raises(UserError, match="there is a key named"):
        new_key(path, "alice")
    with pytest.raises(UserError, match="did you mean 'alice'"):
        revoke_key(path, "alise")


def test_keys_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "keys.json")
    assert main(["keys", "new", path, "--name", "alice", "--requests-per-minute", "60"]) == 0
    key = capsys.readouterr().out.strip()
    assert Keys(Path(path)).find(f"bearer {key}").name == "alice"
    assert main(["keys", "list", path]) == 0
    assert "alice" in (listed := capsys.readouterr().out) and key not in listed
    assert main(["keys", "revoke", path, "alice"]) == 0
    assert main(["keys", "new", path, "--name", "b", "--tokens-per-minute", "0"]) == 2
    assert main(["keys", "list", str(tmp_path / "none.json")]) == 2


def test_bodies_have_a_size(guarded: Served, keys: dict[str, str]) -> None:
    body = {"model": "formal", "messages": [{"role": "user", "content": "x" * 30_000}]}
    reply = guarded.post("/v1/chat/completions", body, headers=bearer(keys["alice"]))
    assert reply.status_code == 413 and reply.json()["error"]["code"] == "too_large"


def test_other_pages(guarded: Served, served: Served) -> None:
    """CORS is off unless asked, and a server without keys answers to localhost alone."""
    asked = {"origin": "https://page.example", "access-control-request-method": "POST"}
    allowed = guarded.get("/health", headers={"origin": "https://page.example"})
    assert allowed.headers["access-control-allow-origin"] == "https://page.example"
    assert "access-control-allow-origin" not in guarded.get("/health", headers={"origin": "https://x"}).headers
    assert "access-control-allow-origin" not in served.get("/health", headers=asked).headers
    assert served.get("/v1/models", headers={"host": "rebound.example"}).status_code == 403
    assert guarded.get("/health", headers={"host": "real.example"}).status_code == 200


def test_admin_needs_its_own_key(guarded: Served, served: Served, keys: dict[str, str]) -> None:
    assert guarded.get("/admin/adapters", headers=bearer(keys["alice"])).status_code == 401
    assert guarded.get("/admin/adapters", headers=bearer(keys["ops"])).status_code == 200
    assert served.get("/admin/adapters").status_code == 403


def test_no_key_in_the_log(guarded: Served, keys: dict[str, str]) -> None:
    written = io.StringIO()
    names = ("luthier", "uvicorn", "asyncio")
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in names}
    logs.configure(written)
    try:
        for headers in (bearer(keys["alice"]), bearer("lk-guessed"), {"authorization": f"Basic {keys['alice']}"}):
            guarded.post("/v1/chat/completions", ASK, headers={**headers, "x-request-id": "asked-1"})
        guarded.get(f"/v1/models?key={keys['alice']}", headers=bearer(keys["alice"]))
        until(lambda: written.getvalue().count("\n") >= 4)
    finally:
        for name, (handlers, propagates) in before.items():
            logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, propagates
    text = written.getvalue()
    assert keys["alice"] not in text and "lk-guessed" not in text and "warm film" not in text
    (line,) = [line for line in map(json.loads, text.splitlines()) if "new_tokens" in line]  # in whichever order
    assert line["request_id"] == "asked-1" and line["key"] == "alice" and line["model"] == "formal"
    assert line["status"] == 200 and line["new_tokens"] <= 2 and line["seconds"] > 0


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "example.com"])
def test_beyond_this_machine_only_with_keys(host: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no keys are asked for"):
        ServeSettings(host=host).check()
    ServeSettings(host=host, open_to_all=True).check()
    ServeSettings(host=host, keys=tmp_path / "keys.json").check()


def test_settings() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.8.8.8"):
        assert is_loopback(host)
    assert (size_of("2GiB"), size_of("1.5 MB"), size_of("100")) == (2 << 30, 1_500_000, 100)
    for wrong in ("", "MB", "1.2.3k", "-1", "1 XB", "."):
        with pytest.raises(ValueError, match="size"):
            size_of(wrong)
    with pytest.raises(UserError) as told:
        ServeSettings(port=70000, request_seconds=0, drain_seconds=-1).check()
    assert len(told.value.problems) == 3
