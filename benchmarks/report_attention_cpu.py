"""Draw results/attention_cpu.json and write its tables into docs/attention/performance.md.

    python -m benchmarks.report_attention_cpu

A test holds the pages to the result.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.attention_goals import SGEMM
from benchmarks.pages import with_tables
from benchmarks.peers import BOTH, CHUNKED, COMPILED, FAST, FORWARD, OURS, PUBLISHED, SOFTMAX
from benchmarks.runner import RESULTS, ROOT
from flowformer.report.figures import BLUE, GREEN, GREY, ORANGE, png_bytes

RESULT = RESULTS / "attention_cpu.json"
PICTURE = ROOT / "docs" / "assets" / "attention-cpu.png"
SHORT_PICTURE = ROOT / "docs" / "assets" / "attention-length.png"  # the README's
PAGES = {
    "docs/attention/performance.md": (
        "attention_cpu",
        "attention_cpu_times",
        "attention_cpu_machine",
    ),
}

# The palette of Okabe and Ito, as in flowformer.report; ours is the thick one.
LOOK: dict[str, dict[str, Any]] = {
    OURS: {"color": BLUE, "linewidth": 2.4, "zorder": 3},
    SOFTMAX: {"color": ORANGE},
    PUBLISHED: {"color": GREEN},
    CHUNKED: {"color": "#56B4E9"},
    COMPILED: {"color": "#CC79A7"},
    FAST: {"color": "#E69F00"},
}
ONE_HEAD = {"color": BLUE, "linewidth": 1.2, "linestyle": ":", "marker": "o", "markersize": 2.5}
PAIR = {OURS: "Flow-Attention", SOFTMAX: "softmax"}
KINDS = (FORWARD, BOTH)
LIMIT = {"color": GREY, "linestyle": (0, (4, 2)), "linewidth": 1.2}


def draw(result: dict[str, Any]) -> Figure:
    """Draw time and peak memory over length, all axes logarithmic."""
    figure = Figure(figsize=(7.6, 6.0), layout="constrained")
    panels = figure.subplots(2, 2)
    times, limits = result["seconds_by_length"], result["limit_by_length"]
    for axes, form, kind, title in (
        (panels[0, 0], "causal", FORWARD, "Causal, forward"),
        (panels[0, 1], "causal", BOTH, "Causal, forward and backward"),
        (panels[1, 0], "bidirectional", FORWARD, "Bidirectional, forward"),
    ):
        for name in LOOK:
            draw_line(axes, name, times[form].get(f"{name}, {kind}", {}), scale=1e3)
        if kind == FORWARD:
            lengths, limit = points(limits[form], 1e3)
            axes.plot(lengths, limit, label="the machine's limit", **LIMIT)
        if form == "causal" and kind == FORWARD:
            lengths, alone = points(result["one_head_by_length"], 1e3)
            axes.plot(lengths, alone, label=f"{OURS}, one head", **ONE_HEAD)
        plain(axes, title=title, unit="ms")
    memory = panels[1, 1]
    for name in LOOK:
        draw_line(memory, name, result["peak_memory_by_length"].get(name, {}), scale=2**-20)
    lengths, least = points(result["smallest_memory_by_length"], 2**-20)
    memory.plot(lengths, least, label="inputs, output, gradients", **{**LIMIT, "linestyle": ":"})
    plain(memory, title="Causal, forward and backward: peak memory", unit="MiB")
    handles = {
        label: handle
        for axes in panels.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=8,
    )
    return figure


def draw_short(result: dict[str, Any]) -> Figure:
    """Draw the time of causal attention over length, ours and softmax, with the measured ratios."""
    figure = Figure(figsize=(7.6, 3.0), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind, title, row in zip(
        panels,
        KINDS,
        ("Causal attention, forward", "Causal attention, forward and backward"),
        result["rows"],
        strict=False,
    ):
        sides = {name: result["seconds_by_length"]["causal"][f"{name}, {kind}"] for name in PAIR}
        for name, by_length in sides.items():
            draw_line(axes, name, by_length, scale=1e3)
            length, slowest = list(by_length)[-1], 1e3 * list(by_length.values())[-1]
            place = {"textcoords": "offset points", "xytext": (6, 0), "va": "center"}
            look = {"color": LOOK[name]["color"], "fontsize": 8.5}
            axes.annotate(
                PAIR[name], (int(length), slowest), annotation_clip=False, **place, **look
            )
        for case in row["cases"]:
            length = case["label"].split()[0].replace(",", "")
            ours, theirs = (1e3 * sides[name][length] for name in (OURS, SOFTMAX))
            axes.plot([int(length)] * 2, [ours, theirs], color=GREY, linewidth=0.8, zorder=1)
            middle, below = (ours * theirs) ** 0.5, case["ratio"] < 5  # no room between the lines
            axes.annotate(
                f"{case['ratio']:.3g} ×",
                (int(length), ours if below else middle),
                xytext=(13, -7) if below else (0, 0),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )
        plain(axes, title=title, unit="ms")
        axes.set(xlim=(90, 45_000), ylim=(0.2, 9_000))
    return figure


def points(by_length: Mapping[str, float], scale: float) -> tuple[list[int], list[float]]:
    """Return lengths and values."""
    return [int(n) for n in by_length], [scale * value for value in by_length.values()]


def draw_line(axes: Axes, name: str, by_length: Mapping[str, float], *, scale: float) -> None:
    """Draw one peer, where it was measured."""
    if by_length:
        look = {"linewidth": 1.4, "marker": "o", "markersize": 2.5, **LOOK[name]}
        axes.plot(*points(by_length, scale), label=name, **look)


def plain(axes: Axes, *, title: str, unit: str) -> None:
    """Style a panel as the figures of flowformer.report are styled."""
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlabel("tokens", fontsize=8)
    axes.set_ylabel(unit, fontsize=8)
    axes.grid(color="#dadce0", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7.5)


def goals(result: dict[str, Any]) -> str:
    """Return the table of goals; a figure that falls short is bold."""
    lines = ["| what | against | wanted | measured |", "|---|---|---|---|"]
    for row in result["rows"]:
        cases = row["cases"]
        several = len(cases) > 1
        what = row["what"] + (f": {' / '.join(c['label'] for c in cases)}" if several else "")
        wanted = " / ".join(c["goal"] for c in cases)
        reached = " / ".join(figure(c) for c in cases)
        lines.append(f"| {what} | {row['against']} | {wanted} | {reached} |")
    where = result["machine"]
    lines += ["", f"On {where['processor']} ({where['vectors']}), backend `{result['backend']}`."]
    return "\n".join(lines)


def figure(case: dict[str, Any]) -> str:
    """Return a ratio, bold where it misses its goal."""
    if case["ratio"] is None:
        return "**not measured**"
    text = f"{case['ratio']:.3g}" if case["ratio"] < 100 else f"{case['ratio']:.0f}"
    return text if case["holds"] else f"**{text}**"


def times(result: dict[str, Any]) -> str:
    """Return the milliseconds of every peer over length, forward / both passes."""
    tables = []
    for form, sides in result["seconds_by_length"].items():
        lengths = list(result["limit_by_length"][form])
        names = [name for name in LOOK if f"{name}, {FORWARD}" in sides]
        head = [f"{form}, tokens", *names, "limit, forward"]
        lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for n in lengths:
            cells = [
                " / ".join(milliseconds(sides.get(f"{name}, {kind}", {}).get(n)) for kind in KINDS)
                for name in names
            ]
            limit = milliseconds(result["limit_by_length"][form][n])
            lines.append(f"| {int(n):,} | {' | '.join(cells)} | {limit} |")
        tables.append("\n".join(lines))
    alone = {int(n): seconds for n, seconds in result["one_head_by_length"].items()}
    tables.append(
        f"| one head, causal forward, tokens | {' | '.join(f'{n:,}' for n in alone)} |\n"
        f"|---|{'---|' * len(alone)}\n"
        f"| ns a token | {' | '.join(f'{1e9 * alone[n] / n:.0f}' for n in alone)} |"
    )
    return "\n\n".join(tables)


def milliseconds(seconds: float | None) -> str:
    """Return three digits, or a dash."""
    if seconds is None:
        return "–"
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def machine(result: dict[str, Any]) -> str:
    """Return the machine and its rates, and what is missing, as a list."""
    machine = result["machine"]
    compiling = ", ".join(f"{name} {s:.0f} s" for name, s in result["compile_seconds"].items())
    facts = [
        f"{machine['processor']} ({machine['vectors']}), {machine['cores']} cores, PyTorch "
        f"{machine['torch']}, Python {machine['python']}; load {result['load_before']} before and "
        f"{machine['load']} after",
        f"float32 product of 1024 × 1024 on one thread: {result['sgemm_gflop_per_second']:.0f} "
        f"GFLOP/s; copy: {result['copy_gb_per_second']:.1f} GB/s read and written",
        f"measured as flowformer: the backend `{result['backend']}`; all in "
        f"{result['seconds'] / 60:.0f} minutes",
        f"compiling {CHUNKED}: {compiling or 'not measured'}",
        f"fast-transformers is compiled with {result['extension_flags']}, with which this Python "
        "compiles extensions",
        *(
            f"matrix product on two threads: {threads[f'{SGEMM}, 1'] / threads[f'{SGEMM}, 2']:.2f} "
            "times as fast as on one"
            for threads in [result["threads"]]
            if threads
        ),
        *(f"left out: {what}: {why}" for what, why in result["missing"].items()),
    ]
    return "\n".join(f"- {fact}" for fact in facts)


TABLES = {
    "attention_cpu": goals,
    "attention_cpu_times": times,
    "attention_cpu_machine": machine,
}


def main() -> None:
    """Draw and write."""
    result = json.loads(RESULT.read_text())
    for picture, figure in ((PICTURE, draw(result)), (SHORT_PICTURE, draw_short(result))):
        picture.write_bytes(png_bytes(figure))
        print(picture.relative_to(ROOT))
    for name, names in PAGES.items():
        path: Path = ROOT / name
        tables = {name: TABLES[name](result) for name in names}
        path.write_text(with_tables(path.read_text(), tables))
        print(name)


if __name__ == "__main__":
    main()
