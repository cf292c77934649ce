"""Metrics of predictions, of classes and of numbers, through scikit-learn and SciPy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int

try:
    from scipy.stats import binomtest
    from sklearn.metrics import (
        confusion_matrix,
        mean_absolute_error,
        r2_score,
        root_mean_squared_error,
        top_k_accuracy_score,
    )
except ImportError as error:
    raise ImportError(
        "scikit-learn is needed to evaluate predictions: pip install 'flowformer[train]'"
    ) from error


@dataclass(frozen=True, kw_only=True)
class ClassMetrics:
    """Precision, recall and F1 of one class, as fractions; a ratio of 0 to 0 counts as 0."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int  # test cases whose label is this class


@dataclass(frozen=True, kw_only=True)
class ClassificationMetrics:
    """All fractions lie in [0, 1]; `confusion[true, predicted]` holds counts."""

    count: int
    correct: int
    confidence: float
    accuracy_low: float
    accuracy_high: float
    confusion: Int[np.ndarray, "classes classes"]
    per_class: tuple[ClassMetrics, ...]

    @property
    def accuracy(self) -> float:
        """Correct predictions over all predictions."""
        return self.correct / self.count

    @property
    def macro_f1(self) -> float:
        """The plain mean of the F1 of the classes that the labels or the predictions contain."""
        occurs = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) > 0
        return float(
            np.mean([of.f1 for of, seen in zip(self.per_class, occurs, strict=True) if seen])
        )


def classification_metrics(
    labels: Int[np.ndarray, " n"],
    predicted: Int[np.ndarray, " n"],
    classes: Sequence[str],
    *,
    confidence: float = 0.95,
) -> ClassificationMetrics:
    """Measure predictions against the labels.

    The interval of the accuracy is Wilson's score interval for a binomial proportion (E. B. Wilson,
    Probable inference, the law of succession, and statistical inference, 1927). It treats the test
    cases as independent, and says nothing about the spread over training seeds.

    Args:
        labels: the true class of each case, an index into `classes`.
        predicted: the predicted class of each case, an index into `classes`.
        classes: the names of the classes, which may include ones that no case has.
        confidence: the coverage of the interval, between 0 and 1.

    Raises:
        ValueError: no cases, or an index outside `classes`.

    Examples:
        >>> import numpy as np
        >>> from flowformer.scores.metrics import classification_metrics
        >>> labels, predicted = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
        >>> metrics = classification_metrics(labels, predicted, ["sit", "walk"])
        >>> metrics.accuracy, metrics.per_class[1].recall
        (0.75, 1.0)
    """
    if len(labels) == 0:
        raise ValueError("predictions must hold at least one case, got none")
    for name, values in (("labels", labels), ("predicted", predicted)):
        if values.min() < 0 or values.max() >= len(classes):
            raise ValueError(
                f"{name} must be indices of the {len(classes)} classes, "
                f"got values from {values.min()} to {values.max()}"
            )
    confusion = confusion_matrix(labels, predicted, labels=np.arange(len(classes)))
    correct = int((labels == predicted).sum())
    interval = binomtest(correct, len(labels)).proportion_ci(confidence, method="wilson")
    return ClassificationMetrics(
        count=len(labels),
        correct=correct,
        confidence=confidence,
        accuracy_low=float(interval.low),
        accuracy_high=float(interval.high),
        confusion=confusion,
        per_class=tuple(
            _class_metrics(name, hits=int(row[i]), support=int(row.sum()), claims=int(claims))
            for i, (name, row, claims) in enumerate(
                zip(classes, confusion, confusion.sum(axis=0), strict=True)
            )
        ),
    )


def top5_accuracy(
    probabilities: Float64[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]
) -> float | None:
    """Return the fraction with the label among the five likeliest classes; None of five or fewer.

    Args:
        probabilities: the probabilities of each class.
        labels: indices of the classes.
    """
    classes = np.arange(probabilities.shape[1])
    if len(classes) <= 5:
        return None
    return float(top_k_accuracy_score(labels, probabilities, k=5, labels=classes))


def _class_metrics(name: str, *, hits: int, support: int, claims: int) -> ClassMetrics:
    """Score a class of which `hits` of `support` cases were found in `claims` predictions."""
    return ClassMetrics(
        name=name,
        precision=hits / claims if claims else 0.0,
        recall=hits / support if support else 0.0,
        f1=2 * hits / (claims + support) if claims + support else 0.0,
        support=support,
    )


@dataclass(frozen=True, kw_only=True)
class RegressionMetrics:
    """Errors of predicted numbers, in their unit.

    Attributes:
        count: cases.
        rmse: root of the mean squared error.
        mae: mean absolute error.
        r2: coefficient of determination; None of fewer than two cases, and where all labels are
            alike.
    """

    count: int
    rmse: float
    mae: float
    r2: float | None


def regression_metrics(
    labels: Float64[np.ndarray, " n"], predicted: Float64[np.ndarray, " n"]
) -> RegressionMetrics:
    """Measure predicted numbers against the labels.

    Args:
        labels: the true numbers, at least one.
        predicted: the predictions.

    Examples:
        >>> import numpy as np
        >>> from flowformer.scores.metrics import regression_metrics
        >>> regression_metrics(np.array([1.0, 3.0]), np.array([1.0, 2.0])).mae
        0.5
    """
    varies = len(labels) > 1 and labels.min() < labels.max()
    return RegressionMetrics(
        count=len(labels),
        rmse=float(root_mean_squared_error(labels, predicted)),
        mae=float(mean_absolute_error(labels, predicted)),
        r2=float(r2_score(labels, predicted)) if varies else None,
    )
