"""Packages from an index on a loopback port, and what is inside their archives."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from luthier.errors import UserError
from luthier.storage import archives
from luthier.storage.packages import (
    PackageSpec,
    archive_files,
    extract,
    fetch_package,
    index_urls,
    parse_package,
    read_inside,
)
from tests.servers import closed_port, package_index, sdist, wheel

WHEEL = wheel({"thing/data.txt": b"wheel"})
SOURCE = sdist({"thing-1.0/data/inner.tar.gz": sdist({"inner/rows.txt": b"1\tgood"}), "thing-1.0/setup.py": b"x"})


@pytest.fixture(autouse=True)
def nobodys_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache and none of this machine's index settings."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))


def test_parse_package() -> None:
    assert parse_package("pypi:My_Thing") == PackageSpec("my-thing")
    assert parse_package("pypi:thing==1.0") == PackageSpec("thing", "1.0")
    assert parse_package("pypi:thing==1.0/a/b.gguf") == PackageSpec("thing", "1.0", "a/b.gguf")
    assert parse_package("pypi:thing/a") == PackageSpec("thing", None, "a")
    assert str(parse_package("pypi:thing==1.0/a")) == "pypi:thing==1.0/a"


@pytest.mark.parametrize("spec", ["thing", "pypi:", "pypi:thing=1", "pypi:thing==", "pypi:thing==new", "pypi:../x"])
def test_malformed_package(spec: str) -> None:
    with pytest.raises(UserError, match="pypi:NAME"):
        parse_package(spec)


@pytest.mark.parametrize("as_json", [False, True], ids=["html", "json"])
def test_fetch_once_then_from_cache(as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    with package_index({"thing-1.0-py3-none-any.whl": WHEEL, "thing-1.0.tar.gz": SOURCE}, as_json=as_json) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        archive = fetch_package("pypi:Thing==1.0", "wheel", lambda done, total: seen.append((done, total)))
        assert archive.read_bytes() == WHEEL
        assert archive.parts[-3:] == ("thing", "1.0", "thing-1.0-py3-none-any.whl")
        assert seen[-1] == (len(WHEEL), len(WHEEL))
        assert fetch_package("pypi:thing==1.0", "source").read_bytes() == SOURCE
        asked = len(server.asked)
        assert fetch_package("pypi:thing==1.0", "wheel") == archive
        assert len(server.asked) == asked, "a pinned version in the cache needs no network"
    assert fetch_package("pypi:thing==1.0", "wheel") == archive
    assert fetch_package("pypi:thing", "wheel") == archive, "unpinned and no index: the newest in the cache"


@pytest.mark.parametrize("as_json", [False, True], ids=["html", "json"])
def test_newest_version(as_json: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["thing-1.9", "thing-1.10", "thing-1.11", "thing-2.0rc1"]
    files = {f"{name}-py3-none-any.whl": wheel({"v": name.encode()}) for name in names}
    files["thing-1.10-cp311-cp311-linux_x86_64.whl"] = wheel({"v": b"platform"})
    with package_index(files, as_json=as_json, yanked=("thing-1.11-py3-none-any.whl",)) as server:
        monkeypatch.setenv("UV_DEFAULT_INDEX", f"{server.url}/simple/")
        assert fetch_package("pypi:thing", "wheel").name == "thing-1.10-py3-none-any.whl"
        assert fetch_package("pypi:thing==1.11", "wheel").name == "thing-1.11-py3-none-any.whl", "yanked, but asked for"
        assert fetch_package("pypi:thing==2.0rc1", "wheel").parent.name == "2.0rc1"
        with pytest.raises(UserError, match=r"no wheel archive of version 3\.0; it has 2\.0rc1, 1\.11, 1\.10, 1\.9"):
            fetch_package("pypi:thing==3.0", "wheel")
        with pytest.raises(UserError, match="no source archive of this package; it has thing-"):
            fetch_package("pypi:thing", "source")
        with pytest.raises(UserError, match=r"no such package.*\n.*PIP_EXTRA_INDEX_URL"):
            fetch_package("pypi:other", "wheel")


def test_wrong_hash_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "thing-1.0-py3-none-any.whl"
    with package_index({name: WHEEL}, hashes={name: "0" * 64}) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        with pytest.raises(UserError, match="not the file that the index describes"):
            fetch_package("pypi:thing==1.0", "wheel")
    assert [file.name for file in (tmp_path / "home").rglob("*") if file.is_file()] == [".lock"]


def test_no_hash_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "thing-1.0-py3-none-any.whl"
    with package_index({name: WHEEL}, hashes={name: None}) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        with pytest.raises(UserError, match="states no sha256"):
            fetch_package("pypi:thing==1.0", "wheel")


def test_unreachable_index_hides_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:secret@127.0.0.1:{closed_port()}/simple")
    with pytest.raises(UserError, match="cannot be reached") as caught:
        fetch_package("pypi:thing==1.0", "wheel")
    assert "secret" not in str(caught.value) and "PIP_INDEX_URL" in str(caught.value)


def test_extra_index_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds: one that lacks the package, and one that has it, without a hash."""
    (tmp_path / "none").mkdir()
    (tmp_path / "some" / "thing").mkdir(parents=True)
    (tmp_path / "some" / "thing" / "index.html").write_text('<a href="../thing-1.1.tar.gz">thing-1.1.tar.gz</a>')
    (tmp_path / "some" / "thing-1.1.tar.gz").write_bytes(SOURCE)
    with package_index({"thing-1.0.tar.gz": SOURCE}) as server:
        config = tmp_path / "pip.conf"
        extra = f"{(tmp_path / 'none').as_uri()}\n    {(tmp_path / 'some').as_uri()}"
        config.write_text(f"[global]\nindex-url = {server.url}/simple\nextra-index-url = {extra}\n")
        monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
        assert len(index_urls()) == 3
        assert fetch_package("pypi:thing", "source").name == "thing-1.1.tar.gz"
        assert fetch_package("pypi:thing==1.0", "source").name == "thing-1.0.tar.gz"


