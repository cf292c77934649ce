"""The command line, called as from a shell."""

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from flowformer.cli import main


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="package", autouse=True)
def _coarse_figures() -> Iterator[None]:
    """Drawing is most of a small run's time, and no test looks at single pixels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flowformer.report.figures.PNG_DPI", 40)
        yield


@pytest.fixture
def flowformer(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`flowformer("train", ...)` as on the command line."""

    def call(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as raised:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(int(raised.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def stop_when_there(ctrl_c_heard: None) -> Callable[..., str]:  # noqa: ARG001 - it acts by being there
    """`stop_when_there(process, path, signal.SIGINT)`: its standard error, after it has ended."""

    def stop(process: subprocess.Popen[str], path: Path, number: signal.Signals) -> str:
        deadline = time.monotonic() + 120
        try:
            while not path.exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
            process.send_signal(number)
            return process.communicate(timeout=60)[1]
        finally:
            process.kill()  # of no matter where it has ended
            process.communicate()

    return stop
