"""Check packages as whoever installs them has them: what they hold, and what they do there.

Each that suits this machine is installed into an environment of its own, in which every module is
imported, `flowformer info` answers, the library is loaded and golden values are computed. The
dependencies come from the environment that runs this, so that nothing is downloaded; its own
flowformer is not seen there. With --alone they come from an index instead, as for a new user: torch
and little else, without the extras. Whether a wheel holds the compiled library stands in its name;
the one that is built here holds it if src/ does.

usage: python scripts/check_wheel.py DIST_FOLDER [--alone | PLATFORM...]
PLATFORM: of the wheels that have to be there, and no others (manylinux_2_17_x86_64, any).
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PLATFORM = sysconfig.get_platform().replace("-", "_").replace(".", "_")
LIBRARY, LOG = "flowformer/libflowformer_cpu.so", "flowformer/libflowformer_cpu.log"
WINDOWS = sys.platform == "win32"

IMPORT_EVERYTHING = """
import importlib, pkgutil
import flowformer
for module in pkgutil.walk_packages(flowformer.__path__, "flowformer."):
    if module.name != "flowformer.libflowformer_cpu":  # ends in .so, and is no module
        importlib.import_module(module.name)
"""

# The first calls of a new user, with values whose result is known.
CALL = """
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import flowformer
from flowformer.ops.backends.cpu.library import NAME, PACKAGE, instruction_set, why_unavailable

prefix, golden = Path(sys.argv[1]), Path(sys.argv[2])
assert PACKAGE.is_relative_to(prefix), f"imported {PACKAGE}, not what was installed in {prefix}"
reason = why_unavailable()
assert (PACKAGE / NAME).exists() == (reason is None), reason
for name, causal in {"normal-b2-l40-s11-h2-d16": False, "causal-b2-l130-s130-h2-d16": True}.items():
    values = load_file(golden / f"{name}.safetensors")
    q, k, v = (values[key].requires_grad_() for key in "qkv")
    out = flowformer.flow_attention(q, k, v, causal=causal)
    (out * values["w"]).sum().backward()
    for tensor, expected in (out, "out"), (q.grad, "dq"), (k.grad, "dk"), (v.grad, "dv"):
        error = (tensor - values[expected]).abs().max() / values[expected].abs().max()
        assert error <= 1e-9, f"{name}: {expected} is off by {error:.1e}"
compiled = torch.compile(flowformer.flow_attention, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(q, k, v, causal=causal), out)
print("    golden values:", "without the library" if reason else f"with {instruction_set()}")
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


def platform(wheel: Path) -> str:
    """Return the platform that the name of a wheel ends in."""
    return wheel.stem.rpartition("-")[2]


def check_contents(dist: Path, platforms: list[str]) -> None:
    """Check that each wheel holds the package, all of it and nothing else, and the sdist too."""
    wheels = sorted(dist.glob("*.whl"))
    if sorted(platforms) != sorted(map(platform, wheels)):
        raise SystemExit(f"expected wheels of {platforms}, found {[w.name for w in wheels]}")
    modules = paths("flowformer/**/*.py") | {"flowformer/py.typed"}
    for wheel in wheels:
        built = LOG if platform(wheel) == "any" else LIBRARY
        with zipfile.ZipFile(wheel) as file:
            packed = {name for name in file.namelist() if ".dist-info/" not in name}
        if different := packed ^ (modules | {built}):
            raise SystemExit(f"{wheel.name} and src/ differ in {sorted(different)}")
    with tarfile.open(only(dist, "*.tar.gz")) as archive:
        archived = {name.partition("/")[2] for name in archive.getnames()}
    needed = modules | paths("flowformer/csrc/*")
    if missing := {"setup.py", "MANIFEST.in", *(f"src/{name}" for name in needed)} - archived:
        raise SystemExit(f"the source archive lacks {sorted(missing)}")


def suits(wheel: Path) -> bool:
    """Return whether pip would install this wheel here."""
    from packaging.tags import sys_tags
    from packaging.utils import parse_wheel_filename

    return not parse_wheel_filename(wheel.name)[3].isdisjoint(sys_tags())


def check_installed(what: list[str | Path], *, alone: bool = False) -> None:
    """Install a package into an environment of its own, and check what it does there."""
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder).resolve()
        # pip too would take what it finds there for installed.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        python = prefix / ("Scripts/python.exe" if WINDOWS else "bin/python")
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", prefix], check=True)
        pip = [sys.executable, "-P", "-m", "pip", "--python", python, "install", "--quiet"]
        if not alone:
            own = Path(sysconfig.get_path("purelib", "venv", {"base": str(prefix)}))
            own.joinpath("dependencies.pth").write_text(sysconfig.get_path("purelib"), "utf-8")
            pip += ["--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed"]
        else:
            print("    PyTorch, which takes the longest, comes first", flush=True)
            subprocess.run([*pip, "torch"], check=True, env=environment)
        began = time.monotonic()
        subprocess.run([*pip, *what], check=True, env=environment)
        installed = time.monotonic()
        golden = ROOT / "tests" / "golden" / "attention"
        for command, shown in (
            ([python.with_name("flowformer"), "info"], alone),
            ([python, "-c", "" if alone else IMPORT_EVERYTHING], False),
            ([python, "-c", CALL, prefix, golden], True),
        ):
            output = None if shown else subprocess.DEVNULL
            subprocess.run(command, check=True, cwd=folder, env=environment, stdout=output)
        if alone:
            results = time.monotonic() - installed
            print(
                f"    installed in {installed - began:.0f} s, first results {results:.0f} s later"
            )


def main(dist: Path, *rest: str) -> None:
    """Check a folder of packages."""
    if rest == ("--alone",):
        check_installed(
            ["--find-links", dist, "--only-binary", "flowformer", "flowformer"], alone=True
        )
        return
    built_here = "any" if paths("flowformer/*.log") else PLATFORM
    check_contents(dist, list(rest) or [built_here])
    for package in sorted(dist.iterdir()):
        if package.suffix == ".whl" and not suits(package):
            print(f"    {package.name}: for another machine, not installed")
        elif package.suffix == ".whl" or rest:  # the wheel that was built here is made of the sdist
            print(f"    {package.name}", flush=True)
            check_installed([package])


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
    print("    every package is whole and works without the source tree")
