"""An adapter is checked before it may touch a batch, and comes and goes while others answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.engine.serving.adapter_files import AdapterPlan
from luthier.engine.serving.adapter_loading import AdapterLoader, Layout, Loaded
from luthier.engine.serving.arena import Arena
from luthier.engine.serving.engine import Engine
from luthier.engine.serving.request import RefusedError
from luthier.engine.serving.settings import EngineSettings
from luthier.models.save import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tests.serving import ask, make_adapter, network

Tiny = Callable[..., Path]


@pytest.fixture(scope="module")
def base(tiny: Tiny) -> Path:
    return tiny("llama")


@pytest.fixture(scope="module")
def good(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(base, tmp_path_factory.mktemp("good") / "good", 1)


@pytest.fixture
def engine(base: Path, good: Path) -> Iterator[Engine]:
    running = Engine(network(base), EngineSettings())
    running.adapters.register("good", good)
    running.start()
    yield running
    running.stop()


def changed(good: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy of the adapter with other tensors."""
    shutil.copytree(good, folder)
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    change(tensors)
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    return folder


def first(tensors: dict[str, torch.Tensor], end: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(end))


def refused(engine: Engine, folder: Path) -> str:
    with pytest.raises(RefusedError) as caught:
        engine.adapters.register("bad", folder)
    assert caught.value.trouble == "bad_adapter"
    assert [each.name for each in engine.adapters.list()] == ["good"]
    return caught.value.message


