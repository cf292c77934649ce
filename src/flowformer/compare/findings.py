"""The findings of a comparison, in tables and words: the content of its Markdown and its page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from flowformer.compare import significance
from flowformer.compare.significance import (
    LEVEL,
    PairedTest,
    against,
    compare_over_cases,
    compare_over_datasets,
    compare_over_seeds,
)
from flowformer.compare.table import (
    Cell,
    RunOutcome,
    average_over_datasets,
    summarize,
    to_rows,
    unfinished_rows,
)
from flowformer.report import words
from flowformer.scores.measures import Measure


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The runs of a comparison, and all that a reader must know of them.

    Attributes:
        title: the subject of the comparison.
        protocol: how the weights were chosen: clean or published.
        protocol_note: the same in words.
        measure: the measure that ranks the methods.
        has_test: whether the figures are of a test set.
        baseline: the method that the others are tested against.
        outcomes: the outcomes of all runs.
        paper_source: where the paper's figures are printed.
        settings: the settings common to all runs, by name.
    """

    title: str
    protocol: str
    protocol_note: str
    measure: Measure
    has_test: bool
    baseline: str
    outcomes: Sequence[RunOutcome]
    paper_source: str | None
    settings: Mapping[str, str]

    @property
    def cells(self) -> list[Cell]:
        """One for each method and data set."""
        return summarize(self.outcomes)

    @property
    def datasets(self) -> list[str]:
        """Their names."""
        return list(dict.fromkeys(run.dataset for run in self.outcomes))

    @property
    def methods(self) -> list[str]:
        """Their names, the baseline among them."""
        return list(dict.fromkeys(run.method for run in self.outcomes))


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table with its heading and notes.

    Attributes:
        title: the heading.
        notes: the notes, a paragraph each.
        header: the table's header.
        rows: the table's rows; without any, there is no table.
        numbers_from: the columns from there on are numbers.
    """

    title: str
    notes: tuple[str, ...] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    numbers_from: int = 1


def find(compared: Comparison) -> list[Section]:
    """Return the figures, the runs missing from them, then the tests, each with its words."""
    return [_figures(compared), *_unfinished(compared), *_tests(compared)]


def to_markdown(compared: Comparison, sections: Sequence[Section]) -> str:
    """Return table.md."""
    parts = [f"# {compared.title}\n"]
    for section in sections:
        parts.append(f"## {section.title}\n")
        if section.rows:
            parts.append(words.to_markdown(section.header, section.rows))
        parts += [f"{note}\n" for note in section.notes]
    return "\n".join(parts)


def _figures(compared: Comparison) -> Section:
    cells = compared.cells
    if len(compared.datasets) > 1:
        cells += average_over_datasets(cells)
    header, rows = to_rows(cells, compared.measure)
    name = compared.measure.name
    measured = f"Test {name}" if compared.has_test else f"Validation {name} (no test set)"
    if not compared.measure.higher_is_better:
        measured += ", the lower the better"
    notes = [
        f"{measured}, mean ± sample standard deviation over the seeds. "
        f"Protocol {compared.protocol}: {compared.protocol_note}.",
        "Training is the mean time of a run, validation included; a step is the median over the "
        "epochs; peak memory is that of the whole process, Python and its libraries included (on a "
        "GPU: what was allocated there), the largest of the seeds.",
    ]
    if any(cell.paper_score is not None for cell in cells):
        notes.append(
            f"The paper's figure: {compared.paper_source}, protocol published, at the paper's own "
            "settings."
        )
    numbers_from = 2 if len(compared.datasets) > 1 else 1
    return Section(
        title=f"{name[0].upper()}{name[1:]} and cost",
        notes=tuple(notes),
        header=header,
        rows=rows,
        numbers_from=numbers_from,
    )


def _unfinished(compared: Comparison) -> Iterator[Section]:
    header, rows = unfinished_rows(compared.outcomes)
    if rows:
        yield Section(title="Not finished", header=header, rows=rows, numbers_from=len(header))


def _tests(compared: Comparison) -> Iterator[Section]:
    if len(compared.methods) < 2:
        yield _untested("there is one method only")
        return
    pairings = against(compared.methods, compared.baseline)
    over_datasets = compare_over_datasets(compared.cells, pairings, compared.measure)
    if len(compared.datasets) > 1 and over_datasets:
        yield _over_datasets(compared, over_datasets)
    for dataset in compared.datasets:
        tests = compare_over_seeds(compared.outcomes, dataset, pairings, compared.measure)
        if tests:
            yield _over_seeds(compared, dataset, tests)
    tested = False
    for dataset in compared.datasets:
        tests = compare_over_cases(compared.outcomes, dataset, pairings)
        if tests:
            tested = True
            yield _over_cases(compared, dataset, tests)
    if not tested:
        yield _untested(_why_untested(compared))


def _why_untested(compared: Comparison) -> str:
    if not compared.has_test:
        return "there is no test set"
    finished = [run for run in compared.outcomes if run.finished]
    if finished and all(run.correct is None for run in finished):
        return f"{compared.measure.name} is kept of the whole set, not of each case"
    why = "no other method has finished a seed that it has"
    return f"{compared.baseline} has finished no run, or {why}"


def _untested(why: str) -> Section:
    return Section(
        title="Significance", notes=(f"Nothing is tested on the cases of a test set: {why}.",)
    )


def _over_datasets(compared: Comparison, tests: Sequence[PairedTest]) -> Section:
    note = (
        f"Each method against {compared.baseline} over the data sets: Wilcoxon's signed-rank test "
        f"of the mean {compared.measure.name}, two-sided, {_corrected(tests)}."
    )
    return _against(compared, tests, note, unit="data sets", over="data sets", must="differ")


def _over_seeds(compared: Comparison, dataset: str, tests: Sequence[PairedTest]) -> Section:
    note = (
        f"Each method against {compared.baseline} over the seeds on {dataset}: the paired t-test "
        f"of the {compared.measure.name}, two-sided, {_corrected(tests)}. It tells whether "
        "training again on these data would find the same, as far as seeds differ normally."
    )
    over = f"the seeds on {dataset}"
    return _against(compared, tests, note, unit="seeds", over=over, must="differ")


def _over_cases(compared: Comparison, dataset: str, tests: Sequence[PairedTest]) -> Section:
    seeds = {run.seed for run in compared.outcomes if run.dataset == dataset}
    test = "McNemar's exact test"
    if len(seeds) > 1:
        test = "the exact sign-flip test (McNemar's, summed over the seeds that both have finished)"
    note = (
        f"Each method against {compared.baseline} on the test cases of {dataset}: {test}, "
        f"two-sided, {_corrected(tests)}. It tells whether the models as trained would differ on "
        "more cases of this kind, not whether training again would find the same."
    )
    over, must = f"the test cases of {dataset}", "be classified differently"
    return _against(compared, tests, note, unit="test cases", over=over, must=must)


def _against(
    compared: Comparison, tests: Sequence[PairedTest], note: str, *, unit: str, over: str, must: str
) -> Section:
    header, rows = significance.to_rows(tests, unit)
    notes = [note]
    if any(test.smallest > LEVEL for test in tests):
        notes.append(
            f"For p below {LEVEL:g} at all, {_pairs_needed(len(tests))} {unit} must {must}: "
            "with fewer, nothing can be said."
        )
    if compared.protocol == "published":
        notes.append(
            "The test set chose the weights of every run, so these p are smaller than they should "
            "be."
        )
    return Section(
        title=f"Against {compared.baseline}, over {over}",
        notes=tuple(notes),
        header=header,
        rows=rows,
    )


def _corrected(tests: Sequence[PairedTest]) -> str:
    if len(tests) == 1:
        return "one comparison, so without correction"
    return f"corrected after Holm for {len(tests)} comparisons"


def _pairs_needed(comparisons: int) -> int:
    pairs = 1
    while comparisons * 2.0 ** (1 - pairs) > LEVEL:
        pairs += 1
    return pairs
