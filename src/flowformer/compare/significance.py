"""Whether two methods differ by more than chance: paired tests, with Holm's correction.

Over several data sets the pairs are the data sets (Wilcoxon's signed-rank test, as J. Demšar
recommends for two classifiers: Statistical comparisons of classifiers over multiple data sets, JMLR
2006). Within one data set they are its test cases (McNemar's test, over seeds its permutation
form). What is compared several times is corrected as S. Holm has it (A simple sequentially
rejective multiple test procedure, 1979).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from flowformer.compare.table import Cell, RunOutcome
from flowformer.scores.measures import ACCURACY, Measure

LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A method against the baseline.

    Attributes:
        method: the method compared.
        baseline: the method that it is compared with.
        difference: mean score of the method minus that of the baseline.
        pairs: pairs on which the two differ; the others say nothing about which is better.
        p: probability of a difference as large, were the two alike; two-sided, uncorrected.
        corrected: p after Holm's correction for the comparisons with this baseline.
        smallest: least corrected p that so many pairs and comparisons could have given.
        measure: the measure of the score.
    """

    method: str
    baseline: str
    difference: float
    pairs: int
    p: float
    corrected: float = 1.0
    smallest: float = 1.0
    measure: Measure = ACCURACY

    @property
    def verdict(self) -> str:
        """What may be said, in words."""
        if self.smallest > LEVEL:
            return "too few pairs to say"
        if self.corrected > LEVEL:
            return "no significant difference"
        better = (self.difference > 0) == self.measure.higher_is_better
        return f"significantly {'better' if better else 'worse'}"

    @property
    def shown_difference(self) -> str:
        """The difference with its sign; of fractions in points."""
        text = self.measure.show(abs(self.difference))
        if self.measure.unit == "%":
            text = f"{100 * abs(self.difference):.2f}"
        return f"{'−' if self.difference < 0 else '+'}{text}"


def compare_over_datasets(
    cells: Sequence[Cell], baseline: str, measure: Measure = ACCURACY
) -> list[PairedTest]:
    """Compare each method with the baseline over data sets: Wilcoxon's signed-rank test.

    A pair is a data set on which both have a figure, the mean over their seeds.

    Args:
        cells: without the averages.
        baseline: one of the methods.
        measure: the measure of their figures.
    """
    means = {(cell.method, cell.dataset): cell.mean for cell in cells if cell.mean is not None}
    datasets = list(dict.fromkeys(cell.dataset for cell in cells))
    tests = []
    for method in _others(cells, baseline):
        differences = np.array(
            [
                means[method, dataset] - means[baseline, dataset]
                for dataset in datasets
                if (method, dataset) in means and (baseline, dataset) in means
            ]
        )
        if not len(differences):
            continue
        # Means of equal counts differ in their last bits: a tie must stay a tie.
        differences = differences.round(12)
        pairs = int(np.count_nonzero(differences))
        tests.append(
            PairedTest(
                method=method,
                baseline=baseline,
                difference=float(differences.mean()),
                pairs=pairs,
                p=_wilcoxon_p(differences) if pairs else 1.0,
                measure=measure,
            )
        )
    return holm(tests)


def compare_over_cases(
    outcomes: Sequence[RunOutcome], dataset: str, baseline: str
) -> list[PairedTest]:
    """Compare each method with the baseline on the test cases of one data set.

    A pair is a test case; its difference is in how many of the seeds that both have finished each
    got it right. Were the two alike, each difference would be as likely with the other sign, which
    gives the exact distribution of their sum. With one seed this is McNemar's exact test. It speaks
    of the models as trained, for other cases of the same kind; not of training again.

    Args:
        outcomes: the outcomes of all runs.
        dataset: whose test cases.
        baseline: one of the methods.
    """
    own = [run for run in outcomes if run.dataset == dataset]
    correct = {(run.method, run.seed): run.correct for run in own if run.correct is not None}
    tests = []
    for method in _others(own, baseline):
        seeds = [s for m, s in correct if m == method and (baseline, s) in correct]
        if not seeds:
            continue
        differences = np.sum(
            [correct[method, s].astype(int) - correct[baseline, s].astype(int) for s in seeds],
            axis=0,
        )
        tests.append(
            PairedTest(
                method=method,
                baseline=baseline,
                difference=float(differences.mean()) / len(seeds),
                pairs=int(np.count_nonzero(differences)),
                p=sign_flip_p(differences),
            )
        )
    return holm(tests)


def sign_flip_p(differences: Int[np.ndarray, " n"]) -> float:
    """Return P(|Σ ±d_j| ≥ |Σ d_j|), every sign being as likely as the other: exact.

    For differences of −1, 0 and 1 it is the p of McNemar's exact test.

    Args:
        differences: the differences of the pairs.
    """
    magnitudes = np.abs(differences[differences != 0])
    total = int(magnitudes.sum())
    # probability[k]: that those with a plus sum to k; the signed sum is then 2k − total.
    probability = np.zeros(total + 1)
    probability[0] = 1.0
    for magnitude in magnitudes:
        probability = probability / 2
        probability[magnitude:] += probability[:-magnitude].copy()
    sums = np.abs(2 * np.arange(total + 1) - total)
    return min(1.0, float(probability[sums >= abs(int(differences.sum()))].sum()))


def holm(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """Return the tests with `corrected` and `smallest` filled in.

    The k-th smallest of m values of p is multiplied by m − k + 1, and is no less than those before
    it. The least that a comparison could give is 2 / 2ⁿ for n pairs, times m at worst.
    """
    count, floor = len(tests), 0.0
    corrected = {}
    for rank, test in enumerate(sorted(tests, key=lambda test: test.p)):
        floor = max(floor, min(1.0, (count - rank) * test.p))
        corrected[test.method] = floor
    return [
        replace(
            test,
            corrected=corrected[test.method],
            smallest=min(1.0, count * 2.0 ** (1 - test.pairs)),
        )
        for test in tests
    ]


def to_rows(tests: Sequence[PairedTest], pair: str) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of a table of tests.

    Args:
        tests: with one baseline; at least one.
        pair: the noun for a pair, in the plural.
    """
    points = "difference, points" if tests[0].measure.unit == "%" else "difference"
    header = ["method", points, f"{pair} that differ", "p", "p, corrected", "verdict"]
    rows = [
        [
            test.method,
            test.shown_difference,
            str(test.pairs),
            f"{test.p:.2g}",
            f"{test.corrected:.2g}",
            test.verdict,
        ]
        for test in tests
    ]
    return header, rows


def _wilcoxon_p(differences: Float[np.ndarray, " n"]) -> float:
    from scipy.stats import wilcoxon

    result: Any = wilcoxon(differences)
    return float(result.pvalue)


def _others(runs: Sequence[Cell] | Sequence[RunOutcome], baseline: str) -> list[str]:
    return [method for method in dict.fromkeys(run.method for run in runs) if method != baseline]
