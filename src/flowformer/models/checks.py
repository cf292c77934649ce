"""Checks that the models' configurations share, without torch."""

from dataclasses import fields
from typing import Any, get_args


def check_sizes(config: Any, *names: str) -> None:
    """Refuse a size below 1, or a dropout outside [0, 1).

    Raises:
        ValueError: one of these; the message names it.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(config, name)}")
    if not 0 <= config.dropout < 1:
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
