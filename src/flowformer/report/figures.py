"""Figures of a run and its data: arrays in, matplotlib `Figure` out.

Every figure uses the object interface only, so that nothing here touches pyplot's global state and
figures can be drawn in any thread. Colours are told apart by readers with any colour vision: lines
take the palette of M. Okabe and K. Ito (Color Universal Design, 2008), maps differ in lightness.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

try:
    from matplotlib import colormaps, rc_context
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import BoundaryNorm, ListedColormap, LogNorm
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.ticker import MaxNLocator, PercentFormatter
except ImportError as error:
    raise ImportError(
        "matplotlib is needed to draw figures: pip install 'flowformer[train]'"
    ) from error

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#5f6368"
PNG_DPI = 200
MOST_LINES = 16  # more channels than this are drawn as a heat map: lines would cover each other
SAMPLE_INCHES = 1.6  # of a picture on a contact sheet
MOST_COUNTS = 30  # with more classes than this, a count no longer fits into its cell


@dataclass(frozen=True, kw_only=True)
class SeriesFlowMap:
    """The flows of Flow-Attention in one series, without its padding.

    `source_competition` is c_j, how much of an even share (1.0) source j won; `sink_allocation` is
    a_i in (0, 1), how far sink i is opened (docs/attention/math.md).

    Raises:
        ValueError: the arrays do not agree on time, layers or heads, or one of them is empty.
    """

    series: Float[np.ndarray, "time channels"]
    label: str
    predicted: str
    source_competition: Float[np.ndarray, "layers time heads"]
    sink_allocation: Float[np.ndarray, "layers time heads"]
    index: int | None = None  # which series of the test set this is
    numbers: bool = False  # whether label and predicted are numbers, and none is right or wrong

    def __post_init__(self) -> None:
        """Check the shapes, which come from the caller's model."""
        shape = self.source_competition.shape
        if self.series.ndim != 2 or self.series.size == 0:
            raise ValueError(f"series must be [time, channels], got shape {self.series.shape}")
        if len(shape) != 3 or shape[1] != len(self.series) or 0 in shape:
            raise ValueError(
                f"source_competition must be [layers, time, heads] with time = {len(self.series)}"
                f" as in series, got shape {shape}"
            )
        if self.sink_allocation.shape != shape:
            raise ValueError(
                f"sink_allocation must have the shape of source_competition, {shape}, "
                f"got {self.sink_allocation.shape}"
            )


def png_bytes(figure: Figure) -> bytes:
    """Render a figure as a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=PNG_DPI, facecolor="white", bbox_inches="tight")
    return buffer.getvalue()


def pdf_bytes(figure: Figure) -> bytes:
    """Render a figure as a PDF file, the same bytes for the same figure."""
    buffer = BytesIO()
    figure.savefig(buffer, format="pdf", bbox_inches="tight", metadata={"CreationDate": None})
    return buffer.getvalue()


def svg_bytes(figure: Figure) -> bytes:
    """Render a figure as an SVG file, the same bytes for the same figure."""
    buffer = BytesIO()
    with rc_context({"svg.hashsalt": "flowformer"}):  # else its identifiers are drawn at random
        figure.savefig(
            buffer, format="svg", facecolor="white", bbox_inches="tight", metadata={"Date": None}
        )
    return buffer.getvalue()


def learning_curves(
    history: Mapping[str, Float[np.ndarray, " epochs"]],
    *,
    kept: int,
    over: str = "epoch",
    held_out: str = "validation",
    target: float | None = None,
) -> Figure:
    """Draw loss and accuracy over epochs or steps, with the one whose weights were kept.

    Args:
        history: columns train_loss, train_accuracy, validation_loss, validation_accuracy, and that
            of `over`.
        kept: the value of that column whose weights were kept.
        over: epoch or step.
        held_out: the data of the validation columns, for the legend.
        target: an accuracy to draw as a line, such as the paper's.
    """
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    marker = "o" if len(history[over]) < 20 else None
    for axes, quantity in ((loss, "loss"), (accuracy, "accuracy")):
        for split, colour, name in (
            ("train", BLUE, "training"),
            ("validation", ORANGE, held_out),
        ):
            axes.plot(
                history[over],
                history[f"{split}_{quantity}"],
                color=colour,
                linestyle="-" if split == "train" else (0, (4, 1.2)),
                linewidth=1.6,
                marker=marker,
                markersize=3,
                label=name,
            )
        axes.axvline(kept, color=GREY, linewidth=0.9, linestyle=":")
        plain(axes, title=quantity.capitalize())
        axes.set_xlabel(over, fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    loss.set_ylim(0, 1.15 * loss.get_ylim()[1])  # room for the note above a curve that stays high
    loss.annotate(
        f"kept: {over} {kept:,}",
        (kept, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(-3, -2),
        textcoords="offset points",
        ha="right" if kept > np.mean(history[over]) else "left",
        va="top",
        fontsize=7.5,
        color=GREY,
    )
    if target is not None:
        accuracy.axhline(target, color=GREEN, linewidth=1.2, linestyle="--", label="paper")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1.0))
    accuracy.set_ylim(top=min(1.02, accuracy.get_ylim()[1]))
    handles, names = accuracy.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=3, frameon=False, fontsize=8)
    return figure


def confusion_matrix(counts: Int[np.ndarray, "classes classes"], classes: Sequence[str]) -> Figure:
    """Draw counts of [true, predicted] classes; a cell's colour is its share of the true class."""
    support = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(support, 1)
    size = float(np.clip(1.4 + 0.32 * len(classes), 2.8, 9.0))
    figure = Figure(figsize=(size + 0.9, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0)
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in classes]
    slanted = max(map(len, names)) > 3
    font = 8 if len(classes) <= MOST_COUNTS else 5
    every = range(len(classes))
    axes.set_xticks(
        every,
        names,
        fontsize=font,
        parse_math=False,
        rotation=45 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor" if slanted else "default",
    )
    axes.set_yticks(every, names, fontsize=font, parse_math=False)
    axes.set_xlabel("predicted class", fontsize=9)
    axes.set_ylabel("true class", fontsize=9)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#dadce0", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    if len(classes) <= MOST_COUNTS:
        # Zeros stay blank: the errors are what the eye should find.
        for row, column in zip(*np.nonzero(counts), strict=True):
            dark = share[row, column] > 0.5
            axes.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "#202124",
            )
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)
    bar.set_label("share of the true class", fontsize=8)
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=2)
    return figure


