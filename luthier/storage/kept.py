"""What takes long to prepare is kept on the disk for the next start: clean examples, and their tokens.

In: a key that says all that decides the content, and a function that writes it. Out: `Arrays`, from the disk where they
lie there whole. Several processes may ask at once; one makes, the others wait. Together the kept arrays take at most a
tenth of the disk, those unused for longest going first. A disk that is full or refuses has them held in memory.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from luthier.errors import UserError
from luthier.progress import Progress
from luthier.storage import files
from luthier.storage.arrays import ABOUT, Arrays, ArrayWriter, DamagedError, open_arrays

FOLDER = "prepared"
SHARE_OF_DISK = 0.1
"""Most that all kept arrays may take together."""
WORTH_SAYING = 64 * 2**20
"""Bytes from which it is said that something is kept."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)

Fill = Callable[[ArrayWriter], Mapping[str, Any]]
"""Adds the arrays and returns what is to be known about them. Called again where the disk turns out to be full."""


def kept(name: str, key: str | None, fill: Fill, progress: Progress) -> Arrays:
    """The arrays of this key; made, and kept, unless that was done before. Without a key they stay in memory.

    Args:
        name: What they are, in a word: the first part of their folder's name.
    """
    if key is not None:
        try:
            return on_disk(files.cache_folder() / FOLDER / f"{name}-{key}", fill, progress)
        except (OSError, UserError) as error:
            if files.error_number(error) not in NO_ROOM:
                raise
            what = str(error).splitlines()[0]
            progress.say(f"note: {name} cannot be kept on the disk and stay in memory: {what}")
    writer = ArrayWriter(None)
    return writer.finish(fill(writer))


def on_disk(folder: Path, fill: Fill, progress: Progress) -> Arrays:
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # copies of data that others may not be meant to read
    with locked(folder, progress):
        if folder.exists():
            try:
                found = open_arrays(folder)
                os.utime(folder / ABOUT)
                return found
            except DamagedError as error:
                progress.say(f"note: {folder} is damaged ({error}) and made anew")
                shutil.rmtree(folder)
        for left in folder.parent.glob(f".{folder.name}.*.part"):  # by a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        with files.whole_folder(folder) as temporary, ArrayWriter(temporary) as writer:
            writer.finish(fill(writer))
        made = open_arrays(folder)
    if made.bytes >= WORTH_SAYING:
        progress.say(f"note: kept for the next start: {size_text(made.bytes)} in {folder}")
    make_room(folder, progress)
    return made


@contextlib.contextmanager
def locked(folder: Path, progress: Progress) -> Iterator[None]:
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress.say(f"note: another process is preparing the same {folder.name.partition('-')[0]}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def make_room(newest: Path, progress: Progress) -> None:
    """Remove what was unused for longest, until all together are within their share of the disk."""
    limit = SHARE_OF_DISK * shutil.disk_usage(newest.parent).total
    with contextlib.suppress(FileNotFoundError):  # another process may be at the same
        found = sorted(newest.parent.glob(f"*/{ABOUT}"), key=lambda about: about.stat().st_mtime)
        sizes = {about.parent: sum(file.stat().st_size for file in about.parent.iterdir()) for about in found}
        total = sum(sizes.values())
        for folder, size in sizes.items():
            if total <= limit:
                return
            if folder == newest:
                continue
            with contextlib.suppress(Timeout), FileLock(folder.parent / f".{folder.name}.lock", timeout=0):
                shutil.rmtree(folder)  # whoever has it mapped keeps reading it until it ends
                total -= size
                progress.say(f"note: removed {folder.name} ({size_text(size)}), kept since an earlier start")


def size_text(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
