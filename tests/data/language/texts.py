"""Corpora held in memory, for tests."""

import hashlib
import random
from collections.abc import Iterator
from typing import Any


class Texts:
    """Lists of documents."""

    name = "mine"

    def __init__(self, **parts: list[str]) -> None:
        self.parts = parts

    def documents(self, part: str) -> Iterator[str]:
        yield from self.parts[part]

    def identity(self) -> dict[str, Any]:
        return {"sha256": hashlib.sha256(repr(self.parts).encode()).hexdigest()}


def some_texts(seed: int = 0, documents: int = 12) -> Texts:
    """A corpus of random words: documents of uneven lengths, in three parts."""
    rng = random.Random(seed)

    def document() -> str:
        lines = [" ".join(rng.choices("abcdefg", k=rng.randint(0, 9))) for _ in range(4)]
        return "start\n" + "\n".join(lines) + "\n"

    sizes = {"train": documents, "validation": 3, "test": 2}
    return Texts(**{part: [document() for _ in range(size)] for part, size in sizes.items()})
