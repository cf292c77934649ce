"""The files of a comparison for its readers: tables, a page with plots, and those of a paper."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from flowformer.compare.findings import Comparison, Section, find, to_markdown
from flowformer.compare.paper import curves_of, histories_of, write_for_paper
from flowformer.compare.table import Cell, to_csv
from flowformer.files import write_atomically
from flowformer.report import page
from flowformer.report.curves import (
    format_scores,
    height_with_legend,
    legend_below,
    line_styles,
)
from flowformer.report.figures import plain, png_bytes
from flowformer.report.words import duration, memory
from flowformer.scores.measures import ACCURACY, Measure

PASSES: Mapping[str, str] = {"forward": "forward", "training": "forward and backward"}


@dataclass(frozen=True, kw_only=True)
class CostCell:
    """The cost of one pass of one mixer over one length.

    Attributes:
        mixer: the mixer's name.
        length: number of tokens.
        pass_name: a key of PASSES.
        seconds: time of one pass; None when it did not fit.
        memory: bytes beyond those of the idle process; None when it did not fit.
        problem: why there is no figure.
    """

    mixer: str
    length: int
    pass_name: str
    seconds: float | None
    memory: int | None
    problem: str | None


@dataclass(frozen=True, kw_only=True)
class MixerCost:
    """A cost measurement of `python -m benchmarks mixer_cost`.

    Attributes:
        machine: the machine of the measurement.
        setting: sizes and limits.
        cells: one for each mixer, length and pass.
    """

    machine: Mapping[str, Any]
    setting: Mapping[str, Any]
    cells: tuple[CostCell, ...]

    @classmethod
    def read(cls, path: Path) -> "MixerCost":
        """Read its JSON file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not such a measurement.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                machine=dict(values["machine"]),
                setting=dict(values["setting"]),
                cells=tuple(CostCell(**cell) for cell in values["cells"]),
            )
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: expected what python -m benchmarks mixer_cost writes, got {error!r}"
            ) from error


def write_comparison(folder: Path, compared: Comparison, *, cost: MixerCost | None = None) -> Path:
    """Write the tables, what a paper needs, and index.html: each file whole, the page last.

    Args:
        folder: the comparison's folder.
        compared: the comparison.
        cost: time and memory over length, for a part of the page.

    Returns:
        The page.
    """
    sections = find(compared)
    write_atomically(folder / "table.md", to_markdown(compared, sections))
    write_atomically(folder / "table.csv", to_csv(compared.cells))
    write_for_paper(folder, compared)
    return page.save(
        folder,
        compared.title,
        [
            page.paragraph(f"Protocol {compared.protocol}: {compared.protocol_note}.", soft=True),
            *_headline(compared),
            *_sections(sections[:1]),
            *_plots(compared),
            *_sections(sections[1:]),
            *_cost(cost),
            page.heading("Settings of the runs"),
            page.settings(compared.settings),
        ],
    )


def _headline(compared: Comparison) -> Iterator[str]:
    cards = []
    for dataset in compared.datasets:
        ranked = sorted(
            (cell for cell in _of(compared, dataset) if cell.mean is not None),
            key=lambda cell: cell.mean or 0.0,
            reverse=compared.measure.higher_is_better,
        )
        if ranked:
            best = ranked[0]
            rank = "highest" if compared.measure.higher_is_better else "lowest"
            note = f"{best.method}, the {rank} of {len(ranked)}; mean of {best.finished}"
            note += " run" if best.finished == 1 else " runs"
            shown = compared.measure.show(best.mean or 0.0) + compared.measure.unit
            cards.append((dataset, shown, note))
    if cards:
        yield page.headline(cards)


def _sections(sections: Sequence[Section]) -> Iterator[str]:
    for section in sections:
        yield page.heading(section.title)
        if section.rows:
            yield page.table(section.header, section.rows, numbers_from=section.numbers_from)
        for note in section.notes:
            yield page.paragraph(note, soft=True)


