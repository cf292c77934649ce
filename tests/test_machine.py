"""What a process may use of the machine, and what those import that it starts."""

import os
import subprocess
import sys
from operator import neg
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import DataLoader

from flowformer.compare import execution
from flowformer.compare.engines import local
from flowformer.compare.plan import make_plan
from flowformer.data.loaders import WorkerLoader
from flowformer.data.parallel import Workers
from flowformer.data.standins import fetching
from flowformer.machine import available_processors, python, safe_path
from flowformer.train.processes.launch import launch
from tests.train.small_trajectories import tiny_decisions

SOURCES = Path(__file__).parents[1] / "src" / "flowformer"


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder has files that stand where modules are looked for."""
    for name in ("random", "socket", "lightning", "pip", "tempfile"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of the folder has run')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    return tmp_path


@pytest.mark.usefixtures("hostile")
def test_a_python_process_imports_nothing_from_the_current_folder():
    done = subprocess.run(
        python("-c", "import random, socket, tempfile; print(random.__file__)"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "the file of the folder" not in done.stdout + done.stderr


@pytest.mark.usefixtures("hostile")
def test_a_process_that_a_library_starts_does_so_neither():
    # As multiprocessing starts its own, wherever it does not fork.
    command = [sys.executable, "-c", "from multiprocessing.spawn import spawn_main; import random"]
    with safe_path():
        subprocess.run(command, check=True)
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_workers_that_play_episodes_are_started_so(monkeypatch):
    seen = []

    class Pool:
        def __init__(self, *_: object, **__: object) -> None:
            seen.append(os.environ.get("PYTHONSAFEPATH"))

        def submit(self, function: Any, job: int) -> Any:
            seen.append(os.environ.get("PYTHONSAFEPATH"))
            return SimpleNamespace(result=lambda: function(job))

        def shutdown(self, **_: object) -> None:
            pass

    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.setattr("flowformer.data.parallel.ProcessPoolExecutor", Pool)
    with Workers(2) as pool:
        assert list(pool.map(neg, [1, 2])) == [-1, -2]
    assert seen == ["1"] * 3
    assert "PYTHONSAFEPATH" not in os.environ


@pytest.mark.usefixtures("hostile")
def test_data_workers_are_started_so_too_however_python_starts_them(monkeypatch):
    seen = []

    def start(_: DataLoader) -> Any:
        seen.append(os.environ.get("PYTHONSAFEPATH"))
        return iter([1])

    monkeypatch.setattr(DataLoader, "__iter__", start)
    assert list(WorkerLoader([1], num_workers=1)) == [1]  # pyright: ignore[reportArgumentType]
    assert seen == ["1"]
    assert "PYTHONSAFEPATH" not in os.environ


def test_what_stood_in_the_environment_stands_there_again(monkeypatch):
    monkeypatch.setenv("PYTHONSAFEPATH", "yes")
    with safe_path():
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert os.environ["PYTHONSAFEPATH"] == "yes"


def test_the_runs_of_a_comparison_are_started_so(monkeypatch, tmp_path):
    commands = []

    def start(command: list[str], **_: object) -> None:
        commands.append(command)
        raise KeyboardInterrupt

    monkeypatch.setattr(local.subprocess, "Popen", start)
    plan = make_plan(
        [tiny_decisions(tmp_path)], {"flow": {}}, seeds=1, root=tmp_path / "comparison"
    )
    with pytest.raises(KeyboardInterrupt):
        execution.execute(plan)
    assert commands[0][:4] == [sys.executable, "-P", "-m", "flowformer.compare.worker"]


def test_the_processes_of_a_run_are_started_so(monkeypatch):
    commands = []

    def elastic_launch(_: object, program: str) -> Any:
        return lambda *arguments: commands.append([program, *arguments])

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", elastic_launch)
    assert launch(["train", "x"], processes=2) == 0
    assert commands[0][:3] == [sys.executable, "-P", "-c"]
    assert commands[0][4:] == ["train", "x"]


def test_pip_is_started_so(monkeypatch, tmp_path):
    commands = []

    def run(command: list[str], **_: object) -> Any:
        commands.append(command)
        return SimpleNamespace(returncode=1, stderr="no network")

    monkeypatch.setattr(fetching.subprocess, "run", run)
    with pytest.raises(FileNotFoundError, match="no network"):
        fetching._download_wheel("some", "1", tmp_path, tmp_path)
    assert commands[0][:4] == [sys.executable, "-P", "-m", "pip"]


def test_no_other_place_starts_python():
    found = {
        str(path.relative_to(SOURCES))
        for path in SOURCES.rglob("*.py")
        if "sys.executable" in path.read_text()
    }
    assert found == {"machine.py"}


def test_no_other_place_counts_processors():
    counts = ("cpu_count", "sched_getaffinity")
    files = SOURCES.rglob("*.py")
    found = [path.name for path in files if any(name in path.read_text() for name in counts)]
    assert found == ["machine.py"]


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("cpu_", "cpu.")).write_text(f"{text}\n")


def processors(tmp_path: Path, groups: str) -> int:
    (tmp_path / "groups").write_text(groups)
    return available_processors(groups=tmp_path / "groups", mounted=tmp_path / "mounted")


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may run on sixteen processors, of the machine's 64."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    bound = set(range(16))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: bound, raising=False)


@pytest.mark.usefixtures("sixteen")
@pytest.mark.parametrize(
    ("files", "groups", "count"),
    [
        ({}, "", 16),
        ({"": {"cpu_max": "max 100000"}}, "0::/", 16),
        ({"": {"cpu_max": "200000 100000"}}, "0::/", 2),
        ({"": {"cpu_max": "50000 100000"}}, "0::/", 1),
        ({"": {"cpu_max": "150000 100000"}}, "0::/", 2),
        ({"": {"cpu_max": "9900000 100000"}}, "0::/", 16),
        ({"a": {"cpu_max": "300000 100000"}, "a/b": {"cpu_max": "max 100000"}}, "0::/a/b", 3),
        ({"a": {"cpu_max": "300000 100000"}}, "0::/other", 16),
        ({"cpu": {"cpu_cfs_quota_us": "400000", "cpu_cfs_period_us": "100000"}}, "3:cpu:/gone", 4),
        ({"cpu": {"cpu_cfs_quota_us": "-1", "cpu_cfs_period_us": "100000"}}, "3:cpu:/", 16),
        (
            {"cpu,cpuacct/a": {"cpu_cfs_quota_us": "500000", "cpu_cfs_period_us": "100000"}},
            "4:memory:/\n3:cpu,cpuacct:/a\n0::/",
            5,
        ),
        ({"": {"cpu_max": "200000 100000"}}, "0::/../outside", 2),
        ({"": {"cpu_max": "damaged"}}, "0::/\nnonsense", 16),
    ],
)  # fmt: skip
def test_processors_are_those_that_this_process_may_use(tmp_path, files, groups, count):
    for folder, contents in files.items():
        group(tmp_path / "mounted" / folder, **contents)
    assert processors(tmp_path, groups) == count


def test_where_nothing_says_so_there_are_as_many_as_the_machine_has(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert processors(tmp_path, "") == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert processors(tmp_path, "") == 1
