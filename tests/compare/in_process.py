"""The runs of a comparison in this process: for what a run is. test_comparison.py starts others."""

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flowformer.compare import execution, worker
from flowformer.compare.plan import RunRequest
from flowformer.config_json import from_plain


class Here(subprocess.Popen):
    """A worker to who started it: its own standard input, which runs a task as soon as it is told.

    It is no process: the constructor of one is not called.
    """

    def __init__(self, *_: object, **__: object) -> None:
        self.stdin: Any = self
        self.returncode = 0
        self._task = {}

    def write(self, line: bytes) -> None:
        self._task = json.loads(line)

    def flush(self) -> None:
        request = from_plain(RunRequest, self._task["request"])
        state = worker.run(request, Path(self._task["run_dir"]), None)
        replace(state, seconds=1.0).write(Path(self._task["state_file"]))

    def close(self) -> None:
        """Says nothing: it has ended."""

    def wait(self, *_: Any, **__: Any) -> int:
        return 0

    def poll(self) -> int:
        return 0


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"Popen": Here, "PIPE": None, "STDOUT": None}
    monkeypatch.setattr(execution, "subprocess", SimpleNamespace(**names))
