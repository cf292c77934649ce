"""Figures of a comparison: learning curves, accuracy against cost, cost over length.

A method has one colour, dash and marker in all of them. There may be more methods than colours that
any reader can tell apart, so the dash changes when the colours start again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from flowformer.compare.table import Cell, duration, memory
from flowformer.scores.measures import ACCURACY, Measure

# M. Okabe and K. Ito's, without the yellow, which vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
PASSES: Mapping[str, str] = {"forward": "forward", "training": "forward and backward"}

History = Mapping[str, Float[np.ndarray, " epochs"]]


@dataclass(frozen=True, kw_only=True)
class CostCell:
    """What one pass of one mixer over one length took.

    Attributes:
        mixer: its name.
        length: tokens.
        pass_name: a key of PASSES.
        seconds: of one pass; None when it did not fit.
        memory: bytes beyond those of the idle process; likewise.
        problem: why there is no figure.
    """

    mixer: str
    length: int
    pass_name: str
    seconds: float | None
    memory: int | None
    problem: str | None


def learning_curves(
    histories: Mapping[str, Sequence[History]],
    measure: Measure = ACCURACY,
    *,
    held_out: str,
    target: float | None = None,
) -> Figure:
    """Training loss and held-out score over epochs: each method's mean over its seeds.

    Args:
        histories: of the seeds of each method, with the columns train_loss and the
            measure's two.
        measure: of the score.
        held_out: what the validation columns were measured on.
        target: a score to draw as a line, such as the paper's.
    """
    figure = Figure(figsize=(7.6, _height(histories, 3.0)), layout="constrained")
    loss, score = figure.subplots(1, 2)
    styles = _styles(list(histories))
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
        _plain(axes, title)
        axes.set_xlabel(measure.over, fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    loss.set_ylim(0, loss.get_ylim()[1] + 0.05 * max(loss.get_ylim()))
    if target is not None:
        score.axhline(target, color="#5f6368", linewidth=1, linestyle=":", label="the paper's")
    _format_scores(score, measure)
    _legend(figure, score)
    return figure


def score_against_cost(cells: Sequence[Cell], measure: Measure = ACCURACY) -> Figure:
    """Score over the time of a training step, and over peak memory; bars are the spread."""
    figure = Figure(figsize=(7.6, _height(cells, 3.2)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    styles = _styles([cell.method for cell in cells])
    for axes, name, title, unit in (
        (panels[0], "step_seconds", "Time of a training step, ms", 1e-3),
        (panels[1], "peak_memory", "Peak memory of the process, MiB", 2**20),
    ):
        for cell in cells:
            cost = getattr(cell, name)
            if cost is None or cell.mean is None:
                continue
            style = styles[cell.method]
            axes.errorbar(
                cost / unit,
                cell.mean,
                yerr=cell.spread,
                color=style["color"],
                marker=style["marker"],
                markersize=6,
                capsize=2,
                linewidth=1,
                linestyle="none",
                label=cell.method,
            )
        _plain(axes, title)
    panels[0].set_ylabel(measure.name, fontsize=8)
    _format_scores(panels[0], measure)
    _legend(figure, *panels)
    return figure


def cost_over_length(cells: Sequence[CostCell]) -> Figure:
    """Time and memory of a pass over the length, both logarithmic; a line ends where it must."""
    figure = Figure(figsize=(7.6, _height({c.mixer for c in cells}, 5.6)), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    mixers = list(dict.fromkeys(cell.mixer for cell in cells))
    styles = _styles(mixers)
    for row, (name, form) in enumerate((("seconds", duration), ("memory", memory))):
        for column, (pass_name, words) in enumerate(PASSES.items()):
            axes = panels[row, column]
            for mixer in mixers:
                points = [
                    (cell.length, value)
                    for cell in cells
                    if (cell.mixer, cell.pass_name) == (mixer, pass_name)
                    and (value := getattr(cell, name)) is not None
                ]
                if points:
                    axes.plot(
                        *zip(*points, strict=True),
                        linewidth=1.3,
                        markersize=3.5,
                        label=mixer,
                        **styles[mixer],
                    )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log", base=10 if name == "seconds" else 2)
            _plain(axes, f"{'Time' if name == 'seconds' else 'Memory'}, {words}")
            lengths = sorted({cell.length for cell in cells})
            axes.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=45, ha="right")
            axes.yaxis.set_major_formatter(lambda value, _, form=form: form(value))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(color="#e8eaed", linewidth=0.6)
    for axes in panels[1]:
        axes.set_xlabel("tokens", fontsize=8)
    _legend(figure, *panels.flat)
    return figure


def _styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    return {
        method: {
            "color": COLOURS[at % len(COLOURS)],
            "linestyle": DASHES[at // len(COLOURS) % len(DASHES)],
            "marker": MARKERS[at // len(COLOURS) % len(MARKERS)],
        }
        for at, method in enumerate(methods)
    }


def _legend(figure: Figure, *panels: Axes) -> None:
    """One legend below for all panels: a method that is missing in one may be in another."""
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


def _format_scores(axes: Axes, measure: Measure) -> None:
    if measure.unit == "%":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _height(methods: Any, panels: float) -> float:
    """Room for the panels and for the rows of the legend."""
    return panels + 0.2 * -(-len(methods) // 5)


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
