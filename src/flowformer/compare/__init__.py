"""Comparisons of methods: many runs, their table, and the conclusions from it."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowformer.compare.arrays import compare
    from flowformer.compare.engines.cluster import Cluster
    from flowformer.compare.paper import Frames, read

__all__ = ["Cluster", "Frames", "compare", "read"]

_PLACES = {"Cluster": "engines.cluster", "Frames": "paper", "compare": "arrays", "read": "paper"}


def __getattr__(name: str) -> object:
    """Import public names on first use: the command line starts without matplotlib."""
    if name in _PLACES:
        return getattr(import_module(f"flowformer.compare.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'flowformer.compare' has no attribute {name!r}")
