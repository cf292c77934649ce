"""Files and folders of data: where they are kept, what lies there, of which part, prepared how."""

import gzip
import hashlib
import json
import os
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowformer.files import locked

# The names that folders and files of a part have in data sets in use.
PARTS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
# What systems leave beside people's files, with names that are not hidden on every system.
_LITTER = {"__macosx", "@eadir", "__pycache__", "thumbs.db", "desktop.ini", "lost+found"}


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


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is no data: hidden, or left by a system."""
    return name.startswith(".") or name.casefold() in _LITTER


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder that are not hidden, by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files in and below a folder that are not hidden, folder by folder, by name."""
    for root, names in sorted(_walk(folder)):
        yield from (Path(root, name) for name in sorted(names))


def find_parts(entries: Iterable[Path]) -> dict[str, Path]:
    """Return the files or folders that are parts, by their names, whatever case and suffix.

    Raises:
        ValueError: two of them are the same part.
    """
    found: dict[str, Path] = {}
    for path in sorted(entries):
        for part, names in PARTS.items():
            if path.stem.casefold() in names:
                if part in found:
                    raise ValueError(
                        f"expected one {part} part, got {found[part]} and {path}: rename one"
                    )
                found[part] = path
    return found


def warn_of_rest(folder: Path, rest: Iterable[Path], *, expected: str) -> None:
    """Say how many files of which kinds were passed over, if any were.

    Args:
        folder: where they are.
        rest: the files.
        expected: what was read in their place.
    """
    kinds = Counter(path.suffix.lower() or "without a suffix" for path in rest)
    if kinds:
        order = sorted(kinds, key=lambda kind: (-kinds[kind], kind))
        listed = ", ".join(f"{kinds[kind]} {kind}" for kind in order)
        number = f"{kinds.total()} file{'s' * (kinds.total() > 1)}"
        warnings.warn(
            f"{folder}: passed over {number} ({listed}): expected {expected}",
            UserWarning,
            stacklevel=3,
        )


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    seen: set[str] = set()  # a link may lead back
    for root, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(root)
        folders[:] = [] if place in seen else [name for name in folders if not is_hidden(name)]
        if place not in seen:
            yield root, [name for name in names if not is_hidden(name)]
        seen.add(place)


_HELD_OUT = 0.05


def shuffle_names(names: Iterable[str]) -> list[str]:
    """Put names in the order of their SHA-256: always the same one, whatever order they come in."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def split_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Split names: 5 % for validation and 5 % for test, at least one name each.

    Args:
        names: distinct ones; at least 3.

    Returns:
        Names of `train`, `validation` and `test`, each in the order of `shuffle_names`.
    """
    order = shuffle_names(names)
    size = max(1, round(_HELD_OUT * len(order)))
    return {
        "train": order[2 * size :],
        "validation": order[:size],
        "test": order[size : 2 * size],
    }


def read_text(path: Path) -> str:
    """Return a file's text, with "\\n" for any line end.

    Raises:
        ValueError: it is not UTF-8; the message names it.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 in {path}: {error}") from error


def digest_files(files: Sequence[Path], names: Sequence[Path]) -> str:
    """SHA-256 of files and their names."""
    total = hashlib.sha256()
    for file, name in zip(files, names, strict=True):
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        total.update(f"{content} {name.as_posix()}\n".encode())
    return total.hexdigest()


MAX_UNPACKED = 2**31  # bytes; the largest file in use, of EMNIST, has half a gibibyte
_PIECE = 2**20


def read_bytes(path: Path) -> bytes:
    """Return the content of a file, unpacked when its name ends in .gz.

    Raises:
        ValueError: it is damaged, or has more than `MAX_UNPACKED` bytes; the message names it.
    """
    if path.suffix != ".gz":
        return path.read_bytes()
    with path.open("rb") as file:
        try:
            with gzip.open(file) as unpacked:
                # Piece by piece: read(n) makes room for n bytes, whatever there is.
                pieces, size = [], 0
                while size <= MAX_UNPACKED and (piece := unpacked.read(_PIECE)):
                    pieces.append(piece)
                    size += len(piece)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}") from error
    if size > MAX_UNPACKED:
        raise ValueError(f"{path}: expected at most {MAX_UNPACKED:,} bytes unpacked: a bomb?")
    return b"".join(pieces)


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
