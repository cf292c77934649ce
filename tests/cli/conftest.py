"""The command line, called as from a shell."""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from flowformer.cli import main


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def flowformer(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`flowformer("train", ...)` as on the command line."""

    def call(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as raised:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(int(raised.value.code or 0), captured.out, captured.err)

    return call
