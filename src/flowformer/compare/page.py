"""What a comparison leaves for readers: table.md, table.csv, and one page with its plots."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowformer.compare.figures import (
    PASSES,
    CostCell,
    History,
    cost_over_length,
    learning_curves,
    score_against_cost,
)
from flowformer.compare.findings import Comparison, Section, find, to_markdown
from flowformer.compare.table import Cell, duration, memory, to_csv
from flowformer.files import write_atomically
from flowformer.report.classifier import HELD_OUT
from flowformer.report.figures import png_bytes
from flowformer.report.page import details, heading, headline, page, paragraph, picture, table


@dataclass(frozen=True, kw_only=True)
class MixerCost:
    """A cost measurement of `python -m benchmarks mixer_cost`.

    Attributes:
        machine: what it was measured on.
        setting: sizes and limits.
        cells: one for each mixer, length and pass.
    """

    machine: Mapping[str, Any]
    setting: Mapping[str, Any]
    cells: tuple[CostCell, ...]

    @classmethod
    def read(cls, path: Path) -> "MixerCost":
        """Reads its JSON file.

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
    """Writes table.md, table.csv and index.html, each whole or not at all, the page last.

    Args:
        folder: of the comparison.
        compared: its runs.
        cost: time and memory over length, for a part of the page.

    Returns:
        The page.
    """
    sections = find(compared)
    write_atomically(folder / "table.md", to_markdown(compared, sections))
    write_atomically(folder / "table.csv", to_csv(compared.cells))
    html = page(
        compared.title,
        [
            heading(compared.title, level=1),
            paragraph(f"Protocol {compared.protocol}: {compared.protocol_note}.", soft=True),
            *_headline(compared),
            *_sections(sections[:1]),
            *_plots(compared),
            *_sections(sections[1:]),
            *_cost(cost),
            *_settings(compared),
        ],
    )
    write_atomically(folder / "index.html", html)
    return folder / "index.html"


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
        yield headline(cards)


def _sections(sections: Sequence[Section]) -> Iterator[str]:
    for section in sections:
        yield heading(section.title)
        if section.rows:
            yield table(section.header, section.rows, numbers_from=section.numbers_from)
        for note in section.notes:
            yield paragraph(note, soft=True)


def _plots(compared: Comparison) -> Iterator[str]:
    for dataset in compared.datasets:
        where = f": {dataset}" if len(compared.datasets) > 1 else ""
        cells = [cell for cell in _of(compared, dataset) if cell.mean is not None]
        histories: dict[str, list[History]] = {}
        for run in compared.outcomes:
            if run.dataset == dataset and run.history is not None:
                histories.setdefault(run.method, []).append(run.history)
        if histories:
            paper = next((c.paper_score for c in cells if c.paper_score is not None), None)
            figure = learning_curves(
                histories, compared.measure, held_out=HELD_OUT[compared.protocol], target=paper
            )
            yield heading(f"Learning curves{where}")
            yield picture(
                png_bytes(figure),
                alt=f"Training loss and held-out {compared.measure.name} over the training of "
                f"{', '.join(histories)} on {dataset}: the mean over the seeds.",
            )
        if any(cell.step_seconds is not None for cell in cells):
            name = compared.measure.name
            yield heading(f"{name[0].upper()}{name[1:]} against cost{where}")
            yield picture(
                png_bytes(score_against_cost(cells, compared.measure)),
                alt=f"{name[0].upper()}{name[1:]} on {dataset} over the time of a training step, "
                "and over peak memory; the figures are in the table above.",
            )


def _cost(cost: MixerCost | None) -> Iterator[str]:
    if cost is None:
        return
    setting = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in cost.setting.items())
    machine = ", ".join(f"{key} {value}" for key, value in cost.machine.items())
    yield heading("Time and memory over length")
    yield picture(
        png_bytes(cost_over_length(cost.cells)),
        alt="Time and memory of a pass of each mixer over the length, forward, and forward and "
        "backward. The table below has the figures.",
    )
    yield paragraph(f"One mixer, without the rest of a model: {setting}. {machine}.", soft=True)
    yield details("Figures", "".join(_cost_tables(cost.cells)))


def _cost_tables(cells: Sequence[CostCell]) -> Iterator[str]:
    lengths = sorted({cell.length for cell in cells})
    at = {(cell.mixer, cell.length, cell.pass_name): cell for cell in cells}
    for pass_name, words in PASSES.items():
        rows = [
            [mixer, *(_cost_text(at.get((mixer, length, pass_name))) for length in lengths)]
            for mixer in dict.fromkeys(cell.mixer for cell in cells)
        ]
        yield heading(words.capitalize(), level=3)
        yield table(["mixer", *(f"{length:,}" for length in lengths)], rows)


def _cost_text(cell: CostCell | None) -> str:
    if cell is None or cell.seconds is None or cell.memory is None:
        return "–" if cell is None or cell.problem is None else cell.problem
    return f"{duration(cell.seconds)}, {memory(cell.memory)}"


def _settings(compared: Comparison) -> Iterator[str]:
    yield heading("Settings of the runs")
    rows = list(compared.settings.items())
    yield details("Settings", table(("setting", "value"), rows, numbers_from=2))


def _of(compared: Comparison, dataset: str) -> list[Cell]:
    return [cell for cell in compared.cells if cell.dataset == dataset]
