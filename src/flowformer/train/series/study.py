"""Time-series classification: the parts of a run, and the use of a finished one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from flowformer.data import (
    SeriesDataset,
    SeriesSplit,
    TimeSeriesData,
    encode_labels,
    labels_of,
)
from flowformer.data.series.collection import known_classes_of
from flowformer.models.series.model import SeriesClassifier, build_classifier
from flowformer.report.figures import SeriesFlowMap
from flowformer.train.classification import (
    Classifier,
    Tested,
    report_classifier,
)
from flowformer.train.folder import RunFolder
from flowformer.train.prediction import format_predictions
from flowformer.train.series.base import (
    SeriesStudy,
    choose_series,
    draw_flow_maps,
    read_for,
    require_room,
)
from flowformer.train.series.config import SeriesConfig, SeriesRecord
from flowformer.train.series.data import predict_probabilities
from flowformer.train.study import Trained

if TYPE_CHECKING:  # it needs Lightning, and a finished run does not
    from flowformer.train.loop.task import RecordedTask


class Series(SeriesStudy, Classifier):
    """Time-series classification."""

    unit = "series"

    def __init__(
        self,
        config: SeriesConfig,
        *,
        data: TimeSeriesData | None = None,
        begun: RunFolder | None = None,
    ) -> None:
        super().__init__(config, data=data, begun=begun)
        self.classes = self.data.classes

    @classmethod
    def _model(cls, record: SeriesRecord) -> SeriesClassifier:
        return build_classifier(
            record.config.model,
            channels=record.channels,
            num_classes=len(record.classes),
            max_length=record.max_length,
        )

    def describe(self) -> str:
        """Return what the series are, and how many there are in each part."""
        return f"{self.data.name}: {self.data.describe()}\n{super().describe()}"

    def task(self, model: nn.Module) -> "RecordedTask":
        """Return the classification, at a constant learning rate."""
        from flowformer.train.loop.classification import ClassificationTask
        from flowformer.train.loop.optimizers import build_constant

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
    def retest(cls, run: Trained, run_dir: str | Path, file: Path | None) -> tuple[str, Tested]:
        """Test a finished run again, on its own test set or on a labelled file."""
        if file is not None:
            read = read_for(run, file)
            labels = encode_labels(map(str, labels_of(read)), run.classes, name=str(file))
            split, source = read.split(str(file), labels), str(file)
        else:
            remedy = "give a labelled .ts file to test on"
            data = cls.load_test(run, run_dir, instead=remedy)
            if data.test is None:
                raise ValueError(
                    f"{run_dir} was trained without a test set: give a labelled file (--file)"
                )
            split, source = data.test, f"the test set of {data.name}"
        return source, Tested(probabilities=_probabilities(run, split), labels=split.labels)

    @classmethod
    def predict(cls, run_dir: str | Path, *files: Path) -> str:
        """Classify the series of a file, labelled or not."""
        (file,) = files
        run = cls.load(run_dir)
        read = read_for(run, file)
        split = read.split(str(file), np.zeros(len(read), dtype=np.int64))
        known = known_classes_of(read, run.classes)
        return format_predictions(_probabilities(run, split), run.classes, known, ids=read.ids)

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
        maps = cls.report_maps(cls.load(run_dir), run_dir, data, num_series)
        return report_classifier(run_dir, flow_maps=maps)

    @classmethod
    def flow_maps(cls, run: Trained, split: SeriesSplit, count: int) -> list[SeriesFlowMap]:
        """Return flow maps of a few series of a split: mistakes first, then of every class."""
        series, size = require_room(run, split), run.config.data.batch_size
        predicted = predict_probabilities(run.model, series, batch_size=size).argmax(axis=1)

        def words(index: int) -> tuple[str, str]:
            return run.classes[split.labels[index]], run.classes[predicted[index]]

        chosen = choose_series(split.labels, predicted, count)
        return draw_flow_maps(run.model, split, run.preprocessing, chosen, words)


def _probabilities(run: Any, split: SeriesSplit) -> np.ndarray:
    series, size = require_room(run, split), run.config.data.batch_size
    return predict_probabilities(run.to_device(), series, batch_size=size)
