"""One engine for all tests of the server: a tiny model with adapters that write and one that labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from luthier.engine.serving.engine import Engine
from luthier.engine.serving.settings import EngineSettings
from tests.serve.servers import Served, serving
from tests.serving import make_adapter, network


@pytest.fixture(scope="session")
def base(tiny: Callable[..., Path]) -> Path:
    return tiny("llama")


@pytest.fixture(scope="session")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    made = {name: make_adapter(base, root / name, seed) for seed, name in enumerate(("formal", "casual", "legal"))}
    return made | {"reviews": make_adapter(base, root / "reviews", 9, head="classes")}


@pytest.fixture(scope="session")
def engine(base: Path, adapters: dict[str, Path]) -> Iterator[Engine]:
    engine = Engine(network(base), EngineSettings(max_running=16))
    for name, folder in adapters.items():
        engine.adapters.register(name, folder)
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture(scope="session")
def served(engine: Engine, adapters: dict[str, Path]) -> Iterator[Served]:
    """A server without keys."""
    with serving(engine, adapters) as server:
        yield server
