"""Names, versions and canaries; loading and unloading while requests go on."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.engine.serving.engine import Engine
from luthier.serve.access import new_key
from luthier.serve.names import Names
from luthier.serve.refusals import Refusal
from tests.serve.servers import ASKED, Served, serving, until


@pytest.fixture
def names() -> tuple[Names, list[str]]:
    removed: list[str] = []
    made = Names("org/base", removed.append)
    for model in ("reviews", "legal"):
        add(made, model)
    return made, removed


def add(names: Names, model: str, share: float | None = None, replace: bool = False) -> str:
    name, version, registered = names.free_name(model, replace)
    names.add(name, version, registered, share, replace)
    return registered


def test_names_and_versions(names: tuple[Names, list[str]]) -> None:
    known, _ = names
    assert known.resolve("org/base") is None
    assert known.resolve("reviews") == known.resolve("reviews@v1") == "reviews"
    assert add(known, "reviews@v2") == "reviews@v2"
    assert known.resolve("reviews") == "reviews" and known.resolve("reviews@v2") == "reviews@v2"
    assert known.public() == ["org/base", "reviews", "legal", "reviews@v1", "reviews@v2"]
    for wrong in ("review", "reviews@v3", "org", ""):
        with pytest.raises(Refusal) as told:
            known.resolve(wrong)
        assert told.value.status == 404
    for taken in ("reviews", "reviews@v2", "org/base"):
        with pytest.raises(Refusal) as told:
            known.free_name(taken, False)
        assert told.value.status in (400, 409)


def test_shares(names: tuple[Names, list[str]]) -> None:
    known, _ = names
    add(known, "reviews@v2", share=0.1)
    drawn = Counter(known.resolve("reviews", user=f"user {number}") for number in range(4000))
    assert 300 < drawn["reviews@v2"] < 500
    assert len({known.resolve("reviews", user="me") for _ in range(20)}) == 1
    drawn = Counter(known.resolve("reviews") for _ in range(4000))
    assert 300 < drawn["reviews@v2"] < 500
    known.share("reviews", {"v1": 0, "v2": 100})
    assert known.resolve("reviews") == "reviews@v2"
    for wrong in ({"v1": 50}, {"v1": 50, "v3": 50}, {"v1": -1, "v2": 101}):
        with pytest.raises(Refusal):
            known.share("reviews", wrong)


def test_what_is_under_way_ends_first(names: tuple[Names, list[str]]) -> None:
    known, removed = names
    known.begin("reviews")
    known.begin("reviews")
    assert add(known, "reviews", replace=True) == "reviews@v2"
    assert known.resolve("reviews") == "reviews@v2" and not removed
    known.end("reviews")
    assert not removed
    known.end("reviews")
    assert removed == ["reviews"]
    assert known.take_away("legal") == ["legal"] and removed == ["reviews", "legal"]
    with pytest.raises(Refusal):
        known.resolve("legal")


def test_the_version_that_answers_all_stays(names: tuple[Names, list[str]]) -> None:
    known, removed = names
    add(known, "reviews@v2", share=0.5)
    known.take_away("reviews@v1")
    assert known.versions["reviews"].shares == {"v2": 1.0} and removed == ["reviews"]
    add(known, "reviews@v3")
    with pytest.raises(Refusal, match="give others a share first"):
        known.take_away("reviews@v2")
    known.take_away("reviews")
    assert "reviews" not in known.versions


# ── Over HTTP ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def admin(engine: Engine, adapters: dict[str, Path], tmp_path: Path) -> Iterator[Served]:
    key = new_key(tmp_path / "admin.json", "ops")
    with serving(engine, adapters, admin_keys=tmp_path / "admin.json") as server:
        server.key = key
        yield server
        for name in ("swap", "other"):
            if name in server.service.names.versions:
                server.service.names.take_away(name)


def load(admin: Served, name: str, folder: Path, **more: Any) -> Any:
    return admin.post("/admin/adapters", {"name": name, "folder": str(folder), **more})


def test_load_list_pin_unload(admin: Served, adapters: dict[str, Path]) -> None:
    made = load(admin, "other", adapters["formal"], pin=True)
    assert made.status_code == 201 and made.json()["version"] == "v1" and made.json()["method"] == "lora"
    until(lambda: listed(admin, "other")["versions"]["v1"]["resident"])
    assert load(admin, "other", adapters["casual"]).status_code == 409
    second = load(admin, "other@v2", adapters["casual"], share=10)
    assert second.status_code == 201
    assert listed(admin, "other")["shares"] == {"v1": 90, "v2": 10}
    answer = admin.client.chat.completions.create(model="other@v2", messages=ASKED, temperature=0, max_tokens=8)
    same = admin.client.chat.completions.create(model="casual", messages=ASKED, temperature=0, max_tokens=8)
    assert answer.choices[0].message.content == same.choices[0].message.content and answer.model == "other@v2"
    put = {"headers": admin.headers, "timeout": 60}
    import requests

    assert requests.put(f"{admin.url}/admin/adapters/other@v1/pin", json={"pinned": False}, **put).status_code == 200
    assert not listed(admin, "other")["versions"]["v1"]["pinned"]
    shares = {"shares": {"v1": 50, "v2": 50}}
    assert requests.put(f"{admin.url}/admin/shares/other", json=shares, **put).json()["shares"] == shares["shares"]
    assert requests.delete(f"{admin.url}/admin/adapters/other@v1", **put).json()["names"] == ["other"]
    assert requests.delete(f"{admin.url}/admin/adapters/other", **put).json()["names"] == ["other@v2"]
    assert requests.delete(f"{admin.url}/admin/adapters/other", **put).status_code == 404
    assert load(admin, "no name", adapters["formal"]).status_code == 400


def listed(admin: Served, name: str) -> Any:
    return next(each for each in admin.get("/admin/adapters").json()["data"] if each["name"] == name)


def test_a_version_is_swapped_in_without_dropping_a_request(admin: Served, adapters: dict[str, Path]) -> None:
    """Clients stream without a break while the adapter changes under its name again and again."""
    assert load(admin, "swap", adapters["formal"]).status_code == 201
    stopping, failures, served = threading.Event(), [], Counter()  # type: ignore[var-annotated]

    def ask() -> None:
        while not stopping.is_set():
            try:
                events = list(
                    admin.client.chat.completions.create(model="swap", messages=ASKED, max_tokens=12, stream=True)
                )
                assert events[-1].choices[0].finish_reason in ("stop", "length")
                served[events[0].model] += 1
            except Exception as error:
                failures.append(error)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for client in clients:
        client.start()
    try:
        for turn in range(5):
            before = sum(served.values())
            until(lambda before=before: sum(served.values()) >= before + 6 or failures)
            folder = adapters["casual" if turn % 2 else "legal"]
            assert load(admin, "swap", folder, replace=True).status_code == 201
    finally:
        stopping.set()
        for client in clients:
            client.join(60)
    assert not failures and len(served) >= 5
    until(lambda: [f.name for f in admin.service.engine.adapters.list() if f.name.startswith("swap")] == ["swap@v6"])


def broken(folder: Path, into: Path, how: str) -> Path:
    into.mkdir()
    for file in folder.iterdir():
        (into / file.name).write_bytes(file.read_bytes())
    weights = into / "adapter_model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if "lora_A" in name)
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "pickle":
        weights.unlink()
        torch.save(tensors, into / "adapter_model.bin")
    elif how == "rank":
        save_file(tensors | {name: tensors[name][:1].clone()}, weights)
    elif how == "stranger":
        save_file(tensors | {"base_model.model.nowhere.lora_A.weight": torch.zeros(1)}, weights)
    elif how == "nan":
        save_file(tensors | {name: tensors[name] * torch.nan}, weights)
    elif how == "base":
        about = json.loads((into / "luthier.json").read_text())
        about["base"]["fingerprint"] = "0" * 32
        (into / "luthier.json").write_text(json.dumps(about))
    return into


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("truncated", "damaged"),
        ("pickle", "pickle"),
        ("rank", "lora_A"),
        ("stranger", "nowhere"),
        ("base", "tuned from"),
    ],
)
def test_a_bad_adapter_is_refused(
    admin: Served, adapters: dict[str, Path], tmp_path: Path, how: str, said: str
) -> None:
    reply = load(admin, "other", broken(adapters["formal"], tmp_path / how, how))
    assert reply.status_code == 422 and said in reply.json()["error"]["message"], reply.text
    assert "other" not in admin.service.names.versions


def test_an_adapter_that_is_no_number_fails_alone(admin: Served, adapters: dict[str, Path], tmp_path: Path) -> None:
    """Its numbers are looked at when it is first asked; only who asks it hears of it."""
    loaded = load(admin, "other", broken(adapters["formal"], tmp_path / "nan", "nan"))
    if loaded.status_code == 201:
        body = {"model": "other", "messages": ASKED, "max_tokens": 4}
        for stream in (False, True):
            reply = admin.post("/v1/chat/completions", body | {"stream": stream})
            assert reply.status_code == 422 and "no numbers" in reply.json()["error"]["message"], reply.text
    else:
        assert loaded.status_code == 422 and "no numbers" in loaded.json()["error"]["message"]
    assert admin.client.chat.completions.create(model="formal", messages=ASKED, max_tokens=4).choices