def flow_map(flow: SeriesFlowMap) -> Figure:
    """Draw a series, and under it on the same time axis each layer's heads at each step.

    Competition is drawn on a logarithmic scale around 1, an even share: blue steps lose, red steps
    win. Allocation is drawn over the range it takes.
    """
    layers, _, heads = flow.source_competition.shape
    strip = float(np.clip(0.075 * layers * heads, 0.6, 4.0))
    figure = Figure(figsize=(7.2, 2.4 + 2 * strip), layout="constrained")
    grid = figure.add_gridspec(3, 2, height_ratios=[1.3, strip, strip], width_ratios=[1, 0.018])
    top = figure.add_subplot(grid[0, 0])
    middle = figure.add_subplot(grid[1, 0], sharex=top)
    bottom = figure.add_subplot(grid[2, 0], sharex=top)

    _draw_series(top, flow.series, figure.add_subplot(grid[0, 1]))
    limit = share_limit(flow.source_competition)
    competition = _draw_strips(
        middle, flow.source_competition, cmap="RdBu_r", norm=LogNorm(1 / limit, limit)
    )
    bar = colour_bar(competition, figure.add_subplot(grid[1, 1]), extend="both")
    ticks, names = share_ticks(limit)
    bar.set_ticks(ticks, labels=names)
    bar.minorticks_off()
    allocation = _draw_strips(bottom, flow.sink_allocation, cmap="cividis")
    colour_bar(allocation, figure.add_subplot(grid[2, 1]))

    plain(middle, title="Source competition: what each step gives, in even shares")
    plain(bottom, title="Sink allocation: how far each step opens to receive, 0 to 1")
    for axes in (top, middle):
        axes.tick_params(labelbottom=False)
    bottom.set_xlabel("time step", fontsize=8)
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    which = "Test series" if flow.index is None else f"Test series {flow.index}"
    verdict = " (correct)" if flow.label == flow.predicted else " (wrong)"
    label = flow.label if flow.numbers else f"class {flow.label}"
    figure.suptitle(
        f"{which}: {label}, predicted {flow.predicted}{'' if flow.numbers else verdict}",
        fontsize=10,
        parse_math=False,
    )
    return figure


