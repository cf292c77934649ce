"""Time-series regression: series of one's own, or a set of the regression archive.

The model is that of the classification, which in the published code has a head for either; there
are no published settings, so these are of the small one.
"""

from collections.abc import Callable, Mapping

from flowformer.train.regression.config import RegressionConfig
from flowformer.train.series.config import PRESETS


def time_series_regression() -> RegressionConfig:
    """A number of each series of your own: give --data.train-file, or --data.dataset."""
    return RegressionConfig(name="time-series-regression", **vars(PRESETS["small"]))


RECIPES: Mapping[str, Callable[[], RegressionConfig]] = {
    "time-series-regression": time_series_regression,
}
