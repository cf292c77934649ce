"""Compiles src/flowformer/csrc into the package's CPU library. All else stands in pyproject.toml.

The library is plain C to its callers, loaded with ctypes: it needs neither Python.h nor torch, so
that one wheel serves every Python and every torch of a platform. It is optional: without a C++
compiler, or where compiling fails, the package is built with a log in its place that says why.

Nothing but the sources goes into a package: every build starts in an empty folder of its own. The
build/ of an earlier one would keep modules that are gone, and files that it takes for newer.

Environment: CXX, CXXFLAGS and LDFLAGS as everywhere; FLOWFORMER_REQUIRE_LIBRARY=1 makes a missing
library an error, FLOWFORMER_PURE=1 leaves it out on purpose. scripts/build_wheels.sh builds what is
published: CXX may compile for another processor, and bdist_wheel --plat-name then names it.
"""

import atexit
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

CSRC = Path("src/flowformer/csrc")
SOURCES = sorted(path.as_posix() for path in CSRC.glob("*.cpp"))
HEADERS = sorted(path.as_posix() for path in CSRC.glob("*.h"))
EXPORTS = CSRC / "exports.map"
LIBRARY = "libflowformer_cpu.dylib" if sys.platform == "darwin" else "libflowformer_cpu.so"
LOG = "libflowformer_cpu.log"  # why there is no library; its first line is shown

COMPILERS = ("c++", "g++", "clang++")
# Never -ffast-math: at link time it makes the whole process flush denormal numbers to zero.
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread"),
    *("-ffp-contract=fast", "-fno-math-errno", "-Wall", "-Wextra"),
)
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", *AVX2)
X86_64_FLAGS = {  # the library chooses among these units when it runs
    "kernels_avx2": AVX2,
    "kernels_avx512": AVX512,
    "kernels_avx512bf16": ("-mavx512bf16", *AVX512),
}


@dataclass
class NotBuiltError(Exception):
    """Why there is no library, in one line; and what the compiler said."""

    reason: str
    output: str = ""


def find_compiler() -> list[str]:
    """Return the command of the C++ compiler: CXX, or the first of the usual ones."""
    if os.environ.get("FLOWFORMER_PURE"):
        raise NotBuiltError(
            "this is the wheel for platforms that have none; where there is a C++ compiler, "
            "pip install --no-binary flowformer flowformer compiles it"
        )
    if sys.platform == "win32":
        raise NotBuiltError("it is written for gcc and clang, and not built on Windows")
    if command := shlex.split(os.environ.get("CXX", "")):
        if shutil.which(command[0]) is None:
            raise NotBuiltError(f"the C++ compiler that CXX names was not found: {command[0]}")
        return command
    for name in COMPILERS:
        if shutil.which(name):
            return [name]
    raise NotBuiltError(f"no C++ compiler was found: none of {', '.join(COMPILERS)}")


def run(command: list[str], failed: str) -> str:
    """Run a compiler and return what it printed; `failed` says what has failed if it does."""
    print(shlex.join(command), flush=True)
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    sys.stderr.write(done.stderr)
    if done.returncode != 0:
        raise NotBuiltError(failed, f"$ {shlex.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def compile_library(library: Path, objects: Path) -> None:
    """Compile each source with the flags of its own, side by side, and link them."""
    compiler = find_compiler()
    name = shlex.join(compiler)
    # Its macros say for which processor it compiles; -dumpmachine is not understood by all.
    macros = run(
        [*compiler, "-dM", "-E", "-x", "c++", os.devnull],
        f"{name} does not say what it compiles for",
    )
    by_unit = X86_64_FLAGS if "__x86_64__" in macros else {}
    extra = shlex.split(os.environ.get("CXXFLAGS", ""))
    objects.mkdir(parents=True, exist_ok=True)

    def compile_one(source: str) -> str:
        stem = Path(source).stem
        own = by_unit.get(stem, ())
        made = str(objects / f"{stem}.o")
        run(
            [*compiler, *FLAGS, *own, *extra, "-c", source, "-o", made],
            f"{name} could not compile {source}",
        )
        return made

    with ThreadPoolExecutor(len(SOURCES)) as pool:  # a handful: the system shares out its cores
        made = list(pool.map(compile_one, SOURCES))
    # Its threads sleep between calls: whoever unloads the library must not take their code away.
    shared = ["-shared", "-Wl,-z,nodelete", f"-Wl,--version-script={EXPORTS}"]
    if sys.platform == "darwin":
        shared = ["-dynamiclib"]
    flags = [*extra, *shlex.split(os.environ.get("LDFLAGS", ""))]
    run(
        [*compiler, *shared, "-pthread", *made, *flags, "-o", str(library)],
        f"{name} could not link the library",
    )


class BuildLibrary(build_ext):
    """Builds the library, or leaves a log that says why not, in the package's folder."""

    def run(self) -> None:
        """Builds into the source tree for an editable installation, else into build_lib."""
        folder = Path("src" if self.inplace else self.build_lib, "flowformer")
        folder.mkdir(parents=True, exist_ok=True)
        library, log = folder / LIBRARY, folder / LOG
        for old in (library, log):  # a library that no longer compiles must not go on serving
            old.unlink(missing_ok=True)
        try:
            compile_library(library, Path(self.build_temp))
        except NotBuiltError as error:
            if os.environ.get("FLOWFORMER_REQUIRE_LIBRARY"):
                raise CompileError(f"{error.reason} (FLOWFORMER_REQUIRE_LIBRARY is set)") from error
            log.write_text(f"{error.reason}\n\n{error.output}", encoding="utf-8")
            self.warn(f"flowformer is built without its CPU library and slower: {error.reason}")
            self.distribution.ext_modules = []  # what is left is pure Python

    def get_outputs(self) -> list[str]:
        """Return what a wheel gets of this."""
        return [str(Path(self.build_lib, "flowformer", name)) for name in self._made()]

    def get_output_mapping(self) -> dict[str, str]:
        """Return where an editable installation finds what a wheel would get."""
        if not self.inplace:
            return {}
        names = [Path("flowformer", name) for name in self._made()]
        return {str(self.build_lib / name): str("src" / name) for name in names}

    def _made(self) -> list[str]:
        folder = Path("src" if self.inplace else self.build_lib, "flowformer")
        return [name for name in (LIBRARY, LOG) if (folder / name).exists()]


class PlatformWheel(bdist_wheel):
    """A wheel of this platform for any Python; of any platform where there is no library."""

    def run(self) -> None:
        """Builds first: only then it is known whether there is a library."""
        self.run_command("build")
        self.root_is_pure = not self.distribution.has_ext_modules()
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        """Return py3-none-PLATFORM: the library knows nothing of Python."""
        return "py3", "none", super().get_tag()[2]


def empty_folder() -> str:
    """Make a folder that goes when this process ends."""
    folder = tempfile.mkdtemp(prefix="flowformer-build-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


setup(
    options={"build": {"build_base": empty_folder()}},
    # Declared as an extension module, which it is not, for what setuptools makes of one: a build
    # step that editable installations have too, and a wheel of a platform.
    ext_modules=[
        Extension("flowformer.libflowformer_cpu", SOURCES, depends=[*HEADERS, EXPORTS.as_posix()])
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
