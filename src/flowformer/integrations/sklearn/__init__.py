"""Time-series models as scikit-learn estimators, of aeon's kind: a classifier and a regressor."""

from flowformer.integrations.sklearn.classifier import FlowformerClassifier
from flowformer.integrations.sklearn.regressor import FlowformerRegressor

__all__ = ["FlowformerClassifier", "FlowformerRegressor"]
