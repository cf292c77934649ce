"""Who started the processes of a run, how many there are, and what the first one decides."""

import sys
import threading
from types import SimpleNamespace

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage] - public

from flowformer.train.processes.group import (
    Processes,
    is_first,
    joined,
    sizes_outside,
    started_outside,
)
from flowformer.train.processes.launch import _order
from flowformer.train.run import train

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_PROCID": "1"}


@pytest.mark.parametrize(
    ("environment", "several", "sizes"),
    [
        pytest.param({}, False, (1, 1), id="alone"),
        pytest.param(TORCHRUN, True, (4, 2), id="torchrun"),
        pytest.param(SRUN, True, (2, 3), id="srun"),
        pytest.param({"SLURM_NTASKS": "6"}, False, (1, 1), id="batch-script"),
        pytest.param({**SRUN, "RANK": "0", "WORLD_SIZE": "1"}, False, (1, 1), id="both"),
    ],
)
def test_whoever_started_the_processes_says_how_many(environment, several, sizes):
    assert started_outside(environment) is several
    assert sizes_outside(environment) == sizes


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        # A shell within an allocation of four tasks, which is a step of one.
        ({"SLURM_STEP_ID": "5", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, 1),
        ({"SLURM_STEP_ID": "5", "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "2"}, 2),
        ({"WORLD_SIZE": "4", "LOCAL_RANK": "3", "MASTER_ADDR": "gone"}, 1),
        ({"RANK": "3"}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "4", "LSB_JOBID": "1", "PMI_SIZE": "4"}, 1),
    ],
    ids=["step-of-one", "step-of-two", "no-rank", "no-world", "mpi-and-lsf"],
)
def test_processes_are_those_of_the_step_and_not_of_the_job(environment, count):
    assert started_outside(environment) is (count > 1)
    assert sizes_outside(environment, asked=1) == (count, 1)
    assert is_first(environment)


def test_a_number_of_processes_that_is_none_is_named():
    with pytest.raises(ValueError, match="expected a number of processes in WORLD_SIZE, got 'two'"):
        started_outside({"RANK": "0", "WORLD_SIZE": "two"})


LEFT_OVER = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "gone", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("asked", [1, 3])
def test_what_another_run_left_in_the_environment_is_told_at_once(asked, tiny_config, monkeypatch):
    with pytest.raises(ValueError, match=r"there are 2 by .*MASTER_ADDR=gone.*unset RANK"):
        sizes_outside(LEFT_OVER, asked=asked)
    for name, value in LEFT_OVER.items():
        monkeypatch.setenv(name, value)
    settings = tiny_config(devices=asked).training
    with pytest.raises(ValueError, match="left over, unset RANK and WORLD_SIZE"), joined(settings):
        pass


def test_processes_that_torchrun_or_srun_started_are_not_left_over():
    assert sizes_outside({**LEFT_OVER, "TORCHELASTIC_RUN_ID": "x"}, asked=1) == (2, 1)
    assert sizes_outside({**SRUN, "RANK": "1", "WORLD_SIZE": "6"}, asked=1) == (6, 1)


def test_whoever_waits_for_processes_that_were_started_by_hand_says_so_before(
    tiny_config, monkeypatch, caplog
):
    def wait(*_: object, **__: object) -> object:
        assert "waiting up to 300 s for 1 more processes" in caplog.text
        raise RuntimeError("nobody came")

    monkeypatch.setattr(sys.modules["torch.distributed.rendezvous"], "rendezvous", wait)
    for name, value in LEFT_OVER.items():
        monkeypatch.setenv(name, value)
    settings = tiny_config(devices=2).training
    with pytest.raises(RuntimeError, match="nobody came"), joined(settings):
        pass


JOBS = {
    "slurm": {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "job"},
    "task-of-slurm": {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3"},
    "torchrun": {**LEFT_OVER, "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "x", "GROUP_RANK": "0"},
    "lsf": {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "gone", "JSM_NAMESPACE_RANK": "2"},
}


@pytest.mark.parametrize("job", JOBS)
def test_one_process_is_one_process_whatever_the_environment_says(
    job, tiny_config, waves, tmp_path, monkeypatch
):
    for name, value in JOBS[job].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 3)  # as read when Lightning was imported there
    train(tiny_config(epochs=1), tmp_path / "run", data=waves)
    assert rank_zero_only.rank == 3  # pyright: ignore[reportFunctionMemberAccess] - Lightning's
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    assert (tmp_path / "run" / "result.json").is_file()


def test_settings_for_several_processes_are_refused_where_none_have_joined(
    tiny_config, waves, tmp_path
):
    with pytest.raises(ValueError, match=r"ask for 2 processes, and this is one: .*joined"):
        train(tiny_config(devices=2), tmp_path / "run", data=waves)


def test_machines_with_different_numbers_are_refused():
    with pytest.raises(ValueError, match="as many processes on each machine, got 7 on 3"):
        sizes_outside({**SRUN, "SLURM_NTASKS": "7"})


def test_processes_that_nobody_started_are_missed(tiny_config):
    settings = tiny_config(devices=2, nodes=2).training
    with pytest.raises(ValueError, match="ask for 4 processes, and there is one"), joined(settings):
        pass


def test_another_number_than_was_started_is_refused(tiny_config, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    settings = tiny_config(devices=3).training
    with pytest.raises(ValueError, match="for 3 processes, and there are 2"), joined(settings):
        pass


def test_the_others_take_what_the_first_decides():
    first, second = _pair()
    heard = _in_background(lambda: second.agree(lambda: pytest.fail("asked twice")))
    assert first.agree(lambda: [1, "a"]) == [1, "a"]
    assert heard() == [1, "a"]


def test_the_others_begin_when_the_first_is_done():
    first, second = _pair()
    order = []

    def follow():
        with second.first_alone():
            order.append("second")

    with first.first_alone():
        heard = _in_background(follow)
        order.append("first")
    heard()
    assert order == ["first", "second"]


def test_where_the_first_fails_the_others_end_without_a_word():
    first, second = _pair()
    heard = _in_background(lambda: second.agree(lambda: None))
    with pytest.raises(ZeroDivisionError):
        first.agree(lambda: 1 / 0)
    with pytest.raises(SystemExit):
        heard()


def _pair():
    store = HashStore()
    return (Processes(number=number, count=2, store=store) for number in range(2))


def _in_background(call):
    """Starts a call; what is returned waits for it, and returns or raises what it did."""
    outcome = []

    def run():
        try:
            outcome.append((call(), None))
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            outcome.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()

    def wait():
        thread.join(30)
        ((value, error),) = outcome
        if error is not None:
            raise error
        return value

    return wait


@pytest.mark.parametrize(
    ("codes", "first"),
    [((-15, 2), 1), ((75, 2), 1), ((1, -9), 1), ((2, 1), 0)],
    ids=["told to end", "lost another", "killed", "earlier"],
)
def test_the_failure_that_others_follow_from_is_told(codes, first):
    failures = [
        SimpleNamespace(exitcode=code, timestamp=100 + place) for place, code in enumerate(codes)
    ]
    assert min(failures, key=_order) is failures[first]
