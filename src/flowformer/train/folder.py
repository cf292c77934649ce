"""A run is a folder: what lies where in it, and who may write there. No torch here."""

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
from typing import Any, TypeVar, cast

from flowformer import __version__
from flowformer.config_json import flatten, to_plain
from flowformer.files import locked, parse_json, remove_unfinished, write_atomically
from flowformer.train.digests import changed_data
from flowformer.train.processes import group

logger = logging.getLogger(__name__)

LOCK_SECONDS = 10.0  # workers that read data outlive a process that is killed by some seconds

# Settings of the training that may be others when a run goes on.
_FREE = ("progress", "logger", "devices", "nodes", "timeout")
DEFAULT_TASK = "series"  # the kind of a run whose config.json names none


class _Inside:
    """The path of a file or folder in the folder of a run."""

    def __init__(self, *parts: str) -> None:
        self._parts = parts

    def __get__(self, folder: Any, _kind: type) -> Path:
        return folder.root.joinpath(*self._parts)


@dataclass(frozen=True)
class RunFolder:
    """Paths in the folder of a run.

    Attributes:
        root: the folder.
        config: the whole configuration, what the data are, and the versions that ran; written
            first.
        data: a digest of all data that were read; older folders have none.
        preprocessing: what was fitted on the training data.
        metrics: one row an epoch, or a measurement between steps.
        last: checkpoint of the last whole epoch, from which a run resumes.
        previous: what `last` was an epoch ago: a run resumes from there where that is damaged.
        best: parameters of the best epoch so far.
        weights: parameters of the best epoch, once training has ended.
        predictions: predictions for the test set.
        result: the figures of the run; written last.
        services: what the run is called where else its figures go.
        report: folder of the HTML report and its pictures.
        nan_batch: the batch at which the loss stopped being finite; of another process it has a
            number.
        lock: who writes here now.
    """

    root: Path

    config = _Inside("config.json")
    data = _Inside("data.json")
    preprocessing = _Inside("preprocessing.json")
    metrics = _Inside("metrics.csv")
    last = _Inside("checkpoints", "last.ckpt")
    previous = _Inside("checkpoints", "previous.ckpt")
    best = _Inside("checkpoints", "best.ckpt")
    weights = _Inside("weights.safetensors")
    predictions = _Inside("predictions.csv")
    result = _Inside("result.json")
    services = _Inside("services.json")
    report = _Inside("report")
    nan_batch = _Inside("nan_batch.safetensors")
    lock = _Inside(".lock")

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that a run is read back from."""
        own = (self.config, self.data, self.preprocessing, self.metrics, self.predictions)
        return (*own, self.last, self.previous, self.best, self.weights, self.result)

    def begin(self, *, resume: bool) -> bool:
        """Return whether a run is gone on with; one that is started must find nothing here.

        Raises:
            FileExistsError: the folder holds something already, and `resume` was not asked for.
        """
        started = resume and self.config.exists()
        if not started:
            self.require_unused()
        return started

    def require_unused(self) -> None:
        """Refuse to write over anything.

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


def require_run(path: Path) -> None:
    """Refuse a folder without a run.

    Raises:
        FileNotFoundError: there is no run in it.
        NotADirectoryError: it is a file.
    """
    if path.is_file():
        raise NotADirectoryError(f"expected the folder of a run, got the file {path}")
    if not RunFolder(path).config.exists():
        raise FileNotFoundError(f"{path} holds no run: there is no {RunFolder(path).config.name}")


def require_ended(folder: RunFolder) -> None:
    """Refuse a run that has left no trained model yet.

    Raises:
        FileNotFoundError: it has not ended.
    """
    if not folder.weights.exists():
        raise FileNotFoundError(
            f"{folder.root} has no {folder.weights.name}: it has not ended, go on with --resume"
        )


def require_kind(folder: RunFolder, kind: str) -> None:
    """Refuse a run of another kind.

    Raises:
        ValueError: it is of another.
    """
    if folder.config.exists() and (there := read_task(folder)) != kind:
        raise ValueError(
            f"{folder.root} holds a run on {there}, and one on {kind} is needed; from Python "
            "flowformer.train.run.load_run reads runs of every kind"
        )


def read_task(folder: RunFolder) -> str:
    """Return the kind of the run in a folder: what its config.json says, or else series.

    Raises:
        FileNotFoundError: there is no config.json.
        ValueError: it is not JSON.
    """
    values = read_json(folder.config)
    return str(values.get("task", DEFAULT_TASK)) if isinstance(values, dict) else DEFAULT_TASK


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file at once, readable, refusing NaN (which JSON has not)."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run.

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
    """Return whether a run that was started has ended; one that began in another way is refused.

    Args:
        folder: the folder of the run.
        record: what its config.json would hold now.
        digests: digests of the data that it would read now.

    Raises:
        ValueError: it holds something else, or has read other data; the message names what.
    """
    before, now = flatten(to_plain(type(record).read(folder))), flatten(to_plain(record))
    # How a run is shown, how many processes read its data, and how many take their shares of a
    # batch or how long they wait for each other, change nothing of it but the rounding.
    free = (
        "versions.",
        "mixer_module.file",
        "config.data.workers",
        *(f"config.training.{name}" for name in _FREE),
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
    """Write the record of a run, or remove what one that was started left half written."""
    if started:
        remove_unfinished(folder.root)
    else:
        record.write(folder)
    keep_digests(folder, digests)


def keep_digests(folder: RunFolder, digests: Mapping[str, str]) -> None:
    """Write the digests of what a run has read."""
    write_json(folder.data, dict(digests))


def read_digests(folder: RunFolder) -> dict[str, str] | None:
    """Return the digests of what a run has read; None of an older run, which has none.

    Raises:
        ValueError: the file is damaged.
    """
    if not folder.data.exists():
        return None
    digests = read_json(folder.data)
    if not isinstance(digests, dict):
        raise ValueError(f"{folder.data} must be a mapping, got {type(digests).__name__}")
    return digests


H = TypeVar("H", bound=Callable[..., Any])


def holds_folder(function: H) -> H:
    """Let one process at a time write to a run folder: the others are told which one does.

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
    """Return what says who holds a folder that is waited for."""
    return lambda holder: logger.info("%s is held by %s: waiting for it", root, holder)


def read_versions(*more: str) -> dict[str, str]:
    """Return the versions of Python, of the packages that compute, and of more packages."""
    packages = ("torch", "lightning", "numpy", "aeon", "scikit-learn", *more)
    versions = {"python": platform.python_version(), "flowformer": __version__}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
