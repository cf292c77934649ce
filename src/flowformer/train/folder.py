"""A run is a folder. What lies where in it, and how a finished one is read back."""

import contextlib
import functools
import importlib.metadata
import inspect
import json
import logging
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from flowformer import __version__
from flowformer.files import locked, parse_json, remove_unfinished, write_atomically
from flowformer.serialization import flatten, from_plain, to_plain
from flowformer.train.config import Protocol, TimeSeriesConfig
from flowformer.train.processes import group

logger = logging.getLogger(__name__)

LOCK_SECONDS = 10.0  # workers that read data outlive a process that is killed by some seconds
_NAMED = 5  # data that a message lists

DEFAULT_TASK = "series"  # the kind of a run whose config.json names none


@dataclass(frozen=True)
class RunFolder:
    """Paths in the folder of a run.

    Attributes:
        root: the folder.
    """

    root: Path

    @property
    def config(self) -> Path:
        """The whole configuration, the classes, and the versions that ran; written first."""
        return self.root / "config.json"

    @property
    def data(self) -> Path:
        """A digest of all data that were read; older folders have none."""
        return self.root / "data.json"

    @property
    def preprocessing(self) -> Path:
        """What was fitted on the training series."""
        return self.root / "preprocessing.json"

    @property
    def metrics(self) -> Path:
        """One row an epoch."""
        return self.root / "metrics.csv"

    @property
    def last(self) -> Path:
        """Checkpoint of the last whole epoch, from which a run resumes."""
        return self.root / "checkpoints" / "last.ckpt"

    @property
    def previous(self) -> Path:
        """What `last` was an epoch ago: a run resumes from there where that is damaged."""
        return self.root / "checkpoints" / "previous.ckpt"

    @property
    def best(self) -> Path:
        """Parameters of the best epoch so far."""
        return self.root / "checkpoints" / "best.ckpt"

    @property
    def weights(self) -> Path:
        """Parameters of the best epoch, once training has ended."""
        return self.root / "weights.safetensors"

    @property
    def predictions(self) -> Path:
        """Predictions for the test set."""
        return self.root / "predictions.csv"

    @property
    def result(self) -> Path:
        """The figures of the run; written last."""
        return self.root / "result.json"

    @property
    def report(self) -> Path:
        """Folder of the HTML report and its pictures."""
        return self.root / "report"

    @property
    def nan_batch(self) -> Path:
        """The batch at which the loss stopped being finite; of another process it has a number."""
        return self.root / "nan_batch.safetensors"

    @property
    def lock(self) -> Path:
        """Who writes here now."""
        return self.root / ".lock"

    @property
    def files(self) -> tuple[Path, ...]:
        """What a run is read back from."""
        own = (self.config, self.data, self.preprocessing, self.metrics, self.predictions)
        return (*own, self.last, self.previous, self.best, self.weights, self.result)

    def begin(self, *, resume: bool) -> bool:
        """Returns whether a run is gone on with; one that is started must find nothing here.

        Raises:
            FileExistsError: the folder holds something already, and `resume` was not asked for.
        """
        started = resume and self.config.exists()
        if not started:
            self.require_unused()
        return started

    def require_unused(self) -> None:
        """Refuses to write over anything.

        Raises:
            FileExistsError: the folder holds something already.
        """
        if self.config.exists():
            raise FileExistsError(
                f"{self.root} holds a run: go on with it (--resume), or choose another folder"
            )
        # A hidden file may be what a kill left of the very first write.
        if self.root.exists() and any(not p.name.startswith(".") for p in self.root.iterdir()):
            raise FileExistsError(f"{self.root} is not empty: choose another folder for the run")


K = TypeVar("K", bound="Kept")


