"""Learning curves of several methods, and how any figure tells methods apart.

A method has one colour, dash and marker in all of them. There may be more methods than colours that
any reader can tell apart, so the dash changes when the colours start again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from flowformer.report.figures import plain
from flowformer.scores.measures import ACCURACY, Measure

# M. Okabe and K. Ito's, without the yellow, which vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

History = Mapping[str, Float[np.ndarray, " epochs"]]


def method_curves(
    histories: Mapping[str, Sequence[History]],
    measure: Measure = ACCURACY,
    *,
    held_out: str,
    target: float | None = None,
) -> Figure:
    """Draw training loss and held-out score over epochs: each method's mean over its seeds.

    Args:
        histories: the histories of each method's seeds, with the columns train_loss and the
            measure's two.
        measure: the measure of the score.
        held_out: the data of the validation columns.
        target: a score to draw as a line, such as the paper's.
    """
    figure = Figure(figsize=(7.6, height_with_legend(histories, 3.0)), layout="constrained")
    loss, score = figure.subplots(1, 2)
    styles = line_styles(list(histories))
    for axes, column, title in (
        (loss, "train_loss", "Training loss"),
        (score, measure.column, f"{measure.name[0].upper()}{measure.name[1:]}: {held_out}"),
    ):
        for method, seeds in histories.items():
            # Seeds of one plan have as many epochs each.
            mean = np.mean([seed[column] for seed in seeds], axis=0)
            line = {**styles[method], "marker": styles[method]["marker"] if len(mean) < 4 else None}
            axes.plot(
                seeds[0][measure.over], mean, linewidth=1.4, markersize=4, label=method, **line
            )
        plain(axes, title)
        axes.set_xlabel(measure.over, fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    loss.set_ylim(0, loss.get_ylim()[1] + 0.05 * max(loss.get_ylim()))
    if target is not None:
        score.axhline(target, color="#5f6368", linewidth=1, linestyle=":", label="the paper's")
    format_scores(score, measure)
    legend_below(figure, score)
    return figure


def line_styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the colour, the dash and the marker of each method."""
    return {
        method: {
            "color": COLOURS[at % len(COLOURS)],
            "linestyle": DASHES[at // len(COLOURS) % len(DASHES)],
            "marker": MARKERS[at // len(COLOURS) % len(MARKERS)],
        }
        for at, method in enumerate(methods)
    }


def legend_below(figure: Figure, *panels: Axes) -> None:
    """Draw one legend below all panels: a method that is missing in one may be in another."""
    named: dict[str, Any] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    figure.legend(
        list(named.values()),
        list(named),
        loc="outside lower center",
        ncols=min(5, max(1, len(named))),
        frameon=False,
        fontsize=8,
    )


def format_scores(axes: Axes, measure: Measure) -> None:
    """Show fractions in percent where the measure does."""
    if measure.unit == "%":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def height_with_legend(methods: Any, panels: float) -> float:
    """Return the height of the panels and of the legend's rows, in inches."""
    return panels + 0.2 * -(-len(methods) // 5)
