"""What the tests of benchmarks share: they leave the process as it was."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _own_cores() -> Iterator[None]:
    """Give back the cores: a measurement pins its process to one."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, before)
