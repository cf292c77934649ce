"""The configuration, record and result of a run on time series; no torch here."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from flowformer.data.options import MissingPolicy, SeriesColumns
from flowformer.data.series.columns import check_series_path, check_table, elsewhere
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.names import Early, ExistingPath, require_there
from flowformer.train.config import (
    AT_LEAST_1,
    FRACTION,
    NO_TEST_NOTE,
    STRATIFIED,
    Bounds,
    Checked,
    EpochsConfig,
    ExperimentConfig,
    OptimizerConfig,
)
from flowformer.train.run_files import ClassifierResult, Record

OPTIONAL = ("label", "group")  # what a table to predict may lack
SeriesFile = Annotated[Path, Early(require_there), Early(check_series_path)]


@dataclass(frozen=True, kw_only=True)
class SeriesDataConfig(Checked, SeriesColumns):
    """Which series to train on, and how they are prepared.

    Either `dataset` or `train_file` is given; neither, when the series are given to `train`.

    Attributes:
        dataset: name of a set of the UEA archive, for example JapaneseVowels.
        folder: where the archive's files are (FOLDER/NAME/NAME_TRAIN.ts); by default aeon's own, or
            a download.
        train_file: series of your own to train on, in place of `dataset`: a table (.csv, .tsv,
            .parquet), a folder of tables, a .ts or .npz file.
        test_file: the like to test on, beside `train_file`.
        test_fraction: part of `train_file` to test on, in place of `test_file`; the same for every
            seed.
        split: how parts are set aside: drawn by class (random), each group whole in one part where
            there are groups; or the series that begin last (time).
        max_length: time steps that the model has room for; the default is the longest series of the
            set.
        missing: what to do with missing values: refuse them, interpolate in time, or fill in the
            training mean.
        validation_fraction: part of the training set that chooses the epoch under the clean
            protocol.
        batch_size: series in one training step.
        least_steps: training steps of an epoch, at least: it passes over few series several times.
    """

    bounds: ClassVar[Bounds] = {
        "validation_fraction": FRACTION,
        "test_fraction": FRACTION,
        "batch_size": AT_LEAST_1,
        "least_steps": AT_LEAST_1,
        "max_length": AT_LEAST_1,
    }

    dataset: str | None = None
    folder: ExistingPath | None = None
    train_file: SeriesFile | None = None
    test_file: SeriesFile | None = None
    test_fraction: float | None = None
    split: Literal["random", "time"] = "random"
    max_length: int | None = None
    missing: MissingPolicy = "error"
    validation_fraction: float = 0.2
    batch_size: int = 16
    least_steps: int = 1

    def __post_init__(self) -> None:
        """Check the values, and that the source of the data is clear."""
        super().__post_init__()
        if self.dataset is not None and self.train_file is not None:
            raise ValueError(
                f"give dataset or train_file, not both: got {self.dataset} and {self.train_file}"
            )
        if self.test_file is not None and self.train_file is None:
            raise ValueError(f"test_file needs train_file beside it, got only {self.test_file}")
        if self.test_fraction is not None and (self.train_file is None or self.test_file):
            raise ValueError(
                "test_fraction is a part of train_file, where there is no test_file: got "
                f"{self.train_file} and {self.test_file}"
            )
        if self.folder is not None and self.dataset is None:
            raise ValueError(f"folder needs the name of a dataset in it, got only {self.folder}")

    @property
    def has_source(self) -> bool:
        """Whether it names series; those of a run that names none were given in Python."""
        return self.dataset is not None or self.train_file is not None

    def require_source(self) -> None:
        """Refuse data that name no series.

        Raises:
            ValueError: they name none.
        """
        if not self.has_source:
            raise ValueError(
                "no series to train on: give data.train_file (a table, a folder of tables, a .ts "
                "or .npz file) or data.dataset"
            )

    def without_source(self) -> "SeriesDataConfig":
        """Return it for series given in Python: they are prepared alike."""
        names = ("dataset", "folder", "train_file", "test_file", "test_fraction")
        return replace(self, **dict.fromkeys(names))

    @property
    def columns(self) -> SeriesColumns:
        """The columns of the tables."""
        return SeriesColumns(**{each.name: getattr(self, each.name) for each in _COLUMNS})

    def columns_for(self, file: Path) -> SeriesColumns:
        """Return the columns of other series that are read as those of the training were.

        Args:
            file: what holds them.
        """
        is_own = self.train_file is not None and file.resolve() == self.train_file.resolve()
        return self.columns if is_own else elsewhere(self.columns, file)

    def with_columns(self, columns: SeriesColumns) -> "SeriesDataConfig":
        """Return it with the columns as they were found.

        Args:
            columns: the columns; its index is left alone.
        """
        found = {each.name: getattr(columns, each.name) for each in _COLUMNS}
        return replace(self, **{**found, "index": self.index})

    @property
    def chose(self) -> str:
        """What chose the epoch, in words."""
        if self.split == "time":
            return "the last part of the training set in time chose the epoch"
        if self.group:
            return f"a part of the training set, {self.group} of its own, chose the epoch"
        return STRATIFIED


_COLUMNS = fields(SeriesColumns)
# Recordings with gaps are the rule; how much is missing is told.
OWN = SeriesDataConfig(missing="interpolate")


@dataclass(frozen=True, kw_only=True)
class SeriesConfig(ExperimentConfig):
    """A whole experiment of time-series classification.

    Attributes:
        data: which series, and how they are prepared.
        model: the architecture.
        optimizer: how its parameters move.
        training: how long, on what, and by which rules.
        regression: whether labels are numbers to predict.
    """

    papers: ClassVar[str] = "dataset"
    regression: ClassVar[bool] = False

    name: str
    data: SeriesDataConfig
    model: TimeSeriesModelConfig = field(default_factory=TimeSeriesModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: EpochsConfig = field(default_factory=EpochsConfig)
    paper_dataset: str | None = None
    paper_accuracy: float | None = None
    paper_source: str | None = None

    def check_early(self) -> None:
        """Refuse what can be seen at once, data that name no series, and columns they have not.

        Warns:
            UserWarning: the folder lacks the set, see `load_uea`.
        """
        super().check_early()
        self.data.require_source()
        if self.data.dataset is not None and self.data.folder is not None:
            from flowformer.data.series.uea import find_uea

            find_uea(self.data.dataset, folder=self.data.folder)
        if self.data.train_file is not None:
            check_table(self.data.train_file, self.data.columns)

    @property
    def dataset_name(self) -> str:
        """The name of a set of the archive or of a file; without either, the recipe's."""
        if self.data.dataset is not None:
            return self.data.dataset
        return self.name if self.data.train_file is None else self.data.train_file.stem

    @property
    def has_test(self) -> bool:
        """Whether its data have a test set."""
        own = self.data
        return own.train_file is None or bool(own.test_file or own.test_fraction)

    @property
    def protocol_note(self) -> str:
        """The protocol in words, to stand beside every figure."""
        note = super().protocol_note if self.has_test else NO_TEST_NOTE
        return note.replace(STRATIFIED, self.data.chose)

    @property
    def note_without_test(self) -> str:
        """The same where there turned out to be no test set."""
        return NO_TEST_NOTE.replace(STRATIFIED, self.data.chose)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings of a whole training.

    Attributes:
        data: how series of one's own are prepared.
        model: the architecture.
        optimizer: how its parameters move.
        training: how long.
    """

    data: SeriesDataConfig = OWN
    model: TimeSeriesModelConfig
    optimizer: OptimizerConfig
    training: EpochsConfig


PRESETS: Mapping[str, Preset] = {
    # A fraction of the published width, and nothing in it is of a place: series of any length. Its
    # operations are too small to be shared: a second thread waits, spinning, for most of its time.
    # Of one step a token, it does not find a frequency or a motif in a few hundred noisy series; of
    # two steps an epoch, as 32 series make, it has not learned them by the last.
    "small": Preset(
        data=replace(OWN, least_steps=8),
        model=TimeSeriesModelConfig(
            dim=64, num_heads=4, kernel=9, feedforward=128, positions="sinusoidal", pooling="mean"
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        training=EpochsConfig(epochs=60, threads=1),
    ),
    "paper": Preset(
        model=TimeSeriesModelConfig(), optimizer=OptimizerConfig(), training=EpochsConfig()
    ),
}


@dataclass(frozen=True, kw_only=True)
class SeriesRecord(Record):
    """What config.json holds of a run on series.

    Attributes:
        classes: names of the classes; labels index them.
        channels: channels of every series.
        max_length: time steps that the model has room for.
        sizes: number of series in each part of the data.
    """

    config: SeriesConfig
    classes: tuple[str, ...]
    channels: int
    max_length: int
    sizes: dict[str, int]

    def check_file(self, file: Path) -> None:
        """Refuse a file that holds no series, or a table that lacks a column of the run's own."""
        check_series_path(file)
        check_table(file, self.config.data.columns_for(file), OPTIONAL)


SeriesResult = ClassifierResult
