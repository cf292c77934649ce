"""`flowformer recipes`."""

import argparse
import sys

from flowformer.recipes import FIGURES, RECIPES
from flowformer.train.config import EpochsConfig
from flowformer.train.kinds import Experiment
from flowformer.train.sequences.config import SequencesConfig


def main(arguments: list[str]) -> int:
    """List the recipes."""
    # Not by tyro: what there is can be seen without the extras.
    argparse.ArgumentParser(
        prog="flowformer recipes",
        description="List the experiments that can be trained, with the figure that the paper "
        "prints.",
    ).parse_args(arguments)
    lines = [f"{'recipe':<29}{'length':<16}{'optimizer':<10}{'paper':>6}  what"]
    for name, build in RECIPES.items():
        config = build()
        figure = config.paper_score
        if isinstance(config, SequencesConfig):  # whose files may come later
            figure = config.paper_accuracy
        paper = "" if figure is None else config.measure.show(figure)
        what = (build.__doc__ or "").strip()
        lines.append(
            f"{name:<29}{_length(config):<16}{config.optimizer.name:<10}{paper:>6}  {what}"
        )
    lines += [
        "",
        *FIGURES,
        "Next: flowformer train NAME, or flowformer train NAME --help for every setting.",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _length(config: Experiment) -> str:
    training = config.training
    if isinstance(training, EpochsConfig):
        return f"{training.epochs} epochs"
    return f"{training.steps:,} steps"
