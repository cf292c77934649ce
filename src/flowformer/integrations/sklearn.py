"""The time-series classifier as a scikit-learn estimator, on aeon's collections of series."""

import copy
import json
import math
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from flowformer.config_json import from_plain
from flowformer.data import (
    Preprocessing,
    SeriesDataset,
    SeriesSplit,
    TimeSeriesData,
    as_series,
    warn_of_swapped_axes,
)
from flowformer.data.loaders import own_randomness
from flowformer.data.options import MissingPolicy
from flowformer.files import write_atomically
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.models.series.model import TimeSeriesClassifier
from flowformer.train.config import Accelerator, EpochsConfig, OptimizerConfig, OptimizerName
from flowformer.train.prediction import choose_device
from flowformer.train.series.config import SeriesConfig, SeriesDataConfig
from flowformer.train.series.data import predict_probabilities

try:
    from aeon.classification import BaseClassifier
    from sklearn.utils import check_random_state
except ImportError as error:
    raise ImportError(
        "aeon and scikit-learn are needed for the estimator: pip install 'flowformer[timeseries]'"
    ) from error

_METADATA_KEY = "flowformer.classifier"
_ROOM = 1.25  # of the longest series seen in fit, for those of unequal lengths
# The attributes of fit beside the model and the preprocessing, all of them plain values.
_FITTED_VALUES = ("max_length_", "best_epoch_", "validation_accuracy_", "metadata_")


