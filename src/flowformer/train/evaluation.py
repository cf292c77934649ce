"""A finished run of a classifier: its accuracy again; on series, predictions for a file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowformer.data import SeriesDataset, SeriesSplit, encode_labels, labels_of, read_ts
from flowformer.scores.metrics import ClassificationMetrics, classification_metrics
from flowformer.train.folder import RunFolder, RunResult
from flowformer.train.prediction import (
    Run,
    choose_device,
    format_predictions,
    load_run,
    predict_probabilities,
)
from flowformer.train.series.data import load_again


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The accuracy of a run on labelled cases, beside what its training found.

    Attributes:
        source: what it was tested on.
        metrics: the figures.
        trained: the figures of the training.
        own_test_set: whether `source` is the test set of the training, so that both must agree.
        unit: what the cases are.
        top5: fraction with the label among the five likeliest classes, where that is looked at.
    """

    source: str
    metrics: ClassificationMetrics
    trained: RunResult
    own_test_set: bool
    unit: str = "series"
    top5: float | None = None

    @property
    def differs(self) -> bool:
        """Whether the run's own test set gives another accuracy than its training found."""
        return self.own_test_set and self.metrics.accuracy != self.trained.test_accuracy

    @property
    def accuracy_interval(self) -> tuple[float, float] | None:
        """Wilson's, at 95 %; none for the best of many looks at a test set that chose the epoch."""
        if self.own_test_set and self.trained.protocol == "published":
            return None
        return self.metrics.accuracy_low, self.metrics.accuracy_high

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON values."""
        top5 = {} if self.top5 is None else {"top5_accuracy": self.top5}
        return {
            "source": self.source,
            "accuracy": self.metrics.accuracy,
            **top5,
            "accuracy_interval": self.accuracy_interval,
            "correct": self.metrics.correct,
            "count": self.metrics.count,
            "macro_f1": self.metrics.macro_f1,
            "trained_test_accuracy": self.trained.test_accuracy,
            "paper_accuracy": self.trained.paper_accuracy,
            "protocol": self.trained.protocol,
            "protocol_note": self.trained.protocol_note,
        }

    def describe(self) -> str:
        """Returns the figures in words; those of the test set with their protocol."""
        metrics, trained = self.metrics, self.trained
        accuracy = f"{100 * metrics.accuracy:.2f}"
        if self.accuracy_interval is not None:
            low, high = (f"{100 * end:.2f}" for end in self.accuracy_interval)
            accuracy += f" (95% interval {low} to {high})"
        lines = [
            f"tested on      {self.source}, {metrics.count} {self.unit}",
            f"{'test accuracy' if self.own_test_set else 'accuracy     '}  {accuracy}",
            f"macro F1       {100 * metrics.macro_f1:.2f}",
        ]
        if self.top5 is not None:
            lines.insert(2, f"top five       {100 * self.top5:.2f}")
        if self.own_test_set and trained.test_accuracy is not None:
            verdict = "differs" if self.differs else "the same"
            lines.append(f"training found {100 * trained.test_accuracy:.2f}: {verdict}")
        if self.own_test_set and trained.paper_accuracy is not None:
            paper = f"{100 * trained.paper_accuracy:.1f} (by its own protocol)"
            lines.append(f"the paper's    {paper}")
        if self.own_test_set:
            lines.append(f"protocol       {trained.protocol}: {trained.protocol_note}")
        return "\n".join(lines) + "\n"


def evaluate_run(run_dir: str | Path, file: Path | None = None) -> Evaluation:
    """Tests a finished run again.

    Args:
        run_dir: folder of the run.
        file: a labelled `.ts` file, in place of the run's own test set.

    Raises:
        FileNotFoundError: there is no finished run, or no such file.
        ValueError: there is nothing to test on, or the file has no labels or other classes.
    """
    run = load_run(run_dir)
    trained = RunResult.read(RunFolder(Path(run_dir)))
    if file is not None:
        split, source = _read_labelled(file, run), str(file)
    else:
        data = load_again(run.config.data, run_dir, instead="give a labelled .ts file to test on")
        if data.test is None:
            raise ValueError(
                f"{run_dir} was trained without a test set: give a labelled file (--file)"
            )
        split, source = data.test, f"the test set of {data.name}"
    predicted = _probabilities(run, split).argmax(axis=1)
    return Evaluation(
        source=source,
        metrics=classification_metrics(split.labels, predicted, run.classes),
        trained=trained,
        own_test_set=file is None,
    )


def predict_file(run_dir: str | Path, file: Path) -> str:
    """Returns predictions for a `.ts` file, labelled or not, as CSV.

    Raises:
        FileNotFoundError: there is no finished run, or no such file.
        ValueError: the file is malformed, or its series are not such as the run was trained on.
    """
    run = load_run(run_dir)
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


def _read_labelled(file: Path, run: Run) -> SeriesSplit:
    read = read_ts(file)
    if read.labels is None:
        raise ValueError(f"{file} has no labels to test against: flowformer predict needs none")
    labels = encode_labels(labels_of(read), run.classes, name=str(file))
    return SeriesSplit(series=read.series, labels=labels, name=str(file))


def _probabilities(run: Run, split: SeriesSplit) -> np.ndarray:
    limit = run.model.length_limit
    for index, length in enumerate(split.lengths):
        if limit is not None and length > limit:
            raise ValueError(
                f"{split.place(index)}: expected at most {limit} time steps, for which "
                f"the run has room, got {length}: shorten it, or train a run with "
                f"data.max_length {length}"
            )
    series = SeriesDataset(split, run.preprocessing)
    model = run.model.to(choose_device(run.config.training.accelerator))
    return predict_probabilities(model, series, batch_size=run.config.data.batch_size)
