"""Run timm's own model tests on our models, from its source distribution.

The tests of the installed release are fetched from the package index once, into .cache/.

usage: .venv/bin/python scripts/timm_tests.py [pytest's arguments]
"""

import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]


def fetch(release: str) -> Path:
    """The folder that holds the tests of this release as the package `timm_tests`."""
    folder = ROOT / ".cache" / f"timm-{release}"
    if folder.is_dir():
        return folder
    print(f"==> Fetching the tests of timm {release}")
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", "timm", "--dest", scratch, f"timm=={release}"]
        subprocess.run(command, check=True)
        (archive,) = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            opened.extractall(scratch, filter="data")
        unpacked = Path(scratch) / "unpacked"
        unpacked.mkdir()
        (Path(scratch) / f"timm-{release}" / "tests").rename(unpacked / "timm_tests")
        unpacked.rename(folder)  # whole or not at all
    return folder


def main() -> int:
    """Fetch and run; the exit status is pytest's."""
    path = os.pathsep.join((str(fetch(version("timm"))), str(ROOT)))
    # Their tests are no part of ours: neither our settings nor our shape checks apply.
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={ROOT}"]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider"]
    command += ["tests/integrations/timm/common.py", *sys.argv[1:]]
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
