"""What lies in a folder of one's own: its parts, its files, and what of them was not read."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

# The names that folders and files of a part have in data sets in use.
PARTS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
# What systems leave beside people's files, with names that are not hidden on every system.
_LITTER = {"__macosx", "@eadir", "__pycache__", "thumbs.db", "desktop.ini", "lost+found"}


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is nobody's data: hidden, or left by a system."""
    return name.startswith(".") or name.casefold() in _LITTER


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder that are not hidden, by name."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder and below it that are not hidden, folder by folder, each by name."""
    for root, names in sorted(_walk(folder)):
        yield from (Path(root, name) for name in sorted(names))


def find_parts(entries: Iterable[Path]) -> dict[str, Path]:
    """Which of these files or folders are parts, by their names, whatever their case and suffix.

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
