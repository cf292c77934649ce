"""Series of one's own on the command line, and the commands of the page about them."""

import csv
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pandas
import pytest

from flowformer.data import load_uea, read_series

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "kinds" / "own-series.md").read_text()
TINY = ["--model.dim", 16, "--model.num-heads", 2, "--model.num-layers", 1]
TINY += ["--model.feedforward", 16, "--training.epochs", 2, "--training.accelerator", "cpu"]
TINY += ["--training.threads", 1]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch) -> None:
    """The folder that is current, with thirty recordings of three people in sensors.csv."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = []
    for at in range(30):
        steps = np.arange(rng.integers(8, 14))
        own = {"id": at, "time": 100 * at + steps, "up": np.sin((0.4, 1.3)[at % 2] * steps)}
        own |= {"activity": ("walk", "run")[at % 2], "subject": f"person {at // 2 % 3}"}
        rows.append(pandas.DataFrame(own))
    pandas.concat(rows).to_csv("sensors.csv", index=False)


def test_a_run_says_what_it_read_keeps_groups_whole_and_reads_a_file_alike(flowformer):
    asked = ["--data.train-file", "sensors.csv", "--data.test-fraction", 0.3, "--run-dir", "run"]
    ended = flowformer("train", "time-series-small", *TINY, *asked)
    assert ended.code == 0, ended.err
    line = (
        "sensors: 30 series of 1 channel (up), 8 – 13 steps, 2 classes (activity), 3 groups (subj"
    )
    assert line in ended.err
    assert "subject of its own, chose the epoch; the test set was read once" in ended.out
    data = json.loads(Path("run/config.json").read_text())["config"]["data"]
    names = ("id", "time", "channels", "label", "group")
    assert [data[name] for name in names] == ["id", "time", ["up"], "activity", "subject"]
    assert flowformer("evaluate", "run").code == 0
    frame = pandas.read_csv("sensors.csv")
    frame.drop(columns=["activity", "subject"]).to_parquet("new.parquet")
    predicted = flowformer("predict", "run", "new.parquet")
    rows = list(csv.DictReader(io.StringIO(predicted.out)))
    assert [row["label"] for row in rows] == [""] * 30
    assert [row["id"] for row in rows] == [str(at) for at in range(30)]
    tested = flowformer("evaluate", "run", "--file", "sensors.csv", "--json")
    correct = sum(
        row["predicted"] == label for row, label in zip(rows, ("walk", "run") * 15, strict=True)
    )
    assert json.loads(tested.out)["correct"] == correct
    again = flowformer("train", "time-series-small", *TINY, *asked, "--resume")
    assert again.code == 0
    frame.assign(subject="a").to_csv("sensors.csv", index=False)
    changed = flowformer("train", "time-series-small", *TINY, *asked, "--resume")
    assert changed.code == 2


def test_a_mistake_is_told_with_the_flag_that_mends_it(flowformer):
    asked: list[object] = ["--data.train-file", "sensors.csv"]
    told = flowformer("train", "time-series-small", *TINY, *asked, "--data.label", "class")
    assert told.code == 2
    assert "expected a column 'class' (--data.label), got 'id', 'time', 'up'" in told.err
    lacking = flowformer("train", "time-series-small", "--data.train-file", "none.csv")
    assert lacking.code == 2
    assert lacking.err.endswith("/none.csv: no such file or directory\n")
    untested = flowformer(
        "compare", "time-series-small", *asked, "--mixers", "", "--methods", "dtw"
    )
    assert untested.code == 2
    assert "dtw needs series to test on: give --data.test-fraction 0.2" in untested.err
    both = ["--data.test-file", "sensors.csv", "--data.test-fraction", 0.2]
    assert flowformer("train", "time-series-small", *asked, *both).code == 2
    assert not Path("runs").exists()


def test_the_last_in_time_are_tested_on_and_choose_the_epoch(flowformer):
    asked = ["--data.train-file", "sensors.csv", "--data.split", "time", "--run-dir", "run"]
    asked += ["--data.test-fraction", 0.2, "--data.group", ""]
    ended = flowformer("train", "time-series-small", *TINY, *asked)
    assert "the last part of the training set in time chose the epoch" in ended.out
    rows = list(csv.DictReader(Path("run/predictions.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == ["walk", "run"] * 3


def test_files_without_times_have_no_last(flowformer):
    frame = pandas.read_csv("sensors.csv")
    for at, rows in frame.groupby("id"):
        place = Path("files", str(rows["activity"].iloc[0]))
        place.mkdir(parents=True, exist_ok=True)
        rows[["up"]].to_csv(place / f"{at:03}.csv", index=False)
    asked = ["--data.train-file", "files", "--run-dir", "run"]
    told = flowformer("train", "time-series-small", *TINY, *asked, "--data.split", "time")
    assert told.code == 2
    assert "expected a column of times in its tables (--data.time) to take the last" in told.err
    assert flowformer("train", "time-series-small", *TINY, *asked).code == 0
    # What is predicted bears the names of its files; their folders may be called anything.
    Path("files").rename("new")
    Path("new/run").rename("new/unknown")
    with pytest.warns(UserWarning, match=r"that are no classes of .* count as unknown: unknown$"):
        predicted = flowformer("predict", "run", "new")
    rows = list(csv.DictReader(io.StringIO(predicted.out)))
    assert [rows[0]["id"], rows[-1]["id"]] == ["unknown/001.csv", "walk/028.csv"]
    assert {row["label"] for row in rows if row["id"].startswith("unknown")} == {""}
    assert {row["label"] for row in rows if row["id"].startswith("walk")} == {"walk"}


def test_a_comparison_says_what_it_read_before_anything_runs(flowformer):
    asked = ["--data.train-file", "sensors.csv", "--dry-run", "--mixers", "flow"]
    ended = flowformer("compare", "time-series-small", *asked)
    assert "data        sensors: 30 series of 1 channel (up), 8 – 13 steps" in ended.out


def test_numbers_are_trained_tested_predicted_and_reported(flowformer):
    asked = ["--data.dataset", "Covid3Month", "--run-dir", "run"]
    ended = flowformer("train", "time-series-regression", *TINY, *asked)
    assert ended.code == 0, ended.err
    data = load_uea("Covid3Month", regression=True)
    assert data.test is not None
    found = re.search(r"test RMSE +([\d.e-]+) \(MAE ([\d.e-]+), R² (-?[\d.]+)\)", ended.out)
    assert found is not None
    rows = list(csv.DictReader(Path("run/predictions.csv").read_text().splitlines()))
    assert [float(row["target"]) for row in rows] == data.test.labels.tolist()
    errors = np.array([float(row["target"]) - float(row["predicted"]) for row in rows])
    assert float(found[1]) == pytest.approx(np.sqrt(np.mean(errors**2)), rel=1e-3)
    assert float(found[2]) == pytest.approx(np.mean(np.abs(errors)), rel=1e-3)
    assert "drawn at random, chose the epoch; the test set was read once" in ended.out
    names = {path.name for path in Path("run/report").iterdir()}
    assert {"index.html", "predictions.png", "learning-curves.png", "flow-map-4.png"} == names - {
        f"flow-map-{at}.png" for at in (1, 2, 3)
    }
    evaluated = flowformer("evaluate", "run")
    assert evaluated.code == 0
    assert ": the same" in evaluated.out
    classes = flowformer("train", "time-series", "--data.dataset", "Covid3Month")
    assert "time-series-regression (FlowformerRegressor in Python) learns to predict" in classes.err
    again = flowformer("train", "time-series-regression", *TINY, *asked, "--resume")
    assert again.code == 0
    assert found[1] in again.out


def test_the_commands_of_the_page_do_what_it_says(flowformer):
    """As typed on the page, with its table and smaller models."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    namespace: dict[str, object] = {}
    exec(blocks[0], namespace)
    assert f"sensors: {read_series('sensors.csv').describe()}\n" in PAGE
    frame = pandas.read_csv("sensors.csv")
    frame = frame[frame["id"] < 36]
    frame.to_csv("sensors.csv", index=False)
    speeds = {"walk": 1.4, "run": 3.1, "climb": 0.6}
    frame.assign(speed=[speeds[each] for each in frame["activity"]]).drop(
        columns="activity"
    ).to_csv("speed.csv", index=False)
    commands = re.findall(r"^    flowformer (.*)$", PAGE, re.MULTILINE)
    printed = []
    for name, *rest in map(shlex.split, commands):
        small = TINY if name in ("train", "compare") else []
        ended = flowformer(name, *rest, *small)
        assert ended.code == 0, f"{rest}\n{ended.out}\n{ended.err}"
        printed.append((name, ended))
    assert [name for name, _ in printed] == [
        *("train", "predict", "compare", "train", "train"),
        *("train", "predict", "train", "compare"),
    ]
    assert "36 series of 2 channels (up, ahead)" in printed[0][1].err
    rows = re.findall(r"^\| ([\w-]+) \| \d", printed[2][1].out, re.MULTILINE)
    assert rows[:3] == ["flow", "softmax", "rocket"]
    rows = re.findall(r"^\| ([\w-]+) \| \d", printed[-1][1].out, re.MULTILINE)
    assert rows[:3] == ["flow", "softmax", "rocket"]
    assert "| method | RMSE |" in printed[-1][1].out
