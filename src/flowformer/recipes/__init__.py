"""Experiments: one function each, giving its configuration and the published result."""

from collections.abc import Callable, Mapping

from flowformer.names import choose
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
    """Returns the configuration of a recipe by its name.

    Raises:
        ValueError: there is no such recipe; the message lists those there are.
    """
    return choose(name, RECIPES, "recipe")()
