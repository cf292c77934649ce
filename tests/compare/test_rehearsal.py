"""How long a comparison will take, by its first steps."""

from dataclasses import replace

import pytest

from flowformer.compare.execution import execute
from flowformer.compare.plan import make_plan
from flowformer.compare.rehearsal import Expected, in_all, rehearse, to_text
from flowformer.train import rehearsal
from flowformer.train.run_files import Rehearsed
from tests.compare.in_process import in_this_process

__all__ = ["in_this_process"]  # a fixture

TIMED = Rehearsed(prepare_seconds=2.0, step_seconds=0.5, steps=10, round_seconds=6.0, rounds=3)


def expected(*seconds: float, method: str = "flow") -> Expected:
    return Expected(
        dataset="A", method=method, runs=len(seconds), seconds=seconds, timed=TIMED, state=None
    )


def test_a_run_takes_its_rounds_and_what_comes_before_them():
    assert TIMED.seconds() == 20.0
    assert TIMED.seconds(done=2) == 8.0
    assert TIMED.seconds(done=5) == 2.0


@pytest.mark.parametrize(
    ("at_once", "seconds"),
    # In turn: 9, 2, 2, 2 by two are 9 beside 2 + 2 + 2.
    [(1, 15.0), (2, 9.0), (3, 9.0), (None, 9.0)],
)
def test_all_runs_take_as_long_as_the_last_of_those_beside_each_other(at_once, seconds):
    assert in_all([expected(9.0), expected(2.0, 2.0, 2.0)], at_once) == seconds


def test_the_table_says_what_is_not_known_and_why():
    nothing = Expected(dataset="A", method="rocket", runs=2, seconds=None)
    text = to_text([expected(120.0, 120.0), nothing], 2)
    assert "| flow | A | 500 ms | 30 | 2 min 0 s | – | 2 |" in text
    assert "| rocket | A | – | – | no steps to time | – | 2 |" in text
    assert "in all      about 2 min 0 s, 2 at a time" in text
    assert "not known   2 runs" in text
    assert to_text([], 1) == ""


@pytest.mark.usefixtures("in_this_process")
def test_the_first_steps_are_taken_and_nothing_of_them_is_left(
    tmp_path, tiny_config, waves, write_ts, monkeypatch
):
    files = {"train_file": write_ts(waves, "TRAIN"), "test_file": write_ts(waves, "TEST")}
    config = tiny_config(epochs=50, progress="auto")
    config = replace(config, data=replace(config.data, **files))
    methods = {"flow": {}, "linformer": {"ranks": 1}, "dtw": {}}
    plan = make_plan([config], methods, seeds=2, root=tmp_path / "deep" / "comparison")
    taken = []
    monkeypatch.setattr(
        rehearsal, "fit", lambda *a, fit=rehearsal.fit, **k: taken.append(a[2]) or fit(*a, **k)
    )
    before = sorted(tmp_path.iterdir())
    flow, broken, dtw = rehearse(plan)
    assert sorted(tmp_path.iterdir()) == before
    assert [each.epochs for each in taken] == [2]
    assert flow.timed is not None
    assert (flow.timed.steps, flow.timed.rounds) == (3, 50)  # 19 series in batches of 8
    assert flow.seconds is not None
    assert len(flow.seconds) == 2
    assert flow.timed.step_seconds * 150 < flow.seconds[0]
    assert broken.seconds is None
    assert broken.problem.startswith("failed: ")
    assert dtw.problem == "no steps to time"


@pytest.mark.usefixtures("in_this_process")
def test_what_has_finished_is_not_counted_and_tells_of_the_rest(
    tmp_path, tiny_config, waves, write_ts
):
    files = {"train_file": write_ts(waves, "TRAIN"), "test_file": write_ts(waves, "TEST")}
    config = tiny_config(progress="auto")
    config = replace(config, data=replace(config.data, **files))
    one = make_plan([config], {"dtw": {}}, seeds=1, root=tmp_path / "comparison")
    execute(one)
    three = make_plan([config], {"dtw": {}}, seeds=3, root=tmp_path / "comparison")
    (dtw,) = rehearse(three)
    assert (dtw.runs, dtw.seconds) == (
        2,
        [1.0, 1.0],
    )  # that of the first, as the tests' engine says
