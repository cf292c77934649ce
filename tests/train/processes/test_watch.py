"""A process that is lost is named to the others."""

import threading
import time
from unittest.mock import Mock

import pytest
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage] - public

from flowformer.train.processes import watch
from flowformer.train.processes.watch import Watch


@pytest.fixture
def pair(monkeypatch):
    """Two watches of one store, and what each was told."""
    monkeypatch.setattr(watch, "GRACE_SECONDS", 0.2)
    store, told, watches = HashStore(), [[], []], []
    for number in range(2):
        watches.append(
            Watch(
                store,
                process=number,
                processes=2,
                timeout=2.0,
                on_lost=lambda lost, number=number: told[number].append(lost),
            )
        )
    for each in watches:
        each.begin()
    yield watches, told
    for each in watches:
        each.end()


def test_one_that_is_silent_is_named_once_the_timeout_is_over(pair):
    watches, told = pair
    time.sleep(0.5)
    watches[1]._stopped.set()  # as one that hangs: it says nothing more
    assert not told[0]
    _wait_for(lambda: told[0])
    assert told[0][0].startswith("process 1 of 2 (pid ")
    assert "has not been heard of for" in told[0][0]
    assert not told[1]


def test_nobody_is_named_where_all_were_stopped_and_go_on(pair):
    watches, told = pair
    _wait_for(lambda: watches[0]._others and watches[1]._others)
    for each in watches:  # as after an hour in which none of their threads ran
        each._awake = each._answered = each._others[1 - each._process].changed = -3600.0
    assert all(each._look(2.0) is None for each in watches)
    time.sleep(2.5)
    assert told == [[], []]
    watches[1]._stopped.set()
    _wait_for(lambda: told[0])
    assert "has not been heard of for" in told[0][0]


def test_one_that_failed_is_named_with_its_error(pair):
    watches, told = pair
    watches[1].end("MemoryError: too much")
    _wait_for(lambda: told[0])
    assert told[0][0].endswith("ended: MemoryError: too much")


def test_one_that_is_done_is_not_lost(pair):
    watches, told = pair
    watches[1].end()
    time.sleep(2.5)
    assert not told[0]


def test_after_an_error_of_the_network_it_takes_some_beats_to_name_who_is_missing(pair):
    watches, _ = pair
    time.sleep(0.5)
    watches[1]._stopped.set()
    assert "process 1 of 2" in watches[0].find_lost()


def test_a_store_that_does_not_answer_holds_nobody_up_and_its_process_is_named(pair):
    watches, _ = pair

    def hang(*_: object) -> None:
        time.sleep(5)
        raise RuntimeError("it is gone")

    watches[1]._store, watches[1]._answered = Mock(set=hang, get=hang), time.monotonic() - 60
    assert watches[1].find_lost().startswith("process 0 of 2 has not answered process 1 for 6")
    began = time.monotonic()
    watches[1].end("RuntimeError: Application timeout caused pair closure")
    assert time.monotonic() - began < 2 * watches[1]._timeout


def test_without_evidence_nobody_is_named(pair):
    watches, _ = pair
    assert watches[0].find_lost() is None


def test_one_that_never_comes_is_named():
    alone = Watch(HashStore(), process=0, processes=3, timeout=1.0, on_lost=lambda _: None)
    with pytest.raises(RuntimeError, match="process 1 of 3 has not come within 1 s"):
        alone.begin()


def _wait_for(holds):
    deadline = time.monotonic() + 30
    while not holds() and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    assert holds()
