"""The time-series regressor as a scikit-learn estimator, on series of every kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from aeon.regression import BaseRegressor
from jaxtyping import Float64
from torch import nn

from flowformer.data import SeriesSplit, as_numbers
from flowformer.integrations.sklearn.estimator import FlowformerEstimator
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.models.series.regression import TimeSeriesRegressor
from flowformer.train.kinds import KINDS
from flowformer.train.series.data import predict_numbers
from flowformer.train.study import Trained


class FlowformerRegressor(FlowformerEstimator, BaseRegressor):
    """Predict a number of each time series with the encoder of the paper and a head for it.

    Takes aeon's collections: an array [n, channels, time], an array [n, time] of univariate series,
    a list of arrays [channels, time_i] of unequal lengths; and tables, files and folders, see
    `FlowformerEstimator`, which has the parameters too. `fit`, `predict`, `score` (by default R²)
    and `fit_predict` are aeon's. The loss is the squared error of the labels, scaled to mean 0 and
    deviation 1.

    Attributes:
        validation_rmse_: root of the mean squared error of the best epoch, in the unit of the
            labels; None when no part was set aside.

    Raises:
        ValueError: in fit, a parameter out of range, labels that are no finite numbers, or missing
            values where they are refused; in predict, a series longer than `max_length_` or with
            other channels.

    Examples:
        >>> import numpy as np
        >>> from flowformer.integrations.sklearn import FlowformerRegressor
        >>> series = np.random.default_rng(0).normal(size=(20, 3, 12))  # [case, channel, time]
        >>> regressor = FlowformerRegressor(dim=16, num_heads=2, epochs=1, random_state=0)
        >>> regressor.fit(series, series.mean(axis=(1, 2))).predict(series).shape
        (20,)
    """

    _fitted_values = (*FlowformerEstimator._fitted_values, "validation_rmse_")
    _metadata_key = "flowformer.regressor"

    @classmethod
    def _kind(cls) -> Any:
        return KINDS["regression"]

    def _fit(self, X: Any, y: Any) -> None:
        result = self._train(X, self._encoded(y), ())
        self.validation_rmse_ = None if self.validation_fraction is None else result.validation_rmse

    def _predict(self, X: Any) -> Float64[np.ndarray, " n"]:
        model, series = self._model_on_device(), self._dataset(X)
        return predict_numbers(model, series, self.preprocessing_, batch_size=self.batch_size)

    def _build(self, config: TimeSeriesModelConfig) -> nn.Module:
        return TimeSeriesRegressor(
            config,
            channels=len(self.preprocessing_.mean),
            max_length=self.max_length_,
        )

    def _own_state(self) -> dict[str, Any]:
        return {}

    def _take_state(self, state: Mapping[str, Any]) -> None:
        del state

    def _encoded(self, y: Any) -> Float64[np.ndarray, " n"]:
        return as_numbers(y, name="y")

    def _check_y(self, y: Any, n_cases: int) -> Float64[np.ndarray, " n"]:
        """Take any finite numbers: aeon refuses those of two values for classes."""
        numbers = self._encoded(y)
        if len(numbers) != n_cases:
            raise ValueError(
                f"y: expected one number a series, got {len(numbers)} for {n_cases} series"
            )
        return numbers

    def _write_report(self, folder: Path, run: Trained, split: SeriesSplit, count: int) -> Path:
        from flowformer.report.regression import write_regression_report
        from flowformer.train.series.base import flow_encoder

        has_maps = count > 0 and flow_encoder(run.model) is not None
        return write_regression_report(
            folder,
            record=self.training_["record"],
            result=self.training_["result"] | {"protocol_note": self._note(run)},
            history=self._history,
            test=(split.labels, self._predict(list(split.series))),
            flow_maps=self._kind().study.flow_maps(run, split, count) if has_maps else (),
        )
