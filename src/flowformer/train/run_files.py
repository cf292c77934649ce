"""The files of a run folder as values, read strictly: nothing is guessed. No torch here."""

import csv
import io
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from flowformer.config_json import from_plain, to_plain
from flowformer.files import write_atomically
from flowformer.own_modules import OwnModule, own_module
from flowformer.train.config import Protocol, StepsConfig
from flowformer.train.folder import DEFAULT_TASK, RunFolder, read_json, require_kind, write_json

if TYPE_CHECKING:  # recipes and the command line start without NumPy
    import numpy as np
    from jaxtyping import Float, Int

logger = logging.getLogger(__name__)

K = TypeVar("K", bound="Kept")
R = TypeVar("R", bound="Record")

Lines = list[tuple[str, str]]  # the name of a figure, and the figure in words


class Kept:
    """A dataclass that is a file of a run folder.

    Attributes:
        file: the property of RunFolder that is its path.
        absent: what is said of a folder without it.
    """

    file: ClassVar[str]
    absent: ClassVar[str]

    def write(self, folder: RunFolder) -> None:
        """Write its file at once."""
        write_json(getattr(folder, self.file), to_plain(self))

    @classmethod
    def read(cls: type[K], folder: RunFolder) -> K:
        """Read its file.

        Raises:
            FileNotFoundError: there is none.
            NotADirectoryError: the folder is a file.
            ValueError: the file is not what `write` makes.
        """
        if folder.root.is_file():
            raise NotADirectoryError(f"expected the folder of a run, got the file {folder.root}")
        path: Path = getattr(folder, cls.file)
        if not path.exists():
            raise FileNotFoundError(f"{folder.root} {cls.absent.format(name=path.name)}")
        return from_plain(cls, read_json(path), where=str(path))


@dataclass(frozen=True, kw_only=True)
class Record(Kept):
    """What config.json holds; written first.

    The record of a kind has further fields, of which `task`, a Literal, says of which kind the run
    is.

    Attributes:
        recipe: name of the recipe.
        config: the configuration, overrides included.
        versions: of Python and of the packages that compute.
        mixer_module: the module that gave the mixer its name, where that is one of a user's own:
            it has to be imported before the model can be read back.
    """

    file: ClassVar[str] = "config"
    absent: ClassVar[str] = "holds no run: there is no {name}"

    recipe: str
    config: Any
    versions: dict[str, str]
    mixer_module: OwnModule | None = None

    @classmethod
    def read(cls: type[R], folder: RunFolder) -> R:
        """Read config.json.

        Raises:
            FileNotFoundError: the folder holds no run.
            ValueError: the run is of another kind, the file is not what `write` makes, or the
                mixer is one of a user's own that is not there.
        """
        require_kind(folder, getattr(cls, "task", DEFAULT_TASK))
        record = super().read(folder)
        if record.mixer_module is not None:
            require_mixer(record.config.model.mixer, record.mixer_module, folder)
        return record

    def check_file(self, file: Path) -> None:
        """Refuse what can be seen at once that a run cannot read: by its ending, its first line.

        Args:
            file: what the run is to predict, or to be tested on.

        Raises:
            ValueError: it is not what was expected.
        """
        del file


def mixer_module(config: Any) -> OwnModule | None:
    """Return the module that gave an experiment's mixer its name, where that is a user's own.

    Raises:
        ValueError: there is no such mixer; the message lists the choices.
    """
    name = getattr(config.model, "mixer", None)
    if name is None:  # a model without one
        return None
    from flowformer.nn.mixers.building import mixer_class

    return own_module(mixer_class(name).origin)


def require_mixer(name: str, module: OwnModule, folder: RunFolder) -> None:
    """Refuse to read a run whose mixer is of a module that was not imported.

    No file that a run names is imported: reading a run runs no code in it.

    Raises:
        ValueError: the mixer is not there; the message says what brings it back.
    """
    from flowformer.nn.mixers.building import mixer_class

    try:
        mixer = mixer_class(name)
    except ValueError as error:
        raise ValueError(
            f"{folder.root} needs the mixer {name!r} of the module {module.name}: {module.remedy}"
        ) from error
    now = own_module(mixer.origin)
    if now is None or now.digest != module.digest:
        logger.warning("%s: the mixer %s is another since: %s", folder.root, name, module.name)


class Outcome(Kept, ABC):
    """What result.json holds; written last."""

    file: ClassVar[str] = "result"
    absent: ClassVar[str] = "has no {name}: the run has not ended"

    @property
    @abstractmethod
    def score(self) -> float:
        """The figure that comparisons rank by."""

    @property
    @abstractmethod
    def in_words(self) -> str:
        """The score in a sentence."""

    def keep(self, folder: RunFolder, files: Mapping[str, str]) -> None:
        """Write the files of a run that has ended, then its own; say the score if that fails.

        Args:
            folder: the folder of the run.
            files: the content of each file, by its name in the folder.
        """
        try:
            for name, content in files.items():
                write_atomically(folder.root / name, content)
            self.write(folder)
        except OSError:  # such as a full disk, after hours of training
            logger.warning("%s, which cannot be kept", self.in_words)
            raise


@dataclass(frozen=True, kw_only=True)
class Rehearsed(Kept):
    """What the first steps of a run have taken, by which the time of the whole is known.

    Attributes:
        prepare_seconds: of reading the data and building the model.
        step_seconds: of a step of the optimizer.
        steps: of the optimizer in a round.
        round_seconds: of a round: its steps, the validation and the checkpoint.
        rounds: of the run.
    """

    file: ClassVar[str] = "result"
    absent: ClassVar[str] = "has no {name}: the first steps have not been taken"

    prepare_seconds: float
    step_seconds: float
    steps: int
    round_seconds: float
    rounds: int

    def seconds(self, done: int = 0) -> float:
        """Return how long a run takes from here, without its test at the end.

        Args:
            done: rounds that are done.
        """
        return self.prepare_seconds + max(0, self.rounds - done) * self.round_seconds


