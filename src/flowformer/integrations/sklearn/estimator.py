"""What the estimators of series share: parameters, series of every kind, training, files."""

import copy
import json
import math
import tempfile
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from aeon.base import BaseCollectionEstimator
from jaxtyping import Float64, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from sklearn.utils import check_random_state
from torch import nn

from flowformer.config_json import from_plain, to_plain
from flowformer.data import (
    Preprocessing,
    SeriesCollection,
    SeriesDataset,
    SeriesSplit,
    TimeSeriesData,
    as_series,
    read_series,
    warn_of_swapped_axes,
)
from flowformer.data.loaders import own_randomness
from flowformer.data.options import MissingPolicy, SeriesColumns
from flowformer.files import write_atomically
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.names import choose
from flowformer.progress import say
from flowformer.train.config import Accelerator, EpochsConfig, OptimizerConfig, OptimizerName
from flowformer.train.folder import RunFolder
from flowformer.train.prediction import choose_device
from flowformer.train.run_files import read_history
from flowformer.train.series.config import PRESETS, SeriesConfig
from flowformer.train.study import Trained

E = TypeVar("E", bound="FlowformerEstimator")

_ROOM = 1.25  # of the longest series seen in fit, for those of unequal lengths
_PRESET_TRAINING = {"learning_rate": "optimizer", "epochs": "training"}  # and the part they are of


