"""What all tests share: tiny models made once a session, and a cache folder of the session's own.

Tests marked `real` keep the user's cache, so that the real small models are fetched once and not once a run.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads that spin cost 10 to 60 times on a busy machine
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # a worker for each core, so a core for each worker

import pytest
from hypothesis import settings

# The same examples every time: what passed once passes again; `--hypothesis-profile explore` looks for new ones.
# No example is timed: machines are shared.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile("repeatable")

USERS_HOME = os.environ.get("LUTHIER_HOME")
SESSION_HOME = pytest.StashKey[tempfile.TemporaryDirectory]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SESSION_HOME] = tempfile.TemporaryDirectory(prefix="luthier-tests-", ignore_cleanup_errors=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[SESSION_HOME].cleanup()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture of the test, so that fixtures of wider scope see the right cache too."""
    if item.get_closest_marker("real") is None:
        os.environ["LUTHIER_HOME"] = item.config.stash[SESSION_HOME].name
    elif USERS_HOME is None:
        os.environ.pop("LUTHIER_HOME", None)
    else:
        os.environ["LUTHIER_HOME"] = USERS_HOME


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`tiny("llama")` is the folder of a tiny model of that family, made on first use."""
    from luthier.models.load import quiet
    from luthier.models.tiny import make_tiny_model

    made: dict[tuple[Any, ...], Path] = {}

    def folder(family: str, **options: Any) -> Path:
        key = (family, *sorted(options.items()))
        if key not in made:
            quiet()
            made[key] = make_tiny_model(tmp_path_factory.mktemp(family) / family, family, **options)
        return made[key]

    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"this user may not mount a file system ({mounted.stderr.strip()})")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
