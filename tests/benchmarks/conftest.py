"""What the tests of benchmarks share: they leave the process as it was."""

import os
import sys
from collections.abc import Iterator

import pytest

from flowformer.nn import MIXERS
from flowformer.nn.mixers.head_attention import leave


@pytest.fixture(autouse=True)
def _own_cores() -> Iterator[None]:
    """Give back the cores: a measurement pins its process to one."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(autouse=True)
def _own_mixers() -> Iterator[None]:
    """Let the mixers go that a test has imported: others are told by the table which there are."""
    before = set(MIXERS)
    yield
    for name in MIXERS.keys() - before:
        sys.modules.pop(MIXERS[name].__module__, None)
        leave(name)
