"""Files inside archives, and inside archives in archives, without trusting any of them.

In: an archive (.whl, .zip, .tar, .tar.gz, ...) and a path such as "data/inner.tar.gz/folder/file.txt".
Out: the file's bytes, or files unpacked into a folder.
"""

from __future__ import annotations

import contextlib
import difflib
import gzip
import lzma
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from luthier.errors import UserError
from luthier.storage.files import whole_file

ENDINGS = (".zip", ".whl", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
# RuntimeError: a password is wanted; NotImplementedError: a way of packing that Python cannot read
BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    RuntimeError,
    NotImplementedError,
)
MOST_FILES = 100_000
LEAST_CAP = 2**30
MOST_TIMES = 100
"""An archive may unpack to 1 GiB, or to 100 times its size if that is more: text packs about 5 to 1, weights about
1.1 to 1, a zip bomb 1,000 to 1 and up."""


@dataclass(frozen=True)
class Contents:
    """An open archive and its regular files, by path."""

    archive: zipfile.ZipFile | tarfile.TarFile
    files: Mapping[str, zipfile.ZipInfo | tarfile.TarInfo]

    @property
    def root(self) -> str:
        """The one folder that everything lies in (an sdist's NAME-VERSION/), which may be left out of a path; or ""."""
        tops = {name.partition("/")[0] for name in self.files if "/" in name}
        return tops.pop() + "/" if len(tops) == 1 and all("/" in name for name in self.files) else ""

    def open(self, name: str) -> IO[bytes]:
        entry = self.files[name]
        if isinstance(self.archive, zipfile.ZipFile):
            assert isinstance(entry, zipfile.ZipInfo)
            return self.archive.open(entry)
        assert isinstance(entry, tarfile.TarInfo)
        stream = self.archive.extractfile(entry)
        assert stream is not None, "only regular files are listed"
        return stream


def archive_files(archive: Path) -> list[str]:
    """The paths of the regular files in the archive, those inside inner archives left out."""
    with opened(archive, archive.name, size_cap(archive)) as contents:
        return list(contents.files)


def read_inside(archive: Path, inner: str) -> bytes:
    """The bytes of one file in the archive; `inner` may pass through archives and leave out an sdist's first folder."""
    with reached(archive, inner) as (contents, found):
        if list(found) != [PurePosixPath(inner).name]:
            raise UserError(
                f"a folder, not a file; it holds {some(sorted(found))}",
                where=f"{archive.name}/{inner}".rstrip("/"),
                mend="name one file",
            )
        with contents.open(next(iter(found.values()))) as stream:
            return stream.read()


def extract(archive: Path, inner: str, into: Path) -> list[Path]:
    """Unpack one file (to `into/NAME`) or all that a folder holds (to `into/...`); "" is the whole archive."""
    written = []
    with reached(archive, inner) as (contents, found):
        for relative, name in found.items():
            with whole_file(into / relative) as temporary, contents.open(name) as stream, temporary.open("wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)
            written.append(into / relative)
    return written


@contextlib.contextmanager
def reached(archive: Path, inner: str) -> Iterator[tuple[Contents, dict[str, str]]]:
    """The (perhaps inner) archive that holds `inner`, open, and the files meant: path from there on, name in it."""
    rest, where, cap = str(PurePosixPath(inner)).strip("/") if inner else "", archive.name, size_cap(archive)
    with contextlib.ExitStack() as stack:
        stack.enter_context(readable(f"{archive.name}/{inner}"))
        contents = stack.enter_context(opened(archive, where, cap))
        while not (found := matching(contents, rest)):
            gate = next((gate for gate in gates(rest) if gate_file(contents, gate)), None)
            if gate is None:
                raise missing(contents, rest, where)
            unpacked = Path(stack.enter_context(tempfile.TemporaryDirectory())) / PurePosixPath(gate).name
            with contents.open(gate_file(contents, gate)) as stream, unpacked.open("wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)
            rest, where = rest[len(gate) + 1 :], f"{where}/{gate}"
            contents = stack.enter_context(opened(unpacked, where, cap))
        yield contents, found


def matching(contents: Contents, inner: str) -> dict[str, str]:
    """The one file that `inner` names, or all under the folder that it names."""
    for path in (inner, contents.root + inner):
        if path in contents.files:
            return {PurePosixPath(path).name: path}
        folder = f"{path}/" if path else ""
        if under := {name[len(folder) :]: name for name in contents.files if name.startswith(folder)}:
            return under
    return {}


def gates(inner: str) -> list[str]:
    """The beginnings of the path that may be an archive to go into."""
    parts = inner.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts)) if parts[n - 1].lower().endswith(ENDINGS)]


def gate_file(contents: Contents, gate: str) -> str:
    return next((path for path in (gate, contents.root + gate) if path in contents.files), "")


@contextlib.contextmanager
def opened(archive: Path, where: str, cap: int) -> Iterator[Contents]:
    """The archive with its files listed. Refused: paths that lead outside, absurd sizes. Links and devices are left
    out."""
    files: dict[str, zipfile.ZipInfo | tarfile.TarInfo] = {}
    total = 0

    def checked(name: str, size: int) -> str:
        nonlocal total
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or re.match(r"[A-Za-z]:", name):
            raise UserError(f"holds '{name}', a path that leads outside; nothing was unpacked", where=where)
        total += size
        if total > cap or len(files) >= MOST_FILES:
            raise UserError(
                f"would unpack to more than {cap // 2**20:,} MiB or {MOST_FILES:,} files, far more than it weighs",
                where=where,
                mend="if you trust it, unpack it yourself and name the folder or file",
            )
        return str(path)

    with readable(where):
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as pack:
                for item in pack.infolist():
                    name = checked(item.filename, item.file_size)
                    if not item.is_dir() and (item.external_attr >> 28) != 0xA:  # 0xA: a symbolic link
                        files[name] = item
                yield Contents(pack, files)
        else:
            with tarfile.open(archive) as tape:
                while member := tape.next():  # one by one: it is going on to the next that unpacks this one
                    name = checked(member.name, member.size)
                    if member.isreg():
                        files[name] = member
                yield Contents(tape, files)


@contextlib.contextmanager
def readable(where: str) -> Iterator[None]:
    try:
        yield
    except BROKEN as error:
        raise UserError(
            f"cannot be read as an archive ({error or type(error).__name__})",
            where=where,
            mend="fetch it again (delete this copy first); expected one of " + ", ".join(ENDINGS),
        ) from error


def size_cap(archive: Path) -> int:
    try:
        return max(LEAST_CAP, MOST_TIMES * archive.stat().st_size)
    except FileNotFoundError:
        raise UserError("no such file", where=str(archive)) from None


def missing(contents: Contents, inner: str, where: str) -> UserError:
    """What is there instead, nearest first."""
    root = contents.root
    names = {name.removeprefix(root): name for name in contents.files}
    wanted = PurePosixPath(inner).name
    same_name = [name for name in names if PurePosixPath(name).name == wanted]
    close = difflib.get_close_matches(inner, names, n=3, cutoff=0.5)
    bases = {PurePosixPath(name).name: name for name in names}
    close += [bases[base] for base in difflib.get_close_matches(wanted, bases, n=3, cutoff=0.6)]
    close += [gate for gate in names if gate.lower().endswith(ENDINGS)]
    ordered = list(dict.fromkeys([*same_name, *close, *sorted(names)]))
    return UserError(
        f"no '{inner}' in it; it holds {some(ordered)}",
        where=where,
        mend=f"did you mean '{ordered[0]}'? An archive in it is entered like a folder" if same_name or close else "",
    )


def some(names: list[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "nothing"
