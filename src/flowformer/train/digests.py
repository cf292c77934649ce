"""Digests of what a run reads, by its place: other values have another one, wherever they lie."""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flowformer.machine import available_processors

logger = logging.getLogger(__name__)

Digests = dict[str, str]

_MOST_FILES = 10_000  # that have a digest each; of more, each folder has one
_NAMED = 5  # data that a message lists


def digest_files(files: Iterable[Path], *, most: int = _MOST_FILES) -> Digests:
    """Return digests of the content of files, read once; of each folder where they are too many.

    Args:
        files: the files to read.
        most: files that have a digest each.

    Raises:
        OSError: one cannot be read.
    """
    paths = sorted(set(files))
    if len(paths) > most:
        logger.info("reading %s files once, to know them again", f"{len(paths):,}")
    with ThreadPoolExecutor(min(8, available_processors())) as pool:
        digests = dict(zip(map(str, paths), pool.map(_digest_file, paths), strict=True))
    if len(paths) <= most:
        return digests
    folders: dict[str, list[str]] = {}
    for path in paths:
        folders.setdefault(str(path.parent), []).append(f"{path.name} {digests[str(path)]}")
    return {folder: digest_values(lines) for folder, lines in folders.items()}


def _hash() -> Any:
    return hashlib.blake2b(digest_size=16)


def _digest_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, _hash).hexdigest()


def digest_values(values: Iterable[Any]) -> str:
    """Return the digest of arrays, with their shapes and types, and of texts."""
    import numpy as np  # here: what names the digests of a run starts without it

    found = _hash()
    for value in values:
        if isinstance(value, np.ndarray):
            found.update(f"{value.dtype.str}{value.shape}".encode())
            found.update(np.ascontiguousarray(value))
        else:
            found.update(repr(value).encode(errors="surrogatepass"))
    return found.hexdigest()


def changed_data(before: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    """Return which data are others than those that were read before; nothing of an older run."""
    if before is None:
        return []
    states = dict.fromkeys(before, "is gone") | {
        place: "has changed" if place in before else "is new" for place in now
    }
    changed = [place for place in states if before.get(place) != now.get(place)]
    named = [f"{place} {states[place]}" for place in changed[:_NAMED]]
    more = len(changed) - len(named)
    return [*named, f"and so on, {more} more"] if more else named


def require_same_data(runs: Mapping[str, Digests], now: Digests | None = None) -> None:
    """Refuse runs that have read other data than the first of them, or than there are now.

    Args:
        runs: what each has read, by its name.
        now: what is there now.

    Raises:
        ValueError: the message names the run and the data.
    """
    first = next(iter(runs), None)
    for name, digests in runs.items():
        assert first is not None
        if changed := changed_data(runs[first], digests):
            raise ValueError(
                f"{first} and {name} have read different data, which do not compare: "
                f"{'; '.join(changed)}. Remove the runs of one, or choose another folder (--output)"
            )
    if first is not None and now is not None and (changed := changed_data(runs[first], now)):
        raise ValueError(
            f"{first} has read other data than there are now: {'; '.join(changed)}. Choose another "
            "folder (--output), or remove the runs"
        )
