"""Experiments: one function each, giving its configuration and the published result."""

import difflib
from collections.abc import Callable, Mapping

from flowformer.recipes import images, language, sequences, series, trajectories
from flowformer.train.kinds import Experiment

RECIPES: Mapping[str, Callable[[], Experiment]] = {
    **series.RECIPES,
    **language.RECIPES,
    **sequences.RECIPES,
    **images.RECIPES,
    **trajectories.RECIPES,
}


def build_recipe(name: str) -> Experiment:
    """Return the configuration of a recipe by its name.

    Raises:
        ValueError: there is no such recipe; the message lists those there are.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name.lower(), RECIPES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"unknown recipe {name!r}: {hint}choose from {', '.join(RECIPES)}")
    return RECIPES[name]()