def _draw_series(axes: Axes, series: Float[np.ndarray, "time channels"], bar_axes: Axes) -> None:
    """Draw one line a channel, or a heat map when they are many."""
    steps, channels = series.shape
    plain(axes, title="Series" if channels == 1 else f"Series, {channels} channels")
    if channels > MOST_LINES:
        low, high = np.nanpercentile(series, [1, 99])
        image = axes.imshow(
            series.T,
            aspect="auto",
            vmin=low,
            vmax=high,
            extent=(-0.5, steps - 0.5, channels + 0.5, 0.5),
        )
        axes.set_ylabel("channel", fontsize=8)
        colour_bar(image, bar_axes).set_label("value", fontsize=7)
        return
    # The bright end of viridis is left out: it vanishes on white.
    colours = colormaps["viridis"](np.linspace(0.0, 0.85, channels))
    for channel, colour in zip(series.T, colours, strict=True):
        marker = "o" if steps == 1 else None  # a line through one point is invisible
        axes.plot(
            channel,
            color=colour,
            linewidth=1.2 if steps < 300 else 0.7,
            marker=marker,
            markersize=3,
        )
    axes.set_ylabel("value", fontsize=8)
    if channels == 1:
        bar_axes.set_axis_off()
        return
    edges = np.arange(channels + 1) + 0.5
    bar = colour_bar(
        ScalarMappable(BoundaryNorm(edges, channels), ListedColormap(colours)), bar_axes
    )
    bar.set_ticks(list(range(1, channels + 1, 1 + channels // 8)))
    bar.minorticks_off()
    bar.set_label("channel", fontsize=7)


def _draw_strips(
    axes: Axes, values: Float[np.ndarray, "layers time heads"], **colours: Any
) -> AxesImage:
    """Draw one row a head, the layers from top to bottom with a white line between them."""
    layers, steps, heads = values.shape
    rows = values.transpose(0, 2, 1).reshape(layers * heads, steps)
    image = axes.imshow(
        rows,
        aspect="auto",
        interpolation="nearest",
        extent=(-0.5, steps - 0.5, layers * heads, 0),
        **colours,
    )
    for layer in range(1, layers):
        axes.axhline(layer * heads, color="white", linewidth=2)
    axes.set_yticks(
        [(layer + 0.5) * heads for layer in range(layers)],
        [f"layer {layer + 1}" for layer in range(layers)],
    )
    axes.spines[:].set_visible(False)
    if heads > 1:
        axes.set_ylabel(f"{heads} heads each", fontsize=8)
    return image


def share_limit(competition: Float[np.ndarray, "..."]) -> float:
    """Return the factor around 1 that covers 99 of 100 values, kept between 1.05 and 16."""
    distance = np.abs(np.log(np.maximum(competition, 1e-30)))
    return float(np.exp(np.clip(np.percentile(distance, 99), np.log(1.05), np.log(16.1))))


def share_ticks(limit: float) -> tuple[list[float], list[str]]:
    """Return ticks of the competition's colour bar at 1 and symmetrically on either side."""
    if limit >= 4:
        inner = 2.0 ** int(np.log2(limit) / 2)
        names = [f"1/{inner**2:.0f}×", f"1/{inner:.0f}×", "1×", f"{inner:.0f}×", f"{inner**2:.0f}×"]
    else:
        inner = limit**0.45  # a little inside the ends of the bar
        names = [f"{inner**power:.2f}×" for power in (-2, -1, 0, 1, 2)]
    return [inner**power for power in (-2, -1, 0, 1, 2)], names


def colour_bar(image: ScalarMappable, axes: Axes, **options: Any) -> Colorbar:
    """Draw a colour bar in axes of its own."""
    bar = Colorbar(axes, image, **options)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=2)
    return bar


def contact_sheet(pictures: UInt8[np.ndarray, "n h w"], captions: Sequence[str]) -> Figure:
    """Draw grey pictures in rows, black at 0, with a caption under each.

    Raises:
        ValueError: there are no pictures, or not as many captions.
    """
    if len(pictures) != len(captions) or not captions:
        raise ValueError(f"expected a caption a picture, got {len(pictures)} and {len(captions)}")
    columns = math.ceil(math.sqrt(len(captions)))
    rows = math.ceil(len(captions) / columns)
    figure = Figure(
        figsize=(SAMPLE_INCHES * columns, 1.2 * SAMPLE_INCHES * rows), layout="constrained"
    )
    for place, (picture, caption) in enumerate(zip(pictures, captions, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_xlabel(caption, fontsize=7)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color(GREY)
    return figure


def plain(axes: Axes, title: str) -> None:
    """Give axes a title at the left and small ticks, without a frame."""
    axes.set_title(title, loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
