"""The data of a run on series: loaded, told apart, parted and preprocessed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from torch.utils.data import DataLoader

from flowformer.data import (
    Preprocessing,
    SeriesDataset,
    TimeSeriesData,
    collate,
    load_ts_files,
    load_uea,
    require_classes,
    require_complete,
    stratified_split,
)
from flowformer.models.series.model import SeriesClassifier
from flowformer.train.digests import Digests, digest_values
from flowformer.train.prediction import classify
from flowformer.train.series.config import SeriesConfig, SeriesDataConfig


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The series that the loop trains and validates on.

    Attributes:
        train: series that the parameters learn from; what preprocessing was fitted on.
        validation: series that choose the epoch.
        preprocessing: fitted on `train` alone.
        max_length: time steps that the model has room for.
    """

    train: SeriesDataset
    validation: SeriesDataset
    preprocessing: Preprocessing
    max_length: int


def load_data(config: SeriesDataConfig) -> TimeSeriesData:
    """Load the series that a configuration names.

    Raises:
        ValueError: it names none, or they are not what was expected.
        FileNotFoundError: a file is missing.
    """
    config.require_source()
    if config.train_file is not None:
        return load_ts_files(config.train_file, config.test_file)
    assert config.dataset is not None
    return load_uea(config.dataset, folder=config.folder)


def load_again(config: SeriesDataConfig, run_dir: str | Path, *, instead: str) -> TimeSeriesData:
    """Load the series that a run was trained on.

    Args:
        config: the data of the run.
        run_dir: folder of the run.
        instead: what to do where the series were given in Python.

    Raises:
        ValueError: they were, so that only the caller of `train` has them.
        FileNotFoundError: a file is missing.
    """
    if not config.has_source:
        raise ValueError(f"{run_dir} was trained on series given in Python: {instead}")
    return load_data(config)


def digest_data(config: SeriesConfig, data: TimeSeriesData | None = None) -> Digests:
    """Return digests of the training and the test series, their labels and classes."""
    if data is None:
        data = load_data(config.data)
    own = config.data
    names = {part: f"{data.name}, {part} series" for part in ("train", "test")}
    if own.train_file is not None:
        names |= {"train": str(own.train_file), "test": str(own.test_file)}
    elif own.dataset is not None:
        folder = "" if own.folder is None else f" in {own.folder}"
        names = {part: f"{data.name}_{part.upper()}.ts{folder}" for part in names}
    splits = {"train": data.train, "test": data.test}
    return {
        names[part]: digest_values([data.classes, split.labels, *split.series])
        for part, split in splits.items()
        if split is not None
    }


def prepare(config: SeriesConfig, data: TimeSeriesData) -> Prepared:
    """Part the training set as the protocol says, fit the preprocessing and apply it.

    Under "clean" the validation part is cut from the training set, and nothing of the test set is
    read but its lengths and whether values are missing, which would otherwise end the run after
    all its epochs. Under "published" the test set is the validation part.

    Raises:
        ValueError: series of one class only, "published" without a test set, series longer than
            `max_length`, missing values where they are refused, or too few series of a class.
    """
    require_classes(data.train.labels, data.classes, name=f"{data.name}, {data.train.name}")
    if config.training.protocol == "published":
        if data.test is None:
            raise ValueError("the published protocol needs a test set, and there is none")
        train, validation = data.train, data.test
    else:
        train, validation = stratified_split(
            data.train,
            config.data.validation_fraction,
            config.training.seed,
            classes=data.classes,
        )
    max_length = config.data.max_length or data.max_length
    if max_length < data.max_length:
        raise ValueError(
            f"data.max_length must be at least {data.max_length}, the longest series of "
            f"{data.name}, got {max_length}"
        )
    if config.data.missing == "error" and data.test is not None:
        require_complete(data.test)
    preprocessing = Preprocessing.fit(train, missing=config.data.missing)
    return Prepared(
        train=SeriesDataset(train, preprocessing),
        validation=SeriesDataset(validation, preprocessing),
        preprocessing=preprocessing,
        max_length=max_length,
    )


def predict_probabilities(
    model: SeriesClassifier, series: SeriesDataset, *, batch_size: int
) -> Float64[np.ndarray, "n classes"]:
    """Return the probability of each class for each series, as `classify` does."""
    # A loader draws a number, though nothing here is random: not from the global generator, which
    # belongs to whoever trains in another thread.
    generator = torch.Generator()
    return classify(model, DataLoader(series, batch_size, collate_fn=collate, generator=generator))
