"""The configuration, record and result of a run on labelled sequences; no torch here."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from flowformer.data.options import SequenceOptions
from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.scores.measures import ACCURACY_BY_STEP, Measure
from flowformer.train.config import (
    AT_LEAST_1,
    FRACTION,
    Bounds,
    Checked,
    ExperimentConfig,
    Protocol,
    ScheduledOptimizerConfig,
    StepsConfig,
)
from flowformer.train.run_files import ClassifierResult, Record

PROTOCOL_NOTES: dict[str, str] = {
    "clean": "the validation part chose the step; the test part was read once",
    "published": "best test accuracy over the measurements: the test part chose the step",
}


@dataclass(frozen=True, kw_only=True)
class SequenceDataConfig(Checked, SequenceOptions):
    """Which sequences to train on, and how they become batches.

    Attributes:
        validation_fraction: part of the training set that chooses the step under the clean
            protocol, where the set has no validation part of its own.
        batch_size: cases in one training step.
        cache: folder of the prepared set; by default one under the user's cache.
        workers: processes that generate; by default all cores.
    """

    bounds: ClassVar[Bounds] = {
        "validation_fraction": FRACTION,
        **dict.fromkeys(("batch_size", "max_length", "workers"), AT_LEAST_1),
    }

    validation_fraction: float = 0.1
    batch_size: int = 32
    cache: Path | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        """Check the values; the set takes its options when it is prepared."""
        super().__post_init__()
        if self.sizes is not None and (len(self.sizes) != 3 or min(self.sizes) < 1):
            raise ValueError(
                f"sizes must be three numbers of cases (train, validation, test), got {self.sizes}"
            )

    def require_source(self) -> None:
        """Refuse a folder without a file of the set.

        Raises:
            FileNotFoundError: it has none.
        """
        from flowformer.data.sequences.preparation import find_sequence_set, require_files

        if self.folder is not None:
            require_files(find_sequence_set(self.dataset), self.folder)


@dataclass(frozen=True, kw_only=True)
class SequencesTrainingConfig(StepsConfig):
    """How long, on what, and by which rules.

    Attributes:
        protocol: what chooses the step. clean: the validation part, the test part is read once at
            the end. published: the test part itself, as the published ListOps and Text runs do;
            leaks, for comparison with their figures only.
        validation_cases: of the validation part, those that are measured on while training, drawn
            once; None for all.
        test_cases: of the test part, those that are tested on, drawn once; None for all.
    """

    bounds: ClassVar[Bounds] = {"validation_cases": AT_LEAST_1, "test_cases": AT_LEAST_1}

    protocol: Protocol = "clean"
    validation_cases: int | None = None
    test_cases: int | None = None

    def __post_init__(self) -> None:
        """Check the values, and that they have a meaning under the protocol."""
        super().__post_init__()
        if self.protocol == "published" and self.validation_cases is not None:
            raise ValueError(
                "validation_cases is of the validation part, which the published protocol has not: "
                f"give test_cases, got {self.validation_cases}"
            )


@dataclass(frozen=True, kw_only=True)
class SequencesConfig(ExperimentConfig):
    """A whole experiment of classifying long sequences, or pairs of them.

    Attributes:
        data: which sequences, and how they become batches.
        model: the classifier.
        optimizer: how its parameters move.
        training: how long, on what, and by which rules.
        paper_length: longest sequence there.
    """

    papers: ClassVar[str] = "dataset"

    name: str
    data: SequenceDataConfig = field(default_factory=SequenceDataConfig)
    model: SequenceModelConfig = field(default_factory=SequenceModelConfig)
    optimizer: ScheduledOptimizerConfig = field(default_factory=ScheduledOptimizerConfig)
    training: SequencesTrainingConfig = field(default_factory=SequencesTrainingConfig)
    paper_dataset: str | None = None
    paper_accuracy: float | None = None
    paper_source: str | None = None
    paper_length: int | None = None

    def check_early(self) -> None:
        """Refuse what can be seen at once, and a folder without the files of the set."""
        super().check_early()
        self.data.require_source()

    @property
    def is_benchmark(self) -> bool:
        """Whether the data are the files that the paper's figure is of, as long as there."""
        data = self.data
        given = data.folder is not None or data.dataset == "imdb"
        return given and data.max_length == self.paper_length

    @property
    def dataset_name(self) -> str:
        """The name of the set."""
        return self.data.dataset

    @property
    def measure(self) -> Measure:
        """The figure that runs are ranked by."""
        return ACCURACY_BY_STEP

    @property
    def paper_score(self) -> float | None:
        """The paper's figure, where the data are those that it is of."""
        return self.paper_accuracy if self.is_benchmark else None

    @property
    def protocol_note(self) -> str:
        """The protocol in words, to stand beside every figure."""
        some = self.training.test_cases
        of = "" if some is None else f"; at most {some:,} test cases, drawn once"
        return PROTOCOL_NOTES[self.training.protocol] + of


@dataclass(frozen=True, kw_only=True)
class SequencesRecord(Record):
    """What config.json holds of a run on labelled sequences.

    Attributes:
        source: of the data, in words; in what they differ from those of a paper, and what was cut.
        classes: names of the classes; labels index them.
        vocab_size: of the tokens, that of padding included; None of features.
        paired: whether a case is two documents.
        max_length: longest sequence that the model has room for.
        sizes: number of cases in each part of the data.
        picture: height and width, where a sequence is the rows of a picture.
    """

    config: SequencesConfig
    source: str
    classes: tuple[str, ...]
    vocab_size: int | None
    paired: bool
    max_length: int
    sizes: dict[str, int]
    picture: tuple[int, ...] | None = None
    task: Literal["sequences"] = "sequences"


SequencesResult = ClassifierResult
