"""Trainings of a second, and Slurm's commands on this machine."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from flowformer.compare.plan import Plan, make_plan

ROOT = Path(__file__).parents[3]


@pytest.fixture
def real_plan(tmp_path, tiny_config, waves, write_ts, monkeypatch) -> Callable[..., Plan]:
    """`real_plan("folder", ["flow"], epochs=3)`: trainings of a second."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    files = {"train_file": write_ts(waves, "TRAIN"), "test_file": write_ts(waves, "TEST")}

    def make(name: str, methods: list[str], *, seeds: int = 1, **training: object) -> Plan:
        config = tiny_config(**{"progress": "auto", **training})
        config = replace(config, data=replace(config.data, **files))
        return make_plan([config], {m: {} for m in methods}, seeds=seeds, root=tmp_path / name)

    return make


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder with a log of what Slurm was asked for; its commands are found first."""
    folder = tmp_path / "slurm"
    (folder / "bin").mkdir(parents=True)
    text = (Path(__file__).parent / "fake_slurm.py").read_text()
    for name in ("sbatch", "srun", "scontrol", "scancel", "sacct"):
        command = folder / "bin" / name
        command.write_text(f"#!{sys.executable}\n{text}")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    yield folder
    for job in folder.glob("job-*"):
        with suppress(ProcessLookupError):
            os.killpg(int(job.read_text()), signal.SIGKILL)
