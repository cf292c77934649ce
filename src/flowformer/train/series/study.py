"""Time-series classification: the parts of a run, and the use of a finished one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from torch import nn
from torch.utils.data import DataLoader

from flowformer.config_json import from_plain
from flowformer.data import (
    EpochSampler,
    Preprocessing,
    SeriesDataset,
    SeriesSplit,
    TimeSeriesData,
    collate,
    encode_labels,
    labels_of,
    read_ts,
)
from flowformer.models.series.model import SeriesClassifier, TimeSeriesClassifier, build_classifier
from flowformer.report.figures import SeriesFlowMap
from flowformer.train.classification import (
    ClassificationTask,
    Classifier,
    Tested,
    report_classifier,
    sizes_of,
)
from flowformer.train.folder import RunFolder, read_json, read_versions, write_json
from flowformer.train.loop.task import build_constant
from flowformer.train.prediction import format_predictions, load_weights
from flowformer.train.series.config import SeriesConfig, SeriesRecord
from flowformer.train.series.data import load_again, load_data, predict_probabilities, prepare
from flowformer.train.study import Trained


class Series(Classifier):
    """Time-series classification."""

    reads = "FILE.ts"
    labelled = "LABELLED.ts"
    unit = "series"

    def __init__(
        self,
        config: SeriesConfig,
        *,
        data: TimeSeriesData | None = None,
        begun: RunFolder | None = None,
    ) -> None:
        if data is not None:
            config = replace(config, data=config.data.without_source())
        elif begun is not None:
            remedy = "give them again (data=...) to go on"
            data = load_again(config.data, begun.root, instead=remedy)
        else:
            data = load_data(config.data)
        self.config, self.data, self.classes = config, data, data.classes
        self.prepared = prepare(config, data)
        self.record = SeriesRecord(
            recipe=config.name,
            config=config,
            versions=read_versions(),
            classes=data.classes,
            channels=data.channels,
            max_length=self.prepared.max_length,
            sizes=sizes_of(self.prepared.train, self.prepared.validation, data.test),
        )

    def loaders(self) -> tuple[DataLoader, DataLoader]:
        """Return the batches of an epoch, and those that choose it."""
        own, size = self.prepared, self.config.data.batch_size
        order = EpochSampler(len(own.train), self.config.training.seed)
        return (
            DataLoader(own.train, size, sampler=order, collate_fn=collate),
            DataLoader(own.validation, size, collate_fn=collate),
        )

    def build(self) -> SeriesClassifier:
        """Build the classifier, with new parameters."""
        return build_model(self.record)

    def write(self, folder: RunFolder) -> None:
        """Write the preprocessing."""
        write_json(folder.preprocessing, self.prepared.preprocessing.to_dict())

    def task(self, model: nn.Module) -> ClassificationTask:
        """Return the classification, at a constant learning rate."""
        return ClassificationTask(
            model,
            lambda model: build_constant(model.parameters(), self.config.optimizer),
            seed=self.config.training.seed,
        )

    def predict_test(self, model: SeriesClassifier) -> Tested | None:
        """Return the predictions for the test set, if there is one."""
        if self.data.test is None:
            return None
        test = SeriesDataset(self.data.test, self.prepared.preprocessing)
        size = self.config.data.batch_size
        probabilities = predict_probabilities(model, test, batch_size=size)
        return Tested(probabilities=probabilities, labels=self.data.test.labels)

    @classmethod
    def load(cls, run_dir: str | Path) -> Trained:
        """Read back what training left in a folder; no code in it runs."""
        folder = RunFolder(Path(run_dir))
        record = SeriesRecord.read(folder)
        path = folder.preprocessing
        return Trained(
            model=load_weights(build_model(record), folder).eval(),
            record=record,
            preprocessing=from_plain(Preprocessing, read_json(path), where=str(path)),
        )

    @classmethod
    def retest(cls, run: Trained, run_dir: str | Path, file: Path | None) -> tuple[str, Tested]:
        """Test a finished run again, on its own test set or on a labelled `.ts` file."""
        if file is not None:
            split, source = _read_labelled(file, run), str(file)
        else:
            remedy = "give a labelled .ts file to test on"
            data = load_again(run.record.config.data, run_dir, instead=remedy)
            if data.test is None:
                raise ValueError(
                    f"{run_dir} was trained without a test set: give a labelled file (--file)"
                )
            split, source = data.test, f"the test set of {data.name}"
        return source, Tested(probabilities=_probabilities(run, split), labels=split.labels)

    @classmethod
    def predict(cls, run_dir: str | Path, *files: Path) -> str:
        """Classify the series of a `.ts` file, labelled or not."""
        (file,) = files
        run = cls.load(run_dir)
        read = read_ts(file)
        labels = None
        if read.labels is not None:
            labels = np.full(len(read.series), -1)
            known = [place for place, label in enumerate(read.labels) if label is not None]
            given = [read.labels[place] for place in known]
            labels[known] = encode_labels(given, run.classes, name=str(file))
        unknown = np.zeros(len(read.series), dtype=np.int64)
        split = SeriesSplit(series=read.series, labels=unknown, name=str(file))
        return format_predictions(_probabilities(run, split), run.classes, labels)

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
        maps: list[SeriesFlowMap] = []
        is_flow = isinstance(run.model, TimeSeriesClassifier) and run.config.model.mixer == "flow"
        if is_flow and num_series > 0:
            if data is None:
                remedy = "give them here too (data=...), or draw no flow maps (--num-series 0)"
                data = load_again(run.config.data, run_dir, instead=remedy)
            maps = _flow_maps(run, data, num_series)
        return report_classifier(run_dir, flow_maps=maps)


def build_model(record: SeriesRecord) -> SeriesClassifier:
    """Build the classifier of a run, with new parameters."""
    return build_classifier(
        record.config.model,
        channels=record.channels,
        num_classes=len(record.classes),
        max_length=record.max_length,
    )


def _read_labelled(file: Path, run: Trained) -> SeriesSplit:
    read = read_ts(file)
    if read.labels is None:
        raise ValueError(f"{file} has no labels to test against: flowformer predict needs none")
    labels = encode_labels(labels_of(read), run.classes, name=str(file))
    return SeriesSplit(series=read.series, labels=labels, name=str(file))


def _probabilities(run: Trained, split: SeriesSplit) -> np.ndarray:
    limit = run.model.length_limit
    for index, length in enumerate(split.lengths):
        if limit is not None and length > limit:
            raise ValueError(
                f"{split.place(index)}: expected at most {limit} time steps, for which "
                f"the run has room, got {length}: shorten it, or train a run with "
                f"data.max_length {length}"
            )
    series, size = SeriesDataset(split, run.preprocessing), run.config.data.batch_size
    return predict_probabilities(run.to_device(), series, batch_size=size)


def _flow_maps(run: Trained, data: TimeSeriesData, count: int) -> list[SeriesFlowMap]:
    assert isinstance(run.model, TimeSeriesClassifier)
    if data.test is None:
        return []
    test = SeriesDataset(data.test, run.preprocessing)
    predicted = predict_probabilities(run.model, test, batch_size=run.config.data.batch_size)
    predicted = predicted.argmax(axis=1)
    maps = []
    for index in choose_series(data.test.labels, predicted, count):
        series = test.series[index]
        # One by one, without padding: what is drawn is this series and nothing else.
        layers = run.model.flow_maps(series[None])
        competition = [layer.source_competition[0, : len(series)] for layer in layers]
        allocation = [layer.sink_allocation[0, : len(series)] for layer in layers]
        maps.append(
            SeriesFlowMap(
                series=data.test.series[index].T,
                label=run.classes[data.test.labels[index]],
                predicted=run.classes[predicted[index]],
                source_competition=torch.stack(competition).numpy(),
                sink_allocation=torch.stack(allocation).numpy(),
                index=index,
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
