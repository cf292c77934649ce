import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from flowformer.scores.metrics import classification_metrics

LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 0, 2])
CLASSES = ("a", "b", "c")


def test_counts_match_a_hand_count():
    metrics = classification_metrics(LABELS, PREDICTED, CLASSES)
    assert metrics.accuracy == pytest.approx(4 / 6)
    assert metrics.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    first = metrics.per_class[0]
    assert (first.name, first.support) == ("a", 3)
    assert (first.precision, first.recall, first.f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


def test_figures_are_scikit_learns():
    labels, predicted = np.random.default_rng(0).integers(0, 4, (2, 100))
    metrics = classification_metrics(labels, predicted, ("a", "b", "c", "d"))
    ours = np.mean([(of.precision, of.recall, of.f1) for of in metrics.per_class], axis=0)
    for mean, score in zip(ours, (precision_score, recall_score, f1_score), strict=True):
        assert mean == pytest.approx(score(labels, predicted, average="macro"))
    assert metrics.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))


def test_a_class_without_cases_has_a_row_but_no_say_in_macro_f1():
    metrics = classification_metrics(LABELS, PREDICTED, (*CLASSES, "absent"))
    assert metrics.confusion.shape == (4, 4)
    assert metrics.per_class[3].support == 0
    assert metrics.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [
        pytest.param(10, 10, 0.7225, 1.0, id="all-correct"),
        pytest.param(0, 10, 0.0, 0.2775, id="none-correct"),
        pytest.param(366, 370, 0.9726, 0.9958, id="japanese-vowels"),
    ],
)
def test_interval_is_wilsons(correct, count, low, high):
    predicted = np.zeros(count, dtype=np.int64)
    predicted[correct:] = 1
    metrics = classification_metrics(np.zeros(count, dtype=np.int64), predicted, ("a", "b"))
    assert (metrics.accuracy_low, metrics.accuracy_high) == pytest.approx((low, high), abs=1e-4)


def test_interval_narrows_with_lower_confidence():
    wide = classification_metrics(LABELS, PREDICTED, CLASSES, confidence=0.99)
    narrow = classification_metrics(LABELS, PREDICTED, CLASSES, confidence=0.5)
    assert wide.accuracy_low < narrow.accuracy_low < narrow.accuracy_high < wide.accuracy_high


def test_no_cases_is_an_error():
    none = np.array([], dtype=np.int64)
    with pytest.raises(ValueError, match="at least one case, got none"):
        classification_metrics(none, none, CLASSES)


@pytest.mark.parametrize("wrong", [-1, 3], ids=["negative", "too-large"])
def test_an_index_outside_the_classes_is_an_error(wrong):
    predicted = PREDICTED.copy()
    predicted[2] = wrong
    with pytest.raises(ValueError, match="predicted must be indices of the 3 classes, got values"):
        classification_metrics(LABELS, predicted, CLASSES)
