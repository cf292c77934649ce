"""From the runs of a comparison to its table: mean, spread and cost of each method.

Whether a difference of two methods is more than chance, `flowformer.compare.significance` tells.
"""

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float

from flowformer.report.words import MISSING, duration, memory, show
from flowformer.scores.measures import ACCURACY, Measure

AVERAGE = "average"  # stands where a data set's name does, in the row of a method's mean over all


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """The outcome of one run of a comparison.

    Attributes:
        dataset: the data set of its training.
        method: the method that was trained.
        seed: the run's seed.
        score: the score on the test set; without one, on the validation part. None when the run
            has not finished.
        problem: why it has not finished, in a few words; None when it has.
        error: the error that ended it, in a line.
        log: the file with all that it said, from the folder of the comparison.
        paper_score: the score that the paper prints for this method and data set, if it does.
        parameters: trainable parameters.
        seconds: time of training, validation included.
        step_seconds: median over the epochs of the mean time of a training step.
        peak_memory: most bytes that its process had resident, or on a GPU had allocated there.
        correct: whether each test case was classified rightly, in the order of the test set.
        history: the columns of its metrics.csv.
    """

    dataset: str
    method: str
    seed: int
    score: float | None = None
    problem: str | None = None
    error: str | None = None
    log: str | None = None
    paper_score: float | None = None
    parameters: int | None = None
    seconds: float | None = None
    step_seconds: float | None = None
    peak_memory: int | None = None
    correct: Bool[np.ndarray, " n"] | None = None
    history: Mapping[str, Float[np.ndarray, " epochs"]] | None = None

    @property
    def finished(self) -> bool:
        """Whether it has a figure."""
        return self.score is not None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one data set, over its seeds; figures are means over the finished runs.

    Attributes:
        dataset: name of the data set, or `AVERAGE`.
        method: name of the method.
        mean: mean score; None without a finished run.
        spread: sample standard deviation (n − 1) over the seeds; None for fewer than two.
        finished: runs that the figures are from.
        planned: runs that were asked for.
        parameters: trainable parameters.
        seconds: time of training a run.
        step_seconds: time of a training step.
        peak_memory: the largest of the runs, in bytes.
        paper_score: the score that the paper prints.
        problems: the reasons why the other runs have not finished, each once.
    """

    dataset: str
    method: str
    mean: float | None
    spread: float | None
    finished: int
    planned: int
    parameters: int | None
    seconds: float | None
    step_seconds: float | None
    peak_memory: int | None
    paper_score: float | None
    problems: tuple[str, ...] = ()


def summarize(outcomes: Iterable[RunOutcome]) -> list[Cell]:
    """Return a cell for each method on each data set, in the order of their first runs."""
    groups: dict[tuple[str, str], list[RunOutcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.dataset, outcome.method), []).append(outcome)
    return [_cell(dataset, method, runs) for (dataset, method), runs in groups.items()]


def _cell(dataset: str, method: str, runs: Sequence[RunOutcome]) -> Cell:
    scores = [run.score for run in runs if run.score is not None]

    def mean_of(name: str) -> float | None:
        values = [value for run in runs if (value := getattr(run, name)) is not None]
        return statistics.fmean(values) if values else None

    def first_of(name: str) -> int | None:
        return next((value for run in runs if (value := getattr(run, name)) is not None), None)

    return Cell(
        dataset=dataset,
        method=method,
        mean=statistics.fmean(scores) if scores else None,
        spread=statistics.stdev(scores) if len(scores) > 1 else None,
        finished=len(scores),
        planned=len(runs),
        parameters=first_of("parameters"),
        seconds=mean_of("seconds"),
        step_seconds=mean_of("step_seconds"),
        peak_memory=max((run.peak_memory for run in runs if run.peak_memory), default=None),
        paper_score=next((r.paper_score for r in runs if r.paper_score is not None), None),
        problems=tuple(dict.fromkeys(run.problem for run in runs if run.problem is not None)),
    )


def average_over_datasets(cells: Sequence[Cell]) -> list[Cell]:
    """Return each method's mean over the data sets, as the paper's last row has it.

    A method without a figure on one of them gets no mean: one over fewer sets would not compare.
    The spread is left out, since that of a mean over sets is not that of its seeds.
    """
    methods: dict[str, list[Cell]] = {}
    for cell in cells:
        methods.setdefault(cell.method, []).append(cell)

    def mean_of(own: Sequence[Cell], read: Callable[[Cell], float | None]) -> float | None:
        values = [read(cell) for cell in own]
        present = [value for value in values if value is not None]
        return statistics.fmean(present) if len(present) == len(values) else None

    return [
        Cell(
            dataset=AVERAGE,
            method=method,
            mean=mean_of(own, lambda cell: cell.mean),
            spread=None,
            finished=sum(cell.finished for cell in own),
            planned=sum(cell.planned for cell in own),
            parameters=None,
            seconds=mean_of(own, lambda cell: cell.seconds),
            step_seconds=mean_of(own, lambda cell: cell.step_seconds),
            peak_memory=max((cell.peak_memory for cell in own if cell.peak_memory), default=None),
            paper_score=mean_of(own, lambda cell: cell.paper_score),
        )
        for method, own in methods.items()
    ]


def to_csv(cells: Iterable[Cell]) -> str:
    """Return the table for programs: fractions, seconds and bytes, an empty cell for no figure."""
    text = io.StringIO()
    names = [field.name for field in fields(Cell)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for cell in cells:
        values = [getattr(cell, name) for name in names[:-1]]
        writer.writerow([*("" if value is None else value for value in values), _problems(cell)])
    return text.getvalue()


def to_rows(
    cells: Sequence[Cell], measure: Measure = ACCURACY
) -> tuple[list[str], list[list[str]]]:
    """Return the table for readers: header and rows.

    The data set is named where there are several, and the paper's column stands where there is
    something in it. A cell without a figure says why.
    """
    paper = f"the paper's, {measure.unit}" if measure.unit else "the paper's"
    columns: dict[str, Callable[[Cell], str]] = {
        "method": lambda cell: cell.method,
        "data": lambda cell: cell.dataset,
        measure.heading: lambda cell: _score(cell, measure),
        "runs": lambda cell: (
            f"{cell.finished}"
            if cell.finished == cell.planned
            else f"{cell.finished} of {cell.planned}"
        ),
        paper: lambda cell: show(cell.paper_score, measure.show),
        "parameters": lambda cell: show(cell.parameters, "{:,}".format),
        "training": lambda cell: show(cell.seconds, duration),
        "a step": lambda cell: show(cell.step_seconds, duration),
        "peak memory": lambda cell: show(cell.peak_memory, memory),
    }
    unneeded = {
        "data": len({cell.dataset for cell in cells}) == 1,
        paper: all(cell.paper_score is None for cell in cells),
    }
    kept = {name: read for name, read in columns.items() if not unneeded.get(name)}
    return list(kept), [[read(cell) for read in kept.values()] for cell in cells]


def unfinished_rows(outcomes: Iterable[RunOutcome]) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a table of the runs that have not finished."""
    header = ["method", "data", "seed", "why", "log"]
    rows = [
        [
            run.method,
            run.dataset,
            str(run.seed),
            ": ".join(words for words in (run.problem, run.error) if words),
            run.log or MISSING,
        ]
        for run in outcomes
        if not run.finished
    ]
    return header, rows


def _score(cell: Cell, measure: Measure) -> str:
    if cell.mean is None:
        return _problems(cell) or MISSING
    spread = "" if cell.spread is None else f" ± {measure.show(cell.spread)}"
    return measure.show(cell.mean) + spread


def _problems(cell: Cell) -> str:
    return "; ".join(cell.problems)
