"""Run by test_resume.py: one run left alone, and one for each moment at which it can be killed.

Moments: every write of a file, when half of it is on the disk and just after the file took its
name; and every step of an epoch. Each killed run is resumed. The runs are children forked from a
process that has imported everything and computed nothing.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sklearn.model_selection  # noqa: F401 - what a run imports late, imported once here
import torch.utils.tensorboard  # noqa: F401

from flowformer import files
from flowformer.config_json import from_plain
from flowformer.train.kinds import KINDS, Experiment
from flowformer.train.loop.task import RecordedTask
from flowformer.train.run import train


def main() -> None:
    kind = KINDS[sys.argv[3]]
    assert kind.study  # imported once, here
    config = from_plain(kind.config, json.loads(Path(sys.argv[1]).read_text()))
    base = Path(sys.argv[2])
    assert run(config, base / "uninterrupted") == 0
    for name, kill_at in [("write", kill_at_sync), ("step", kill_at_step)]:
        for number in range(1, 100):
            folder = base / f"{name}-{number}"
            status = run(config, folder, before=lambda: kill_at(number))  # noqa: B023 - run at once
            if status == 0:
                break  # the run ended before the moment came: there are no more
            assert os.WTERMSIG(status) == signal.SIGKILL
            (base / f"{name}-{number}.killed").write_text(
                "\n".join(sorted(str(path.relative_to(folder)) for path in folder.rglob("*")))
            )
            assert run(config, folder, resume=True) == 0


def run(config: Experiment, folder: Path, *, resume: bool = False, before: Callable = bool) -> int:
    child = os.fork()
    if child == 0:
        before()
        train(config, folder, resume=resume)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def kill_at_sync(number: int) -> None:
    """Of the two syncs of a file, the first finds it whole but unnamed, the second named."""
    calls, sync = [], os.fsync

    def counting(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == number:
            if number % 2 == 1:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    files.os.fsync = counting


def kill_at_step(number: int) -> None:
    calls, step = [], RecordedTask.on_train_batch_start

    def counting(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*arguments)

    RecordedTask.on_train_batch_start = counting  # pyright: ignore[reportAttributeAccessIssue]


if __name__ == "__main__":
    main()
