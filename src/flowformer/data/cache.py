"""Where fetched and prepared data are kept, and whether a prepared folder is the one asked for."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowformer.files import locked

SAY_SECONDS = 5.0


def data_cache() -> Path:
    """Return the folder of fetched data: `$FLOWFORMER_DATA`, else one in the user's cache.

    Raises:
        FileNotFoundError: there is no home directory, or it cannot be written, and no such variable
            names another folder.
    """
    folder = find_cache()
    if folder is None:
        raise FileNotFoundError(
            "there is no home directory to keep data in: set FLOWFORMER_DATA to a folder that can "
            "be written"
        )
    return folder


def find_cache() -> Path | None:
    """Return the folder of fetched data, to look into; None where there can be none."""
    if given := os.environ.get("FLOWFORMER_DATA"):
        return find_home(given) if given.startswith("~") else Path(given)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return find_home(f"{cache}/flowformer")


def find_home(folder: str) -> Path | None:
    """Return a folder below the user's home, as `~/.cache`; None where there can be none.

    There is none for a user without an entry, and where the home is `/`, as in containers.

    Args:
        folder: its path, which may begin with `~`.
    """
    try:
        path = Path(folder).expanduser()
    except RuntimeError:
        return None
    # Not Path.exists, which raises where a folder above may not be looked into.
    there = next((one for one in (path, *path.parents) if os.path.exists(one)), path)  # noqa: PTH110
    return path if there == path or os.access(there, os.W_OK) else None


def digest(values: Any) -> str:
    """Return eight digits that stand for JSON values in the name of a folder."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@contextmanager
def preparing(folder: Path) -> Iterator[None]:
    """Lock a folder that is being prepared: who comes second waits, and finds it prepared.

    The lock lies beside the folder, which may hold nothing else.
    """
    with locked(folder.with_name(f".{folder.name}.lock")):
        yield


def require_empty(folder: Path, *, instead: str) -> None:
    """Refuse to prepare a folder that holds anything.

    Args:
        folder: to be prepared; it need not exist.
        instead: what it may hold in place of nothing, for the message.

    Raises:
        FileExistsError: it holds something.
    """
    # A process killed in its first write leaves a hidden file.
    others = [path.name for path in folder.glob("*") if not path.name.startswith(".")]
    if others:
        raise FileExistsError(
            f"expected an empty folder or {instead}, and {folder} has {others[0]}"
        )


def require_same(
    folder: Path, there: Mapping[str, Any], asked: Mapping[str, Any], *, what: str
) -> None:
    """Refuse a folder that was prepared from other values than those asked for.

    Args:
        folder: the prepared folder.
        there: what it was made from, by name.
        asked: what is asked for, by name.
        what: a noun for the values: options, or settings.

    Raises:
        ValueError: a value differs; the message says which.
    """
    differences = [
        f"{name} is {_short(there.get(name))} there, {_short(asked.get(name))} asked for"
        for name in {**there, **asked}
        if there.get(name) != asked.get(name)
    ]
    if differences:
        raise ValueError(
            f"{folder} was prepared with other {what}: {'; '.join(differences)}. "
            "Take another folder, or delete this one"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Patient:
    """Says how far something is, not more often than every few seconds.

    Args:
        say: is called with what this is called with.
    """

    def __init__(self, say: Callable[..., object]) -> None:
        self._say = say
        self._said = time.monotonic()

    def __call__(self, *progress: Any) -> None:
        """Say it, unless something was said a moment ago."""
        if time.monotonic() - self._said >= SAY_SECONDS:
            self._said = time.monotonic()
            self._say(*progress)
