"""How much memory a process may take, has taken, and whether an error means that it was too little.

Linux keeps such accounts; elsewhere a limit is not enforced, and the peak is what `getrusage` says.
"""

import sys
from pathlib import Path

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
