"""What a fuzzed reader is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


def no_more(_: Path) -> list[bytes]:
    return []


@dataclass(frozen=True, kw_only=True)
class Target:
    """A reader and what it is given.

    Attributes:
        file: in the folder, whose content is damaged.
        read: reads the folder, as a user's call does.
        make: writes valid files into the folder, the file among them.
        more: further valid contents of the file.
        tokens: parts that such files are made of, which mutations put in.
        errors: what may be raised, with the file's or its folder's name in the message.
    """

    file: str
    read: Callable[[Path], object]
    make: Callable[[Path], object]
    more: Callable[[Path], Sequence[bytes]] = no_more
    tokens: tuple[bytes, ...] = ()
    errors: tuple[type[Exception], ...] = (ValueError, OSError)

    def contents(self, folder: Path) -> list[bytes]:
        """Makes the files; returns the valid contents of the one that is damaged."""
        self.make(folder)
        return [(folder / self.file).read_bytes(), *self.more(folder)]


def put(name: str, content: bytes) -> Callable[[Path], object]:
    def put(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return put
