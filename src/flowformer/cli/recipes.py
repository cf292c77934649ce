"""`flowformer recipes`."""

import sys
from dataclasses import dataclass

from flowformer.cli.parsing import parse
from flowformer.recipes import RECIPES
from flowformer.recipes.timeseries import PAPER_AVERAGE, SOURCE


@dataclass(frozen=True)
class Options:
    """List the experiments that can be trained, with the accuracy that the paper prints."""


def main(arguments: list[str]) -> int:
    """Lists the recipes."""
    parse(Options, arguments, prog="flowformer recipes")
    lines = [f"{'recipe':<23}{'epochs':>6}  {'optimizer':<10}{'paper':>6}  what"]
    for name, build in RECIPES.items():
        config = build()
        paper = "" if config.paper_accuracy is None else f"{100 * config.paper_accuracy:.1f}"
        what = (build.__doc__ or "").strip()
        lines.append(
            f"{name:<23}{config.training.epochs:>6}  {config.optimizer.name:<10}{paper:>6}  {what}"
        )
    lines += [
        "",
        f"paper: test accuracy in percent, {SOURCE}; average {100 * PAPER_AVERAGE:.1f}.",
        "It is the best over epochs on the test set, as --training.protocol published measures.",
        "Next: flowformer train NAME, or flowformer train NAME --help for every setting.",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0
