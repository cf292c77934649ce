"""Install the built wheel into an empty folder, import every module, load the library from there.

The dependencies come from the environment that runs this, so nothing is downloaded; the editable
installation in the same environment is passed over, since PYTHONPATH comes before it. The wheel has
to hold the compiled CPU library if that installation does.

usage: python scripts/check_wheel.py DIST_FOLDER
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
PLATFORM = sysconfig.get_platform().replace("-", "_").replace(".", "_")

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import flowformer
assert flowformer.__file__.startswith(sys.argv[1]), f"imported {flowformer.__file__}, not the wheel"
for module in pkgutil.walk_packages(flowformer.__path__, "flowformer."):
    if module.name != "flowformer.libflowformer_cpu":  # ends in .so, and is no module
        importlib.import_module(module.name)
"""

LOAD_LIBRARY = """
from flowformer.ops.backends.cpu.library import NAME, PACKAGE, instruction_set, why_unavailable
reason = why_unavailable()
assert (PACKAGE / NAME).exists() == (reason is None), reason
print("    CPU library:", reason or f"loads, and chooses {instruction_set()} here")
"""


def paths(pattern: str) -> set[str]:
    """Return the files of the source tree that match `pattern`, as a wheel names them."""
    return {path.relative_to(SOURCE).as_posix() for path in SOURCE.glob(pattern)}


def only(folder: Path, pattern: str) -> Path:
    """Return the one file in `folder` that matches `pattern`."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"expected one {pattern} in {folder}, found {[p.name for p in found]}")
    return found[0]


def check_contents(dist: Path) -> None:
    """Check that the wheel holds the package, all of it and nothing else, and the sdist too."""
    modules = paths("flowformer/**/*.py") | {"flowformer/py.typed"}
    built = paths("flowformer/libflowformer_cpu.*")  # the library, or the log that stands for it
    tag = "any" if built == paths("flowformer/*.log") else PLATFORM
    with zipfile.ZipFile(only(dist, f"*-py3-none-{tag}.whl")) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    if different := packed ^ (modules | built):
        raise SystemExit(f"wheel and src/ differ in {sorted(different)}")
    with tarfile.open(only(dist, "*.tar.gz")) as archive:
        archived = {name.partition("/")[2] for name in archive.getnames()}
    needed = modules | paths("flowformer/csrc/*")
    if missing := {"setup.py", "MANIFEST.in", *(f"src/{name}" for name in needed)} - archived:
        raise SystemExit(f"the source archive lacks {sorted(missing)}")


def check_import(dist: Path) -> None:
    """Check that the wheel alone imports, module by module, and that its command runs."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder).resolve()
        pip = [sys.executable, "-P", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        subprocess.run([*pip, "--target", target, only(dist, "*.whl")], check=True)
        environment = os.environ | {"PYTHONPATH": str(target)}
        for command in (
            [sys.executable, "-c", IMPORT_EVERYTHING, str(target)],
            [sys.executable, target / "bin" / "flowformer", "--help"],
        ):
            subprocess.run(
                command, check=True, cwd=target, env=environment, stdout=subprocess.DEVNULL
            )
        load = [sys.executable, "-c", LOAD_LIBRARY]
        subprocess.run(load, check=True, cwd=target, env=environment)


if __name__ == "__main__":
    check_contents(Path(sys.argv[1]))
    check_import(Path(sys.argv[1]))
    print("    the wheel holds the whole package and imports without the source tree")
