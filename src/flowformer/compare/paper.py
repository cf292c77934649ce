"""The files of a comparison for a paper: every run, every pair tested, a LaTeX table, figures.

`read` gives the same as data frames.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from flowformer.compare.findings import Comparison
from flowformer.compare.significance import (
    LEVEL,
    PairedTest,
    compare_over_cases,
    compare_over_datasets,
    compare_over_seeds,
    every_pair,
)
from flowformer.compare.table import AVERAGE, Cell, RunOutcome, average_over_datasets
from flowformer.files import write_atomically
from flowformer.machine import library
from flowformer.report.classifier import HELD_OUT
from flowformer.report.curves import History, method_curves
from flowformer.report.figures import pdf_bytes, png_bytes

if TYPE_CHECKING:
    from pandas import DataFrame

_RUN = [f.name for f in fields(RunOutcome) if f.name not in ("correct", "history")]
_TEST = (
    *("over", "dataset", "method", "baseline", "difference", "pairs"),
    *("p", "corrected", "effect", "verdict"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Frames:
    """The figures of a comparison as data frames.

    Attributes:
        runs: a row a run and seed; fractions, seconds, bytes.
        table: a row a method and data set: mean and spread over the seeds.
        tests: a row a pair of methods and test: difference, p, corrected p, effect, verdict.
        curves: a row a run and epoch, with the columns of its metrics.csv.
    """

    runs: "DataFrame"
    table: "DataFrame"
    tests: "DataFrame"
    curves: "DataFrame"


def read(folder: str | Path) -> Frames:
    """Read the folder that `flowformer compare` has left.

    Args:
        folder: the folder of the comparison.

    Returns:
        Its runs, table, tests and learning curves.

    Raises:
        FileNotFoundError: the folder is no comparison that has come to its end.
        ImportError: pandas is missing.
    """
    pandas: Any = library("pandas", "for data frames", extra="timeseries")
    root = Path(folder)
    for name in ("runs.csv", "table.csv", "tests.csv"):
        if not (root / name).is_file():
            raise FileNotFoundError(
                f"expected the folder of a finished flowformer compare, and {root} has no {name}: "
                "the same command as before writes it"
            )
    runs = pandas.read_csv(root / "runs.csv")
    curves = [
        pandas.read_csv(path).assign(dataset=run.dataset, method=run.method, seed=run.seed)
        for run in runs.itertuples()
        if (
            path := root / "runs" / run.dataset / f"{run.method}-seed{run.seed}/metrics.csv"
        ).exists()
    ]
    return Frames(
        runs=runs,
        table=pandas.read_csv(root / "table.csv"),
        tests=pandas.read_csv(root / "tests.csv"),
        curves=pandas.concat(curves, ignore_index=True) if curves else pandas.DataFrame(),
    )


def write_for_paper(folder: Path, compared: Comparison) -> list[Path]:
    """Write runs.csv, tests.csv, table.tex and the figures, as PDF and PNG.

    The critical-difference diagram needs two data sets, three methods that have finished all of
    them, and aeon.

    Args:
        folder: the comparison's folder.
        compared: the comparison.

    Returns:
        What was written.
    """
    written = []
    for name, content in (
        ("runs.csv", _to_csv(_RUN, ([getattr(run, n) for n in _RUN] for run in compared.outcomes))),
        ("tests.csv", _to_csv(_TEST, _test_rows(compared))),
        ("table.tex", to_latex(compared)),
        *_pictures(compared),
    ):
        write_atomically(folder / name, content)
        written.append(folder / name)
    return written


def _to_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue()


def _test_rows(compared: Comparison) -> Iterator[tuple[Any, ...]]:
    pairings, measure = every_pair(compared.methods), compared.measure
    if len(compared.datasets) > 1:
        yield from _rows("data sets", "", compare_over_datasets(compared.cells, pairings, measure))
    for dataset in compared.datasets:
        outcomes = compared.outcomes
        seeds = compare_over_seeds(outcomes, dataset, pairings, measure)
        yield from _rows("seeds", dataset, seeds)
        yield from _rows("test cases", dataset, compare_over_cases(outcomes, dataset, pairings))


def _rows(over: str, dataset: str, tests: Iterable[PairedTest]) -> Iterator[tuple[Any, ...]]:
    for test in tests:
        yield over, dataset, *(getattr(test, name) for name in _TEST[2:])


def to_latex(compared: Comparison) -> str:
    r"""Return the scores as a LaTeX table: a row a method, a column a data set, and their average.

    The best of a column is bold, the second underlined; equal figures, as shown, are marked alike.
    It needs the package booktabs.
    """
    cells = compared.cells
    columns = compared.datasets
    if len(columns) > 1:
        cells, columns = [*cells, *average_over_datasets(cells)], [*columns, AVERAGE]
    at = {(cell.method, cell.dataset): cell for cell in cells}
    marks = {
        column: _marks(compared, [at[m, column] for m in compared.methods if (m, column) in at])
        for column in columns
    }
    measure = compared.measure.heading
    lines = [
        f"% {compared.title}; {measure}; protocol {compared.protocol}; mean and sample standard",
        r"% deviation over the seeds. Needs \usepackage{booktabs}.",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(["method", *map(_escape, columns)]) + r" \\",
        r"\midrule",
        *(
            " & ".join(
                [
                    _escape(method),
                    *(_figure(compared, at.get((method, c)), marks[c]) for c in columns),
                ]
            )
            + r" \\"
            for method in compared.methods
        ),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _marks(compared: Comparison, cells: Iterable[Cell]) -> dict[str, str]:
    """Return the command that marks a figure, by the figure as it is shown."""
    measure = compared.measure
    means = sorted(
        (cell.mean for cell in cells if cell.mean is not None), reverse=measure.higher_is_better
    )
    shown = list(dict.fromkeys(map(measure.show, means)))
    return dict(zip(shown[:2], (r"\textbf", r"\underline"), strict=False))


def _figure(compared: Comparison, cell: Cell | None, marks: dict[str, str]) -> str:
    if cell is None or cell.mean is None:
        return "--"
    shown = compared.measure.show(cell.mean)
    text = f"{marks[shown]}{{{shown}}}" if shown in marks else shown
    return text if cell.spread is None else rf"{text} $\pm$ {compared.measure.show(cell.spread)}"


def _escape(text: str) -> str:
    text = re.sub(r"([#$%&_{}])", r"\\\1", text.replace("\\", r"\textbackslash "))
    return text.replace("~", r"\textasciitilde{}").replace("^", r"\textasciicircum{}")


def _pictures(compared: Comparison) -> Iterator[tuple[str, bytes]]:
    figures = {f"curves-{name}": curves_of(compared, name) for name in compared.datasets}
    figures["critical-difference"] = critical_difference(compared)
    for name, figure in figures.items():
        if figure is not None:
            yield f"{name}.pdf", pdf_bytes(figure)
            yield f"{name}.png", png_bytes(figure)


def histories_of(compared: Comparison, dataset: str) -> dict[str, list[History]]:
    """Return the histories of each method's seeds on a data set."""
    histories: dict[str, list[History]] = {}
    for run in compared.outcomes:
        if run.dataset == dataset and run.history is not None:
            histories.setdefault(run.method, []).append(run.history)
    return histories


