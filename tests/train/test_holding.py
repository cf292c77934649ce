"""One process at a time writes to a run folder."""

import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

from flowformer.compare.methods import METHODS, TRAIN
from flowformer.files import locked
from flowformer.train import folder as folders
from flowformer.train.folder import RunFolder, holds_folder
from flowformer.train.processes import group as processes

REPORT = "flowformer.train.run:write_report"
FUNCTIONS = sorted(
    {TRAIN, REPORT, *(function for table in METHODS.values() for function in table.values())}
)


@holds_folder
def write(_config: object, run_dir: Path) -> str:
    assert RunFolder(run_dir).lock.exists()
    return "written"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "LOCK_SECONDS", 0.0)


@pytest.fixture
def as_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`as_process(1)`: this one is that one of two."""
    store = HashStore()

    def become(number: int) -> None:
        made = processes.Processes(number=number, count=2, store=store)
        monkeypatch.setattr(processes, "_current", made)

    return become


@pytest.mark.usefixtures("impatient", "shape_checks_off")
@pytest.mark.parametrize("name", FUNCTIONS, ids=lambda name: name.split(".")[-1])
def test_whatever_writes_to_a_run_folder_is_told_who_else_does(name, tmp_path):
    function: Any = pkgutil.resolve_name(name)
    arguments: dict[str, Any] = {"resume": True}
    given: list[Any] = [None, tmp_path]
    if name == REPORT:
        arguments, given = {}, [tmp_path]
    with (
        locked(RunFolder(tmp_path).lock),
        pytest.raises(BlockingIOError, match=r"another process writes to .* \(process \d+ on \S+,"),
    ):
        function(*given, **arguments)


def test_the_lock_is_gone_in_the_end_and_so_is_a_folder_made_for_it(tmp_path):
    assert write(None, tmp_path / "runs" / "new") == "written"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("impatient")
def test_of_the_processes_of_a_run_the_first_holds_its_folder_for_all(tmp_path, as_process):
    as_process(0)
    assert write(None, tmp_path) == "written"
    as_process(1)
    with locked(RunFolder(tmp_path).lock):  # by the first
        assert write(None, tmp_path) == "written"


@pytest.mark.usefixtures("impatient")
def test_where_the_first_is_refused_the_others_end(tmp_path, as_process):
    with locked(RunFolder(tmp_path).lock):
        as_process(0)
        with pytest.raises(BlockingIOError, match="another process writes to"):
            write(None, tmp_path)
        as_process(1)
        with pytest.raises(SystemExit, match="1"):
            write(None, tmp_path)
