"""Whole models: of each kind a configuration, and a module that takes its mixer by name.

The configurations need no torch; the models are imported when they are first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from flowformer.models.images.config import VISION_PRESETS, VisionModelConfig
from flowformer.models.language.config import LANGUAGE_PRESETS, LanguageModelConfig
from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.models.trajectories.config import BehaviourCloningConfig, DecisionModelConfig

if TYPE_CHECKING:
    from flowformer.models.images.model import VisionClassifier, load_published_vision_model
    from flowformer.models.language.model import LanguageModel, load_fairseq_model
    from flowformer.models.sequences.model import PairClassifier, SequenceClassifier
    from flowformer.models.series.model import (
        DilatedConvClassifier,
        LSTMClassifier,
        TimeSeriesClassifier,
        build_classifier,
    )
    from flowformer.models.series.regression import TimeSeriesRegressor
    from flowformer.models.trajectories.model import (
        BehaviourCloning,
        DecisionTransformer,
        load_published_decision_model,
    )

__all__ = [
    "LANGUAGE_PRESETS",
    "VISION_PRESETS",
    "BehaviourCloning",
    "BehaviourCloningConfig",
    "DecisionModelConfig",
    "DecisionTransformer",
    "DilatedConvClassifier",
    "LSTMClassifier",
    "LanguageModel",
    "LanguageModelConfig",
    "PairClassifier",
    "SequenceClassifier",
    "SequenceModelConfig",
    "TimeSeriesClassifier",
    "TimeSeriesModelConfig",
    "TimeSeriesRegressor",
    "VisionClassifier",
    "VisionModelConfig",
    "build_classifier",
    "load_fairseq_model",
    "load_published_decision_model",
    "load_published_vision_model",
]


_PLACES = {
    "BehaviourCloning": "trajectories.model",
    "DecisionTransformer": "trajectories.model",
    "DilatedConvClassifier": "series.model",
    "LSTMClassifier": "series.model",
    "LanguageModel": "language.model",
    "PairClassifier": "sequences.model",
    "SequenceClassifier": "sequences.model",
    "TimeSeriesClassifier": "series.model",
    "TimeSeriesRegressor": "series.regression",
    "VisionClassifier": "images.model",
    "build_classifier": "series.model",
    "load_fairseq_model": "language.model",
    "load_published_decision_model": "trajectories.model",
    "load_published_vision_model": "images.model",
}


def __getattr__(name: str) -> object:
    """Import a model on first use: the command line reads configurations without torch."""
    if name in _PLACES:
        return getattr(import_module(f"flowformer.models.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'flowformer.models' has no attribute {name!r}")
