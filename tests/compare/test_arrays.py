"""`flowformer compare` in Python: on arrays, with what the command leaves."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flowformer.compare import arrays, compare, paper
from flowformer.compare.plan import RunState
from flowformer.data import from_arrays, load_ts_files
from flowformer.train.run import load_run
from flowformer.train.series.config import SeriesConfig, SeriesDataConfig
from tests.compare.in_process import in_this_process
from tests.train.conftest import make_waves

__all__ = ["in_this_process"]  # a fixture

SMALL = {"model.dim": 16, "model.num_heads": 2, "model.num_layers": 1, "model.feedforward": 32}
SMALL |= {"training.epochs": 2, "training.accelerator": "cpu", "data.batch_size": 8}
WAVES = make_waves()
UNEQUAL = (
    list(WAVES.train.series),
    [WAVES.classes[label] for label in WAVES.train.labels],
    list(WAVES.test.series) if WAVES.test else [],
    [WAVES.classes[label] for label in WAVES.test.labels] if WAVES.test else [],
)


@pytest.mark.usefixtures("in_this_process")
def test_it_leaves_what_the_command_does(tmp_path):
    root = tmp_path / "mine"
    frames = compare({"waves": UNEQUAL}, ["linear", "flow"], settings=SMALL, seeds=2, output=root)
    assert frames.runs[["dataset", "method", "seed"]].values.tolist() == [
        ["waves", method, seed] for seed in (0, 1) for method in ("linear", "flow")
    ]
    assert frames.runs["score"].tolist() == frames.runs["score"].dropna().tolist()
    assert set(frames.table["method"]) == {"linear", "flow"}
    assert set(frames.tests["over"]) == {"test cases"}
    assert len(frames.curves) == 8
    for name in (
        "table.md",
        "table.tex",
        "runs.csv",
        "tests.csv",
        "index.html",
        "curves-waves.pdf",
    ):
        assert (root / name).exists()
    # The same call goes on, other series in the same folder do not.
    runs = [path.stat().st_mtime_ns for path in root.rglob("result.json")]
    compare({"waves": UNEQUAL}, ["linear", "flow"], settings=SMALL, seeds=2, output=root)
    assert [path.stat().st_mtime_ns for path in root.rglob("result.json")] == runs
    others = (UNEQUAL[0][::-1], *UNEQUAL[1:])
    with pytest.raises(FileExistsError, match=r"waves\.ts holds other series"):
        compare({"waves": others}, ["linear", "flow"], settings=SMALL, seeds=2, output=root)


def test_a_method_that_needs_a_test_part_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="dtw needs series to test on: give X_test and y_test"):
        compare(UNEQUAL[:2], ["flow", "dtw"], settings=SMALL, output=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_series_are_written_in_the_order_of_their_times(tmp_path):
    starts = np.random.default_rng(0).permutation(len(WAVES.train)).astype(float)
    train = replace(WAVES.train, spans=np.stack([starts, starts], axis=1))
    config = SeriesConfig(name="x", data=SeriesDataConfig(split="time"))
    written = arrays._experiment(config, replace(WAVES, train=train), tmp_path)
    assert written.data.train_file is not None
    read = load_ts_files(written.data.train_file).train
    for one, at in zip(read.series, np.argsort(starts), strict=True):
        np.testing.assert_array_equal(one, train.series[at])


@pytest.mark.usefixtures("in_this_process")
def test_a_run_on_arrays_is_a_run_on_files_that_can_be_tested_again(tmp_path, monkeypatch):
    from flowformer.train.run import evaluate

    monkeypatch.chdir(tmp_path)
    series = np.stack([one[:, :5] for one in WAVES.train.series])
    compare(
        from_arrays(series, UNEQUAL[1], name="equal"),
        {"flow": {"clamp": 2.0}},
        settings=SMALL,
        seeds=1,
    )
    folder = Path("comparisons", "equal-clean", "runs", "equal")
    state = RunState.read(folder / "flow-seed0.json")
    assert state.request.config.model.mixer_options == {"clamp": 2.0}
    monkeypatch.chdir("/")
    files = tmp_path / "comparisons" / "equal-clean" / "data" / "equal.ts"
    found = evaluate(tmp_path / folder / "flow-seed0", files)
    assert found.to_dict()["accuracy"] >= 0


GROUPS = [f"person {at // 4}" for at in range(len(WAVES.train))]
SUMS = np.array([float(one.sum()) for one in WAVES.train.series])


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("regression", [False, True], ids=["classes", "numbers"])
def test_groups_and_numbers_are_what_they_are_to_the_command(tmp_path, regression):
    labels = SUMS if regression else UNEQUAL[1]
    data = from_arrays(UNEQUAL[0], labels, name="walks", train_groups=GROUPS, regression=regression)
    compare(data, ["linear", "softmax"], settings=SMALL, seeds=1, output=tmp_path / "c")
    read = paper.read(tmp_path / "c")
    assert read.table["finished"].tolist() == [1, 1]
    run = load_run(tmp_path / "c" / "runs" / "walks" / "linear-seed0")
    assert run.record.sizes == {"train": 20, "validation": 4, "test": 0}  # one whole group
    assert "groups of its own, chose the epoch" in run.config.protocol_note
    assert (run.config.data.group, run.config.regression) == ("groups", regression)
    assert set(read.curves) >= {"validation_rmse" if regression else "validation_accuracy"}


def test_classes_beside_numbers_are_refused(tmp_path):
    numbers = from_arrays(UNEQUAL[0], SUMS, regression=True)
    with pytest.raises(ValueError, match="numbers to predict in every one, got numbers in b alone"):
        compare({"a": UNEQUAL, "b": numbers}, ["flow"], output=tmp_path / "c")


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"data": UNEQUAL[0]}, ValueError, r"expected series and labels \(X, y\), .* got list"),
        ({"data": UNEQUAL[:3]}, ValueError, "got 3 parts"),
        ({"methods": ["flwo"]}, ValueError, "unknown mixer 'flwo': did you mean flow?"),
        ({"methods": "flow"}, RuntimeError, "no run"),
        ({"methods": ["flow", "flow"]}, ValueError, "each once, got flow, flow"),
        ({"methods": {"flow": {"clamps": 1}}}, ValueError, "has no option clamps"),
        ({"settings": {"model.dmi": 3}}, ValueError, "unknown key model.dmi"),
        ({"settings": {"epochs": 3}}, ValueError, "unknown part of an experiment 'epochs'"),
        ({"settings": {"training.epochs": "x"}}, ValueError, "training.epochs must be of type int"),
        ({"seeds": 0}, ValueError, "got 1, 1 and 0"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_request_is_told_before_anything_runs(tmp_path, monkeypatch, asked, error, message):
    def nothing(plan, **_: object) -> None:
        for run in plan.runs:
            state = RunState(request=run.request, status="failed", error="no run")
            state.write(run.state_file)

    monkeypatch.setattr("flowformer.compare.execution.execute", nothing)
    given = {"data": UNEQUAL, "methods": ["flow"], "settings": SMALL, "seeds": 1, **asked}
    with pytest.raises(error, match=message):
        compare(given.pop("data"), given.pop("methods"), output=tmp_path / "out", **given)


def test_without_pandas_nothing_is_run(tmp_path, monkeypatch):
    def missing(name: str, *_: object, **__: object) -> None:
        raise ImportError(f"{name} is needed")

    monkeypatch.setattr(arrays, "library", missing)
    with pytest.raises(ImportError, match="pandas is needed"):
        compare(UNEQUAL, ["flow"], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert paper.read is not None
