"""The time-series classifier as a scikit-learn estimator, on series of every kind."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from aeon.classification import BaseClassifier
from jaxtyping import Float64
from torch import nn

from flowformer.data import SeriesSplit, encode_labels
from flowformer.integrations.sklearn.estimator import FlowformerEstimator
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.models.series.model import TimeSeriesClassifier
from flowformer.train.kinds import KINDS
from flowformer.train.series.data import predict_probabilities
from flowformer.train.study import Trained


class FlowformerClassifier(FlowformerEstimator, BaseClassifier):
    """Classify time series with the encoder of the paper (Flowformer, ICML 2022, UEA experiments).

    Takes aeon's collections: an array [n, channels, time], an array [n, time] of univariate series,
    a list of arrays [channels, time_i] of unequal lengths; and tables, files and folders, see
    `FlowformerEstimator`, which has the parameters too. `fit`, `predict`, `predict_proba`, `score`
    and `fit_predict` are aeon's; parameters can be searched and the estimator cloned, pickled and
    used in pipelines as any other.

    Attributes:
        classes_: the class labels, sorted.
        n_classes_: number of classes.
        validation_accuracy_: accuracy of the best epoch; None when no part was set aside.

    Raises:
        ValueError: in fit, a parameter out of range, too few series of a class to set a part
            aside, or missing values where they are refused; in predict, a series longer than
            `max_length_` or with other channels.

    Examples:
        >>> import numpy as np
        >>> from flowformer.integrations.sklearn import FlowformerClassifier
        >>> series = np.random.default_rng(0).normal(size=(20, 3, 12))  # [case, channel, time]
        >>> classes = np.repeat(["low", "high"], 10)
        >>> classifier = FlowformerClassifier(dim=16, num_heads=2, epochs=1, random_state=0)
        >>> classifier.fit(series, classes).predict(series).shape
        (20,)
    """

    _fitted_values = (*FlowformerEstimator._fitted_values, "validation_accuracy_")
    _metadata_key = "flowformer.classifier"

    @classmethod
    def _kind(cls) -> Any:
        return KINDS["series"]

    def _fit(self, X: Any, y: Any) -> None:
        labels = np.searchsorted(self.classes_, y).astype(np.int64)
        result = self._train(X, labels, tuple(map(str, self.classes_)))
        whole = self.validation_fraction is None
        self.validation_accuracy_ = None if whole else result.validation_accuracy

    def _predict(self, X: Any) -> np.ndarray:
        return self.classes_[self._predict_proba(X).argmax(axis=1)]

    def _predict_proba(self, X: Any) -> Float64[np.ndarray, "n classes"]:
        model, series = self._model_on_device(), self._dataset(X)
        return predict_probabilities(model, series, batch_size=self.batch_size)

    def _build(self, config: TimeSeriesModelConfig) -> nn.Module:
        return TimeSeriesClassifier(
            config,
            channels=len(self.preprocessing_.mean),
            num_classes=self.n_classes_,
            max_length=self.max_length_,
        )

    def _own_state(self) -> dict[str, Any]:
        classes = np.asarray(self.classes_)
        return {"classes": classes.tolist(), "classes_dtype": str(classes.dtype)}

    def _take_state(self, state: Mapping[str, Any]) -> None:
        self.classes_ = np.array(state["classes"], dtype=state["classes_dtype"])
        self.n_classes_ = len(self.classes_)
        self._class_dictionary = {label: at for at, label in enumerate(self.classes_)}

    def _encoded(self, y: np.ndarray) -> np.ndarray:
        return encode_labels(np.asarray(y).tolist(), self.classes_.tolist(), name="y")

    def _write_report(self, folder: Path, run: Trained, split: SeriesSplit, count: int) -> Path:
        from flowformer.report.classifier import FinishedRun, write_report
        from flowformer.train.series.base import flow_encoder

        predicted = self._predict_proba(list(split.series)).argmax(axis=1)
        has_maps = count > 0 and flow_encoder(run.model) is not None
        maps = self._kind().study.flow_maps(run, split, count) if has_maps else []
        result = self.training_["result"] | {
            "test_accuracy": float(np.mean(predicted == split.labels)),
            "protocol_note": self._note(run),
        }
        finished = FinishedRun(
            record=self.training_["record"],
            result=result,
            history=self._history,
            test=(split.labels, predicted),
            kept=self.best_epoch_,
        )
        return write_report(folder, finished, flow_maps=maps)
