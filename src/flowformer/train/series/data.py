"""The data of a run on series: loaded, told apart, parted and preprocessed."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import nn
from torch.utils.data import DataLoader

from flowformer.data import (
    Preprocessing,
    SeriesDataset,
    SeriesSplit,
    TimeSeriesData,
    collate,
    hold_out,
    load_series,
    load_uea,
    part,
    require_classes,
    require_complete,
)
from flowformer.data.series.uea import find_uea
from flowformer.train.digests import Digests, digest_values
from flowformer.train.prediction import classify, regress
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


def load_data(config: SeriesDataConfig, *, regression: bool = False) -> TimeSeriesData:
    """Load the series that a configuration names.

    Args:
        config: the data of the run.
        regression: whether labels are numbers to predict.

    Raises:
        ValueError: it names none, or they are not what was expected.
        FileNotFoundError: a file is missing.
    """
    config.require_source()
    if config.train_file is not None:
        files = (config.train_file, config.test_file)
        data = load_series(*files, config.columns, regression=regression)
        if config.split == "time" and data.train.spans is None and config.train_file.is_dir():
            raise ValueError(
                f"{config.train_file}: expected a column of times in its tables (data.time) to "
                "take the last in time, as the order of files is none in time, got none"
            )
        if config.test_fraction is None:
            return data
        return hold_out(data, config.test_fraction, in_time=config.split == "time")
    assert config.dataset is not None
    return load_uea(config.dataset, folder=config.folder, regression=regression)


def load_again(
    config: SeriesDataConfig, run_dir: str | Path, *, instead: str, regression: bool = False
) -> TimeSeriesData:
    """Load the series that a run was trained on.

    Args:
        config: the data of the run.
        run_dir: folder of the run.
        instead: what to do where the series were given in Python.
        regression: whether labels are numbers to predict.

    Raises:
        ValueError: they were, so that only the caller of `train` has them.
        FileNotFoundError: a file is missing.
    """
    if not config.has_source:
        raise ValueError(f"{run_dir} was trained on series given in Python: {instead}")
    return load_data(config, regression=regression)


def understand(config: SeriesConfig) -> tuple[SeriesConfig, str]:
    """Read the data of an experiment, for what is in them to be told before anything is trained.

    Args:
        config: an experiment that names its data.

    Returns:
        The experiment with the columns that were found, and what the data are, in a line.

    Raises:
        ValueError: the data are not what was expected.
        FileNotFoundError: a file is missing.
    """
    data = load_data(config.data, regression=config.regression)
    if data.columns is not None:
        config = replace(config, data=config.data.with_columns(data.columns))
    return config, f"{data.name}: {data.describe()}"


def digest_data(config: SeriesConfig, data: TimeSeriesData | None = None) -> Digests:
    """Return digests of the training and the test series, their labels, classes and groups."""
    if data is None:
        data = load_data(config.data, regression=config.regression)
    own = config.data
    names = {part: f"{data.name}, {part} series" for part in ("train", "test")}
    if own.train_file is not None:
        test = own.test_file or f"{own.train_file}, the part to test on"
        names |= {"train": str(own.train_file), "test": str(test)}
    elif own.dataset is not None:
        found = find_uea(own.dataset, folder=own.folder)
        folder = f" in {own.folder}" if found and own.folder in found[0].parents else ""
        names = {part: f"{data.name}_{part.upper()}.ts{folder}" for part in names}
    splits = {"train": data.train, "test": data.test}
    return {
        names[name]: digest_values([data.classes, split.labels, *split.series, *_grouping(split)])
        for name, split in splits.items()
        if split is not None
    }


def _grouping(split: SeriesSplit) -> list[Any]:
    """Return what the parts of a split depend on beside its labels."""
    return [value for value in (split.groups, split.spans) if value is not None]


def prepare(config: SeriesConfig, data: TimeSeriesData) -> Prepared:
    """Part the training set as the protocol says, fit the preprocessing and apply it.

    Under "clean" the validation part is cut from the training set, and nothing of the test set is
    read but its lengths and whether values are missing, which would otherwise end the run after
    all its epochs. Under "published" the test set is the validation part. Labels of data without
    classes are numbers to predict.

    Raises:
        ValueError: series of one class only, "published" without a test set, series longer than
            `max_length`, missing values where they are refused, or too few series of a class.
    """
    if data.classes:
        require_classes(data.train.labels, data.classes, name=f"{data.name}, {data.train.name}")
    if config.training.protocol == "published":
        if data.test is None:
            raise ValueError("the published protocol needs a test set, and there is none")
        train, validation = data.train, data.test
    else:
        train, validation = part(
            data.train,
            config.data.validation_fraction,
            config.training.seed,
            classes=data.classes,
            in_time=config.data.split == "time",
        )
    max_length = config.data.max_length or data.max_length
    if max_length < data.max_length:
        raise ValueError(
            f"data.max_length must be at least {data.max_length}, the longest series of "
            f"{data.name}, got {max_length}"
        )
    if config.data.missing == "error" and data.test is not None:
        require_complete(data.test)
    preprocessing = Preprocessing.fit(
        train, missing=config.data.missing, regression=not data.classes
    )
    return Prepared(
        train=SeriesDataset(train, preprocessing),
        validation=SeriesDataset(validation, preprocessing),
        preprocessing=preprocessing,
        max_length=max_length,
    )


def predict_probabilities(
    model: nn.Module, series: SeriesDataset, *, batch_size: int
) -> Float64[np.ndarray, "n classes"]:
    """Return the probability of each class for each series, as `classify` does."""
    return classify(model, _batches(series, batch_size))


def predict_numbers(
    model: nn.Module, series: SeriesDataset, preprocessing: Preprocessing, *, batch_size: int
) -> Float64[np.ndarray, " n"]:
    """Return the number predicted for each series, in the scale of the training data."""
    return preprocessing.unscale(regress(model, _batches(series, batch_size)))


def _batches(series: SeriesDataset, batch_size: int) -> DataLoader:
    # A loader draws a number, though nothing here is random: not from the global generator, which
    # belongs to whoever trains in another thread.
    generator = torch.Generator()
    return DataLoader(series, batch_size, collate_fn=collate, generator=generator)
