"""The report of a decision model's run: returns against target returns, and the curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowformer.config_json import flatten
from flowformer.report.curves import COLOURS, method_curves
from flowformer.report.figures import png_bytes
from flowformer.report.page import heading, headline, paragraph, picture, save, settings, table
from flowformer.report.words import duration
from flowformer.scores.measures import NORMALIZED_SCORE


def write_decision_report(
    folder: Path,
    *,
    result: Mapping[str, Any],
    record: Mapping[str, Any],
    history: Mapping[str, Float[np.ndarray, " rounds"]],
) -> Path:
    """Write FOLDER/index.html, one file that stands alone.

    Args:
        folder: the report's folder.
        result: the content of result.json.
        record: the content of config.json.
        history: the columns of metrics.csv.

    Returns:
        The page.
    """
    recipe, outcomes = str(result["recipe"]), result["outcomes"]
    curves = method_curves({recipe: [history]}, NORMALIZED_SCORE, held_out="some episodes")
    behaviour = (record["data_worst"], record["data_mean"], record["data_best"])
    return save(
        folder,
        recipe,
        [
            paragraph(f"{result['protocol_note']}. Data: {record['source']}.", soft=True),
            headline(_cards(result, record)),
            heading("Returns"),
            picture(
                png_bytes(returns_figure({recipe: outcomes}, behaviour=behaviour)),
                alt="Returns of the episodes over the target return that the model was asked for.",
                caption="Mean and standard deviation over the episodes at each target return. "
                "Grey: from the worst to the best episode of the data, and their mean.",
            ),
            table(
                ("target return", "return", "standard deviation", "score", "steps", "ended, %"),
                [_row(each) for each in outcomes],
            ),
            heading("Learning curves"),
            picture(
                png_bytes(curves),
                alt="Training loss, and score of some episodes after each measurement.",
            ),
            heading("Settings"),
            settings(flatten(record["config"])),
        ],
        of=": run report",
    )


def returns_figure(
    outcomes: Mapping[str, Sequence[Mapping[str, float]]], *, behaviour: tuple[float, float, float]
) -> Figure:
    """Draw returns over target returns, a line a method.

    Args:
        outcomes: the outcomes of each method, with target, mean and std.
        behaviour: worst, mean and best return of the data.
    """
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    draw_returns(figure.subplots(), outcomes, behaviour=behaviour)
    return figure


def draw_returns(
    axes: Axes,
    outcomes: Mapping[str, Sequence[Mapping[str, float]]],
    *,
    behaviour: tuple[float, float, float],
) -> None:
    """Draw returns over target returns, a line a method, as :func:`returns_figure` takes them."""
    worst, mean, best = behaviour
    axes.axhspan(worst, best, color="0.93", zorder=0)
    axes.axhline(mean, color="0.6", linewidth=1, zorder=1)
    targets = sorted({each["target"] for every in outcomes.values() for each in every})
    axes.plot(targets, targets, color="0.6", linewidth=1, linestyle=":", label="as asked for")
    for (method, every), colour in zip(outcomes.items(), COLOURS * 4, strict=False):
        points = sorted(every, key=lambda each: each["target"])
        columns = ([each[name] for each in points] for name in ("target", "mean", "std"))
        at, value, spread = columns
        axes.errorbar(
            at, value, spread, color=colour, marker="o", markersize=4, capsize=2, label=method
        )
    axes.set_xlabel("target return", fontsize=9)
    axes.set_ylabel("return", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)


def _cards(result: Mapping[str, Any], record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    first = result["outcomes"][0]
    return [
        (
            "Normalised score",
            f"{first['score']:.1f}",
            f"return {first['mean']:,.1f} at a target of {first['target']:,.1f}, {result['env']}",
        ),
        (
            "The data's own",
            f"{result['behaviour_score']:.1f}",
            f"mean return {record['data_mean']:,.1f}, best {record['data_best']:,.1f}",
        ),
        (
            "Parameters",
            f"{result['parameters']:,}",
            f"trained in {duration(result['seconds'])} on {result['device']}",
        ),
    ]


def _row(outcome: Mapping[str, float]) -> list[str]:
    return [
        f"{outcome['target']:,.1f}",
        f"{outcome['mean']:,.1f}",
        f"{outcome['std']:,.1f}",
        f"{outcome['score']:.1f}",
        f"{outcome['length']:,.1f}",
        f"{100 * outcome['terminated']:.0f}",
    ]