def test_index_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert index_urls() == ["https://pypi.org/simple/"]
    monkeypatch.setenv("UV_INDEX", "mine=http://localhost:1/simple http://localhost:2/simple")
    assert index_urls()[1:] == ["http://localhost:1/simple", "http://localhost:2/simple"]


def test_two_processes_download_once(monkeypatch: pytest.MonkeyPatch) -> None:
    big = wheel({"thing/data.bin": os.urandom(3 << 20)})
    code = "from luthier.storage.packages import *; print(fetch_package('pypi:thing==1.0', 'wheel').stat().st_size)"
    with package_index({"thing-1.0-py3-none-any.whl": big}) as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
        both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
        assert [process.communicate(timeout=60)[0].strip() for process in both] == [str(len(big))] * 2
        assert sum("/files/" in line for line in server.asked) == 1


# ---------------------------------------------------------------------------------------------- inside archives


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "thing-1.0.tar.gz").write_bytes(SOURCE)
    return tmp_path / "thing-1.0.tar.gz"


def test_read_through_nested_archives(source: Path) -> None:
    assert read_inside(source, "data/inner.tar.gz/inner/rows.txt") == b"1\tgood"
    assert read_inside(source, "thing-1.0/data/inner.tar.gz/rows.txt") == b"1\tgood", "first folders may be left out"
    assert read_inside(source, "setup.py") == b"x"
    assert read_inside(source, "data/inner.tar.gz").startswith(b"\x1f\x8b")
    assert sorted(archive_files(source)) == ["thing-1.0/data/inner.tar.gz", "thing-1.0/setup.py"]


def test_missing_path_names_the_nearest(source: Path) -> None:
    with pytest.raises(UserError, match=r"thing-1.0.tar.gz/data/inner.tar.gz: no 'row.txt' in it; it holds rows.txt"):
        read_inside(source, "data/inner.tar.gz/row.txt")
    with pytest.raises(UserError, match=r"did you mean 'setup\.py'"):
        read_inside(source, "stup.py")
    with pytest.raises(UserError, match=r"a folder, not a file; it holds inner\.tar\.gz"):
        read_inside(source, "data")


def test_extract_file_and_folder(source: Path, tmp_path: Path) -> None:
    assert extract(source, "data/inner.tar.gz/inner/rows.txt", tmp_path / "a") == [tmp_path / "a" / "rows.txt"]
    assert extract(source, "data", tmp_path / "b") == [tmp_path / "b" / "inner.tar.gz"]
    assert len(extract(source, "", tmp_path / "c")) == 2
    assert (tmp_path / "c" / "thing-1.0" / "setup.py").read_bytes() == b"x"


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:\\evil"])
@pytest.mark.parametrize("pack", [wheel, sdist])
def test_paths_that_lead_outside(name: str, pack: object, tmp_path: Path) -> None:
    archive = tmp_path / "inner" / "thing.zip"
    archive.parent.mkdir()
    archive.write_bytes(pack({"fine": b"", name: b"evil"}))  # type: ignore[operator]
    with pytest.raises(UserError, match="leads outside"):
        extract(archive, "", tmp_path / "inner" / "out")
    assert not list(tmp_path.rglob("evil")) and not (tmp_path / "inner" / "out").exists()


def test_links_are_left_out(tmp_path: Path) -> None:
    archive = tmp_path / "thing.tar"
    with tarfile.open(archive, "w") as tape:
        link = tarfile.TarInfo("thing/passwords")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tape.addfile(link)
        entry = tarfile.TarInfo("thing/fine")
        tape.addfile(entry, io.BytesIO())
    assert archive_files(archive) == ["thing/fine"]


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "nested"])
def test_bomb(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LEAST_CAP", 1 << 20)  # so that a small bomb is one
    zeros = bytes(20 << 20)
    bomb = wheel({"zeros": zeros}) if kind == "zip" else sdist({"zeros": zeros})
    archive = tmp_path / f"thing.{'zip' if kind != 'tar.gz' else kind}"
    archive.write_bytes(wheel({"a.tar.gz": bomb}) if kind == "nested" else bomb)
    with pytest.raises(UserError, match="would unpack to more than"):
        read_inside(archive, "a.tar.gz/zeros" if kind == "nested" else "zeros")


def test_broken_archives(tmp_path: Path) -> None:
    archive = tmp_path / "thing.whl"
    archive.write_bytes(b"no archive at all")
    with pytest.raises(UserError, match="cannot be read as an archive"):
        archive_files(archive)
    archive.write_bytes(SOURCE[: len(SOURCE) // 2])
    with pytest.raises(UserError, match="cannot be read as an archive"):
        read_inside(archive, "setup.py")
    data = bytearray(WHEEL)
    with zipfile.ZipFile(io.BytesIO(WHEEL)) as pack:
        data[pack.infolist()[0].header_offset + 45] ^= 0xFF  # inside the packed bytes
    archive.write_bytes(data)
    with pytest.raises(UserError, match="cannot be read as an archive"):
        read_inside(archive, "thing/data.txt")
    with pytest.raises(UserError, match="no such file"):
        archive_files(tmp_path / "absent.whl")


@pytest.mark.real
def test_real_source_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the user's own index and cache
    source = fetch_package("pypi:vaderSentiment==3.3.2", "source")
    inner = "additional_resources/hutto_ICWSM_2014.tar.gz/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    assert len(read_inside(source, inner).splitlines()) == 10_605
