"""Draw the Long Range Arena's results and write their tables into docs/results.md.

    python -m benchmarks.report_arena

From results/arena_cost.json (`python -m benchmarks.arena_cost`). Tables of results that are not
there are left out. A test holds the page to them.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.pages import with_tables
from benchmarks.runner import RESULTS, ROOT
from flowformer.nn import MIXERS
from flowformer.report.figures import BLUE, GREEN, GREY, ORANGE, png_bytes
from flowformer.report.words import MISSING, duration, memory, to_markdown

PAGE = ROOT / "docs" / "results.md"
PICTURE = ROOT / "docs" / "assets" / "arena-cost.png"

# The palette of Okabe and Ito, as in flowformer.report; ours is the thick one, and the mixers that
# the paper does not compare with share the grey.
LOOK: dict[str, dict[str, Any]] = {
    "flow": {"color": BLUE, "linewidth": 2.4, "zorder": 4},
    "softmax": {"color": ORANGE, "linewidth": 2.0},
    "linear": {"color": GREEN, "marker": "s"},
    "performer": {"color": "#CC79A7", "marker": "^"},
    "cosformer": {"color": "#000000", "marker": "D"},
    "bigbird": {"color": "#56B4E9", "marker": "v"},
    "reformer": {"color": "#E69F00", "marker": "P"},
}
OTHERS = {"color": GREY, "linewidth": 0.8, "alpha": 0.45, "markersize": 2, "zorder": 1}

Result = Mapping[str, Any]
Cells = dict[tuple[str, int], dict[str, Any]]


def cells_of(result: Result) -> Cells:
    """Return the cells by mixer and length, in the order of MIXERS."""
    cells = {(cell["mixer"], cell["length"]): cell for cell in result["cells"]}
    order = list(MIXERS)
    return dict(sorted(cells.items(), key=lambda item: (order.index(item[0][0]), item[0][1])))


def axes_of(cells: Cells) -> tuple[list[str], list[int]]:
    """Return the mixers and the lengths."""
    return list(dict.fromkeys(name for name, _ in cells)), sorted({length for _, length in cells})


def over_length(result: Result, head: str, figure: Callable[[Any, Any], str]) -> str:
    """Return a table of a figure of every mixer at every length, made beside softmax's cell."""
    cells = cells_of(result)
    mixers, lengths = axes_of(cells)
    rows = []
    for name in mixers:
        pairs = [(cells.get((name, n)), cells.get(("softmax", n))) for n in lengths]
        row = [
            figure(c, softmax) if c and c["problem"] is None else MISSING for c, softmax in pairs
        ]
        rows.append([f"`{name}`", *row])
    return to_markdown([head, *(f"{n:,}" for n in lengths)], rows).rstrip()


def steps(result: Result) -> str:
    """Return steps per second and how many times softmax's they are."""

    def figure(cell: Any, softmax: Any) -> str:
        return rate(1 / cell["seconds"]) + ratio(softmax, lambda s: s["seconds"] / cell["seconds"])

    return over_length(result, "steps/s (× softmax's)", figure)


def peak(result: Result) -> str:
    """Return peak memory and how many times softmax's it is."""

    def figure(cell: Any, softmax: Any) -> str:
        return memory(cell["memory"]) + ratio(softmax, lambda s: cell["memory"] / s["memory"])

    return over_length(result, "peak memory (× softmax's)", figure)


def rate(value: float) -> str:
    """Return three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def ratio(softmax: Any, of: Callable[[Any], float]) -> str:
    """Return a ratio to softmax's figure, where there is one."""
    return f" ({of(softmax):.2f})" if softmax and softmax["problem"] is None else ""


def unfinished(result: Result) -> str:
    """Return a line for each length and reason that mixers ended at."""
    ended: dict[tuple[int, str], list[str]] = {}
    for (name, length), cell in cells_of(result).items():
        if cell["problem"] and not cell["problem"].startswith("not tried"):
            ended.setdefault((length, cell["problem"]), []).append(f"`{name}`")
    lines = [
        f"- {length:,} tokens, {problem}: {', '.join(names)}"
        for (length, problem), names in sorted(ended.items())
    ]
    return "\n".join(lines or ["Every mixer finished every length."])


def setting(result: Result) -> str:
    """Return what was measured on what, in a sentence."""
    machine, model = result["machine"], result["setting"]
    layers = f"{model['layers']} layer" + ("s" if model["layers"] > 1 else "")
    where = f"{machine['processor']} ({machine['vectors']}), {machine['threads']} of "
    where += f"{machine['cores']} cores, load {machine['load']} at the end"
    return (
        f"{layers} of {model['dim']} with {model['heads']} heads, feed-forward part of "
        f"{model['feedforward']}, batches of {model['batch']}; at most {model['memory_limit']} and "
        f"{duration(model['time_limit'])} a cell. On {model['device']}: {where}; PyTorch "
        f"{machine['torch']}."
    )


def draw(result: Result) -> Figure:
    """Draw steps per second and peak memory over the length, all axes logarithmic."""
    cells = cells_of(result)
    mixers, lengths = axes_of(cells)
    figure = Figure(figsize=(8.6, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, title, value in (
        (panels[0], "Training steps per second", lambda cell: 1 / cell["seconds"]),
        (panels[1], "Peak memory of a step, MiB", lambda cell: cell["memory"] / 2**20),
    ):
        for name in mixers:
            points = [
                (n, value(cell))
                for n in lengths
                if (cell := cells.get((name, n))) and cell["problem"] is None
            ]
            if points:
                look = {"linewidth": 1.5, "marker": "o", "markersize": 4, "zorder": 3}
                look |= LOOK.get(name, OTHERS)
                label = name if name in LOOK else "other mixers"
                axes.plot(*zip(*points, strict=True), label=label, **look)
        plain(axes, title=title, lengths=lengths)
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    labels = [label for label in (*LOOK, "other mixers") if label in handles]
    figure.legend(
        [handles[label] for label in labels],
        labels,
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=8,
    )
    return figure


def plain(axes: Axes, *, title: str, lengths: Sequence[int]) -> None:
    """Style a panel as the figures of flowformer.report are styled."""
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=45, ha="right")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("tokens", fontsize=8)
    axes.grid(color="#dadce0", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7.5)


# By the result that they are made from.
SECTIONS: dict[str, dict[str, Callable[[Result], str]]] = {
    "arena_cost": {
        "arena_cost_setting": setting,
        "arena_cost_steps": steps,
        "arena_cost_memory": peak,
        "arena_cost_unfinished": unfinished,
    },
}


def read(name: str, folder: Path = RESULTS) -> Result | None:
    """Return a result, or None where it has not been measured."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def tables(folder: Path = RESULTS) -> dict[str, str]:
    """Return the tables of the results that are there, by name."""
    return {
        table: make(result)
        for name, section in SECTIONS.items()
        if (result := read(name, folder)) is not None
        for table, make in section.items()
    }


def main() -> None:
    """Draw and write."""
    made = tables()
    if not made:
        sys.exit(f"expected one of {', '.join(SECTIONS)} in {RESULTS}: measure it first")
    PAGE.write_text(with_tables(PAGE.read_text(), made))
    print(PAGE.relative_to(ROOT))
    if (cost := read("arena_cost")) is not None:
        PICTURE.write_bytes(png_bytes(draw(cost)))
        print(PICTURE.relative_to(ROOT))


if __name__ == "__main__":
    main()