def _plots(compared: Comparison) -> Iterator[str]:
    for dataset in compared.datasets:
        where = f": {dataset}" if len(compared.datasets) > 1 else ""
        cells = [cell for cell in _of(compared, dataset) if cell.mean is not None]
        curves = curves_of(compared, dataset)
        if curves is not None:
            yield page.heading(f"Learning curves{where}")
            yield page.picture(
                png_bytes(curves),
                alt=f"Training loss and held-out {compared.measure.name} over the training of "
                f"{', '.join(histories_of(compared, dataset))} on {dataset}: the mean over seeds.",
            )
        if any(cell.step_seconds is not None for cell in cells):
            name = compared.measure.name
            yield page.heading(f"{name[0].upper()}{name[1:]} against cost{where}")
            yield page.picture(
                png_bytes(score_against_cost(cells, compared.measure)),
                alt=f"{name[0].upper()}{name[1:]} on {dataset} over the time of a training step, "
                "and over peak memory; the figures are in the table above.",
            )


def _cost(cost: MixerCost | None) -> Iterator[str]:
    if cost is None:
        return
    setting = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in cost.setting.items())
    machine = ", ".join(f"{key} {value}" for key, value in cost.machine.items())
    yield page.heading("Time and memory over length")
    yield page.picture(
        png_bytes(cost_over_length(cost.cells)),
        alt="Time and memory of a pass of each mixer over the length, forward, and forward and "
        "backward. The table below has the figures.",
    )
    yield page.paragraph(
        f"One mixer, without the rest of a model: {setting}. {machine}.", soft=True
    )
    yield page.details("Figures", "".join(_cost_tables(cost.cells)))


def _cost_tables(cells: Sequence[CostCell]) -> Iterator[str]:
    lengths = sorted({cell.length for cell in cells})
    at = {(cell.mixer, cell.length, cell.pass_name): cell for cell in cells}
    for pass_name, words in PASSES.items():
        rows = [
            [mixer, *(_cost_text(at.get((mixer, length, pass_name))) for length in lengths)]
            for mixer in dict.fromkeys(cell.mixer for cell in cells)
        ]
        yield page.heading(words.capitalize(), level=3)
        yield page.table(["mixer", *(f"{length:,}" for length in lengths)], rows)


def _cost_text(cell: CostCell | None) -> str:
    if cell is None or cell.seconds is None or cell.memory is None:
        return "–" if cell is None or cell.problem is None else cell.problem
    return f"{duration(cell.seconds)}, {memory(cell.memory)}"


def _of(compared: Comparison, dataset: str) -> list[Cell]:
    return [cell for cell in compared.cells if cell.dataset == dataset]


def score_against_cost(cells: Sequence[Cell], measure: Measure = ACCURACY) -> Figure:
    """Draw the score over the time of a training step and over peak memory, with its spread."""
    figure = Figure(figsize=(7.6, height_with_legend(cells, 3.2)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    styles = line_styles([cell.method for cell in cells])
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
        plain(axes, title)
    panels[0].set_ylabel(measure.name, fontsize=8)
    format_scores(panels[0], measure)
    legend_below(figure, *panels)
    return figure


def cost_over_length(cells: Sequence[CostCell]) -> Figure:
    """Draw time and memory of a pass over the length, all logarithmic."""
    figure = Figure(
        figsize=(7.6, height_with_legend({c.mixer for c in cells}, 5.6)), layout="constrained"
    )
    panels = figure.subplots(2, 2, sharex=True)
    mixers = list(dict.fromkeys(cell.mixer for cell in cells))
    styles = line_styles(mixers)
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
            plain(axes, f"{'Time' if name == 'seconds' else 'Memory'}, {words}")
            lengths = sorted({cell.length for cell in cells})
            axes.set_xticks(lengths, [f"{length:,}" for length in lengths], rotation=45, ha="right")
            axes.yaxis.set_major_formatter(lambda value, _, form=form: form(value))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.grid(color="#e8eaed", linewidth=0.6)
    for axes in panels[1]:
        axes.set_xlabel("tokens", fontsize=8)
    legend_below(figure, *panels.flat)
    return figure
