"""Files: written so that a kill at any moment leaves the old content or the new, and JSON."""

import errno
import json
import os
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, BinaryIO

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

UNFINISHED = ".unfinished"
LEASE_SECONDS = 100.0  # NFS gives back what a machine held that is gone: after 90 by default
_POLL_SECONDS = 0.2
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


@contextmanager
def atomic_file(path: Path, *, before: Path | None = None) -> Iterator[BinaryIO]:
    """Open a binary file whose content appears under `path` at once when the block ends.

    The bytes go to a hidden file in the same folder (a rename is atomic within one file system
    only), reach the disk, and replace `path` in one step. When the block raises, `path` keeps its
    content.

    Args:
        path: the file to write; its folder is made when missing.
        before: a file in the same folder that keeps the former content of `path`. A kill may leave
            it there alone.

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
    r"""Write a whole file at once; text is encoded as UTF-8. See `atomic_file`.

    What of a file's name is no UTF-8 stands there as `\udcff`, which JSON reads back. A device or a
    pipe, as /dev/null, is written to and stays what it is.
    """
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")
    if path.exists() and not (path.is_file() or path.is_dir()):
        path.write_bytes(content)
        return
    with atomic_file(path) as file:
        file.write(content)


def require_no_input(output: Path, inputs: Iterable[Path]) -> None:
    """Refuse to write over a file that is read, by whatever name or link.

    Args:
        output: the file to write.
        inputs: files that are read, or folders of them.

    Raises:
        ValueError: the file is there, and one of them or in one of them.
    """
    if not output.exists():
        return
    for path in inputs:
        inside = path.is_dir() and output.resolve().is_relative_to(path.resolve())
        if inside or (path.exists() and output.samefile(path)):
            what = f"in {path}, which" if inside else f"{path}, which" if path != output else "what"
            raise ValueError(
                f"expected another file to write than {what} is read: {output} would be lost"
            )


@contextmanager
def locked(
    path: Path,
    *,
    refusal: str = "",
    patience: float | None = None,
    on_wait: Callable[[str], None] = lambda _: None,
) -> Iterator[IO[str]]:
    """Hold a file as a lock, which other processes wait for; children that inherit it hold it too.

    It is the system that holds it, and lets go of it when the last process that has it has ended,
    however that was. Over NFS the server does, also for a machine that is gone: after its lease.
    The file says who holds it; in the end it is removed, and so are the folders that were made for
    it and are empty. Where the system has no such locks, as on Windows and on some network file
    systems, nothing is held.

    Args:
        path: the file; made when missing.
        refusal: the words for whoever waits in vain, before the name of the holder.
        patience: seconds to wait for it; None for as long as it takes. A lock that another machine
            has is waited for at least `LEASE_SECONDS`.
        on_wait: told who has it, where it has to be waited for.

    Raises:
        BlockingIOError: somebody else holds it still.
    """
    missing = [each for each in path.parents if not each.exists()]
    file = _take(path, refusal, patience, on_wait)
    try:
        yield file
    finally:
        with suppress(OSError):
            if fcntl is not None:  # while it is held: who waits for it sees that, and makes another
                path.unlink()
        file.close()
        with suppress(OSError):
            for folder in missing:
                folder.rmdir()


def _take(
    path: Path, refusal: str, patience: float | None, on_wait: Callable[[str], None]
) -> IO[str]:
    started, told = time.monotonic(), False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")  # what stands in it is not ours yet
        try:
            if not _flock(file, path) or _is_at(file, path):
                _sign(file)
                return file
        except BlockingIOError:
            holder, far = _read_holder(file)
            if patience is not None:
                limit = max(patience, LEASE_SECONDS) if far and patience else patience
                if time.monotonic() - started > limit:
                    file.close()
                    raise BlockingIOError(f"{refusal} ({holder})") from None
            if not told:
                on_wait(holder)
            told = True
            time.sleep(_POLL_SECONDS)
        except BaseException:
            file.close()
            raise
        file.close()


def _flock(file: IO[str], path: Path) -> bool:
    """Lock a file; False where there are no locks.

    Raises:
        BlockingIOError: somebody else has it.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"the file system of {path.parent} has no locks ({error.strerror}): see to it that no "
            "other process writes there",
            stacklevel=4,
        )
        return False
    return True


def _is_at(file: IO[str], path: Path) -> bool:
    """Return whether a path still leads to an open file: who had it may have removed it since."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _sign(file: IO[str]) -> None:
    since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    file.truncate(0)
    file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}))
    file.flush()


def _read_holder(file: IO[str]) -> tuple[str, bool]:
    """Who holds a lock, in words, and whether it is on another machine."""
    file.seek(0)
    try:
        note = json.loads(file.read())
        holder = f"process {note['pid']} on {note['host']}, since {note['since']}"
        return holder, note["host"] != socket.gethostname()
    except (ValueError, LookupError, TypeError):  # it has not signed yet
        return "another process", False


def remove_unfinished(folder: Path) -> None:
    """Delete all that a killed process left of `atomic_file` anywhere under a folder."""
    for path in folder.rglob(f".*{UNFINISHED}"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the renamings in a folder last."""
    # The rename itself is only durable once the folder is. Windows cannot open a folder.
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def parse_json(text: str | bytes) -> Any:
    """Read JSON.

    Raises:
        ValueError: the text is not JSON, or nested more deeply than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("expected JSON, got values that are nested too deeply") from error
