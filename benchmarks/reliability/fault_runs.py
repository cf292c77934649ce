"""Runs that meet a fault: children forked from a process that imported all and computed nothing.

A run is of one process or of several, which find each other on this machine as torchrun has them
do. What happens to it is a function that is called in each child before it trains.
"""

import hashlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch.utils.tensorboard  # noqa: F401 - what a run imports late, imported once here

from flowformer.cli.main import main as command_line
from flowformer.recipes.language import char_shakespeare
from flowformer.train.kinds import Experiment
from flowformer.train.language.config import LanguageConfig, TextDataConfig
from flowformer.train.language.study import Language  # noqa: F401 - imported once here, too
from flowformer.train.loop.task import EpochRecorder, RecordedTask
from flowformer.train.processes.group import ShareDoneError, joined
from flowformer.train.run import train

E = TypeVar("E", bound=Experiment)
Moment = Callable[[int], None]  # is given the number of the process, before it trains

MODEL: dict[str, Any] = {
    **{"dim": 16, "num_heads": 2, "num_layers": 2, "feedforward": 32},
    **{"max_length": 24, "dropout": 0.1},
}
TIMES = ("seconds", "train_seconds", "tokens_per_second")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a process has ended.

    Attributes:
        code: of its exit; the signal's number below 0.
        seconds: since the start of the run.
        said: what it wrote to standard error.
    """

    code: int
    seconds: float
    said: str


def small_run(folder: Path, *, processes: int = 1, **training: Any) -> LanguageConfig:
    """Return a language model of some characters: it prepares data, trains, keeps, and tests.

    Args:
        folder: where its text and its prepared data are.
        processes: among which a batch is shared.
        training: further settings.
    """
    text = folder / "sums.txt"
    if not text.exists():
        folder.mkdir(parents=True, exist_ok=True)
        text.write_text("".join(f"{n} and {n + 1} make {2 * n + 1}.\n" for n in range(400)))
    settings = {"steps": 12, "evaluate_every": 3, "accelerator": "cpu", "threads": 1}
    settings |= {"progress": "none", "devices": processes, "timeout": 10.0, **training}
    recipe = char_shakespeare()  # what `faults` starts by the command line
    return replace(
        recipe,
        data=TextDataConfig(
            folder=text, tokenizer="char", length=24, batch_size=6, cache=folder / "tokens"
        ),
        model=replace(recipe.model, **MODEL),
        optimizer=replace(recipe.optimizer, learning_rate=3e-3, warmup=0),
        training=replace(recipe.training, **settings),
    )


class Run:
    """A run that goes on.

    Args:
        config: the experiment, with the number of its processes.
        folder: of the run.
        resume: whether it goes on.
        moment: is called in each child first.
        command: arguments of `flowformer` to run in place of the training.
    """

    def __init__(
        self,
        config: Experiment,
        folder: Path,
        *,
        resume: bool = False,
        moment: Moment | None = None,
        command: Sequence[str] = (),
    ) -> None:
        """Start its processes."""
        self._config, self._folder, self._resume = config, folder, resume
        self._moment, self._command = moment, command
        self._started = time.monotonic()
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._port = _free_port()
        self.pids = [self._fork(number) for number in range(config.training.processes)]

    def wait(self) -> list[Ended]:
        """Wait for all processes; those that are stopped are killed once another has ended.

        As torchrun does.
        """
        ended: dict[int, Ended] = {}
        while len(ended) < len(self.pids):
            for number, pid in enumerate(self.pids):
                if number in ended:
                    continue
                if ended and _is_stopped(pid):
                    os.kill(pid, signal.SIGKILL)
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    code = os.waitstatus_to_exitcode(status)
                    said = self._log(number).read_text(errors="replace")
                    seconds = time.monotonic() - self._started
                    ended[number] = Ended(code=code, seconds=seconds, said=said)
            time.sleep(0.02)
        return [ended[number] for number in sorted(ended)]

    def _log(self, number: int) -> Path:
        return self._folder.with_name(f"{self._folder.name}.{number}.log")

    def _fork(self, number: int) -> int:
        log = self._log(number)
        log.write_text("")
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            code = self._do(number, log)
        except BaseException as error:  # noqa: BLE001 - a child says what ended it and leaves
            sys.stderr.write(f"error: {type(error).__name__}: {error}\n")
        finally:
            sys.stderr.flush()
            os._exit(code)

    def _do(self, number: int, log: Path) -> int:
        sys.stderr = log.open("w")
        sys.stdout = sys.stderr
        count = self._config.training.processes
        if count > 1:
            os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "GROUP_RANK": "0"}
            os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self._port)}
        if self._moment is not None:
            self._moment(number)
        if self._command:
            try:
                command_line(self._command)
            except SystemExit as stop:
                return int(stop.code or 0)
        try:
            with joined(self._config.training):
                train(self._config, self._folder, resume=self._resume)
        except ShareDoneError:
            return 0
        return 0


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def at_write(name: str, count: int = 1, *, of: int = 0) -> Moment:
    """Kill a run when so many files of a name were to reach the disk, half of the last written.

    Args:
        name: a part of their paths.
        count: of the files.
        of: the process.
    """

    def arm(number: int) -> None:
        calls, original = [], os.fsync

        def counting(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if number == of and name in str(path) and path.is_file():
                calls.append(path)
                if len(calls) == count:
                    os.ftruncate(descriptor, path.stat().st_size // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
            original(descriptor)

        os.fsync = counting

    return arm


def at_rename(name: str, count: int = 1, *, of: int = 0) -> Moment:
    """Kill a run when so many files or folders have taken a name, before anything else happens."""

    def arm(number: int) -> None:
        calls: list[Path] = []

        def watched(original: Any) -> Any:
            def renaming(self: Path, target: Any) -> Path:
                named = original(self, target)
                if number == of and Path(target).name == name:
                    calls.append(Path(target))
                    if len(calls) == count:
                        os.kill(os.getpid(), signal.SIGKILL)
                return named

            return renaming

        Path.replace = watched(Path.replace)  # pyright: ignore[reportAttributeAccessIssue]
        Path.rename = watched(Path.rename)  # pyright: ignore[reportAttributeAccessIssue]

    return arm


def at_step(step: int, *, of: int = 0, what: int = signal.SIGKILL) -> Moment:
    """Send a signal when so many batches have begun."""
    return _counted(RecordedTask, "on_train_batch_start", step, of, what, after=False)


def after_epoch(epoch: int, *, of: int = 0, what: int = signal.SIGKILL) -> Moment:
    """Send a signal when so many epochs have been recorded, before the next one."""
    return _counted(EpochRecorder, "on_train_epoch_end", epoch, of, what, after=True)


def _counted(kind: type, name: str, count: int, of: int, what: int, *, after: bool) -> Moment:
    def arm(number: int) -> None:
        calls, original = [], getattr(kind, name)

        def counting(*arguments: Any) -> Any:
            result = original(*arguments) if after else None
            calls.append(name)
            if len(calls) == count and number == of:
                os.kill(os.getpid(), what)
            return result if after else original(*arguments)

        setattr(kind, name, counting)

    return arm


def outcome(run: Path) -> dict[str, Any]:
    """Return all that a run leaves, but for the time that it took."""
    result = json.loads((run / "result.json").read_text())
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    keep = [i for i, name in enumerate(rows[0]) if name not in TIMES]
    files = sorted(
        str(path.relative_to(run))
        for path in run.rglob("*")
        if path.is_file() and path.relative_to(run).parts[0] not in ("tensorboard", "report")
    )
    return {
        "result": {name: result[name] for name in result if name not in TIMES},
        "rows": [[row[i] for i in keep] for row in rows],
        "files": files,
        "weights": digest(run / "weights.safetensors"),
    }


def digest(path: Path) -> str:
    """Return the digest of a file, or of all files in a folder."""
    every = sorted(path.rglob("*")) if path.is_dir() else [path]
    text = hashlib.sha256()
    for each in every:
        if each.is_file():
            text.update(each.name.encode() + each.read_bytes())
    return text.hexdigest()


def with_training(config: E, **changes: Any) -> E:
    """Return it with other settings of its training."""
    training: Any = replace(config.training, **changes)
    return replace(config, training=training)
