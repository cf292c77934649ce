"""What the studies of series share, whether they tell classes or predict numbers."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn
from torch.utils.data import DataLoader

from flowformer.config_json import from_plain
from flowformer.data import (
    EpochSampler,
    Preprocessing,
    SeriesCollection,
    SeriesDataset,
    SeriesSplit,
    TimeSeriesData,
    collate,
    read_series,
)
from flowformer.models.series.model import TimeSeriesClassifier
from flowformer.report.figures import SeriesFlowMap
from flowformer.train.classification import sizes_of, tell_sizes
from flowformer.train.folder import RunFolder, read_json, read_versions, write_json
from flowformer.train.kinds import KINDS
from flowformer.train.prediction import load_weights
from flowformer.train.series.config import OPTIONAL, SeriesConfig
from flowformer.train.series.data import load_again, load_data, prepare
from flowformer.train.study import Study, Trained


class SeriesStudy(Study):
    """A study of series: their data, batches and files, and the flow maps of its report.

    Attributes:
        prepared: what the loop trains and validates on.
    """

    reads = "FILE"
    reads_folders = True
    labelled = "LABELLED"

    def __init__(
        self,
        config: SeriesConfig,
        *,
        data: TimeSeriesData | None = None,
        begun: RunFolder | None = None,
    ) -> None:
        if data is not None:
            own = config.data.without_source()
            group = (own.group or "groups") if data.train.groups is not None else None
            config = replace(config, data=replace(own, group=group))
        elif begun is not None:
            remedy = "give them again (data=...) to go on"
            own = {"instead": remedy, "regression": config.regression}
            data = load_again(config.data, begun.root, **own)
        else:
            data = load_data(config.data, regression=config.regression)
        if data.columns is not None:  # the record says which were found
            config = replace(config, data=config.data.with_columns(data.columns))
        self.config, self.data, self.classes = config, data, data.classes
        self.prepared = prepare(config, data)
        self.record = self._record()

    def _record(self) -> Any:
        """Return what config.json holds."""
        kind: Any = KINDS[type(self).__name__.lower()].record
        return kind(
            recipe=self.config.name,
            config=self.config,
            versions=read_versions(),
            channels=self.data.channels,
            max_length=self.prepared.max_length,
            sizes=sizes_of(self.prepared.train, self.prepared.validation, self.data.test),
            classes=self.data.classes,
        )

    @classmethod
    @abstractmethod
    def _model(cls, record: Any) -> nn.Module:
        """Build the model of a run, with new parameters."""

    @classmethod
    @abstractmethod
    def _labels(cls, run: Trained, read: SeriesCollection) -> np.ndarray:
        """Return the labels of series, as those of the run are."""

    @classmethod
    @abstractmethod
    def _predicted(cls, run: Trained, series: SeriesDataset) -> np.ndarray:
        """Return what the model of a run says of series, where the model is."""

    @classmethod
    @abstractmethod
    def _table(cls, run: Trained, read: SeriesCollection, predicted: np.ndarray) -> str:
        """Return what `_predicted` gave as CSV, beside what is known of the series."""

    @classmethod
    @abstractmethod
    def _page(cls, folder: RunFolder, run: Trained, flow_maps: list[SeriesFlowMap]) -> Path:
        """Write the page of a finished run."""

    def describe(self) -> str:
        """Return what the series are, and how many there are in each part."""
        counted = tell_sizes(self.config, self.record.sizes, "series")
        return f"{self.data.name}: {self.data.describe()}\n{counted}"

    def loaders(self) -> tuple[DataLoader, DataLoader]:
        """Return the batches of an epoch, and those that choose it."""
        own, size = self.prepared, self.config.data.batch_size
        passes = math.ceil(self.config.data.least_steps / math.ceil(len(own.train) / size))
        order = EpochSampler(len(own.train), self.config.training.seed, passes=passes)
        return (
            DataLoader(own.train, size, sampler=order, collate_fn=collate),
            DataLoader(own.validation, size, collate_fn=collate),
        )

    def build(self) -> Any:
        """Build the model, with new parameters."""
        return self._model(self.record)

    def write(self, folder: RunFolder) -> None:
        """Write the preprocessing."""
        write_json(folder.preprocessing, self.prepared.preprocessing.to_dict())

    @classmethod
    def load(cls, run_dir: str | Path) -> Trained:
        """Read back what training left in a folder; no code in it runs."""
        folder = RunFolder(Path(run_dir))
        record = KINDS[cls.__name__.lower()].record.read(folder)
        path = folder.preprocessing
        return Trained(
            model=load_weights(cls._model(record), folder).eval(),
            record=record,
            preprocessing=from_plain(Preprocessing, read_json(path), where=str(path)),
        )

    @classmethod
    def predict(cls, run_dir: str | Path, *files: Path) -> str:
        """Predict the classes or the numbers of the series of a file, labelled or not."""
        (file,) = files
        run = cls.load(run_dir)
        read = read_for(run, file)
        split = read.split(str(file), np.zeros(len(read)))
        run.to_device()
        return cls._table(run, read, cls.predicted(run, split))

    @classmethod
    def predicted(cls, run: Trained, split: SeriesSplit) -> np.ndarray:
        """Return probabilities of classes, or numbers, for the series of a split.

        Args:
            run: the run; its model computes where it is.
            split: the series.

        Raises:
            ValueError: one is longer than the model has room for.
        """
        return cls._predicted(run, require_room(run, split))

    @classmethod
    def labelled_series(
        cls, run: Trained, run_dir: str | Path, file: Path | None
    ) -> tuple[str, SeriesSplit]:
        """Return what a run is tested on again, and what that is called.

        Args:
            run: the run.
            run_dir: its folder.
            file: labelled series; None for the run's own test set.

        Raises:
            ValueError: there is no test set, or the file is not what was expected.
        """
        if file is not None:
            read = read_for(run, file)
            return str(file), read.split(str(file), cls._labels(run, read))
        data = cls.load_test(run, run_dir, instead="give a labelled file to test on (--file)")
        if data.test is None:
            raise ValueError(
                f"{run_dir} was trained without a test set: give a labelled file (--file)"
            )
        return f"the test set of {data.name}", data.test

    @classmethod
    def load_test(cls, run: Trained, run_dir: str | Path, *, instead: str) -> TimeSeriesData:
        """Load the series that a run was trained on, once more.

        Args:
            run: the run.
            run_dir: its folder.
            instead: what to do where the series were given in Python.

        Raises:
            ValueError: they were.
        """
        own = {"instead": instead, "regression": run.config.regression}
        return load_again(run.config.data, run_dir, **own)

    @classmethod
    def report(
        cls, run_dir: str | Path, *, num_series: int = 4, data: TimeSeriesData | None = None
    ) -> Path:
        """Write the page of a finished run, with flow maps of a few test series.

        Args:
            run_dir: folder of the run.
            num_series: test series of which to draw flow maps; there are none for a mixer other
                than flow.
            data: the series, where they were given to `train`.
        """
        run = cls.load(run_dir)
        maps = cls._report_maps(run, run_dir, data, num_series)
        return cls._page(RunFolder(Path(run_dir)), run, maps)

    @classmethod
    def _report_maps(
        cls, run: Trained, run_dir: str | Path, data: TimeSeriesData | None, count: int
    ) -> list[SeriesFlowMap]:
        if count < 1 or flow_encoder(run.model) is None:
            return []
        if data is None:
            remedy = "give them here too (data=...), or draw no flow maps (--num-series 0)"
            data = cls.load_test(run, run_dir, instead=remedy)
        return [] if data.test is None else cls.flow_maps(run, data.test, count)

    @classmethod
    @abstractmethod
    def flow_maps(cls, run: Trained, split: SeriesSplit, count: int) -> list[SeriesFlowMap]:
        """Return flow maps of a few series of a split.

        Args:
            run: the run.
            split: labelled series.
            count: the number of maps.
        """


def read_for(run: Trained, file: Path) -> SeriesCollection:
    """Read series for a run to predict, in the columns of its training data.

    Args:
        run: the run.
        file: what `flowformer.data.read_series` reads; a table may lack label and group.
    """
    return read_series(file, run.config.data.columns_for(file), optional=OPTIONAL)


def require_room(run: Trained, split: SeriesSplit) -> SeriesDataset:
    """Return the series as the run's model reads them.

    Args:
        run: the run.
        split: the series.

    Raises:
        ValueError: one is longer than the model has room for.
    """
    limit = run.model.length_limit
    for index, length in enumerate(split.lengths):
        if limit is not None and length > limit:
            raise ValueError(
                f"{split.place(index)}: expected at most {limit} time steps, for which "
                f"the run has room, got {length}: shorten it, or train a run with "
                f"data.max_length {length}"
            )
    return SeriesDataset(split, run.preprocessing)


def flow_encoder(model: nn.Module) -> TimeSeriesClassifier | None:
    """Return the part of a model that has flow maps; None where it has none."""
    encoder = getattr(model, "encoder", model)
    if isinstance(encoder, TimeSeriesClassifier) and encoder.config.mixer == "flow":
        return encoder
    return None


def draw_flow_maps(
    model: nn.Module,
    split: SeriesSplit,
    preprocessing: Preprocessing,
    chosen: Sequence[int],
    words: Callable[[int], tuple[str, str]],
    *,
    numbers: bool = False,
) -> list[SeriesFlowMap]:
    """Return flow maps of chosen series.

    Args:
        model: a model with flow maps.
        split: the series.
        preprocessing: that of the model.
        chosen: indices of the series.
        words: gives label and prediction of a series in words.
        numbers: whether these are numbers, of which none is right or wrong.
    """
    encoder = flow_encoder(model)
    assert encoder is not None
    maps = []
    for index in chosen:
        series = torch.from_numpy(preprocessing.apply(split.series[index], name=split.place(index)))
        # One by one, without padding: what is drawn is this series and nothing else.
        layers = encoder.flow_maps(series[None])
        competition = [layer.source_competition[0, : len(series)] for layer in layers]
        allocation = [layer.sink_allocation[0, : len(series)] for layer in layers]
        label, predicted = words(index)
        maps.append(
            SeriesFlowMap(
                series=split.series[index].T,
                label=label,
                predicted=predicted,
                source_competition=torch.stack(competition).numpy(),
                sink_allocation=torch.stack(allocation).numpy(),
                index=index,
                numbers=numbers,
            )
        )
    return maps


def choose_series(
    labels: Int64[np.ndarray, " n"], predicted: Int64[np.ndarray, " n"], count: int
) -> list[int]:
    """Return the first mistake, if any, the first of further classes, then whichever follow."""
    mistakes = np.flatnonzero(labels != predicted)[:1].tolist()
    firsts = np.unique(labels, return_index=True)[1].tolist()
    chosen = mistakes + [i for i in firsts if not mistakes or labels[i] != labels[mistakes[0]]]
    chosen += [index for index in range(len(labels)) if index not in chosen]
    return chosen[:count]
