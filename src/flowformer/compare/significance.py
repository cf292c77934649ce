"""Whether two methods differ by more than chance: paired tests, with Holm's correction.

Over several data sets the pairs are the data sets (Wilcoxon's signed-rank test, as J. Demšar
recommends for two classifiers: Statistical comparisons of classifiers over multiple data sets, JMLR
2006). Within one data set they are its test cases (McNemar's test, over seeds its permutation
form), which tells of the models as trained, or the seeds (Student's paired t-test), which tells of
training again. What is compared several times is corrected as S. Holm has it (A simple sequentially
rejective multiple test procedure, 1979).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from flowformer.compare.table import Cell, RunOutcome
from flowformer.scores.measures import ACCURACY, Measure

LEVEL = 0.05
FEWEST_SEEDS = 3  # with two, the spread has one degree of freedom

Pairing = tuple[str, str]  # a method, and the one that it is compared with


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A method against another, the baseline.

    Attributes:
        method: the method compared.
        baseline: the method that it is compared with.
        difference: mean score of the method minus that of the baseline.
        pairs: pairs on which the two differ; the others say nothing about which is better.
        p: probability of a difference as large, were the two alike; two-sided, uncorrected.
        effect: the matched-pairs rank-biserial correlation: 1 where every pair favours the method's
            larger score, -1 where every pair favours the baseline's, 0 where they are balanced.
        least: the least p that so many pairs could have given.
        corrected: p after Holm's correction for all comparisons of the family.
        smallest: `least` after the correction at its worst.
        measure: the measure of the score.
    """

    method: str
    baseline: str
    difference: float
    pairs: int
    p: float
    effect: float = 0.0
    least: float = 0.0
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


def against(methods: Iterable[str], baseline: str) -> list[Pairing]:
    """Return each method with the baseline."""
    return [(method, baseline) for method in dict.fromkeys(methods) if method != baseline]


def every_pair(methods: Iterable[str]) -> list[Pairing]:
    """Return each two methods once, the later one against the earlier."""
    return [(later, earlier) for earlier, later in combinations(dict.fromkeys(methods), 2)]


def compare_over_datasets(
    cells: Sequence[Cell], pairings: Iterable[Pairing], measure: Measure = ACCURACY
) -> list[PairedTest]:
    """Compare methods over data sets: Wilcoxon's signed-rank test.

    A pair is a data set on which both have a figure, the mean over their seeds.

    Args:
        cells: without the averages.
        pairings: which methods are compared.
        measure: the measure of their figures.
    """
    means = {(cell.method, cell.dataset): cell.mean for cell in cells if cell.mean is not None}
    datasets = list(dict.fromkeys(cell.dataset for cell in cells))
    tests = []
    for method, other in pairings:
        both = [d for d in datasets if (method, d) in means and (other, d) in means]
        if not both:
            continue
        # Means of equal counts differ in their last bits: a tie must stay a tie.
        differences = np.array([means[method, d] - means[other, d] for d in both]).round(12)
        pairs = int(np.count_nonzero(differences))
        p = _wilcoxon_p(differences) if pairs else 1.0
        tests.append(_paired(method, other, differences, p, least=2.0 ** (1 - pairs)))
    return holm(tests, measure)


def compare_over_seeds(
    outcomes: Sequence[RunOutcome],
    dataset: str,
    pairings: Iterable[Pairing],
    measure: Measure = ACCURACY,
) -> list[PairedTest]:
    """Compare methods over the seeds of one data set: Student's paired t-test.

    A pair is a seed that both have finished, at least `FEWEST_SEEDS` of them. It speaks of training
    again on the same data, as far as the differences between seeds are spread normally.

    Args:
        outcomes: the outcomes of all runs.
        dataset: the data set whose runs are compared.
        pairings: which methods are compared.
        measure: the measure of their scores.
    """
    own = [run for run in outcomes if run.dataset == dataset]
    scores = {(run.method, run.seed): run.score for run in own if run.score is not None}
    tests = []
    for method, other in pairings:
        seeds = [s for m, s in scores if m == method and (other, s) in scores]
        if len(seeds) < FEWEST_SEEDS:
            continue
        differences = np.array([scores[method, s] - scores[other, s] for s in seeds]).round(12)
        tests.append(_paired(method, other, differences, _student_p(differences)))
    return holm(tests, measure)