class FlowformerEstimator(BaseCollectionEstimator):
    """The base of the estimators of series: the encoder of the paper, fitted as it trains a run.

    Series are aeon's collections: an array [n, channels, time], an array [n, time] of univariate
    series, a list of arrays [channels, time_i] of unequal lengths, and what aeon converts into
    these. Besides, they are what `flowformer.data.read_series` gives or takes: a path (`.csv`,
    `.parquet`, `.ts`, `.npz`, a folder), or a data frame, of which y names the column of the
    labels. Of what it gave, groups are kept whole when a part is set aside for validation.

    Training is that of `flowformer train`: z-scores fitted on the series that train, masked
    padding, and the weights of the best epoch on the validation part. Equal `random_state`, data,
    device and number of threads give equal predictions.

    Args:
        preset: what is None below: "small", which fits a few hundred short series in a minute or
            two and takes series of any length, or "paper", the published settings.
        mixer: the attention, from `flowformer.nn.MIXERS`.
        mixer_options: the attention's options; None means as published.
        dim: width of the hidden states.
        num_heads: attention heads.
        num_layers: encoder layers.
        kernel: time steps around its own that a token is made of, an odd number; 1 as published.
        feedforward: width inside the feed-forward part.
        dropout: probability of dropping a value in training.
        positions: "learned" or "sinusoidal".
        norm: "post" (as published) or "pre".
        pooling: "flatten" (as published) or "mean".
        padding: "masked", or "published" to let padding take part in the attention.
        epochs: passes over the training series; of the preset "small" an epoch of less than 8
            training steps passes over them several times, until it has as many.
        batch_size: series in one training step, and in one call of the model in prediction.
        optimizer: "radam", "adam" or "adamw".
        learning_rate: constant over training.
        weight_decay: as the optimizer takes it.
        gradient_clip: largest norm of the whole gradient; None leaves it alone.
        validation_fraction: part of the training series that only chooses the epoch; None trains on
            all of them, and keeps the epoch that is best on them.
        split: "random" draws that part, stratified by class, or whole groups; "time" takes the
            series that begin last, or the last ones where there are no times.
        max_length: time steps that the model has room for; None takes the longest series seen in
            fit and, where they are of unequal lengths, a quarter more. Series to predict may not be
            longer, unless pooling is "mean" and positions are "sinusoidal" (with padding "masked"
            and a mixer of any length, as "flow").
        missing: the handling of missing values (NaN): "interpolate", "mean" or "error".
        device: "auto" (a GPU when there is one), "cpu", "gpu" or "mps".
        threads: CPU threads of fit, after which torch has as many as before. None takes one for a
            model no wider than that of the preset "small", whose threads would wait for each other,
            and torch's own number for any other.
        verbose: say in fit what it was given, show how far it is and how long it will take, and say
            what it came to.
        random_state: int, `numpy.random.RandomState` or None, as everywhere in scikit-learn.

    Attributes:
        model_: the fitted model, on the CPU and in evaluation mode.
        preprocessing_: the preprocessing fitted on the training series.
        max_length_: time steps that the model has room for.
        best_epoch_: the epoch, counted from 1, whose weights were kept.
        columns_: the columns that series were read from, where they were; they are looked for in
            tables to predict.
        training_: the settings, the figures and the history of the training.
    """

    _tags = {  # noqa: RUF012  # aeon reads this class attribute
        "X_inner_type": ["numpy3D", "np-list"],
        "algorithm_type": "deeplearning",
        "capability:multivariate": True,
        "capability:unequal_length": True,
        "capability:missing_values": True,
    }
    # The attributes of fit beside the model and the preprocessing, all of them plain values.
    _fitted_values: ClassVar[tuple[str, ...]] = ("max_length_", "best_epoch_", "metadata_")
    _newer_values: ClassVar[tuple[str, ...]] = ("columns_", "training_")
    _metadata_key: ClassVar[str]

    def __init__(  # noqa: PLR0913  # scikit-learn reads the parameters off this signature
        self,
        *,
        preset: Literal["small", "paper"] = "small",
        mixer: str = "flow",
        mixer_options: dict[str, Any] | None = None,
        dim: int | None = None,
        num_heads: int | None = None,
        num_layers: int | None = None,
        kernel: int | None = None,
        feedforward: int | None = None,
        dropout: float | None = None,
        positions: Literal["learned", "sinusoidal"] | None = None,
        norm: Literal["post", "pre"] | None = None,
        pooling: Literal["flatten", "mean"] | None = None,
        padding: Literal["masked", "published"] = "masked",
        epochs: int | None = None,
        batch_size: int = 16,
        optimizer: OptimizerName = "radam",
        learning_rate: float | None = None,
        weight_decay: float = 0.0,
        gradient_clip: float | None = 4.0,
        validation_fraction: float | None = 0.2,
        split: Literal["random", "time"] = "random",
        max_length: int | None = None,
        missing: MissingPolicy = "interpolate",
        device: Accelerator = "auto",
        threads: int | None = None,
        verbose: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        """Store the parameters as they are; fit checks them, as scikit-learn has it."""
        self.preset = preset
        self.mixer = mixer
        self.mixer_options = mixer_options
        self.dim = dim
        self.num_heads = num_heads
        self.num_layers = num_layers
        self.kernel = kernel
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
        self.split = split
        self.max_length = max_length
        self.missing = missing
        self.device = device
        self.threads = threads
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
        state = {
            "params": {name: _plain(value) for name, value in self.get_params(deep=False).items()},
            "preprocessing": self.preprocessing_.to_dict(),
            **self._own_state(),
            **{name: getattr(self, name) for name in self._fitted_values + self._newer_values},
        }
        try:
            text = json.dumps(state, default=_as_json)
        except TypeError as error:
            raise ValueError(f"expected parameters and labels that JSON holds: {error}") from error
        write_atomically(Path(path), save(self.model_.state_dict(), {self._metadata_key: text}))

    @classmethod
    def load(cls: type[E], path: str | Path) -> E:
        """Read an estimator that `save` wrote. No code in it is run: it holds numbers and JSON.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a file that `save` wrote.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"no file {path}")
        try:
            with safe_open(path, framework="pt") as file:
                text = (file.metadata() or {}).get(cls._metadata_key)
                if text is None:
                    raise ValueError("safetensors without its settings")
                state = json.loads(text)
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return cls._restore(state, weights)
        # RuntimeError: load_state_dict's, for weights of another model.
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"{path}: expected a file that {cls.__name__}.save wrote, got {error!r}"
            ) from error

    def report(
        self, X: Any, y: Any = None, *, folder: str | Path = "report", num_series: int = 4
    ) -> Path:
        """Write the report that a run has: figures on labelled series, curves, flow maps.

        Args:
            X: series to test on, other than those of fit.
            y: their labels, or of a table the name of their column.
            folder: where to write index.html and its pictures.
            num_series: series of which to draw flow maps; there are none for a mixer other than
                flow.

        Returns:
            The page.

        Raises:
            FileExistsError: the folder holds something else than a report.
            NotFittedError: fit was not called.
            ValueError: labels are missing, or the estimator was saved by an older version.
        """
        self._check_is_fitted()
        if self.training_ is None:
            raise ValueError("expected the history of fit, got an estimator of an older version")
        folder = Path(folder)
        if folder.is_dir() and any(folder.iterdir()) and not (folder / "index.html").exists():
            raise FileExistsError(f"{folder} is not empty, and holds no report: choose another")
        read = self._read(X, y, fitted=True)
        if read is not None:
            X, y = list(read.series), self._labels(read, y)
        X = self._preprocess_collection(X, store_metadata=False)
        self._check_shape(X)
        series = as_series(X, name="X")
        split = SeriesSplit(series=series, labels=self._encoded(self._as_labels(y)), name="X")
        run = Trained(
            model=self.model_,
            record=from_plain(self._kind().record, self.training_["record"]),
            preprocessing=self.preprocessing_,
        )
        return self._write_report(folder, run, split, num_series)

    def score(self, X: Any, y: Any = None, *arguments: Any, **options: Any) -> float:
        """Return aeon's score on labelled series of any kind that fit takes."""
        read = self._read(X, y, fitted=True)
        if read is not None:
            X, y = list(read.series), self._labels(read, y)
        return super().score(X, y, *arguments, **options)  # pyright: ignore[reportAttributeAccessIssue] - of aeon's base beside this

    @classmethod
    @abstractmethod
    def _kind(cls) -> Any:
        """Return the kind of the run that fit trains."""

    @abstractmethod
    def _build(self, config: TimeSeriesModelConfig) -> nn.Module:
        """Build the model of a fitted estimator, with parameters of no matter."""

    @abstractmethod
    def _own_state(self) -> dict[str, Any]:
        """Return what a saved estimator has beside the common: plain values."""

    @abstractmethod
    def _take_state(self, state: Mapping[str, Any]) -> None:
        """Take what `_own_state` gave."""

    @abstractmethod
    def _encoded(self, y: np.ndarray) -> np.ndarray:
        """Return labels as a split has them."""

    @abstractmethod
    def _write_report(self, folder: Path, run: Trained, split: SeriesSplit, count: int) -> Path:
        """Write the report of series that were not fitted."""

    @classmethod
    def _restore(cls: type[E], state: dict[str, Any], weights: dict[str, torch.Tensor]) -> E:
        estimator = cls(**state["params"])
        estimator.preprocessing_ = Preprocessing.from_dict(state["preprocessing"])
        for name in cls._fitted_values:
            setattr(estimator, name, state[name])
        for name in cls._newer_values:
            setattr(estimator, name, state.get(name))
        estimator._take_state(state)
        with torch.device("meta"):  # there nothing is drawn
            model = estimator._build(cls._model_of(state))
        estimator.model_ = model.to_empty(device="cpu").eval()
        estimator.model_.load_state_dict(weights)
        estimator.is_fitted = True
        return estimator

    @classmethod
    def _model_of(cls, state: Mapping[str, Any]) -> TimeSeriesModelConfig:
        """Return the model of a saved estimator, whose preset may have been another than today's.

        Before there were presets, no training was saved, and every parameter had a value.
        """
        if (training := state.get("training_")) is not None:
            return from_plain(cls._kind().record, training["record"]).config.model
        params = state["params"]
        names = params.keys() & {field.name for field in fields(TimeSeriesModelConfig)}
        return from_plain(TimeSeriesModelConfig, {name: params[name] for name in names})

    def _fit_setup(self, X: Any, y: Any) -> tuple[Any, Any]:
        """Do as aeon does, after reading series from whatever holds them."""
        read = self._read(X, y, fitted=False)
        if read is not None:
            X, y = list(read.series), self._labels(read, y)
        X, y = super()._fit_setup(X, y)  # pyright: ignore[reportAttributeAccessIssue] - of aeon's base beside this
        self._given = read  # after aeon's reset, which would remove it
        return X, y

    def _read(self, X: Any, y: Any, *, fitted: bool) -> SeriesCollection | None:
        """Return series that are to be read, or were; None of arrays and of what is aeon's."""
        if isinstance(X, SeriesCollection):
            return X
        columns = getattr(self, "columns_", None) if fitted else None
        is_frame = hasattr(X, "iloc") and X.index.nlevels == 1
        is_ours = is_frame and (isinstance(y, str) or columns is not None)
        if not (isinstance(X, str | Path) or is_ours):
            return None
        own = SeriesColumns() if columns is None else from_plain(SeriesColumns, columns)
        if isinstance(y, str):
            own = replace(own, label=y)
        return read_series(X, own, optional=("label", "group") if fitted and y is None else ())

    def _labels(self, read: SeriesCollection, y: Any) -> Any:
        """Return the labels that came with series, where none are given."""
        if y is not None and not isinstance(y, str):
            return y
        if read.labels is None or None in read.labels:
            raise ValueError(
                f"{read.name}: expected a label for each series: give y, or of a table the name of "
                "its column"
            )
        return np.array(read.labels)

    def _preprocess_collection(self, X: Any, store_metadata: bool = True) -> Any:
        """Do as aeon does, after our look at arrays, which says what is expected in their place.

        Data frames with two levels of rows, or without columns of ours, are aeon's alone.
        """
        read = self._read(X, None, fitted=True)
        if read is not None:
            X = list(read.series)
        is_list = isinstance(X, list | tuple) and not any(hasattr(one, "iloc") for one in X)
        if is_list or isinstance(X, np.ndarray | torch.Tensor):
            X = _as_collection(X, fitted=store_metadata)
        return super()._preprocess_collection(X, store_metadata=store_metadata)

    def _check_y(self, y: Any, *args: Any, **kwargs: Any) -> Any:
        """aeon's own, which takes no lists."""
        return super()._check_y(self._as_labels(y), *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue] - of aeon's base beside this

    @staticmethod
    def _as_labels(y: Any) -> Any:
        return np.asarray(y) if isinstance(y, list | tuple) else y

    def _check_shape(self, X: Any) -> None:
        """Refuse other channels than in fit; any length is looked at in `_dataset`."""
        channels, (found, time) = len(self.preprocessing_.mean), as_series(X, name="X")[0].shape
        if found != channels:
            swapped = ": if they are [time, channels], turn them" * (time == channels)
            raise ValueError(
                f"X: expected series of {channels} channels, as in fit, got {found} channels and "
                f"{time} time steps{swapped}"
            )

    def _train(
        self,
        X: Any,
        labels: Int64[np.ndarray, " n"] | Float64[np.ndarray, " n"],
        classes: tuple[str, ...],
    ) -> Any:
        """Train a run in a folder of a moment, keep what it came to, and return its figures."""
        # Lightning takes seconds to import: a loaded estimator that only predicts is spared them.
        from flowformer.train.run import train

        given: SeriesCollection | None = self._given
        del self._given  # what was fitted is no part of a fitted estimator
        split = SeriesSplit(
            series=as_series(X, name="X"),
            labels=labels,
            name="X",
            places=None if given is None else given.places,
            groups=None if given is None else given.groups,
            spans=None if given is None else given.spans,
        )
        whole = self.validation_fraction is None
        data = TimeSeriesData(
            name="the series given to fit",
            train=split,
            # Under the published protocol the test set chooses the epoch: here the same series.
            test=split if whole else None,
            classes=classes,
            columns=None if given is None else given.columns,
        )
        config = self._config(data)
        if self.verbose:
            say(f"{type(self).__name__}: {replace(data, test=None).describe()}")
        with tempfile.TemporaryDirectory(prefix="flowformer-") as folder, own_randomness():
            run_dir = Path(folder) / "run"
            result = train(config, run_dir, data=data)
            run = self._kind().study.load(run_dir)
            history = read_history(RunFolder(run_dir))
        self.model_ = run.model
        self.preprocessing_ = run.preprocessing
        self.max_length_ = run.record.max_length
        self.best_epoch_ = result.best_epoch
        # An index is the file of a folder: that of another folder says nothing of it.
        self.columns_ = None if given is None else to_plain(replace(given.columns, index=None))
        self.training_ = {
            "record": to_plain(run.record),
            "result": to_plain(result),
            "history": {name: column.tolist() for name, column in history.items()},
        }
        if self.verbose:
            kept = f"epoch {result.best_epoch} of {result.epochs}, in {result.seconds:.0f} s"
            say(f"{type(self).__name__}: {result.in_words}, {kept}")
        return result

    def _note(self, run: Trained) -> str:
        """Say in a report what chose the epoch, and what it is tested on."""
        if self.validation_fraction is None:
            return "the series of fit chose the epoch; tested on the series given to report"
        chose = run.config.note_without_test.partition(";")[0]
        return f"{chose}; tested on the series given to report"

    @property
    def _history(self) -> dict[str, Float64[np.ndarray, " epochs"]]:
        return {name: np.array(values) for name, values in self.training_["history"].items()}

    def _dataset(self, X: Any) -> SeriesDataset:
        """Return series as the model reads them.

        Raises:
            ValueError: one is longer than it has room for.
        """
        series = as_series(X, name="X")
        longest, limit = max(one.shape[1] for one in series), self.model_.length_limit
        if limit is not None and longest > limit:
            name = type(self).__name__
            raise ValueError(
                f"expected series of at most {limit} time steps, got one of {longest}: fit "
                f"{name}(max_length={longest}, ...), or {name}("
                'pooling="mean", positions="sinusoidal", ...), which takes any length'
            )
        unknown = np.zeros(len(series), dtype=np.int64)
        return SeriesDataset(
            SeriesSplit(series=series, labels=unknown, name="X"), self.preprocessing_
        )

    def _model_on_device(self) -> nn.Module:
        device = choose_device(self.device)
        # The fitted model stays on the CPU, so that it can be pickled here and opened anywhere.
        return self.model_ if device.type == "cpu" else copy.deepcopy(self.model_).to(device)

    def _settings(self) -> dict[str, Any]:
        """Return the parameters, those of the preset where they are None, as Python's scalars."""
        preset = choose(self.preset, PRESETS, "preset")
        own = {name: _plain(value) for name, value in self.get_params(deep=False).items()}
        theirs = {
            **asdict(preset.model),
            **{name: getattr(getattr(preset, of), name) for name, of in _PRESET_TRAINING.items()},
        }
        left = {name for name, value in own.items() if value is None}
        return own | {name: theirs[name] for name in left & theirs.keys()}

    def _threads(self, settings: Mapping[str, Any]) -> int | None:
        """Return the threads of fit: those asked for, else one for a small model."""
        small = PRESETS["small"]
        wide = any(settings[of] > getattr(small.model, of) for of in ("dim", "feedforward"))
        given: int | None = settings["threads"]
        return small.training.threads if given is None and not wide else given

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
        data = replace(
            choose(self.preset, PRESETS, "preset").data,
            max_length=room,
            missing=settings["missing"],
            batch_size=settings["batch_size"],
            split=settings["split"],
        )
        fraction = settings["validation_fraction"]
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        return self._kind().config(
            name=type(self).__name__,
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
                threads=self._threads(settings),
                progress="bar" if settings["verbose"] else "none",
            ),
        )

    @classmethod
    def _get_test_params(cls, parameter_set: str = "default") -> dict[str, Any]:
        """Return settings for aeon's estimator checks: small, with room for the longest series."""
        del parameter_set
        return {
            "preset": "paper",
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
    """Return NumPy's scalars, as a parameter search sets them, as Python's."""
    return value.item() if isinstance(value, np.generic) else value


def _as_json(value: Any) -> Any:
    plain = _plain(value)
    if plain is value:
        raise TypeError(f"{value!r} of type {type(value).__name__}")
    return plain