class Kept:
    """A dataclass that is a file of a run folder.

    Attributes:
        file: the property of RunFolder that is its path.
        absent: what is said of a folder without it.
    """

    file: ClassVar[str]
    absent: ClassVar[str]

    def write(self, folder: RunFolder) -> None:
        """Writes its file at once."""
        write_json(getattr(folder, self.file), to_plain(self))

    @classmethod
    def read(cls: type[K], folder: RunFolder) -> K:
        """Reads its file.

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


R = TypeVar("R", bound="KeptRecord")


class KeptRecord(Kept):
    """What config.json holds; written first. Its field `task` says of which kind the run is."""

    file: ClassVar[str] = "config"
    absent: ClassVar[str] = "holds no run: there is no {name}"

    @classmethod
    def read(cls: type[R], folder: RunFolder) -> R:
        """Reads config.json.

        Raises:
            FileNotFoundError: the folder holds no run.
            ValueError: the run is of another kind, or the file is not what `write` makes.
        """
        own = getattr(cls, "task", DEFAULT_TASK)
        if folder.config.exists() and (there := read_task(folder)) != own:
            from flowformer.train.kinds import kind_of_run  # whose rows have records

            load = kind_of_run(folder).load.replace(":", ".")
            raise ValueError(
                f"{folder.root} holds a run on {there}, and one on {own} is needed; from Python "
                f"{load} reads it"
            )
        return super().read(folder)


class KeptResult(Kept):
    """What result.json holds; written last."""

    file: ClassVar[str] = "result"
    absent: ClassVar[str] = "has no {name}: the run has not ended"

    def keep(self, folder: RunFolder, files: Mapping[Path, str], *, figure: str) -> None:
        """Writes the files of a run that has ended, then its own; says the figure if that fails.

        Args:
            folder: of the run.
            files: what is in each.
            figure: what the run has come to, in words.
        """
        try:
            for path, content in files.items():
                write_atomically(path, content)
            self.write(folder)
        except OSError:  # such as a full disk, after hours of training
            logger.warning("%s, which cannot be kept", figure)
            raise


@dataclass(frozen=True, kw_only=True)
class RunRecord(KeptRecord):
    """What config.json holds.

    Attributes:
        recipe: name of the recipe.
        config: the configuration, overrides included.
        versions: of Python and of the packages that compute.
        classes: names of the classes; labels index them.
        channels: channels of every series.
        max_length: time steps that the model has room for.
        sizes: number of series in each part of the data.
    """

    recipe: str
    config: TimeSeriesConfig
    versions: dict[str, str]
    classes: tuple[str, ...]
    channels: int
    max_length: int
    sizes: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class RunResult(KeptResult):
    """What result.json holds.

    Attributes:
        recipe: name of the recipe.
        protocol: what chose the epoch.
        protocol_note: the same in words, to stand beside every figure.
        seed: of the run.
        test_accuracy: of the best epoch, in [0, 1]; None without a test set.
        validation_accuracy: of the best epoch; under the published protocol that is the test
            accuracy.
        validation_loss: likewise.
        best_epoch: counted from 1; of a training by steps, the measurement.
        epochs: passes over the training set; of a training by steps, measurements.
        paper_accuracy: what the paper prints, if it does.
        paper_source: where it prints it.
        parameters: trainable parameters.
        seconds: of all epochs, validation included.
        device: what computed.
        threads: CPU threads.
        best_step: steps of the optimizer until the best epoch; None in folders of older versions.
        test_top5: of images of more than five classes, the fraction with the label among the five
            likeliest.
    """

    recipe: str
    protocol: Protocol
    protocol_note: str
    seed: int
    test_accuracy: float | None
    validation_accuracy: float
    validation_loss: float
    best_epoch: int
    epochs: int
    paper_accuracy: float | None
    paper_source: str | None
    parameters: int
    seconds: float
    device: str
    threads: int
    best_step: int | None = None
    test_top5: float | None = None

    @property
    def score(self) -> float:
        """The test accuracy; without a test set, that on the validation part."""
        return self.validation_accuracy if self.test_accuracy is None else self.test_accuracy


def read_task(folder: RunFolder) -> str:
    """Returns the kind of the run in a folder: what its config.json says, or else series.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: it is not JSON.
    """
    values = read_json(folder.config)
    return str(values.get("task", DEFAULT_TASK)) if isinstance(values, dict) else DEFAULT_TASK


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file at once, readable, refusing NaN (which JSON has not)."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is not JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} is missing: a run has it from its start on") from error
    except ValueError as error:  # of the encoding too
        raise ValueError(f"{path} is not JSON: {error}") from error


def has_ended(folder: RunFolder, record: Any, digests: Mapping[str, str]) -> bool:
    """Returns whether a run that was started has ended; one that began in another way is refused.

    Args:
        folder: of the run.
        record: what its config.json would hold now.
        digests: of the data that it would read now.

    Raises:
        ValueError: it holds something else, or has read other data; the message names what.
    """
    before, now = flatten(to_plain(type(record).read(folder))), flatten(to_plain(record))
    # How a run is shown, how many processes read its data, and how many take their shares of a
    # batch or how long they wait for each other, change nothing of it but the rounding.
    free = (
        "versions.",
        "config.data.workers",
        *(f"config.training.{name}" for name in ("progress", "devices", "nodes", "timeout")),
    )
    changed = [
        key
        for key in sorted(before | now)
        if before.get(key) != now.get(key) and not key.startswith(free)
    ]
    asked = [key for key in changed if key.startswith("config.")]
    data = [] if asked else changed_data(read_digests(folder), digests)
    # Where data have changed, so may have numbers of cases and the like: a file's name says more.
    reasons = data or [
        f"{key.removeprefix('config.')} was {before.get(key)}, got {now.get(key)}"
        for key in asked or changed
    ]
    if reasons:
        raise ValueError(
            f"{folder.root} can only be resumed as it began: {'; '.join(reasons)}. Give it what it "
            "had then, or train in another folder"
        )
    if folder.result.exists():
        logger.info("%s has ended already", folder.root)
        return True
    return False


def open_folder(
    folder: RunFolder, record: Any, digests: Mapping[str, str], *, started: bool
) -> None:
    """Writes the record of a run, or removes what one that was started left half written."""
    if started:
        remove_unfinished(folder.root)
    else:
        record.write(folder)
    keep_digests(folder, digests)


def keep_digests(folder: RunFolder, digests: Mapping[str, str]) -> None:
    """Writes what a run has read."""
    write_json(folder.data, dict(digests))


def read_digests(folder: RunFolder) -> dict[str, str] | None:
    """Returns what a run has read; None of one that does not say it, as older ones.

    Raises:
        ValueError: the file is damaged.
    """
    if not folder.data.exists():
        return None
    digests = read_json(folder.data)
    if not isinstance(digests, dict):
        raise ValueError(f"{folder.data} must be a mapping, got {type(digests).__name__}")
    return digests


def changed_data(before: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    """Says which data are others than those that were read before; nothing of an older run."""
    if before is None:
        return []
    states = dict.fromkeys(before, "is gone") | {
        place: "has changed" if place in before else "is new" for place in now
    }
    changed = [place for place in states if before.get(place) != now.get(place)]
    named = [f"{place} {states[place]}" for place in changed[:_NAMED]]
    more = len(changed) - len(named)
    return [*named, f"and so on, {more} more"] if more else named


H = TypeVar("H", bound=Callable[..., Any])


def holds_folder(function: H) -> H:
    """Lets one process at a time write to a run folder: the others are told which one does.

    Of several processes of one run, the first holds it for all.

    Args:
        function: with a parameter `run_dir`. It then raises BlockingIOError where another process
            writes there.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def holding(*arguments: Any, **options: Any) -> Any:
        run_dir = signature.bind(*arguments, **options).arguments["run_dir"]
        with contextlib.ExitStack() as stack:
            group.current().agree(lambda: _hold(stack, RunFolder(Path(run_dir))))
            return function(*arguments, **options)

    return cast(H, holding)


def _hold(stack: contextlib.ExitStack, folder: RunFolder) -> None:
    refusal = f"another process writes to {folder.root}: end it, or choose another folder"
    say = say_held(folder.root)
    lock = locked(folder.lock, refusal=refusal, patience=LOCK_SECONDS, on_wait=say)
    stack.enter_context(lock)


def say_held(root: Path) -> Callable[[str], None]:
    """Returns what says who holds a folder that is waited for."""
    return lambda holder: logger.info("%s is held by %s: waiting for it", root, holder)


def read_versions(*more: str) -> dict[str, str]:
    """Returns the versions of Python, of the packages that compute, and of more packages."""
    packages = ("torch", "lightning", "numpy", "aeon", "scikit-learn", *more)
    versions = {"python": platform.python_version(), "flowformer": __version__}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
