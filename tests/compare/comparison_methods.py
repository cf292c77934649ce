"""Methods for the tests of a comparison: they start in a moment, and fail in every way there is.

Processes import this module: it leaves torch and pytest out.
"""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowformer.compare.methods import MethodResult
from flowformer.files import write_atomically
from flowformer.train.config import EpochsConfig
from flowformer.train.folder import RunFolder
from flowformer.train.series.config import SeriesConfig, SeriesDataConfig

COUNT = 20  # test cases
HERE = __name__
FAKES = {
    "series": {
        "quick": f"{HERE}:quick",
        "other": f"{HERE}:quick",
        "broken": f"{HERE}:broken",
        "greedy": f"{HERE}:greedy",
        "killed": f"{HERE}:killed",
        "crashing": f"{HERE}:crashing",
        "forked": f"{HERE}:forked",
    }
}


def experiment(dataset: str = "Vowels", **training: Any) -> SeriesConfig:
    return SeriesConfig(
        name="fake",
        data=SeriesDataConfig(dataset=dataset),
        training=replace(EpochsConfig(epochs=1, accelerator="cpu"), **training),
    )


def quick(
    config: SeriesConfig,
    run_dir: Path,
    *,
    resume: bool,
    wrong: int = 0,
    seconds: float = 0.0,
    calls: str | None = None,
) -> MethodResult:
    """Gets all test cases but `wrong` right; appends its seed to the file `calls`."""
    assert resume
    assert config.training.epochs >= 1
    if calls is not None:
        with Path(calls).open("a") as file:
            file.write(f"{run_dir.name}\n")
    time.sleep(seconds)
    folder = RunFolder(run_dir)
    rows = [f"{index},up,{'down' if index < wrong else 'up'}" for index in range(COUNT)]
    write_atomically(folder.predictions, "\n".join(["index,label,predicted", *rows]) + "\n")
    result = MethodResult(test_accuracy=1 - wrong / COUNT, seconds=0.5, parameters=3)
    result.write(folder)
    return result


def broken(*_: Any, seeds: list[int] | None = None, **options: Any) -> MethodResult:
    """Fails, for the given seeds or for all."""
    config = _[0]
    if seeds is None or config.training.seed in seeds:
        raise ArithmeticError("the loss became nan\nand more words")
    return quick(*_, **options)


def greedy(*_: Any, **__: Any) -> MethodResult:
    """Takes 64 MiB at a time, and touches them, until it may not."""
    taken = []
    for _step in range(64):
        taken.append(bytearray(2**26))
    raise AssertionError(f"nothing stopped it from taking {len(taken)} parts")


def killed(*_: Any, **__: Any) -> MethodResult:
    """Ends as a process that the kernel kills."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def crashing(*_: Any, **__: Any) -> MethodResult:
    """Ends as a process of compiled code that is wrong."""
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def forked(config: SeriesConfig, run_dir: Path, *, resume: bool, calls: str) -> MethodResult:
    """Appends to the file `calls` what has started this process, and when that had begun."""
    began = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]
    with Path(calls).open("a") as file:
        file.write(f"{os.getppid()} {began} {os.getpid()}\n")
    return quick(config, run_dir, resume=resume)
