"""How is the peer of pytorch-fast-transformers built? Builds its one function: `make bench-peers`.

The package brings seven extensions and takes a quarter of an hour to install. The causal product of
Katharopoulos et al. (2020) is one file of it, which this compiles as the package's own set-up does,
into build/peers, where nothing but the benchmark looks.
"""

import importlib.util
import subprocess
import sys
import tarfile
import tempfile
from argparse import Namespace
from functools import cache
from pathlib import Path
from types import ModuleType

from benchmarks.runner import ROOT

PACKAGE = "pytorch-fast-transformers==0.4.0"
SOURCE = "fast_transformers/causal_product/causal_product_cpu.cpp"
NAME = "causal_product_cpu"
FOLDER = ROOT / "build" / "peers"


@cache
def load() -> ModuleType:
    """Return the compiled module.

    Raises:
        ImportError: it was not built, or was built for another torch.
    """
    files = sorted(FOLDER.glob(f"{NAME}*.so"))
    if not files:
        raise ImportError("not built: `make bench-peers` fetches and compiles it, in a minute")
    spec = importlib.util.spec_from_file_location(NAME, files[0])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def missing() -> str | None:
    """Return why the module cannot be loaded, or None."""
    try:
        load()
    except ImportError as error:
        return str(error)
    return None


def fetch(folder: Path) -> Path:
    """Download the package's source and return its C++ file."""
    # Without isolation: pip asks the package for its name, which imports torch.
    options = ["--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    (source,) = folder.glob(f"*/{SOURCE}")
    return source


def build(source: Path) -> None:
    """Compile the file with the options that the package compiles it with."""
    from setuptools import setup
    from torch.utils.cpp_extension import BuildExtension, CppExtension

    extension = CppExtension(NAME, [str(source)], extra_compile_args=["-fopenmp", "-ffast-math"])
    with tempfile.TemporaryDirectory() as temporary:
        setup(
            name=NAME,
            ext_modules=[extension],
            cmdclass={"build_ext": BuildExtension.with_options(use_ninja=False)},
            script_args=["build_ext", "--build-lib", str(FOLDER), "--build-temp", temporary],
        )


def execute(_: Namespace) -> None:
    """Fetch and build, unless it is there."""
    if missing():
        with tempfile.TemporaryDirectory() as folder:
            build(fetch(Path(folder)))
    print(f"{PACKAGE}: the causal product is in {FOLDER.relative_to(ROOT)}")
