"""The measures that rank methods. No NumPy here: recipes and the command line start at once."""

import math
from dataclasses import dataclass, replace

_LARGE = 1e6  # above, digits after the point say nothing


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure by which the methods of a comparison are ranked.

    Attributes:
        name: the measure in words.
        unit: the unit of a figure: % for a fraction shown in percent, or nothing.
        digits: after the point.
        significant: whether digits are significant ones, wherever the point is.
        higher_is_better: whether more is better.
        column: its column of metrics.csv, measured on the held-out part after each epoch.
        over: column of metrics.csv that curves are drawn over.
    """

    name: str
    unit: str = ""
    digits: int = 1
    significant: bool = False
    higher_is_better: bool
    column: str
    over: str = "epoch"

    def show(self, value: float) -> str:
        """Write a figure without its unit: 98.1, 24.37; one that is far too large as 9.25e+10."""
        shown = 100 * value if self.unit == "%" else value
        if self.significant:
            return f"{shown:.{self.digits}g}"
        return f"{shown:.{self.digits}f}" if abs(shown) < _LARGE else f"{shown:.3g}"

    @property
    def heading(self) -> str:
        """Of a column with such figures."""
        return f"{self.name}, {self.unit}" if self.unit else self.name


ACCURACY = Measure(
    name="accuracy", unit="%", digits=1, higher_is_better=True, column="validation_accuracy"
)
ACCURACY_BY_STEP = replace(ACCURACY, over="step")
EXACT_SUMS = replace(ACCURACY_BY_STEP, name="exact sums", digits=2, column="validation_exact")
PERPLEXITY = Measure(
    name="perplexity", digits=2, higher_is_better=False, column="validation_perplexity", over="step"
)
BITS_PER_CHARACTER = replace(
    PERPLEXITY, name="bits per character", digits=3, column="validation_bits_per_character"
)
NORMALIZED_SCORE = replace(
    ACCURACY_BY_STEP, name="normalised score", unit="", column="validation_score"
)
RMSE = Measure(
    name="RMSE", digits=4, significant=True, higher_is_better=False, column="validation_rmse"
)


def exp_of(nats: float) -> float:
    """Return the perplexity of a mean loss; infinite where a float64 cannot hold it."""
    return math.exp(nats) if nats < 709 else math.inf


def bits_of(nats: float) -> float:
    """Return a loss in bits."""
    return nats / math.log(2)
