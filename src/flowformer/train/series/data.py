"""From a configuration to what the loop needs: parted and preprocessed series."""

from dataclasses import dataclass
from pathlib import Path

from flowformer.data import (
    Preprocessing,
    SeriesDataset,
    TimeSeriesData,
    load_ts_files,
    load_uea,
    require_classes,
    require_complete,
    stratified_split,
)
from flowformer.train.config import TimeSeriesConfig, TimeSeriesDataConfig


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the loop trains and validates on.

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


def load_data(config: TimeSeriesDataConfig) -> TimeSeriesData:
    """Loads the series that a configuration names.

    Raises:
        ValueError: it names none, or they are not what was expected.
        FileNotFoundError: a file is missing.
    """
    if config.train_file is not None:
        return load_ts_files(config.train_file, config.test_file)
    if config.dataset is None:
        raise ValueError("no series to train on: give data.train_file (a .ts file) or data.dataset")
    return load_uea(config.dataset, folder=config.folder)


def load_again(
    config: TimeSeriesDataConfig, run_dir: str | Path, *, instead: str
) -> TimeSeriesData:
    """Loads the series that a run was trained on.

    Args:
        config: of the run.
        run_dir: folder of the run.
        instead: what to do where the series were given in Python.

    Raises:
        ValueError: they were, so that only the caller of `train` has them.
        FileNotFoundError: a file is missing.
    """
    if not config.has_source:
        raise ValueError(f"{run_dir} was trained on series given in Python: {instead}")
    return load_data(config)


def prepare(config: TimeSeriesConfig, data: TimeSeriesData) -> Prepared:
    """Parts the training set as the protocol says, fits the preprocessing and applies it.

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
