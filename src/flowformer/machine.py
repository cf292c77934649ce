"""The machine: processors and memory that this process may use, libraries, processes beside it.

Linux keeps accounts of memory; elsewhere a limit is not enforced, and the peak is what `getrusage`
says.
"""

import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
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


# The words of a failed allocation that is no MemoryError: torch on the CPU, CUDA, C++.
_OUT_OF_MEMORY = (
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "not enough memory",
    "bad_alloc",
)


def peak_memory() -> int:
    """Return the most bytes that this process has had resident (VmHWM)."""
    status = _status()
    if "VmHWM" in status:
        # Not ru_maxrss, which starts at the parent's: a child shares its memory until it executes.
        return status["VmHWM"]
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def forget_peak() -> None:
    """Make Linux forget the most bytes so far, so that `peak_memory` counts anew; elsewhere no."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def resident_memory() -> int | None:
    """Return the bytes that this process has resident now; None where no count is kept."""
    return _status().get("VmRSS")


def read_size(text: str) -> int:
    """Return the bytes of a size in words, such as 512M or 8G.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", text)
    if match is None or not float(match[1]):
        raise ValueError(f"memory_limit must be a size such as 512M or 8G, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def available_memory() -> int | None:
    """Return the bytes that can be had now, the control group's limit considered; None if unknown.

    What the group's own page cache holds counts as taken, so under a group this is a little less
    than what can be had.
    """
    candidates = []
    information = Path("/proc/meminfo")
    if information.exists():
        candidates.append(_read_kilobytes(information)["MemAvailable"])
    group = Path("/sys/fs/cgroup")
    limit = _read_number(group / "memory.max")
    if limit is not None:
        candidates.append(limit - (_read_number(group / "memory.current") or 0))
    return max(0, min(candidates)) if candidates else None


def limit_memory(limit: int) -> bool:
    """Make allocations fail that would take this process beyond `limit` resident bytes.

    Call it after the imports. What counts is RLIMIT_DATA, the writable memory that is asked for,
    and not RLIMIT_AS: libraries that are mapped and never read would fill that. What the process
    has asked for and not touched so far is granted on top.

    Returns:
        Whether the system enforces it.
    """
    status = _status()
    if not {"VmData", "VmRSS"} <= status.keys():
        return False
    import resource

    allowed = max(limit - status["VmRSS"], 0) + status["VmData"]
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        allowed = min(allowed, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
    return True


def offer_to_the_kernel() -> None:
    """Make this process the first that the kernel kills when the machine runs out of memory."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")


def is_out_of_memory(error: BaseException | str) -> bool:
    """Return whether an error, or the last words of a process, say that memory could not be had.

    MemoryError (NumPy's too), torch.OutOfMemoryError, torch's RuntimeError of the CPU allocator,
    and C++'s std::bad_alloc.
    """
    if isinstance(error, MemoryError):
        return True
    return any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def _status() -> dict[str, int]:
    path = Path("/proc/self/status")
    return _read_kilobytes(path) if path.exists() else {}


def _read_kilobytes(path: Path) -> dict[str, int]:
    """Read lines such as `VmRSS:   1024 kB`, in bytes."""
    values = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            values[name] = 1024 * int(rest.removesuffix(" kB"))
    return values


def _read_number(path: Path) -> int | None:
    """Read a file of one number; None where there is no such file, or it says `max`."""
    if not path.exists():
        return None
    text = path.read_text().strip()
    return int(text) if text.isdigit() else None
