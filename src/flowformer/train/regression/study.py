"""Time-series regression: the parts of a run, and the use of a finished one."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64
from torch import nn

from flowformer.config_json import to_plain
from flowformer.data import SeriesCollection, SeriesDataset, SeriesSplit, numbers_of
from flowformer.data.series.collection import known_numbers_of
from flowformer.models.series.regression import TimeSeriesRegressor
from flowformer.report.figures import SeriesFlowMap
from flowformer.report.regression import write_regression_report
from flowformer.scores.measures import RMSE
from flowformer.scores.metrics import RegressionMetrics, regression_metrics
from flowformer.train.folder import RunFolder
from flowformer.train.prediction import format_numbers
from flowformer.train.regression.config import RegressionRecord, RegressionResult
from flowformer.train.run_files import read_history
from flowformer.train.series.base import SeriesStudy, draw_flow_maps
from flowformer.train.series.data import predict_numbers
from flowformer.train.study import Evaluation, Trained

if TYPE_CHECKING:  # it needs Lightning, and a finished run does not
    from flowformer.train.loop.task import EpochRecorder, RecordedTask


@dataclass(frozen=True, kw_only=True)
class RegressionEvaluation(Evaluation):
    """The errors of a run on labelled series, beside what its training found.

    Attributes:
        source: what it was tested on.
        metrics: the figures.
        trained: the figures of the training.
        own_test_set: whether `source` is the test set of the training, so that both must agree.
    """

    source: str
    metrics: RegressionMetrics
    trained: RegressionResult
    own_test_set: bool

    @property
    def differs(self) -> bool:
        """Whether the run's own test set gives another error than its training found."""
        return self.own_test_set and self.metrics.rmse != self.trained.test_rmse

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "source": self.source,
            **to_plain(self.metrics),
            "trained_test_rmse": self.trained.test_rmse,
            "protocol": self.trained.protocol,
            "protocol_note": self.trained.protocol_note,
        }

    def describe(self) -> str:
        """Return the figures in words; those of the test set with their protocol."""
        metrics, trained = self.metrics, self.trained
        lines = [
            f"tested on      {self.source}, {metrics.count} series",
            f"RMSE           {RMSE.show(metrics.rmse)}",
            f"MAE            {RMSE.show(metrics.mae)}",
        ]
        if metrics.r2 is not None:
            lines.append(f"R²             {metrics.r2:.3f}")
        if self.own_test_set and trained.test_rmse is not None:
            verdict = "differs" if self.differs else "the same"
            lines.append(f"training found {RMSE.show(trained.test_rmse)}: {verdict}")
            lines.append(f"protocol       {trained.protocol}: {trained.protocol_note}")
        return "\n".join(lines) + "\n"


class Regression(SeriesStudy):
    """Time-series regression."""

    @classmethod
    def _model(cls, record: RegressionRecord) -> TimeSeriesRegressor:
        return TimeSeriesRegressor(
            record.config.model, channels=record.channels, max_length=record.max_length
        )

    def task(self, model: nn.Module) -> "RecordedTask":
        """Return the regression, at a constant learning rate."""
        from flowformer.train.loop.optimizers import build_constant
        from flowformer.train.regression.task import RegressionTask

        target = self.prepared.preprocessing.target
        assert target is not None
        return RegressionTask(
            model,
            lambda model: build_constant(model.parameters(), self.config.optimizer),
            seed=self.config.training.seed,
            scale=target[1],
        )

    def test(
        self, model: TimeSeriesRegressor, recorder: "EpochRecorder"
    ) -> tuple[RegressionResult, Mapping[str, str]]:
        """Return the figures, and predictions.csv where there is a test set."""
        best, test, metrics, files = recorder.best, self.data.test, None, {}
        note = self.config.note_without_test
        if test is not None:
            own = Trained(
                model=model, record=self.record, preprocessing=self.prepared.preprocessing
            )
            predicted = self.predicted(own, test)
            metrics = regression_metrics(test.labels, predicted)
            files = {"predictions.csv": format_numbers(predicted, test.labels.tolist())}
            note = self.config.protocol_note
        result = RegressionResult(
            **(self.common_figures(model, recorder) | {"protocol_note": note}),
            protocol=self.config.protocol,
            test_rmse=None if metrics is None else metrics.rmse,
            test_mae=None if metrics is None else metrics.mae,
            test_r2=None if metrics is None else metrics.r2,
            validation_rmse=best["validation_rmse"],
            best_epoch=int(best["epoch"]),
            best_step=int(best["step"]),
            epochs=self.config.training.rounds,
        )
        return result, files

    @classmethod
    def evaluate(cls, run_dir: str | Path, file: Path | None = None) -> RegressionEvaluation:
        """Test a finished run again; see `flowformer.train.run.evaluate`."""
        run, trained = cls.load(run_dir), RegressionResult.read(RunFolder(Path(run_dir)))
        source, split = cls.labelled_series(run, run_dir, file)
        run.to_device()
        return RegressionEvaluation(
            source=source,
            metrics=regression_metrics(split.labels, cls.predicted(run, split)),
            trained=trained,
            own_test_set=file is None,
        )

    @classmethod
    def _labels(cls, run: Trained, read: SeriesCollection) -> np.ndarray:
        del run
        return numbers_of(read)

    @classmethod
    def _predicted(cls, run: Trained, series: SeriesDataset) -> np.ndarray:
        size = run.config.data.batch_size
        return predict_numbers(run.model, series, run.preprocessing, batch_size=size)

    @classmethod
    def _table(cls, run: Trained, read: SeriesCollection, predicted: np.ndarray) -> str:
        del run
        return format_numbers(predicted, known_numbers_of(read), ids=read.ids)

    @classmethod
    def _page(cls, folder: RunFolder, run: Trained, flow_maps: list[SeriesFlowMap]) -> Path:
        result = RegressionResult.read(folder)
        return write_regression_report(
            folder.report,
            record=to_plain(run.record),
            result=to_plain(result),
            history=read_history(folder, "epoch", "train_loss", RMSE.column),
            test=None if result.test_rmse is None else read_numbers(folder.predictions),
            flow_maps=flow_maps,
        )

    @classmethod
    def flow_maps(cls, run: Trained, split: SeriesSplit, count: int) -> list[SeriesFlowMap]:
        """Return flow maps of a few series of a split: that with the largest error first."""
        predicted = cls.predicted(run, split)
        chosen = np.argsort(-np.abs(predicted - split.labels), kind="stable")[:1].tolist()
        chosen += [index for index in range(len(split)) if index not in chosen]

        def words(index: int) -> tuple[str, str]:
            return RMSE.show(float(split.labels[index])), RMSE.show(float(predicted[index]))

        own = (run.model, split, run.preprocessing, chosen[:count], words)
        return draw_flow_maps(*own, numbers=True)

    @classmethod
    def uses(cls, run: str, result: RegressionResult) -> str:
        """Return the commands that use a run."""
        file = f" --file {cls.labelled}" if result.test_rmse is None else ""
        return f"flowformer predict {run} {cls.reads}, flowformer evaluate {run}{file}"


def read_numbers(path: Path) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Read labels and predictions of a predictions.csv.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [(float(row["target"]), float(row["predicted"])) for row in csv.DictReader(file)]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected numbers in target and predicted, {error}") from error
    labels, predicted = np.array(rows).T
    return labels, predicted
