"""What a training run is told: one frozen dataclass per part, checked when built; no torch."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from flowformer.data.options import MissingPolicy
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.scores.measures import ACCURACY, Measure
from flowformer.serialization import check_types

Protocol = Literal["clean", "published"]
OptimizerName = Literal["radam", "adam", "adamw"]
Accelerator = Literal["auto", "cpu", "gpu", "mps"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Progress = Literal["auto", "bar", "lines", "none"]
Strategy = Literal["ddp", "fsdp"]

PROTOCOL_NOTES: dict[str, str] = {
    "clean": "a stratified part of the training set chose the epoch; the test set was read once",
    "published": "best test accuracy over epochs: the test set chose the epoch, as in the paper",
}
NO_TEST_NOTE = "a stratified part of the training set chose the epoch; there is no test set"
# What the validation columns of a run are measured on.
HELD_OUT: dict[str, str] = {"clean": "validation", "published": "test (chooses the weights)"}


@dataclass(frozen=True, kw_only=True)
class TimeSeriesDataConfig:
    """Which series to train on, and how they are prepared.

    Either `dataset` or `train_file` is given; neither, when the series are given to `train`.

    Attributes:
        dataset: name of a set of the UEA archive, for example JapaneseVowels.
        folder: where the archive's files are (FOLDER/NAME/NAME_TRAIN.ts); by default aeon's own, or
            a download.
        train_file: a `.ts` file of your own to train on, in place of `dataset`.
        test_file: the `.ts` file to test on, beside `train_file`.
        max_length: time steps that the model has room for; the default is the longest series of the
            set.
        missing: what to do with missing values: refuse them, interpolate in time, or fill in the
            training mean.
        validation_fraction: part of the training set that chooses the epoch under the clean
            protocol.
        batch_size: series in one training step.
    """

    dataset: str | None = None
    folder: Path | None = None
    train_file: Path | None = None
    test_file: Path | None = None
    max_length: int | None = None
    missing: MissingPolicy = "error"
    validation_fraction: float = 0.2
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is of the wrong type or out of range, or the source of the data is
                not clear.
        """
        check_types(self)
        if self.dataset is not None and self.train_file is not None:
            raise ValueError(
                f"give dataset or train_file, not both: got {self.dataset} and {self.train_file}"
            )
        if self.test_file is not None and self.train_file is None:
            raise ValueError(f"test_file needs train_file beside it, got only {self.test_file}")
        if self.folder is not None and self.dataset is None:
            raise ValueError(f"folder needs the name of a dataset in it, got only {self.folder}")
        require("validation_fraction", self.validation_fraction, "in (0, 1)", lambda v: 0 < v < 1)
        require("batch_size", self.batch_size, "at least 1", lambda v: v >= 1)
        if self.max_length is not None:
            require("max_length", self.max_length, "at least 1", lambda v: v >= 1)

    @property
    def has_source(self) -> bool:
        """Whether it names series; those of a run that names none were given in Python."""
        return self.dataset is not None or self.train_file is not None

    def without_source(self) -> "TimeSeriesDataConfig":
        """Returns it for series given in Python: they are prepared alike."""
        return replace(self, dataset=None, folder=None, train_file=None, test_file=None)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the parameters move.

    Attributes:
        name: the update rule: radam (rectified Adam), adam, or adamw (decoupled weight decay).
        learning_rate: constant over training.
        weight_decay: as the named optimizer of torch.optim takes it.
        gradient_clip: largest norm of the whole gradient; None leaves it alone.
    """

    name: OptimizerName = "radam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    gradient_clip: float | None = 4.0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        check_types(self)
        require("learning_rate", self.learning_rate, "above 0", lambda v: v > 0)
        require("weight_decay", self.weight_decay, "at least 0", lambda v: v >= 0)
        if self.gradient_clip is not None:
            require("gradient_clip", self.gradient_clip, "above 0", lambda v: v > 0)


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """What every training has: a seed, a place to compute, and what is shown.

    Attributes:
        seed: of all that is random: the initial weights, the order of the samples, dropout, and a
            split if there is one.
        accelerator: where to compute; auto takes a GPU when there is one.
        precision: of the training step, in Lightning's words.
        threads: CPU threads; the default is torch's own. Results are bitwise equal only for equal
            numbers.
        progress: bar on a terminal, lines (one for each row of metrics.csv), none, or auto (bar on
            a terminal, lines elsewhere).
        skip_nan: batches of the run that may be left out because their loss is NaN or infinite;
            the next one ends it, as the first does by default.
        devices: processes on each machine, with a device each; a batch is shared out to all.
        nodes: machines.
        strategy: of more than one process: ddp, each with the whole model, or fsdp, each with a
            part of every parameter, its gradient and its moments (FSDP2).
        timeout: seconds that a process waits for another before it ends the run and names it.
        round_name: what a row of metrics.csv is called.
    """

    round_name: ClassVar[str] = "epoch"

    seed: int = 0
    accelerator: Accelerator = "auto"
    precision: Precision = "32-true"
    threads: int | None = None
    progress: Progress = "auto"
    skip_nan: int = 0
    devices: int = 1
    nodes: int = 1
    strategy: Strategy = "ddp"
    timeout: float = 300.0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        check_types(self)
        # The bound is that of NumPy's and scikit-learn's seeds, met at the split.
        require("seed", self.seed, "in [0, 2**32)", lambda v: 0 <= v < 2**32)
        if self.threads is not None:
            require("threads", self.threads, "at least 1", lambda v: v >= 1)
        require("skip_nan", self.skip_nan, "at least 0", lambda v: v >= 0)
        for name in ("devices", "nodes", "timeout"):
            require(name, getattr(self, name), "at least 1", lambda v: v >= 1)
        if self.skip_nan and self.strategy == "fsdp":
            raise ValueError("training.skip_nan is for one process and ddp, got strategy fsdp")

    @property
    def processes(self) -> int:
        """Over all machines."""
        return self.devices * self.nodes

    @property
    @abstractmethod
    def rounds(self) -> int:
        """Rows of metrics.csv: what the loop repeats."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(ComputeConfig):
    """How long, on what, and by which rules.

    Attributes:
        epochs: passes over the training set.
        protocol: what chooses the epoch. clean: a part of the training set, the test set is read
            once at the end. published: the test set itself, as in the paper; leaks, for comparison
            with its figures only.
    """

    epochs: int = 100
    protocol: Protocol = "clean"

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        super().__post_init__()
        require("epochs", self.epochs, "at least 1", lambda v: v >= 1)

    @property
    def rounds(self) -> int:
        """The epochs."""
        return self.epochs


