"""`flowformer recipes`."""

import argparse
import sys

from flowformer.recipes import RECIPES, images, language, sequences, series
from flowformer.train.config import EpochsConfig
from flowformer.train.kinds import Experiment
from flowformer.train.sequences.config import SequencesConfig


def main(arguments: list[str]) -> int:
    """Lists the recipes."""
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
        f"paper: of series, test accuracy in percent, {series.SOURCE};",
        f"average {100 * series.PAPER_AVERAGE:.1f}, the best over epochs on the test set, as "
        "--training.protocol published measures.",
        f"Of text, test perplexity of words, {language.SOURCE}.",
        f"Of long sequences, test accuracy in percent, {sequences.SOURCE},",
        f"average {100 * sequences.PAPER_AVERAGE:.2f}, on that benchmark's own files "
        "(--data.folder).",
        f"Of images, test accuracy in percent, {images.SOURCE}.",
        "Next: flowformer train NAME, or flowformer train NAME --help for every setting.",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _length(config: Experiment) -> str:
    training = config.training
    if isinstance(training, EpochsConfig):
        return f"{training.epochs} epochs"
    return f"{training.steps:,} steps"
