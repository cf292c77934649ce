"""Run transformers' own common model tests on our classes, and ours on all of its models.

Its tests, of the installed release, are fetched from the package index once, into .cache/. Two of
their modules are not in the distribution (tests of generation and of export): empty classes stand
in their place.

usage: .venv/bin/python scripts/transformers_tests.py [pytest's arguments]
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]

# What the distribution leaves out, as far as its tests import it.
STANDINS = {
    "__init__.py": "",
    "generation/__init__.py": "",
    "exporters/__init__.py": "",
    "utils/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin: ...\n",
    "exporters/test_export.py": "class ExportTesterMixin: ...\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


def fetch(release: str) -> Path:
    """The folder that holds the tests of this release as the package `transformers_tests`."""
    folder = ROOT / ".cache" / f"transformers-{release}"
    if folder.is_dir():
        return folder
    print(f"==> Fetching the tests of transformers {release}")
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = [
            sys.executable,
            "-P",
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
        ]
        command += [":all:", "--no-build-isolation", "--dest", scratch, f"transformers=={release}"]
        subprocess.run(command, check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(scratch, filter="data")
        unpacked = Path(scratch) / "unpacked"
        unpacked.mkdir()
        tests = Path(scratch) / f"transformers-{release}" / "tests"
        tests.rename(unpacked / "transformers_tests")
        for name, text in STANDINS.items():
            standin = unpacked / "transformers_tests" / name
            standin.parent.mkdir(exist_ok=True)
            standin.write_text(text)
        unpacked.rename(folder)  # whole or not at all
    return folder


def main() -> int:
    """Fetch and run; the exit status is pytest's."""
    path = os.pathsep.join((str(fetch(version("transformers"))), str(ROOT)))
    # Their tests are no part of ours: neither our settings nor our shape checks apply.
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={ROOT}"]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider"]
    command += ["tests/integrations/transformers/common.py", *sys.argv[1:]]
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    print("==> Flow-Attention by name in every autoregressive class of transformers")
    command = [sys.executable, "-m", "pytest", "-m", "slow or not slow"]
    command += ["tests/integrations/transformers/test_every_model.py"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode or status


if __name__ == "__main__":
    sys.exit(main())
