"""Install the built wheel into an empty folder and import every module of it from there.

The dependencies come from the environment that runs this, so nothing is downloaded; the editable
installation in the same environment is passed over, since PYTHONPATH comes before it.

usage: python scripts/check_wheel.py DIST_FOLDER
"""

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import flowformer
assert flowformer.__file__.startswith(sys.argv[1]), f"imported {flowformer.__file__}, not the wheel"
for module in pkgutil.walk_packages(flowformer.__path__, "flowformer."):
    importlib.import_module(module.name)
"""


def only(folder: Path, pattern: str) -> Path:
    """Return the one file in `folder` that matches `pattern`."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"expected one {pattern} in {folder}, found {[p.name for p in found]}")
    return found[0]


def check_contents(dist: Path) -> None:
    """Check that the wheel holds the package, all of it and nothing else, and the sdist too."""
    sources = {p.relative_to(SOURCE).as_posix() for p in SOURCE.glob("flowformer/**/*.py")}
    sources.add("flowformer/py.typed")
    with zipfile.ZipFile(only(dist, "*.whl")) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    if packed != sources:
        raise SystemExit(f"wheel and src/ differ in {sorted(packed ^ sources)}")
    with tarfile.open(only(dist, "*.tar.gz")) as archive:
        archived = {name.partition("/")[2] for name in archive.getnames()}
    if missing := {f"src/{name}" for name in sources} - archived:
        raise SystemExit(f"the source archive lacks {sorted(missing)}")


def check_import(dist: Path) -> None:
    """Check that the wheel alone imports, module by module, and that its command runs."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder).resolve()
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        subprocess.run([*pip, "--target", target, only(dist, "*.whl")], check=True)
        environment = os.environ | {"PYTHONPATH": str(target)}
        for command in (
            [sys.executable, "-c", IMPORT_EVERYTHING, str(target)],
            [sys.executable, target / "bin" / "flowformer", "--help"],
        ):
            subprocess.run(
                command, check=True, cwd=target, env=environment, stdout=subprocess.DEVNULL
            )


if __name__ == "__main__":
    check_contents(Path(sys.argv[1]))
    check_import(Path(sys.argv[1]))
    print("    the wheel holds the whole package and imports without the source tree")