def test_wrong_shapes_and_strangers(engine: Engine, good: Path, tmp_path: Path) -> None:
    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        name = first(tensors, "lora_A.weight")
        tensors[name] = tensors[name][:, :-1].contiguous()

    def higher(tensors: dict[str, torch.Tensor]) -> None:
        name = first(tensors, "lora_B.weight")
        tensors[name] = torch.cat([tensors[name]] * 2, dim=1)

    def stranger(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.model.layers.99.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 4)

    def lonely(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[first(tensors, "lora_B.weight")]

    def whole(tensors: dict[str, torch.Tensor]) -> None:
        name = first(tensors, "lora_A.weight")
        tensors[name] = tensors[name].long()

    assert "lora_A is [4, " in refused(engine, changed(good, tmp_path / "narrow", narrow))
    assert "lora_B is [" in refused(engine, changed(good, tmp_path / "higher", higher))
    assert "layers.99" in refused(engine, changed(good, tmp_path / "stranger", stranger))
    assert "lora_B is missing" in refused(engine, changed(good, tmp_path / "lonely", lonely))
    assert "holds I64" in refused(engine, changed(good, tmp_path / "whole", whole))


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_prefixes_and_prompts_that_do_not_fit(engine: Engine, base: Path, tmp_path: Path, method: str) -> None:
    good = make_adapter(base, tmp_path / "of five", 2, method=method, length=5)

    def shorter(tensors: dict[str, torch.Tensor]) -> None:
        tensors["prompt_embeddings"] = tensors["prompt_embeddings"][:4].contiguous()

    def narrow(tensors: dict[str, torch.Tensor]) -> None:
        tensors["prompt_embeddings"] = tensors["prompt_embeddings"][:, :-1].contiguous()

    def missing(tensors: dict[str, torch.Tensor]) -> None:
        tensors["other"] = tensors.pop("prompt_embeddings")

    assert "prompt_embeddings is [4, " in refused(engine, changed(good, tmp_path / "shorter", shorter))
    assert "expected [5, " in refused(engine, changed(good, tmp_path / "narrow", narrow))
    assert "prompt_embeddings is missing" in refused(engine, changed(good, tmp_path / "missing", missing))
    about = json.loads((good / ADAPTER_CONFIG).read_text())
    (good / ADAPTER_CONFIG).write_text(json.dumps(about | {"prefix_projection": True}))
    assert "a network that makes its prefix" in refused(engine, good)
    longest = make_adapter(base, tmp_path / "longest", 2, method=method, length=120)
    facts = engine.adapters.register("longest", longest)
    assert (facts.method, facts.rank, facts.modules) == (method, 0, 0)
    window = engine.network.window
    assert window is not None
    with pytest.raises(RefusedError, match=f"at most {window - 120} fit beside 120 of the adapter"):
        ask(engine, [5] * (window - 119), adapter="longest")
    engine.adapters.remove("longest")


def test_damaged_and_unsafe_files(engine: Engine, good: Path, tmp_path: Path) -> None:
    truncated = tmp_path / "truncated"
    shutil.copytree(good, truncated)
    raw = (truncated / ADAPTER_WEIGHTS).read_bytes()
    (truncated / ADAPTER_WEIGHTS).write_bytes(raw[: len(raw) // 2])
    assert "damaged" in refused(engine, truncated)
    (truncated / ADAPTER_WEIGHTS).write_bytes(b"\xff" * 64)
    assert "damaged" in refused(engine, truncated)
    (truncated / ADAPTER_WEIGHTS).unlink()
    (truncated / "adapter_model.bin").write_bytes(b"\x80\x04.")
    assert "pickle" in refused(engine, truncated)
    assert "needs adapter_config.json" in refused(engine, tmp_path)
    config = tmp_path / "config"
    shutil.copytree(good, config)
    for said, message in (
        ({"peft_type": "IA3"}, "IA3 adapter"),
        ({"bias": "all"}, "biases"),
        ({"r": 7}, "expected [7,"),
    ):
        about = json.loads((good / ADAPTER_CONFIG).read_text())
        (config / ADAPTER_CONFIG).write_text(json.dumps(about | said))
        assert message in refused(engine, config)
    (config / ADAPTER_CONFIG).write_text("{")
    assert "can't be read" in refused(engine, config)


def test_an_adapter_of_another_base(engine: Engine, tiny: Tiny, tmp_path: Path) -> None:
    other = make_adapter(tiny("llama", seed=5), tmp_path / "other", 1)
    assert "whose weights are not those of" in refused(engine, other)


def test_values_that_are_no_numbers_fail_their_own_requests_alone(engine: Engine, good: Path, tmp_path: Path) -> None:
    def broken(tensors: dict[str, torch.Tensor]) -> None:
        tensors[first(tensors, "lora_B.weight")][0, 0] = torch.nan

    engine.adapters.register("broken", changed(good, tmp_path / "broken", broken))
    expected = ask(engine, [5, 6, 7], 20, adapter="good").wait().tokens
    healthy = [ask(engine, [5, 6, 7], 20, adapter="good") for _ in range(4)]
    ill = [ask(engine, [5, 6, 7], 20, adapter="broken") for _ in range(3)]
    for each in ill:
        assert each.wait().end is not None and "no numbers" in (each.end.error or "")
    assert [each.wait().tokens for each in healthy] == [expected] * 4


def test_a_failure_nobody_foresaw_ends_its_own_requests_alone(
    engine: Engine, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a GPU without memory: the thread that loads goes on with the next one."""
    load = AdapterLoader.load

    def failing(loader: AdapterLoader, plan: AdapterPlan, layout: Layout, start: int) -> Loaded:
        if plan.folder.name == "unlucky":
            raise RuntimeError("out of memory")
        return load(loader, plan, layout, start)

    monkeypatch.setattr(AdapterLoader, "load", failing)
    for name in ("unlucky", "next"):
        engine.adapters.register(name, shutil.copytree(good, tmp_path / name))
    unlucky, other = (ask(engine, [5, 6, 7], 4, adapter=name).wait() for name in ("unlucky", "next"))
    assert unlucky.end is not None and "RuntimeError: out of memory" in (unlucky.end.error or "")
    assert other.end is not None and other.end.error is None and len(other.tokens) == 4


def test_numbers_that_overflow_fail_their_own_requests_alone(engine: Engine, good: Path, tmp_path: Path) -> None:
    def huge(tensors: dict[str, torch.Tensor]) -> None:
        for tensor in tensors.values():
            tensor.mul_(1e30)

    engine.adapters.register("huge", changed(good, tmp_path / "huge", huge))
    expected = ask(engine, [5, 6, 7], 20, adapter="good").wait().tokens
    both = [ask(engine, [5, 6, 7], 20, adapter=name) for name in ("huge", "good", "huge", "good")]
    for each in both[::2]:
        assert each.wait().end is not None and each.end.reason == "error"
    assert [each.wait().tokens for each in both[1::2]] == [expected] * 2
    assert ask(engine, [5, 6, 7], 20, adapter="good").wait().tokens == expected  # nor is what it left read again


def test_a_file_that_changed_is_not_read(engine: Engine, good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changing"
    shutil.copytree(good, folder)
    engine.adapters.register("changing", folder)
    (folder / ADAPTER_WEIGHTS).write_bytes(b"no longer what it was")
    heard = ask(engine, [5], adapter="changing").wait()
    assert heard.end is not None and "has changed" in (heard.end.error or "")


def test_names_are_taken_once_and_removed_ones_end_their_answers(engine: Engine, good: Path) -> None:
    with pytest.raises(RefusedError) as caught:
        engine.adapters.register("good", good)
    assert caught.value.trouble == "taken"
    heard = ask(engine, [5, 6, 7], 60, adapter="good")
    expected = ask(engine, [5, 6, 7], 60, adapter="good").wait().tokens
    late = ask(engine, [5, 6, 8], 100, adapter="good")
    engine.adapters.remove("good")
    with pytest.raises(RefusedError):
        ask(engine, [5], adapter="good")
    assert heard.wait().tokens == expected
    assert late.wait().end is not None and late.end.reason == "length"
    assert engine.facts().adapter_bytes == 0
    engine.adapters.register("good", good)
    assert ask(engine, [5, 6, 7], 60, adapter="good").wait().tokens == expected


def test_more_adapters_than_memory(base: Path, good: Path, tmp_path: Path) -> None:
    """Each answer is its own adapter's, while memory holds three of them."""
    folders = {f"a{seed}": make_adapter(base, tmp_path / f"a{seed}", seed) for seed in range(6)}
    probe = Engine(network(base))
    size = probe.adapters.register("one", good).bytes
    engine = Engine(network(base), EngineSettings(adapter_memory=3 * size + 64, max_running=8))
    for name, folder in folders.items():
        engine.adapters.register(name, folder)
    engine.start()
    try:
        alone = {name: ask(engine, [5, 6, 7], 10, adapter=name).wait().tokens for name in folders}
        assert len({tuple(tokens) for tokens in alone.values()}) > 3
        heard = [(name, ask(engine, [5, 6, 7], 10, adapter=name)) for name in [*folders] * 5]
        assert all(each.wait().tokens == alone[name] for name, each in heard)
        facts = engine.facts()
        assert facts.adapters_resident <= 3 and facts.adapter_bytes <= facts.adapter_budget
        for name in list(folders)[:3]:
            engine.adapters.pin(name)
            assert ask(engine, [5], 1, adapter=name).wait().end is not None
        full = ask(engine, [5], 1, adapter="a5").wait()
        assert full.end is not None and "pinned" in (full.end.error or "")
        engine.adapters.pin("a0", False)
        assert ask(engine, [5, 6, 7], 10, adapter="a5").wait().tokens == alone["a5"]
    finally:
        engine.stop()
    tight = Engine(network(base), EngineSettings(adapter_memory=size // 2))
    with pytest.raises(RefusedError) as caught:
        tight.adapters.register("good", good)
    assert caught.value.trouble == "over_budget"


def test_the_arena_gives_back_what_it_gave() -> None:
    arena = Arena(1024)
    places = [arena.take(100) for _ in range(8)]
    assert places == [0, 128, 256, 384, 512, 640, 768, 896] and arena.take(1) is None
    for place in (128, 384, 256, 0, 896, 640, 512, 768):
        arena.give(place, 100)
    assert arena.holes == [(0, 1024)] and arena.used == 0
