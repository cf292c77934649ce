"""Who started the processes of a run, how many there are, and what the first one decides."""

import threading
from types import SimpleNamespace

import pytest
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage] - public

from flowformer.tasks.launch import _order
from flowformer.tasks.processes import Processes, joined, sizes_outside, started_outside

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