class FlowformerClassifier(BaseClassifier):
    """Classify time series with the encoder of the paper (Flowformer, ICML 2022, UEA experiments).

    Takes aeon's collections: an array [n, channels, time], an array [n, time] of univariate series,
    a list of arrays [channels, time_i] of unequal lengths, and what aeon converts into these.
    `fit`, `predict`, `predict_proba`, `score` and `fit_predict` are aeon's; parameters can be
    searched and the estimator cloned, pickled and used in pipelines as any other.

    Training is that of `flowformer train`: z-scores fitted on the series that train, masked
    padding, and the weights of the epoch with the best validation accuracy. Equal `random_state`,
    data, device and number of threads give equal predictions.

    Args:
        mixer: the attention, from `flowformer.nn.MIXERS`.
        mixer_options: the attention's options; None means as published.
        dim: width of the hidden states.
        num_heads: attention heads.
        num_layers: encoder layers.
        feedforward: width inside the feed-forward part.
        dropout: probability of dropping a value in training.
        positions: "learned" or "sinusoidal".
        norm: "post" (as published) or "pre".
        pooling: "flatten" (as published) or "mean".
        padding: "masked", or "published" to let padding take part in the attention.
        epochs: passes over the training series.
        batch_size: series in one training step, and in one call of the model in prediction.
        optimizer: "radam", "adam" or "adamw".
        learning_rate: constant over training.
        weight_decay: as the optimizer takes it.
        gradient_clip: largest norm of the whole gradient; None leaves it alone.
        validation_fraction: stratified part of the training series that only chooses the epoch;
            None trains on all of them, and keeps the epoch that classifies them best.
        max_length: time steps that the model has room for; None takes the longest series seen in
            fit and, where they are of unequal lengths, a quarter more. Series to predict may not be
            longer, unless pooling is "mean" and positions are "sinusoidal" (with padding "masked"
            and a mixer of any length, as "flow").
        missing: the handling of missing values (NaN): "error", "interpolate" or "mean".
        device: "auto" (a GPU when there is one), "cpu", "gpu" or "mps".
        verbose: show a progress bar in fit.
        random_state: int, `numpy.random.RandomState` or None, as everywhere in scikit-learn.

    Attributes:
        classes_: the class labels, sorted.
        n_classes_: number of classes.
        model_: the fitted `TimeSeriesClassifier`, on the CPU and in evaluation mode.
        preprocessing_: the preprocessing fitted on the training series.
        max_length_: time steps that the model has room for.
        best_epoch_: the epoch, counted from 1, whose weights were kept.
        validation_accuracy_: accuracy of that epoch; None when no part was set aside.

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

    _tags = {  # noqa: RUF012  # aeon reads this class attribute
        "X_inner_type": ["numpy3D", "np-list"],
        "algorithm_type": "deeplearning",
        "capability:multivariate": True,
        "capability:unequal_length": True,
        "capability:missing_values": True,
    }

    def __init__(  # noqa: PLR0913  # scikit-learn reads the parameters off this signature
        self,
        *,
        mixer: str = "flow",
        mixer_options: dict[str, Any] | None = None,
        dim: int = 512,
        num_heads: int = 8,
        num_layers: int = 2,
        feedforward: int = 2048,
        dropout: float = 0.1,
        positions: Literal["learned", "sinusoidal"] = "learned",
        norm: Literal["post", "pre"] = "post",
        pooling: Literal["flatten", "mean"] = "flatten",
        padding: Literal["masked", "published"] = "masked",
        epochs: int = 100,
        batch_size: int = 16,
        optimizer: OptimizerName = "radam",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        gradient_clip: float | None = 4.0,
        validation_fraction: float | None = 0.2,
        max_length: int | None = None,
        missing: MissingPolicy = "error",
        device: Accelerator = "auto",
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        """Store the parameters as they are; fit checks them, as scikit-learn has it."""
        self.mixer = mixer
        self.mixer_options = mixer_options
        self.dim = dim
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.feedforward = feedforward
        self.dropout = dropout
        self.positions = positions
        self.norm = norm
        self.pooling = pooling
        self.padding = padding
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.gradient_clip = gradient_clip
        self.validation_fraction = validation_fraction
        self.max_length = max_length
        self.missing = missing
        self.device = device
        self.verbose = verbose
        self.random_state = random_state
        super().__init__()

    def save(self, path: str | Path) -> None:
        """Write the fitted estimator to one safetensors file, its settings as JSON inside.

        Raises:
            NotFittedError: fit was not called.
            ValueError: a parameter or a class label is not a plain value that JSON holds.
        """
        self._check_is_fitted()
        classes = np.asarray(self.classes_)
        state = {
            "params": self._settings(),
            "classes": classes.tolist(),
            "classes_dtype": str(classes.dtype),
            "preprocessing": self.preprocessing_.to_dict(),
            **{name: getattr(self, name) for name in _FITTED_VALUES},
        }
        try:
            text = json.dumps(state, default=_plain)
        except TypeError as error:
            raise ValueError(f"expected parameters and labels that JSON holds: {error}") from error
        write_atomically(Path(path), save(self.model_.state_dict(), {_METADATA_KEY: text}))

    @classmethod
    def load(cls, path: str | Path) -> "FlowformerClassifier":
        """Read an estimator that `save` wrote. No code in it is run: it holds numbers and JSON.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a file that `save` wrote.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no file {path}")
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(_METADATA_KEY)
                if text is None:
                    raise ValueError("safetensors without its settings")
                state = json.loads(text)
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return cls._restore(state, weights)
        # RuntimeError: load_state_dict's, for weights of another model.
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{path}: expected a file that FlowformerClassifier.save wrote, got {error!r}"
            ) from error

    @classmethod
    def _restore(
        cls, state: dict[str, Any], weights: dict[str, torch.Tensor]
    ) -> "FlowformerClassifier":
        estimator = cls(**state["params"])
        estimator.classes_ = np.array(state["classes"], dtype=state["classes_dtype"])
        estimator.n_classes_ = len(estimator.classes_)
        estimator._class_dictionary = {label: at for at, label in enumerate(estimator.classes_)}
        estimator.preprocessing_ = Preprocessing.from_dict(state["preprocessing"])
        for name in _FITTED_VALUES:
            setattr(estimator, name, state[name])
        with torch.device("meta"):  # there nothing is drawn
            model = TimeSeriesClassifier(
                estimator._model_config(),
                channels=len(estimator.preprocessing_.mean),
                num_classes=estimator.n_classes_,
                max_length=estimator.max_length_,
            )
        estimator.model_ = model.to_empty(device="cpu").eval()
        estimator.model_.load_state_dict(weights)
        estimator.is_fitted = True
        return estimator

    def _preprocess_collection(self, X: Any, store_metadata: bool = True) -> Any:
        """Do as aeon does, after our look at arrays, which says what is expected in their place.

        Data frames are aeon's alone.
        """
        is_list = isinstance(X, list | tuple) and not any(hasattr(one, "iloc") for one in X)
        if is_list or isinstance(X, np.ndarray | torch.Tensor):
            X = _as_collection(X, fitted=store_metadata)
        return super()._preprocess_collection(X, store_metadata=store_metadata)

    def _check_y(self, y: Any, *args: Any, **kwargs: Any) -> Any:
        """aeon's own, which takes no lists."""
        y = np.asarray(y) if isinstance(y, list | tuple) else y
        return super()._check_y(y, *args, **kwargs)

    def _check_shape(self, X: Any) -> None:
        """Refuse other channels than in fit; any length is looked at in `_predict_proba`."""
        channels, (found, time) = len(self.preprocessing_.mean), as_series(X, name="X")[0].shape
        if found != channels:
            swapped = ": if they are [time, channels], turn them" * (time == channels)
            raise ValueError(
                f"X: expected series of {channels} channels, as in fit, got {found} channels and "
                f"{time} time steps{swapped}"
            )

    def _fit(self, X: Any, y: Any) -> None:
        # Lightning takes seconds to import: a loaded estimator that only predicts is spared them.
        from flowformer.train.run import train
        from flowformer.train.series.study import Series

        labels = np.searchsorted(self.classes_, y).astype(np.int64)
        series = SeriesSplit(series=as_series(X, name="X"), labels=labels, name="X")
        whole = self.validation_fraction is None
        data = TimeSeriesData(
            name="the series given to fit",
            train=series,
            # Under the published protocol the test set chooses the epoch: here the same series.
            test=series if whole else None,
            classes=tuple(map(str, self.classes_)),
        )
        with tempfile.TemporaryDirectory(prefix="flowformer-") as folder, own_randomness():
            run_dir = Path(folder) / "run"
            result = train(self._config(data), run_dir, data=data)
            run = Series.load(run_dir)
        self.model_ = run.model
        self.preprocessing_ = run.preprocessing
        self.max_length_ = run.record.max_length
        self.best_epoch_ = result.best_epoch
        self.validation_accuracy_ = None if whole else result.validation_accuracy

    def _predict(self, X: Any) -> np.ndarray:
        return self.classes_[self._predict_proba(X).argmax(axis=1)]

    def _predict_proba(self, X: Any) -> Float64[np.ndarray, "n classes"]:
        series = as_series(X, name="X")
        longest, limit = max(one.shape[1] for one in series), self.model_.length_limit
        if limit is not None and longest > limit:
            raise ValueError(
                f"expected series of at most {limit} time steps, got one of {longest}: fit "
                f"FlowformerClassifier(max_length={longest}, ...), or FlowformerClassifier("
                'pooling="mean", positions="sinusoidal", ...), which takes any length'
            )
        unknown = np.zeros(len(series), dtype=np.int64)
        split = SeriesSplit(series=series, labels=unknown, name="X")
        dataset = SeriesDataset(split, self.preprocessing_)
        device = choose_device(self.device)
        # The fitted model stays on the CPU, so that it can be pickled here and opened anywhere.
        model = self.model_ if device.type == "cpu" else copy.deepcopy(self.model_).to(device)
        return predict_probabilities(model, dataset, batch_size=self.batch_size)

    def _settings(self) -> dict[str, Any]:
        """Return the parameters, with NumPy's scalars (as a grid search sets them) as Python's."""
        return {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self.get_params(deep=False).items()
        }

    def _model_config(self) -> TimeSeriesModelConfig:
        settings = self._settings()
        # The estimator is a Flowformer: it has no other encoder.
        names = [field.name for field in fields(TimeSeriesModelConfig) if field.name != "encoder"]
        # Strictly: a width of 2.5 is named here, and not where torch or Lightning fails of it.
        return from_plain(TimeSeriesModelConfig, {name: settings[name] for name in names})

    def _config(self, series: TimeSeriesData) -> SeriesConfig:
        settings = self._settings()
        room = settings["max_length"]
        if room is None and len(set(series.train.lengths)) > 1:
            room = math.ceil(_ROOM * series.max_length)
        data = SeriesDataConfig(
            max_length=room,
            missing=settings["missing"],
            batch_size=settings["batch_size"],
        )
        fraction = settings["validation_fraction"]
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        return SeriesConfig(
            name="FlowformerClassifier",
            data=data if fraction is None else replace(data, validation_fraction=fraction),
            model=self._model_config(),
            optimizer=OptimizerConfig(
                name=settings["optimizer"],
                learning_rate=settings["learning_rate"],
                weight_decay=settings["weight_decay"],
                gradient_clip=settings["gradient_clip"],
            ),
            training=EpochsConfig(
                epochs=settings["epochs"],
                protocol="published" if fraction is None else "clean",
                seed=int(seed),
                accelerator=settings["device"],
                progress="bar" if settings["verbose"] else "none",
            ),
        )

    @classmethod
    def _get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        """Return settings for aeon's estimator checks: small, with room for the longest series."""
        del parameter_set
        return {
            "dim": 8,
            "num_heads": 2,
            "num_layers": 1,
            "feedforward": 16,
            "epochs": 2,
            "batch_size": 8,
            "max_length": 20,
            "missing": "interpolate",
            "device": "cpu",
        }


def _as_collection(X: Any, *, fitted: bool) -> np.ndarray | list[np.ndarray]:
    """Return arrays of any kind as aeon takes them; a matrix or list of rows is univariate."""
    if isinstance(X, list | tuple) or X.dtype == object:
        X = [np.atleast_2d(np.asarray(one)) for one in X]
    series = as_series(np.asarray(X) if isinstance(X, torch.Tensor) else X, name="X")
    split = SeriesSplit(series=series, labels=np.zeros(len(series), np.int64), name="X")
    if fitted:
        warn_of_swapped_axes(series, name="X")
    return np.stack(series) if len(set(split.lengths)) == 1 else list(series)


def _plain(value: Any) -> Any:
    """NumPy's scalars, as a parameter search sets them, as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} of type {type(value).__name__}")
