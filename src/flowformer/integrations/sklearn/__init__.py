"""Time-series models as scikit-learn estimators, of aeon's kind: a classifier and a regressor."""

from flowformer.machine import library

library("aeon.base", "for the estimators, with scikit-learn", extra="timeseries")

from flowformer.integrations.sklearn.classifier import FlowformerClassifier  # noqa: E402 - after it
from flowformer.integrations.sklearn.regressor import FlowformerRegressor  # noqa: E402

__all__ = ["FlowformerClassifier", "FlowformerRegressor"]
