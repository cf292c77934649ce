"""Comparisons: what is planned, run, gone on with, and said of what does not finish."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowformer.compare import execution, methods
from flowformer.compare.execution import execute
from flowformer.compare.methods import METHODS, TRAIN
from flowformer.compare.plan import Plan, RunState, make_plan, read_comparison
from flowformer.config_json import to_plain
from flowformer.files import locked
from flowformer.nn import MIXERS
from flowformer.nn.mixers.building import mixer_options
from tests.compare.comparison_methods import FAKES, HERE, experiment
from tests.compare.in_process import in_this_process

__all__ = ["in_this_process"]  # a fixture

ROOT = Path(__file__).parents[2]
MakePlan = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePlan:
    """`plan({"quick": {"wrong": 2}})`: of methods that only tests know."""
    monkeypatch.setattr(methods, "METHODS", FAKES)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)

    def make(
        methods: Mapping[str, Mapping[str, Any]],
        *datasets: str,
        seeds: int = 1,
        **training: Any,
    ) -> Plan:
        experiments = [experiment(name, **training) for name in datasets or ("Vowels",)]
        return make_plan(experiments, methods, seeds=seeds, root=tmp_path / "comparison")

    return make


def status_of(plan: Plan) -> dict[str, str]:
    states = {run.name: run.read_state() for run in plan.runs}
    return {name: "none" if state is None else state.status for name, state in states.items()}


def test_a_plan_has_a_run_for_each_data_set_seed_and_method_in_this_order(plan):
    made = plan({"quick": {}, "flow": {}}, "A", "B", seeds=2, seed=5)
    assert [run.name for run in made.runs] == [
        f"{dataset} {method} seed {seed}"
        for dataset in "AB"
        for seed in (5, 6)
        for method in ("quick", "flow")
    ]
    assert made.baseline == "quick"


def test_a_mixer_is_a_setting_of_the_model_and_another_method_a_function(plan):
    mixer, method = plan({"linformer": {"rank": 4}, "quick": {"wrong": 2}}).runs
    assert mixer.request.function == TRAIN
    assert mixer.request.config.model.mixer == "linformer"
    assert mixer.request.config.model.mixer_options == {"rank": 4}
    assert mixer.request.options == {}
    assert method.request.function == f"{HERE}:quick"
    assert method.request.options == {"wrong": 2}


def test_a_mixer_without_options_has_those_that_the_model_gives_it(plan):
    (run,) = plan({"flow": {}}).runs
    assert mixer_options(run.request.config.model, "series") == {"clamp": None}


def test_an_encoder_is_trained_as_a_model_and_has_no_options(tmp_path):
    made = make_plan([experiment()], {"lstm": {}}, seeds=1, root=tmp_path)
    (run,) = made.runs
    assert run.request.function == TRAIN
    assert to_plain(run.request.config.model)["encoder"] == "lstm"
    with pytest.raises(ValueError, match="lstm has no options of its own"):
        make_plan([experiment()], {"lstm": {"width": 3}}, seeds=1, root=tmp_path)


def test_methods_and_mixers_have_different_names():
    for table in METHODS.values():
        assert not set(table) & set(MIXERS)


@pytest.mark.usefixtures("in_this_process")
def test_a_classical_method_stands_beside_the_models(tmp_path, tiny_config, waves, write_ts):
    config = tiny_config(progress="auto")
    data = replace(
        config.data, train_file=write_ts(waves, "TRAIN"), test_file=write_ts(waves, "TEST")
    )
    made = make_plan([replace(config, data=data)], {"dtw": {}}, seeds=1, root=tmp_path / "c")
    execute(made)
    (run,) = read_comparison(made).outcomes
    assert run.problem is None, made.runs[0].log.read_text()
    assert run.score is not None
    assert run.correct is not None
    assert run.score == run.correct.mean()
    assert run.score > 0.5
    assert run.history is None
    assert run.step_seconds is None


@pytest.mark.parametrize(
    ("datasets", "methods", "seeds", "message"),
    [
        (("A",), {}, 1, "got 1, 0 and 1"),
        (("A",), {"flow": {}}, 0, "got 1, 1 and 0"),
        (("A", "A"), {"flow": {}}, 1, "each data set can be given once, got A, A"),
    ],
)
def test_a_plan_of_nothing_or_of_one_data_set_twice_is_refused(
    plan, datasets, methods, seeds, message
):
    with pytest.raises(ValueError, match=message):
        plan(methods, *datasets, seeds=seeds)


def test_finished_runs_are_in_the_table_and_are_not_repeated(plan, tmp_path):
    calls = tmp_path / "calls"
    made = plan({"quick": {"calls": str(calls), "wrong": 5}}, seeds=2)
    for _ in range(2):
        execute(made)
        (cell,) = read_comparison(made).cells
        assert (cell.mean, cell.spread, cell.finished) == (0.75, 0.0, 2)
        assert cell.peak_memory is not None
        assert 10 * 2**20 < cell.peak_memory < 4 * 2**30
    assert calls.read_text().split() == ["quick-seed0", "quick-seed1"]


def test_what_fails_does_not_end_the_others_and_says_why_and_where(plan):
    made = plan({"broken": {"seeds": [1]}, "crashing": {}, "quick": {}}, seeds=2)
    execute(made)
    broken, crashing, quick = read_comparison(made).cells
    assert (broken.finished, broken.planned, broken.mean) == (1, 2, 1.0)
    assert (crashing.finished, crashing.problems) == (0, ("failed",))
    assert quick.finished == 2
    run = next(run for run in read_comparison(made).outcomes if not run.finished)
    assert (run.method, run.seed) == ("crashing", 0)
    failed = next(r for r in read_comparison(made).outcomes if r.method == "broken" and r.seed == 1)
    assert failed.error == "ArithmeticError: the loss became nan"
    assert failed.log == "runs/Vowels/broken-seed1.log"
    assert "and more words" in (made.root / failed.log).read_text()


def test_a_process_that_dies_is_named_by_its_signal(plan):
    made = plan({"crashing": {}})
    execute(made)
    state = made.runs[0].read_state()
    assert state is not None
    assert state.error is not None
    assert state.error.startswith("ended by SIGSEGV")


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="a memory limit is enforced on Linux only"
)
def test_what_exceeds_the_memory_limit_is_a_cell_that_says_so(plan):
    made = plan({"greedy": {}, "quick": {}})
    execute(made, memory_limit=2**30)
    greedy, quick = read_comparison(made).cells
    assert greedy.problems == ("does not fit in memory",)
    assert quick.finished == 1
    (lost,) = [run for run in read_comparison(made).outcomes if not run.finished]
    assert lost.error is not None
    assert "limit 1.00 GiB" in lost.error


def test_what_the_kernel_kills_did_not_fit_in_memory(plan):
    made = plan({"killed": {}, "quick": {}})
    execute(made)
    assert status_of(made) == {
        "Vowels killed seed 0": "memory",
        "Vowels quick seed 0": "finished",
    }


def test_what_failed_is_tried_again(plan):
    made = plan({"killed": {}})
    execute(made)
    (run,) = made.runs
    run.state_file.write_text(run.state_file.read_text().replace(f"{HERE}:killed", f"{HERE}:quick"))
    mended = replace(run, request=replace(run.request, function=f"{HERE}:quick"))
    execute(replace(made, runs=(mended,)))
    assert mended.read_result() is not None


def test_a_changed_configuration_is_named_before_anything_runs(plan, tmp_path):
    execute(plan({"quick": {}}))
    calls = tmp_path / "calls"
    changed = plan({"other": {"calls": str(calls)}, "quick": {"wrong": 3}}, epochs=7)
    with pytest.raises(ValueError, match="quick-seed0 was run otherwise: ") as raised:
        execute(changed)
    assert "training.epochs was 1, got 7; options.wrong was None, got 3. " in str(raised.value)
    assert not calls.exists()


def test_how_progress_is_shown_may_change(plan):
    execute(plan({"quick": {}}))
    execute(plan({"quick": {}}, progress="none"))


def test_jobs_run_at_the_same_time_and_share_the_threads(plan, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    made = plan({"quick": {"seconds": 1.0}}, seeds=3)
    most = 0

    def count(status: str) -> None:
        nonlocal most
        most = max(most, status.count("epoch"))

    execute(made, jobs=2, show=count)
    assert most == 2
    assert set(status_of(made).values()) == {"finished"}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="who forked is read from /proc")
def test_runs_are_forks_of_one_process_that_is_started_once(plan, tmp_path):
    calls = tmp_path / "calls"
    execute(plan({"forked": {"calls": str(calls)}}, seeds=5), jobs=2)
    lines = [line.split() for line in calls.read_text().splitlines()]
    assert len(lines) == 5
    assert len({(parent, began) for parent, began, _ in lines}) == 1
    assert len({own for *_, own in lines}) == 5


def test_the_time_left_is_estimated_from_the_runs_before(plan, caplog):
    caplog.set_level("INFO", "flowformer.compare")
    execute(plan({"quick": {"seconds": 0.5}}, seeds=2))
    first, last = caplog.messages
    assert first.startswith("[1/2] Vowels quick seed 0: 100.0% in ")
    assert first.endswith(" s left")
    assert "left" not in last


def test_two_comparisons_do_not_meet_in_one_folder(plan, monkeypatch):
    made = plan({"quick": {}})
    made.root.mkdir()
    monkeypatch.setattr(execution, "LOCK_SECONDS", 0.3)
    with (
        locked(made.root / ".lock"),
        pytest.raises(BlockingIOError, match="another process is running a comparison in"),
    ):
        execute(made)


def test_tables_and_tests_are_of_the_runs_that_finished(plan):
    made = plan({"quick": {}, "other": {"wrong": 12}, "broken": {}}, seeds=2)
    execute(made)
    compared = read_comparison(made)
    assert compared.title == "Vowels: 3 methods"
    assert compared.has_test
    assert compared.settings["method"] == "quick, other, broken"
    assert [run.score for run in compared.outcomes] == [1.0, 0.4, None] * 2


@pytest.mark.usefixtures("plan")
def test_the_papers_figure_stands_beside_the_published_method_alone(tmp_path):
    config = replace(
        experiment(), paper_dataset="Vowels", paper_accuracy=0.9, paper_source="the paper"
    )
    made = make_plan([config], {"quick": {}}, seeds=1, root=tmp_path / "paper")
    execute(made)
    assert read_comparison(made).cells[0].paper_score is None
    (run,) = made.runs
    flow = replace(run, request=replace(run.request, method="flow"))
    flow.folder.root.parent.mkdir(parents=True, exist_ok=True)
    run.folder.root.rename(flow.folder.root)
    run.state_file.rename(flow.state_file)
    moved = read_comparison(replace(made, runs=(flow,)))
    assert moved.cells[0].paper_score == 0.9


KILLED = """
import sys
from pathlib import Path
from flowformer.compare.execution import execute
from flowformer.compare.plan import make_plan
from flowformer.compare import methods
from tests.compare.comparison_methods import FAKES, experiment
methods.METHODS = FAKES
plan = make_plan(
    [experiment()],
    {"quick": {"seconds": 0.8, "calls": sys.argv[2]}},
    seeds=4,
    root=Path(sys.argv[1]),
)
execute(plan)
"""


def test_killed_at_any_moment_it_goes_on_without_repeating_what_is_finished(tmp_path):
    root, calls = tmp_path / "comparison", tmp_path / "calls"
    command = [sys.executable, "-c", KILLED, str(root), str(calls)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    }
    before: set[str] = set()
    # Into the middle of a run, right after one, and before anything was started.
    for seconds_after_a_call in (0.4, 1.0, 0.0):
        process = subprocess.Popen(command, env=environment, cwd=tmp_path)
        started = len(_lines(calls))
        deadline = time.monotonic() + 120
        while len(_lines(calls)) == started and seconds_after_a_call:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(seconds_after_a_call)
        process.send_signal(signal.SIGKILL)
        process.wait()
        finished = {path.parent.name for path in root.glob("runs/*/*/result.json")}
        repeated = before & set(_lines(calls)[started:])
        assert not repeated
        before = finished
    started = len(_lines(calls))
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)
    assert not before & set(_lines(calls)[started:])
    states = [RunState.read(path) for path in root.glob("runs/*/*.json")]
    assert len(states) == 4
    assert len(list(root.glob("runs/*/*/result.json"))) == 4


def test_workers_die_with_a_comparison_that_is_killed(tmp_path):
    root, calls = tmp_path / "comparison", tmp_path / "calls"
    code = KILLED.replace("0.8", "600.0")
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(root), str(calls)],
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        cwd=tmp_path,
    )
    deadline = time.monotonic() + 120
    while not _lines(calls):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    # The lock is free once the worker, which has inherited it, is gone.
    with locked(root / ".lock", patience=10.0):
        pass
    assert not list(root.glob("runs/*/*/result.json"))


def _lines(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def test_a_damaged_state_is_named(plan):
    made = plan({"quick": {}})
    execute(made)
    made.runs[0].state_file.write_text("{")
    with pytest.raises(ValueError, match=r"quick-seed0\.json is not JSON"):
        execute(made)


def test_a_run_of_the_real_training_is_a_run_folder_with_its_costs(
    tmp_path, tiny_config, waves, write_ts
):
    config = tiny_config(progress="auto")
    data = replace(
        config.data, train_file=write_ts(waves, "TRAIN"), test_file=write_ts(waves, "TEST")
    )
    made = make_plan(
        [replace(config, data=data)],
        {"flow": {"clamp": 1.0}, "linformer": {"rank": 10**10}},
        seeds=1,
        root=tmp_path / "comparison",
    )
    execute(made, memory_limit=2 * 2**30)
    compared = read_comparison(made)
    flow, linformer = compared.cells
    assert flow.dataset == "waves_TRAIN"
    assert flow.finished == 1
    assert flow.step_seconds is not None
    assert flow.seconds is not None
    assert 0 < flow.step_seconds < flow.seconds
    history = compared.outcomes[0].history
    assert history is not None
    assert history["epoch"].tolist() == [1, 2]
    assert compared.outcomes[0].correct is not None
    assert compared.outcomes[0].correct.mean() == flow.mean
    config_json = json.loads((made.runs[0].folder.config).read_text())
    assert config_json["config"]["model"]["mixer_options"] == {"clamp": 1.0}
    assert linformer.problems == ("does not fit in memory",)
