"""What a run on labelled sequences (Long Range Arena) is told: one frozen dataclass per part."""

from dataclasses import dataclass, field
from pathlib import Path

from flowformer.data.options import SequenceOptions
from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.scores.measures import ACCURACY_BY_STEP, Measure
from flowformer.serialization import check_types
from flowformer.train.config import Protocol, require
from flowformer.train.schedule import ScheduledOptimizerConfig, StepsConfig

PROTOCOL_NOTES: dict[str, str] = {
    "clean": "the validation part chose the step; the test part was read once",
    "published": "best test accuracy over the measurements: the test part chose the step",
}


@dataclass(frozen=True, kw_only=True)
class SequenceDataConfig(SequenceOptions):
    """Which sequences to train on, and how they become batches.

    Attributes:
        validation_fraction: part of the training set that chooses the step under the clean
            protocol, where the set has no validation part of its own.
        batch_size: cases in one training step.
        cache: folder of the prepared set; by default one under the user's cache.
        workers: processes that generate; by default all cores.
    """

    validation_fraction: float = 0.1
    batch_size: int = 32
    cache: Path | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        """Checks the values; the set takes its options when it is prepared.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        check_types(self)
        require("validation_fraction", self.validation_fraction, "in (0, 1)", lambda v: 0 < v < 1)
        require("batch_size", self.batch_size, "at least 1", lambda v: v >= 1)
        for name in ("max_length", "workers"):
            value = getattr(self, name)
            if value is not None:
                require(name, value, "at least 1", lambda v: v >= 1)
        if self.sizes is not None and (len(self.sizes) != 3 or min(self.sizes) < 1):
            raise ValueError(
                f"sizes must be three numbers of cases (train, validation, test), got {self.sizes}"
            )


@dataclass(frozen=True, kw_only=True)
class SequenceTrainingConfig(StepsConfig):
    """How long, on what, and by which rules.

    Attributes:
        protocol: what chooses the step. clean: the validation part, the test part is read once at
            the end. published: the test part itself, as the published ListOps and Text runs do;
            leaks, for comparison with their figures only.
        validation_cases: of the validation part, those that are measured on while training, drawn
            once; None for all.
        test_cases: of the test part, those that are tested on, drawn once; None for all.
    """

    protocol: Protocol = "clean"
    validation_cases: int | None = None
    test_cases: int | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is of the wrong type or out of range, or has no meaning under the
                protocol.
        """
        super().__post_init__()
        for name in ("validation_cases", "test_cases"):
            if getattr(self, name) is not None:
                require(name, getattr(self, name), "at least 1", lambda v: v >= 1)
        if self.protocol == "published" and self.validation_cases is not None:
            raise ValueError(
                "validation_cases is of the validation part, which the published protocol has not: "
                f"give test_cases, got {self.validation_cases}"
            )


@dataclass(frozen=True, kw_only=True)
class SequenceConfig:
    """A whole experiment of classifying long sequences, or pairs of them.

    Attributes:
        name: of the recipe it came from.
        data: which sequences, and how they become batches.
        model: the classifier.
        optimizer: how its parameters move.
        training: how long, on what, and by which rules.
        paper_dataset: data set that a paper prints a figure for. With any other in `data`, the
            figure has no place here: it becomes None, its source too.
        paper_accuracy: test accuracy that it prints, in [0, 1].
        paper_source: where it prints it.
        paper_length: longest sequence there.
    """

    name: str
    data: SequenceDataConfig = field(default_factory=SequenceDataConfig)
    model: SequenceModelConfig = field(default_factory=SequenceModelConfig)
    optimizer: ScheduledOptimizerConfig = field(default_factory=ScheduledOptimizerConfig)
    training: SequenceTrainingConfig = field(default_factory=SequenceTrainingConfig)
    paper_dataset: str | None = None
    paper_accuracy: float | None = None
    paper_source: str | None = None
    paper_length: int | None = None

    def __post_init__(self) -> None:
        """Checks the values, and drops the paper's figure when it is one for other data.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        check_types(self.model, "model")
        if self.data.dataset != self.paper_dataset:
            for name in ("paper_dataset", "paper_accuracy", "paper_source"):
                object.__setattr__(self, name, None)
        if self.paper_accuracy is not None:
            require("paper_accuracy", self.paper_accuracy, "in [0, 1]", lambda v: 0 <= v <= 1)

    @property
    def dataset_name(self) -> str:
        """What its data are called."""
        return self.data.dataset

    @property
    def measure(self) -> Measure:
        """What its runs are ranked by."""
        return ACCURACY_BY_STEP

    @property
    def causal(self) -> bool:
        """Whether its mixers are asked for their causal form."""
        return False

    @property
    def is_benchmark(self) -> bool:
        """Whether its data are the files that the paper's figure is of, as long as there."""
        data = self.data
        given = data.folder is not None or data.dataset == "imdb"
        return given and data.max_length == self.paper_length

    @property
    def paper_score(self) -> float | None:
        """The paper's figure, where the data are those that it is of."""
        return self.paper_accuracy if self.is_benchmark else None

    @property
    def protocol(self) -> str:
        """What chooses the step."""
        return self.training.protocol

    @property
    def has_test(self) -> bool:
        """Whether its data have a test part: every set has."""
        return True

    @property
    def protocol_note(self) -> str:
        """The protocol in words, to stand beside every figure."""
        some = self.training.test_cases
        of = "" if some is None else f"; at most {some:,} test cases, drawn once"
        return PROTOCOL_NOTES[self.training.protocol] + of
