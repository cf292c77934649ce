"""What users write: names found in a table or refused with the nearest, settings checked."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_args

T = TypeVar("T")

IGNORED = -100  # the label or target that counts for nothing, as in torch and transformers


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


def require_positive(**sizes: int | None) -> None:
    """Refuse a size below 1; None is passed over.

    Raises:
        ValueError: the message names the size.
    """
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def check_sizes(config: Any, *names: str) -> None:
    """Refuse a setting below 1, or a dropout, where there is one, outside [0, 1).

    Raises:
        ValueError: one of these; the message names it.
    """
    require_positive(**{name: getattr(config, name) for name in names})
    if not 0 <= getattr(config, "dropout", 0) < 1:
        raise ValueError(f"dropout must be in [0, 1), got {config.dropout}")


def check_choices(config: Any, *names: str) -> None:
    """Refuse a value that its field's `Literal` does not list.

    Raises:
        ValueError: there is one; the message lists the choices.
    """
    kinds = {field.name: field.type for field in fields(config)}  # of its bases too
    for name in names:
        choices = get_args(kinds[name])
        if getattr(config, name) not in choices:
            raise ValueError(
                f"{name} must be one of {', '.join(choices)}, got {getattr(config, name)!r}"
            )
