"""Names that users write: found in a table, or refused with the nearest one there is."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


def choose(name: str, table: Mapping[str, T], noun: str) -> T:
    """Return what a table has under a name.

    Args:
        name: as the user wrote it.
        table: what there is.
        noun: what the name is of, for the message.

    Raises:
        ValueError: the table has no such name; the message lists those there are.
    """
    if name not in table:
        raise ValueError(
            f"unknown {noun} {name!r}: {did_you_mean(name, table)}choose from {', '.join(table)}"
        )
    return table[name]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return "did you mean NAME? " for the nearest of some names; nothing where none is near."""
    near = difflib.get_close_matches(name.lower(), list(names), n=1)
    return f"did you mean {near[0]}? " if near else ""
