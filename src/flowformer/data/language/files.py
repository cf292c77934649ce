"""Text of one's own: files, split into parts by rule or by their names."""

import codecs
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowformer.data.files.folders import PARTS, files_below, find_parts, subfolders, warn_of_rest

_SUFFIXES = {".txt", ".text", ".md", ".markdown", ".rst"}
_EXPECTED = "text, in files ending in .txt, .md or .rst or without a suffix"
_LOOKED_AT = 4096  # bytes of a file without a suffix, to tell text by
# With fewer files a part would be one or two of them: each file is cut instead.
_FEWEST_FILES = 20
_HELD_OUT = 0.05


@dataclass(frozen=True, kw_only=True)
class TextFiles:
    """A text file, or a folder of them (.txt, .md, .rst, or without a suffix), in UTF-8.

    The parts are, by what there is:

    - a folder with `train.txt`: that one, `validation.txt` (or valid, val, dev) and `test.txt`;
    - a folder with folders of these names: a file in one of them, or below, is a document;
    - a folder of 20 files and more, below it included: 5 % of the files for validation and 5 % for
      test, drawn by a digest of their paths. A file is a document;
    - fewer files, or one: 90 % of each to train on, then 5 % and 5 %, cut at line ends; between
      words where no line ends there, or between characters where no word does.

    Hidden files and folders are no data; how many others were passed over is said.

    Attributes:
        name: in the table of corpora.
        description: one line.
        source: where it is from.
        folder: the file or the folder.
    """

    name: str = "text"
    description: str = "any text file, or a folder of .txt and .md files"
    source: str = "--folder FILE-OR-FOLDER"
    folder: Path | None = None

    def documents(self, part: str) -> Iterator[str]:
        """The documents of a part."""
        root, files = self._files()
        parts = {} if root.is_file() else _parts(root)
        names = [file.relative_to(root).as_posix() for file in files]
        if parts:
            yield from (read_text(file) for file in files if parts[part] in (file, *file.parents))
        elif len(files) >= _FEWEST_FILES:
            yield from (read_text(root / name) for name in split_names(names)[part])
        else:
            yield from (_cut(read_text(file), part) for file in files)

    def identity(self) -> dict[str, Any]:
        """Number, names and content of the files."""
        root, files = self._files()
        base = root.parent if root.is_file() else root
        names = [file.relative_to(base) for file in files]
        return {"files": len(files), "sha256": digest_files(files, names)}

    def _files(self) -> tuple[Path, list[Path]]:
        if self.folder is None:
            raise ValueError(
                "the corpus text is files of your own: give one, or a folder (--folder)"
            )
        root = Path(self.folder)
        if root.is_file():
            return root, [root]
        if not root.is_dir():
            raise FileNotFoundError(f"expected a text file or a folder of them, got {root}")
        every = sorted(files_below(root))
        files, expected = [file for file in every if _is_text(file)], _EXPECTED
        if parts := list(_parts(root).values()):
            files = [file for part in parts for file in files if part in (file, *file.parents)]
            expected = f"{expected}, in {', '.join(part.name for part in parts)}"
        if not files:
            raise FileNotFoundError(f"expected {expected}, in {root}")
        warn_of_rest(root, set(every).difference(files), expected=expected)
        return root, files


def shuffle_names(names: Iterable[str]) -> list[str]:
    """Put names in the order of their SHA-256: always the same one, whatever order they come in."""
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())


def split_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Split names: 5 % for validation and 5 % for test, at least one name each.

    Args:
        names: Distinct ones; at least 3.

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
    """A file's text, with "\\n" for any line end.

    Raises:
        ValueError: It is not UTF-8; the message names it.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 in {path}: {error}") from error


def digest_files(files: Sequence[Path], names: Sequence[Path]) -> str:
    """SHA-256 of files and their names."""
    digest = hashlib.sha256()
    for file, name in zip(files, names, strict=True):
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        digest.update(f"{content} {name.as_posix()}\n".encode())
    return digest.hexdigest()


def _parts(root: Path) -> dict[str, Path]:
    """The file `train.txt` and those beside it, or the folder `train` and those beside it."""
    found = find_parts(path for path in root.glob("*.txt") if path.is_file())
    if "train" not in found:
        found = find_parts(subfolders(root))
        # One folder of that name is no sign: it may hold texts about trains.
        if "train" not in found or len(found) == 1:
            return {}
    train = found["train"]
    for part, names in PARTS.items():
        if part not in found:
            raise FileNotFoundError(f"expected {names[0]}{train.suffix} beside {train}")
    return {part: found[part] for part in PARTS}


def _is_text(file: Path) -> bool:
    if file.suffix:
        return file.suffix.lower() in _SUFFIXES
    if not file.is_file():  # a pipe, which nobody may write to, or a link that leads nowhere
        return False
    with file.open("rb") as opened:
        start = opened.read(_LOOKED_AT)
    try:
        # A character may be cut at the end of what was looked at.
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return b"\0" not in start


def _cut(text: str, part: str) -> str:
    end = len(text.rstrip())
    places = [int((1 - share) * len(text)) for share in (2 * _HELD_OUT, _HELD_OUT)]
    first = _boundary(text, places[0], places[1])
    second = _boundary(text, max(places[1], first), end)
    return {"train": text[:first], "validation": text[first:second], "test": text[second:]}[part]


def _boundary(text: str, start: int, end: int) -> int:
    """Where to cut: behind a line end, else behind white space, else at the first character."""
    line = text.find("\n", start, end) + 1
    if line:
        return line
    space = re.search(r"\s", text[start:end])
    return start + space.end() if space else start
