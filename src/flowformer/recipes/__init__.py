"""Experiments: one function each, giving its configuration and the published result.

The file of each kind of experiment has its RECIPES, and in FIGURES, where a paper prints some, what
its figures are.
"""

import importlib
from collections.abc import Callable, Mapping, Sequence

from flowformer.names import choose
from flowformer.train.kinds import KINDS, Experiment

_FILES = [importlib.import_module(f"{__name__}.{kind}") for kind in KINDS]
RECIPES: Mapping[str, Callable[[], Experiment]] = {
    name: build for file in _FILES for name, build in file.RECIPES.items()
}
FIGURES: Sequence[str] = [line for file in _FILES for line in getattr(file, "FIGURES", ())]


def build_recipe(name: str) -> Experiment:
    """Return the configuration of a recipe by its name.

    Raises:
        ValueError: there is no such recipe; the message lists those there are.
    """
    return choose(name, RECIPES, "recipe")()