def curves_of(compared: Comparison, dataset: str) -> Figure | None:
    """Draw the learning curves on a data set; None where no run has any."""
    histories = histories_of(compared, dataset)
    if not histories:
        return None
    papers = (c.paper_score for c in compared.cells if c.dataset == dataset and c.mean is not None)
    return method_curves(
        histories,
        compared.measure,
        held_out=HELD_OUT[compared.protocol],
        target=next((paper for paper in papers if paper is not None), None),
    )


def critical_difference(compared: Comparison) -> Figure | None:
    """Draw mean ranks over data sets, a bar over methods that Wilcoxon's test cannot tell apart.

    The diagram is J. Demšar's (2006), with pairwise tests corrected after Holm, as aeon has it.

    Returns:
        None with fewer than two data sets, or three methods that have finished all of them, and
        without aeon.
    """
    means = {(c.method, c.dataset): c.mean for c in compared.cells if c.mean is not None}
    methods = [m for m in compared.methods if all((m, d) in means for d in compared.datasets)]
    if len(compared.datasets) < 2 or len(methods) < 3:
        return None
    try:
        from aeon.visualisation import plot_critical_difference
    except ImportError:
        return None
    drawn: Any = plot_critical_difference(
        np.array([[means[method, dataset] for method in methods] for dataset in compared.datasets]),
        methods,
        lower_better=not compared.measure.higher_is_better,
        alpha=LEVEL,
    )
    from matplotlib import pyplot

    pyplot.close(drawn[0])  # aeon draws by pyplot, which keeps every figure
    return drawn[0]