@dataclass(frozen=True, kw_only=True)
class TimeSeriesConfig:
    """A whole experiment of time-series classification.

    Attributes:
        name: of the recipe it came from.
        data: which series, and how they are prepared.
        model: the classifier.
        optimizer: how its parameters move.
        training: how long, on what, and by which rules.
        paper_dataset: data set that a paper prints a figure for. With any other in `data`, the
            figure has no place here: it becomes None, its source too.
        paper_accuracy: test accuracy that it prints, in [0, 1].
        paper_source: where it prints it.
    """

    name: str
    data: TimeSeriesDataConfig
    model: TimeSeriesModelConfig = field(default_factory=TimeSeriesModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    paper_dataset: str | None = None
    paper_accuracy: float | None = None
    paper_source: str | None = None

    def __post_init__(self) -> None:
        """Checks the values, and drops the paper's figure when it is one for other data.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        check_types(self.model, "model")
        # Here, so that no way to change the data (`replace`, the command line) can forget it.
        if self.data.dataset != self.paper_dataset:
            for name in ("paper_dataset", "paper_accuracy", "paper_source"):
                object.__setattr__(self, name, None)
        if self.paper_accuracy is not None:
            require("paper_accuracy", self.paper_accuracy, "in [0, 1]", lambda v: 0 <= v <= 1)

    @property
    def dataset_name(self) -> str:
        """What its data are called: a set of the archive, a file, or else the recipe."""
        if self.data.dataset is not None:
            return self.data.dataset
        return self.name if self.data.train_file is None else self.data.train_file.stem

    @property
    def measure(self) -> Measure:
        """What its runs are ranked by."""
        return ACCURACY

    @property
    def causal(self) -> bool:
        """Whether its mixers are asked for their causal form."""
        return False

    @property
    def paper_score(self) -> float | None:
        """The paper's figure, as comparisons measure it."""
        return self.paper_accuracy

    @property
    def protocol(self) -> str:
        """What chooses the epoch."""
        return self.training.protocol

    @property
    def has_test(self) -> bool:
        """Whether its data have a test set."""
        return self.data.train_file is None or self.data.test_file is not None

    @property
    def protocol_note(self) -> str:
        """The protocol in words, to stand beside every figure."""
        return PROTOCOL_NOTES[self.training.protocol] if self.has_test else NO_TEST_NOTE


def require(name: str, value: object, expected: str, holds: Callable[[Any], bool]) -> None:
    """Refuses a value that does not hold, with what was expected and what came.

    Raises:
        ValueError: it does not hold.
    """
    if not holds(value):
        raise ValueError(f"{name} must be {expected}, got {value}")
