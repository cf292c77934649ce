"""The runs of a comparison in this process: for what a run is. test_comparison.py starts others."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowformer.compare import execution, worker
from flowformer.compare.plan import RunRequest
from flowformer.config_json import from_plain


class Here(execution._Server):
    """A server that does a run as soon as it is told, in the process that tells it.

    It is no process: the constructor of one is not called.
    """

    def __init__(self, *_: object) -> None:
        """Start nothing."""

    def start(self, task: Mapping[str, Any]) -> int:
        request = from_plain(RunRequest, task["request"])
        state = worker.run(request, Path(task["run_dir"]), None)
        replace(state, seconds=1.0).write(Path(task["state_file"]))
        return 0

    def poll(self, _pid: int, /) -> int:
        return 0

    def kill(self, _pid: int, /) -> None:
        raise AssertionError("nothing runs that could be killed")

    def close(self) -> None:
        """End nothing."""


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_Server", Here)
