"""Experiments: one function each, giving its configuration and the published result."""

import difflib
from collections.abc import Callable, Mapping

from flowformer.recipes import images as vision
from flowformer.recipes import language
from flowformer.recipes import sequences as arena
from flowformer.recipes import series as timeseries
from flowformer.recipes import trajectories as decisions
from flowformer.train.kinds import Experiment

RECIPES: Mapping[str, Callable[[], Experiment]] = {
    **timeseries.RECIPES,
    **language.RECIPES,
    **arena.RECIPES,
    **vision.RECIPES,
    **decisions.RECIPES,
}


def build_recipe(name: str) -> Experiment:
    """Returns the configuration of a recipe by its name.

    Raises:
        ValueError: there is no such recipe; the message lists those there are.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name.lower(), RECIPES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"unknown recipe {name!r}: {hint}choose from {', '.join(RECIPES)}")
    return RECIPES[name]()