@dataclass(frozen=True, kw_only=True)
class Result(Outcome):
    """What result.json holds of a training; a kind has further figures.

    Attributes:
        recipe: name of the recipe.
        protocol_note: how the figures came about, to stand beside every one.
        seed: seed of the run.
        parameters: trainable parameters.
        seconds: of training, the measurements included.
        device: what computed.
        threads: CPU threads.
        width: columns of the names in `lines`.
    """

    width: ClassVar[int]

    recipe: str
    protocol_note: str
    seed: int
    parameters: int
    seconds: float
    device: str
    threads: int

    @abstractmethod
    def lines(self, record: Any, run: str) -> Lines:
        """Return what to say at the end of a run: no figure without its protocol.

        Args:
            record: the record of the run.
            run: the folder of the run.
        """


@dataclass(frozen=True, kw_only=True)
class ClassifierResult(Result):
    """What result.json holds of a classifier.

    Attributes:
        protocol: what chose the epoch.
        test_accuracy: of the best epoch, in [0, 1]; None without a test set.
        validation_accuracy: of the best epoch; under the published protocol that is the test
            accuracy.
        validation_loss: of the same epoch and part.
        best_epoch: counted from 1; of a training by steps, the measurement.
        epochs: passes over the training set; of a training by steps, measurements.
        paper_accuracy: what the paper prints, if it does.
        paper_source: where it prints it.
        best_step: steps of the optimizer until the best epoch; None in folders of older versions.
        test_top5: of images of more than five classes, the fraction with the label among the five
            likeliest.
    """

    width: ClassVar[int] = 15

    protocol: Protocol
    test_accuracy: float | None
    validation_accuracy: float
    validation_loss: float
    best_epoch: int
    epochs: int
    paper_accuracy: float | None
    paper_source: str | None
    best_step: int | None = None
    test_top5: float | None = None

    @property
    def score(self) -> float:
        """The test accuracy; without a test set, that on the validation part."""
        return self.validation_accuracy if self.test_accuracy is None else self.test_accuracy

    @property
    def in_words(self) -> str:
        """The accuracy in percent."""
        part = "validation" if self.test_accuracy is None else "test"
        return f"the {part} accuracy is {100 * self.score:.2f}"

    def lines(self, record: Any, run: str) -> Lines:
        """Return what to say at the end of a run: no figure without its protocol."""
        lines = [("validation accuracy", f"{100 * self.validation_accuracy:.2f} (no test set)")]
        if self.test_accuracy is not None:
            paper = self.paper_accuracy
            own = "" if paper is None else f", the paper's {100 * paper:.1f} (by its own protocol)"
            lines = [("test accuracy", f"{100 * self.test_accuracy:.2f}{own}")]
            if self.test_top5 is not None:
                lines.append(("top five", f"{100 * self.test_top5:.2f}"))
        training = record.config.training
        kept = ("epoch", f"{self.best_epoch} of {self.epochs}")
        if isinstance(training, StepsConfig):
            kept = ("step", f"{self.best_step:,} of {training.steps:,}")
        return [
            *lines,
            ("protocol", f"{self.protocol}: {self.protocol_note}"),
            (kept[0], f"{kept[1]}, {self.seconds:.0f} s in all"),
            ("run", run),
        ]


def read_history(folder: RunFolder, *needed: str) -> "dict[str, Float[np.ndarray, ' rounds']]":
    """Read the columns of metrics.csv; an empty cell, a round without that measurement, is NaN.

    Args:
        folder: the folder of the run.
        needed: columns that must be there.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a column is missing, or a value is no number; the message names the line.
    """
    import numpy as np

    columns: dict[str, list[float]] = {}
    for line, row in _rows(folder.metrics, needed):
        for name, text in row.items():
            try:
                columns.setdefault(name, []).append(float(text) if text else math.nan)
            except ValueError as error:
                raise ValueError(
                    f"{folder.metrics}, line {line}: {name} must be a number, got {text!r}"
                ) from error
    return {name: np.array(values) for name, values in columns.items()}


def read_predictions(
    folder: RunFolder, classes: Sequence[str]
) -> "tuple[Int[np.ndarray, ' n'], Int[np.ndarray, ' n']]":
    """Read the labels and the predicted classes of predictions.csv, as indices into `classes`.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: a class is unknown; the message names the line.
    """
    import numpy as np

    numbers = {name: number for number, name in enumerate(classes)}
    pairs = []
    for line, row in _rows(folder.predictions, ("label", "predicted")):
        for column in ("label", "predicted"):
            if row[column] not in numbers:
                raise ValueError(
                    f"{folder.predictions}, line {line}: {column} must be one of the classes "
                    f"{', '.join(classes)}, got {row[column]!r}"
                )
        pairs.append((numbers[row["label"]], numbers[row["predicted"]]))
    labels, predicted = np.array(pairs).T
    return labels, predicted


def _rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and the cells of each row of a CSV file, which has at least one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a finished run has it, train or resume first")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, got {error}") from error
    # Not splitlines: the name of a class may hold a line break, which CSV quotes.
    reader = csv.DictReader(io.StringIO(text, newline=""))
    names = reader.fieldnames or ()
    if missing := [name for name in needed if name not in names]:
        raise ValueError(f"{path}, line 1: expected the columns {', '.join(missing)}")
    row = None
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"{path}, line {reader.line_num}: expected {len(names)} values")
        yield reader.line_num, row
    if row is None:
        raise ValueError(f"{path}: expected at least one row under the header, got none")
