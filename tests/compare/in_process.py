"""The runs of a comparison in this process: for what a run is. test_comparison.py starts others."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from flowformer.compare import execution, worker
from flowformer.compare.engines.engine import Engine, Task
from flowformer.compare.plan import RunState


class Here(Engine):
    """An engine that does a run as soon as it is told, in the process that tells it."""

    at_once, poll_seconds = 1, 0.0

    def __init__(self, *_: object, **__: object) -> None:
        """Start nothing."""

    def submit(self, tasks: Sequence[Task]) -> list[RunState]:
        return [_done(task) for task in tasks]

    def poll(self, handle: RunState) -> RunState:
        return handle

    def close(self) -> None:
        """End nothing."""


def _done(task: Task) -> RunState:
    state = replace(worker.run(task.request, Path(task.run_dir), None), seconds=1.0)
    state.write(Path(task.state_file))
    return state


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "Workers", Here)