def compare_over_cases(
    outcomes: Sequence[RunOutcome], dataset: str, pairings: Iterable[Pairing]
) -> list[PairedTest]:
    """Compare methods on the test cases of one data set.

    A pair is a test case; its difference is in how many of the seeds that both have finished each
    got it right. Were the two alike, each difference would be as likely with the other sign, which
    gives the exact distribution of their sum. With one seed this is McNemar's exact test. It speaks
    of the models as trained, for other cases of the same kind; not of training again.

    Args:
        outcomes: the outcomes of all runs.
        dataset: the data set whose test cases are compared.
        pairings: which methods are compared.
    """
    own = [run for run in outcomes if run.dataset == dataset]
    correct = {(run.method, run.seed): run.correct for run in own if run.correct is not None}
    tests = []
    for method, other in pairings:
        seeds = [s for m, s in correct if m == method and (other, s) in correct]
        if not seeds:
            continue
        differences = np.sum(
            [correct[method, s].astype(int) - correct[other, s].astype(int) for s in seeds],
            axis=0,
        )
        least = 2.0 ** (1 - int(np.count_nonzero(differences)))
        test = _paired(method, other, differences, sign_flip_p(differences), least=least)
        tests.append(replace(test, difference=test.difference / len(seeds)))
    return holm(tests)


def _paired(
    method: str,
    baseline: str,
    differences: Float[np.ndarray, " n"] | Int[np.ndarray, " n"],
    p: float,
    *,
    least: float = 0.0,
) -> PairedTest:
    return PairedTest(
        method=method,
        baseline=baseline,
        difference=float(differences.mean()),
        pairs=int(np.count_nonzero(differences)),
        p=p,
        effect=rank_biserial(differences),
        least=least,
    )


def rank_biserial(differences: Float[np.ndarray, " n"] | Int[np.ndarray, " n"]) -> float:
    """Return the matched-pairs rank-biserial correlation of paired differences.

    It is the share of the ranks of their sizes that positive differences have, less that of the
    negative ones (D. S. Kerby, The simple difference formula, 2014); 0 without any that differ.

    Args:
        differences: the differences of the pairs; zeros are left out.

    Examples:
        >>> import numpy as np
        >>> from flowformer.compare.significance import rank_biserial
        >>> rank_biserial(np.array([1.0, 2.0, 3.0, -1.0]))
        0.7
    """
    from scipy.stats import rankdata

    present = differences[differences != 0]
    if not len(present):
        return 0.0
    ranks = rankdata(np.abs(present))
    return float((ranks * np.sign(present)).sum() / ranks.sum())


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


def holm(tests: Sequence[PairedTest], measure: Measure = ACCURACY) -> list[PairedTest]:
    """Return the tests of a family with `corrected`, `smallest` and the measure filled in.

    The k-th smallest of m values of p is multiplied by m − k + 1, and is no less than those before
    it. The least that a comparison could give is multiplied by m at worst.
    """
    count, floor = len(tests), 0.0
    corrected = [1.0] * count
    for rank, at in enumerate(sorted(range(count), key=lambda at: tests[at].p)):
        floor = max(floor, min(1.0, (count - rank) * tests[at].p))
        corrected[at] = floor
    return [
        replace(
            test,
            corrected=corrected[at],
            smallest=min(1.0, count * test.least),
            measure=measure,
        )
        for at, test in enumerate(tests)
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


def _student_p(differences: Float[np.ndarray, " n"]) -> float:
    """Return p of the paired t-test; without a spread to test against, that of the sign test."""
    from scipy.stats import ttest_1samp

    if np.ptp(differences) == 0:
        return 2.0 ** (1 - len(differences)) if differences[0] else 1.0
    result: Any = ttest_1samp(differences, 0.0)
    return float(result.pvalue)
