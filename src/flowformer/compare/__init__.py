"""Comparisons of methods: many runs, their table, and the conclusions from it."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowformer.compare.paper import Frames, read

__all__ = ["Frames", "read"]


def __getattr__(name: str) -> object:
    """Import public names on first use: the command line starts without matplotlib."""
    if name in __all__:
        return getattr(import_module("flowformer.compare.paper"), name)
    raise AttributeError(f"module 'flowformer.compare' has no attribute {name!r}")
