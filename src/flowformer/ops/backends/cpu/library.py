"""The compiled CPU library: where it is, whether it loads, and if not, why not.

setup.py compiles it from csrc/ when the package is installed; nothing is compiled here. Where there
was no compiler, the package has a log in the library's place.
"""

import ctypes
import os
import sys
import warnings
from functools import cache
from pathlib import Path

ABI_VERSION = 8  # FLOWFORMER_ABI of csrc/api.h that call.py and convolution.py are written for

PACKAGE = Path(__file__).parents[3]
NAME = "libflowformer_cpu.dylib" if sys.platform == "darwin" else "libflowformer_cpu.so"
LOG_NAME = "libflowformer_cpu.log"
HELP = "see docs/installation.md"
INSTRUCTION_SETS = ("avx512bf16", "avx512", "avx2", "portable")  # the best first


class LibraryUnavailableError(Exception):
    """Why the library cannot be used, for the one who installed it."""


def load_library() -> ctypes.CDLL | None:
    """Return the library, or None where :func:`why_unavailable` says why. Loads it once."""
    outcome = _outcome()
    return outcome if isinstance(outcome, ctypes.CDLL) else None


def why_unavailable() -> str | None:
    """Return None where the library can be used, and otherwise the reason why not."""
    outcome = _outcome()
    return outcome if isinstance(outcome, str) else None


def instruction_set() -> str | None:
    """Return the one that the library chose, None without library.

    FLOWFORMER_ISA overrides the choice; what this machine does not have is warned of.
    """
    library = load_library()
    return library.flowformer_isa().decode() if library is not None else None


@cache
def _outcome() -> ctypes.CDLL | str:
    try:
        # FLOWFORMER_LIBRARY: another build of it, such as one with sanitizers.
        return open_library(Path(os.environ.get("FLOWFORMER_LIBRARY") or PACKAGE / NAME))
    except LibraryUnavailableError as error:
        return str(error)


def open_library(path: Path) -> ctypes.CDLL:
    """Load one build of the library.

    Raises:
        LibraryUnavailableError: there is none, it does not load, or is not of this release.
    """
    if not path.exists():
        raise LibraryUnavailableError(_why_missing(path))
    try:
        library = ctypes.CDLL(str(path.resolve()))  # a bare name would be looked up in the system
    except OSError as error:
        raise LibraryUnavailableError(f"the compiled library does not load: {error}") from error
    try:
        version = library.flowformer_abi_version()
    except AttributeError as error:
        raise LibraryUnavailableError(f"{path} is no library of flowformer: {error}") from error
    if version != ABI_VERSION:
        raise LibraryUnavailableError(
            f"{path} has version {version} of the interface and this release needs {ABI_VERSION}: "
            f"reinstall flowformer, {HELP}"
        )
    library.flowformer_isa.restype = ctypes.c_char_p
    library.flowformer_is_finite.argtypes = ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64
    wanted, chosen = os.environ.get("FLOWFORMER_ISA"), library.flowformer_isa().decode()
    if wanted and wanted != chosen:
        warnings.warn(
            f"FLOWFORMER_ISA={wanted!r} is not to be had here, {chosen} is used: set it to one of "
            f"{', '.join(INSTRUCTION_SETS)} that this machine has, or leave it out",
            stacklevel=2,
        )
    return library


def _why_missing(path: Path) -> str:
    if path.parent != PACKAGE:
        return f"FLOWFORMER_LIBRARY names a file that does not exist: {path}"
    log = PACKAGE / LOG_NAME
    if not log.exists():
        return f"the package has no compiled library: run pip install in its source tree, {HELP}"
    with log.open(encoding="utf-8") as lines:
        reason = lines.readline().strip()
    return (
        f"the package was installed without its compiled library: {reason}; {HELP}, and {log} for "
        "what the build printed"
    )
