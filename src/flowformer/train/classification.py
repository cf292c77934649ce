"""What the studies of all classifiers share: the task, the test, evaluation and report."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float64, Int64

from flowformer.config_json import to_plain
from flowformer.report.attention_maps import AttentionPicture
from flowformer.report.classifier import FinishedRun, write_report
from flowformer.report.figures import SeriesFlowMap
from flowformer.scores.metrics import ClassificationMetrics, classification_metrics
from flowformer.train.config import HELD_OUT, NO_TEST_NOTE, StepsConfig
from flowformer.train.folder import RunFolder, read_task
from flowformer.train.kinds import kind_of_run
from flowformer.train.prediction import format_predictions
from flowformer.train.run_files import ClassifierResult, Result, read_history, read_predictions
from flowformer.train.study import Evaluation, Study, Trained

if TYPE_CHECKING:  # it needs Lightning, and a finished run does not
    from flowformer.train.loop.task import EpochRecorder

_CURVES = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")


@dataclass(frozen=True, kw_only=True)
class Tested:
    """The predictions of a classifier for labelled cases.

    Attributes:
        probabilities: the probability of each class.
        labels: indices of the classes.
        top5: fraction with the label among the five likeliest classes, where that is looked at.
    """

    probabilities: Float64[np.ndarray, "n classes"]
    labels: Int64[np.ndarray, " n"]
    top5: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClassifierEvaluation(Evaluation):
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
    trained: ClassifierResult
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
        """Return the figures as JSON values."""
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
        """Return the figures in words; those of the test set with their protocol."""
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


def sizes_of(train: Sized, validation: Sized, test: Sized | None) -> dict[str, int]:
    """Return the number of cases in each part of the data, 0 of one that there is not."""
    parts = {"train": train, "validation": validation, "test": () if test is None else test}
    return {name: len(part) for name, part in parts.items()}


def tell_sizes(config: Any, sizes: Mapping[str, int], unit: str) -> str:
    """Return how many cases an experiment has, in words.

    Args:
        config: the experiment.
        sizes: what `sizes_of` gives.
        unit: what the cases are.
    """
    return (
        f"{config.name}: {sizes['train']:,} {unit} to train on, {sizes['validation']:,} for "
        f"{HELD_OUT[config.protocol]}"
    )


class Classifier(Study):
    """A study whose model classifies: it leaves predictions.csv, and accuracies.

    Attributes:
        unit: the cases, in the plural.
        classes: names of the classes; labels index them.
        note: what chose the epoch, where it is another than the protocol's words say.
    """

    unit: ClassVar[str]

    classes: Sequence[str]
    note: str | None = None

    def describe(self) -> str:
        """Return how many cases there are."""
        return tell_sizes(self.config, self.record.sizes, self.unit)

    @abstractmethod
    def predict_test(self, model: Any) -> Tested | None:
        """Return the predictions for the test set, if there is one."""

    @property
    def paper(self) -> tuple[float | None, str | None]:
        """The paper's accuracy for these data, and where it prints it."""
        return self.config.paper_accuracy, self.config.paper_source

    def test(self, model: Any, recorder: "EpochRecorder") -> tuple[Result, Mapping[str, str]]:
        """Return the figures, and predictions.csv where there is a test set."""
        tested, best = self.predict_test(model), recorder.best
        figures = self.common_figures(model, recorder)
        # Of data given in Python no configuration knows whether there is a test set.
        figures["protocol_note"] = getattr(self.config, "note_without_test", NO_TEST_NOTE)
        files, accuracy, top5 = {}, None, None
        if tested is not None:
            figures["protocol_note"] = self.note or self.config.protocol_note
            accuracy = float(np.mean(tested.probabilities.argmax(axis=1) == tested.labels))
            predictions = format_predictions(tested.probabilities, self.classes, tested.labels)
            files, top5 = {"predictions.csv": predictions}, tested.top5
        result = ClassifierResult(
            **figures,
            protocol=self.config.protocol,
            test_accuracy=accuracy,
            validation_accuracy=best["validation_accuracy"],
            validation_loss=best["validation_loss"],
            best_epoch=int(best["epoch"]),
            epochs=self.config.training.rounds,
            paper_accuracy=self.paper[0],
            paper_source=self.paper[1],
            best_step=int(best["step"]),
            test_top5=top5,
        )
        return result, files

    @classmethod
    @abstractmethod
    def retest(cls, run: Any, run_dir: str | Path, file: Path | None) -> tuple[str, Tested]:
        """Test a finished run again; see `flowformer.train.run.evaluate`.

        Returns:
            The name of what it is tested on, and its predictions for that.
        """

    @classmethod
    def evaluate(cls, run_dir: str | Path, file: Path | None = None) -> ClassifierEvaluation:
        """Test a finished run again; see `flowformer.train.run.evaluate`."""
        run: Trained = cls.load(run_dir)
        trained = ClassifierResult.read(RunFolder(Path(run_dir)))
        source, tested = cls.retest(run, run_dir, file)
        predicted = tested.probabilities.argmax(axis=1)
        return ClassifierEvaluation(
            source=source,
            metrics=classification_metrics(tested.labels, predicted, run.record.classes),
            trained=trained,
            own_test_set=file is None,
            unit=cls.unit,
            top5=tested.top5,
        )

    @classmethod
    def report(cls, run_dir: str | Path) -> Path:
        """Write the page of a finished run; see `flowformer.train.run.write_report`."""
        return report_classifier(run_dir)

    @classmethod
    def uses(cls, run: str, result: ClassifierResult) -> str:
        """Return the commands that use a run."""
        file = f" --file {cls.labelled}" if cls.labelled and result.test_accuracy is None else ""
        return f"flowformer predict {run} {cls.reads}, flowformer evaluate {run}{file}"


def report_classifier(
    run_dir: str | Path,
    *,
    flow_maps: Sequence[SeriesFlowMap] = (),
    attention: Sequence[AttentionPicture] = (),
) -> Path:
    """Write the page of a finished classifier from what its training left.

    Args:
        run_dir: folder of the run.
        flow_maps: test series to draw flow maps of.
        attention: what the run's model attends to in images.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: a file of the run is damaged, or the files are not of one run.
    """
    folder = RunFolder(Path(run_dir))
    record: Any = kind_of_run(folder).record.read(folder)
    result = ClassifierResult.read(folder)
    over = "step" if isinstance(record.config.training, StepsConfig) else "epoch"
    kept = result.best_step if over == "step" else result.best_epoch
    history = read_history(folder, over, *_CURVES)
    if kept is None or kept not in history[over]:
        raise ValueError(f"{folder.result}: best_{over} {kept} has no row in metrics.csv")
    test = None
    if result.test_accuracy is not None:
        test = read_predictions(folder, record.classes)
        counted = float(np.mean(test[0] == test[1]))
        # Half a test case: more than any rounding, less than any real difference.
        if not abs(counted - result.test_accuracy) < 0.5 / len(test[0]):
            raise ValueError(
                f"{folder.root}: result.json has test_accuracy {result.test_accuracy:.4f}, but "
                f"{counted:.4f} of the rows of predictions.csv are correct: the files are not of "
                "one run"
            )
    run = FinishedRun(
        record=to_plain(record),
        result=to_plain(result),
        history=history,
        test=test,
        over=over,
        kept=kept,
        cases=read_task(folder),
    )
    return write_report(folder.report, run, flow_maps=flow_maps, attention=attention)
