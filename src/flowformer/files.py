"""Files: written so that a kill at any moment leaves the old content or the new, and JSON."""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

UNFINISHED = ".unfinished"
_POLL_SECONDS = 0.2


@contextmanager
def atomic_file(path: Path, *, before: Path | None = None) -> Iterator[BinaryIO]:
    """Opens a binary file whose content appears under `path` at once when the block ends.

    The bytes go to a hidden file in the same folder (a rename is atomic within one file system
    only), reach the disk, and replace `path` in one step. When the block raises, `path` keeps its
    content.

    Args:
        path: the file to write; its folder is made when missing.
        before: in the same folder, where what `path` was is kept. A kill may leave it there alone.

    Raises:
        OSError: it cannot be written; the error names it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if before is not None and path.exists():
            path.replace(before)
        unfinished.replace(path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            # Of a full disk the system does not say which file it was.
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a whole file at once; text is encoded as UTF-8. See `atomic_file`."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def locked(path: Path, *, refusal: str = "", patience: float | None = None) -> Iterator[IO[str]]:
    """Holds a file as a lock, which other processes wait for; children that inherit it hold it too.

    Where the system has no such locks (Windows), nothing is held.

    Args:
        path: of the file; made when missing, and left.
        refusal: what is said to whom the lock was not given.
        patience: seconds to wait for it; None for as long as it takes.

    Raises:
        BlockingIOError: somebody else holds it still.
    """
    deadline = math.inf if patience is None else time.monotonic() + patience
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BlockingIOError(refusal) from None
                time.sleep(_POLL_SECONDS)
        yield file


def remove_unfinished(folder: Path) -> None:
    """Deletes what a killed process left of `atomic_file` anywhere under a folder."""
    for path in folder.rglob(f".*{UNFINISHED}"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes what was renamed in a folder last."""
    # The rename itself is only durable once the folder is. Windows cannot open a folder.
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_json(text: str | bytes) -> Any:
    """Reads JSON.

    Raises:
        ValueError: it is none, or nested more deeply than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("expected JSON, got values that are nested too deeply") from error
