"""The share of the machine that this process may use, libraries, and processes beside it."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

_SAFE_PATH = "PYTHONSAFEPATH"  # https://docs.python.org/3/using/cmdline.html#cmdoption-P


def python(*arguments: str) -> list[str]:
    """Return the command of a Python process that imports nothing from the current folder.

    There a file called random.py may lie, or lightning.py: it would take the place of the module.
    """
    return [sys.executable, "-P", *arguments]


@contextmanager
def safe_path() -> Iterator[None]:
    """Let Python processes that start within the block import nothing from the current folder.

    For those that a library starts, by a command of its own: see `python`.
    """
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_SAFE_PATH, None)
        else:
            os.environ[_SAFE_PATH] = before


def library(
    module: str, need: str, *, extra: str, package: str | None = None, instead: str = ""
) -> Any:
    """Import a module of a library that an extra brings.

    Args:
        module: its name.
        need: what it is needed for, in words: "for environments", "to read images".
        extra: the extra of flowformer that has it.
        package: what the library is called, where the module has another name.
        instead: what else can be done, for the message.

    Raises:
        ImportError: it is missing; the message says how to get it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        name = package or module.partition(".")[0]
        raise ImportError(
            f"{name} is needed {need}: pip install 'flowformer[{extra}]'{instead}"
        ) from error


def available_processors(
    *, groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> int:
    """Return how many processors this process may use, at least 1.

    Not how many there are: it may be bound to some (taskset, Slurm), and a container has a quota of
    time. A part of one counts as a whole.

    Args:
        groups: the file that names the control groups of this process.
        mounted: where control groups are.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quotas = [math.ceil(quota) for quota in _quotas(groups, mounted)]
    return max(1, min([count, *quotas]))


def _quotas(groups: Path, mounted: Path) -> Iterator[float]:
    """Yield the processors' worth of time that each control group over this process may take."""
    for line in _read(groups).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:  # version 2
            yield from _along(mounted, path, _quota_of_2)
        elif "cpu" in controllers.split(","):
            for name in {"cpu", controllers}:
                yield from _along(mounted / name, path, _quota_of_1)


def _along(root: Path, path: str, quota_of: Callable[[Path], float | None]) -> Iterator[float]:
    # In a container the group's own folder may be mounted as the root: all on the way count.
    own = root.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
    for folder in (own, *own.parents):
        if folder.is_relative_to(root) and (quota := quota_of(folder)) is not None:
            yield quota


def _quota_of_2(folder: Path) -> float | None:
    quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
    return _ratio(quota, period)


def _quota_of_1(folder: Path) -> float | None:
    quota, period = (_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return _ratio(quota, period)


def _ratio(quota: str, period: str) -> float | None:
    """Return the quota in periods; None where there is none: "max", -1, or no such file."""
    if not (quota.isdigit() and period.isdigit()) or int(period) == 0:
        return None
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
