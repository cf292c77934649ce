"""Paired tests: the exact distributions, Holm's correction, and when nothing can be said."""

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test, ttest_rel

from flowformer.compare.significance import (
    PairedTest,
    against,
    compare_over_cases,
    compare_over_datasets,
    compare_over_seeds,
    every_pair,
    holm,
    rank_biserial,
    sign_flip_p,
    to_rows,
)
from flowformer.compare.table import RunOutcome, summarize


def paired(p: float, method: str = "softmax", pairs: int = 100) -> PairedTest:
    return PairedTest(
        method=method,
        baseline="flow",
        difference=-0.1,
        pairs=pairs,
        p=p,
        least=2.0 ** (1 - pairs),
    )


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (3, 9), (10, 10), (40, 2)])
def test_with_one_seed_it_is_mcnemars_exact_test(wins, losses):
    differences = np.array([1] * wins + [-1] * losses + [0] * 7)
    expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_flip_p(differences) == pytest.approx(expected)


def test_with_several_seeds_it_is_the_permutation_test_of_the_sum():
    differences = np.array([3, -1, 2, 2, -3, 1, 1, 0, 3, -2])
    expected = permutation_test(
        (differences,), np.sum, permutation_type="samples", n_resamples=10_000
    ).pvalue
    assert sign_flip_p(differences) == pytest.approx(expected)


def test_thousands_of_cases_are_exact_too():
    differences = np.repeat([1, -1], [900, 1100])
    assert sign_flip_p(differences) == pytest.approx(binomtest(900, 2000).pvalue, rel=1e-6)


def test_holms_correction_multiplies_by_what_is_left_and_never_falls():
    corrected = holm([paired(0.04, "a"), paired(0.01, "b"), paired(0.03, "c")])
    assert [test.corrected for test in corrected] == pytest.approx([0.06, 0.03, 0.06])


@pytest.mark.parametrize(
    ("p", "pairs", "verdict"),
    [
        (0.001, 100, "significantly worse"),
        (0.2, 100, "no significant difference"),
        (0.0625, 5, "too few pairs to say"),
    ],
)
def test_verdicts(p, pairs, verdict):
    assert holm([paired(p, pairs=pairs)])[0].verdict == verdict


def test_more_comparisons_need_more_pairs():
    six = [paired(0.03, method, pairs=6) for method in ("a", "b")]
    assert holm(six[:1])[0].verdict == "significantly worse"
    assert holm(six)[0].verdict == "too few pairs to say"


def outcomes(accuracies: dict[str, list[float]]) -> list[RunOutcome]:
    return [
        RunOutcome(dataset=f"set{at}", method=method, seed=0, score=value)
        for method, values in accuracies.items()
        for at, value in enumerate(values)
    ]


def test_over_data_sets_a_pair_is_a_data_set_and_ties_say_nothing():
    flow = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.1 + 0.2]
    softmax = [0.8, 0.65, 0.6, 0.5, 0.35, 0.35, 0.2, 0.3]
    (test,) = compare_over_datasets(
        summarize(outcomes({"flow": flow, "softmax": softmax})), [("softmax", "flow")]
    )
    assert (test.method, test.baseline, test.pairs) == ("softmax", "flow", 7)
    assert test.p == pytest.approx(2 / 2**7)
    assert test.difference == pytest.approx(np.mean(np.subtract(softmax, flow)))
    assert test.verdict == "significantly worse"


def test_over_data_sets_equal_methods_do_not_differ():
    cells = summarize(outcomes({"flow": [0.9, 0.8], "softmax": [0.9, 0.8]}))
    assert compare_over_datasets(cells, [("softmax", "flow")])[0].p == 1.0


def test_a_data_set_that_one_method_did_not_finish_is_no_pair():
    runs = outcomes({"flow": [0.9, 0.8, 0.7], "softmax": [0.5, 0.4]})
    runs.append(RunOutcome(dataset="set2", method="softmax", seed=0, problem="does not fit"))
    assert compare_over_datasets(summarize(runs), [("softmax", "flow")])[0].pairs == 2


def test_over_cases_a_pair_is_a_test_case_over_the_seeds_that_both_have():
    def run(method: str, seed: int, correct: list[int]) -> RunOutcome:
        hits = np.array(correct, dtype=bool)
        return RunOutcome(
            dataset="vowels", method=method, seed=seed, score=hits.mean(), correct=hits
        )

    runs = [
        run("flow", 0, [1, 1, 1, 0, 1]),
        run("flow", 1, [1, 1, 0, 0, 1]),
        run("softmax", 0, [0, 1, 0, 0, 1]),
        run("softmax", 1, [0, 0, 1, 0, 1]),
        run("softmax", 2, [1, 1, 1, 1, 1]),
    ]
    (test,) = compare_over_cases(runs, "vowels", [("softmax", "flow")])
    assert test.pairs == 2  # the third case is won once and lost once
    assert test.difference == pytest.approx(-3 / 10)
    assert test.p == pytest.approx(0.5)
    assert compare_over_cases(runs, "digits", [("softmax", "flow")]) == []


def test_a_table_of_tests_names_what_a_pair_is():
    header, rows = to_rows(holm([paired(0.001)]), "test cases")
    assert header[2] == "test cases that differ"
    assert rows == [["softmax", "−10.00", "100", "0.001", "0.001", "significantly worse"]]


def seeds_of(scores: dict[str, list[float]]) -> list[RunOutcome]:
    return [
        RunOutcome(dataset="vowels", method=method, seed=seed, score=value)
        for method, values in scores.items()
        for seed, value in enumerate(values)
    ]


def test_over_seeds_it_is_the_paired_t_test_corrected_over_every_pair():
    scores = {
        "flow": [0.90, 0.91, 0.93, 0.92, 0.90],
        "linear": [0.85, 0.88, 0.86, 0.87, 0.86],
        "softmax": [0.90, 0.92, 0.92, 0.91, 0.91],
    }
    tests = compare_over_seeds(seeds_of(scores), "vowels", every_pair(scores))
    assert [(test.method, test.baseline) for test in tests] == [
        ("linear", "flow"),
        ("softmax", "flow"),
        ("softmax", "linear"),
    ]
    expected = ttest_rel(scores["linear"], scores["flow"]).pvalue
    assert tests[0].p == pytest.approx(expected)
    assert tests[0].corrected == pytest.approx(2 * expected)  # the second smallest of three
    assert (tests[0].effect, tests[0].verdict) == (-1.0, "significantly worse")
    assert tests[1].verdict == "no significant difference"


def test_two_seeds_and_seeds_of_one_method_alone_are_no_test():
    assert (
        compare_over_seeds(
            seeds_of({"flow": [0.9, 0.8, 0.7], "linear": [0.5, 0.4]}),
            "vowels",
            [("linear", "flow")],
        )
        == []
    )


def test_seeds_that_all_differ_by_as_much_prove_no_more_than_their_number():
    runs = seeds_of({"flow": [0.9, 0.8, 0.7], "dtw": [0.8, 0.7, 0.6]})
    (test,) = compare_over_seeds(runs, "vowels", against(["flow", "dtw"], "flow"))
    assert test.p == 0.25


@pytest.mark.parametrize(
    ("differences", "effect"),
    [([0, 0], 0.0), ([1, 2], 1.0), ([-1, 0], -1.0), ([2, 2, -2, -2], 0.0), ([3, -1, -2], 0.0)],
)
def test_the_effect_is_the_share_of_ranks_for_less_that_against(differences, effect):
    assert rank_biserial(np.array(differences)) == pytest.approx(effect)
