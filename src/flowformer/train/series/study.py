"""Time-series classification: the parts of a run, and the use of a finished one."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from flowformer.data import (
    SeriesCollection,
    SeriesDataset,
    SeriesSplit,
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
)
from flowformer.train.series.config import SeriesRecord
from flowformer.train.series.data import predict_probabilities
from flowformer.train.study import Trained

if TYPE_CHECKING:  # it needs Lightning, and a finished run does not
    from flowformer.train.loop.task import RecordedTask


class Series(SeriesStudy, Classifier):
    """Time-series classification."""

    unit = "series"

    @classmethod
    def _model(cls, record: SeriesRecord) -> SeriesClassifier:
        return build_classifier(
            record.config.model,
            channels=record.channels,
            num_classes=len(record.classes),
            max_length=record.max_length,
        )

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
        run = Trained(model=model, record=self.record, preprocessing=self.prepared.preprocessing)
        probabilities = self.predicted(run, self.data.test)
        return Tested(probabilities=probabilities, labels=self.data.test.labels)

    @classmethod
    def retest(cls, run: Trained, run_dir: str | Path, file: Path | None) -> tuple[str, Tested]:
        """Test a finished run again, on its own test set or on a labelled file."""
        source, split = cls.labelled_series(run, run_dir, file)
        run.to_device()
        return source, Tested(probabilities=cls.predicted(run, split), labels=split.labels)

    @classmethod
    def _labels(cls, run: Trained, read: SeriesCollection) -> np.ndarray:
        return encode_labels(map(str, labels_of(read)), run.classes, name=read.name)

    @classmethod
    def _predicted(cls, run: Trained, series: SeriesDataset) -> np.ndarray:
        return predict_probabilities(run.model, series, batch_size=run.config.data.batch_size)

    @classmethod
    def _table(cls, run: Trained, read: SeriesCollection, predicted: np.ndarray) -> str:
        known = known_classes_of(read, run.classes)
        return format_predictions(predicted, run.classes, known, ids=read.ids)

    @classmethod
    def _page(cls, folder: RunFolder, run: Trained, flow_maps: list[SeriesFlowMap]) -> Path:
        del run
        return report_classifier(folder.root, flow_maps=flow_maps)

    @classmethod
    def flow_maps(cls, run: Trained, split: SeriesSplit, count: int) -> list[SeriesFlowMap]:
        """Return flow maps of a few series of a split: mistakes first, then of every class."""
        predicted = cls.predicted(run, split).argmax(axis=1)

        def words(index: int) -> tuple[str, str]:
            return run.classes[split.labels[index]], run.classes[predicted[index]]

        chosen = choose_series(split.labels, predicted, count)
        return draw_flow_maps(run.model, split, run.preprocessing, chosen, words)
