"""The estimators on series of every kind: tables, files, groups, numbers; their reports."""

import re

import numpy as np
import pandas
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_score

from flowformer.data import read_series
from flowformer.integrations.sklearn import FlowformerClassifier, FlowformerRegressor

QUICK = {"dim": 16, "num_heads": 2, "num_layers": 1, "feedforward": 16, "device": "cpu"}


def classifier(**params) -> FlowformerClassifier:
    return FlowformerClassifier(**{**QUICK, "epochs": 2, "random_state": 0, **params})


def fit(*given, **params) -> FlowformerClassifier:
    estimator = classifier(**params)
    estimator.fit(*given)
    return estimator


def regress(*given, **params) -> FlowformerRegressor:
    estimator = FlowformerRegressor(**{**QUICK, "random_state": 0, **params})
    estimator.fit(*given)
    return estimator


@pytest.fixture(scope="module")
def sensors() -> pandas.DataFrame:
    """Forty recordings of four people, slow and fast, of unequal lengths, with gaps."""
    rng = np.random.default_rng(0)
    rows = []
    for at in range(40):
        steps = np.arange(rng.integers(12, 30))
        wave = np.sin((0.3, 1.2)[at % 2] * steps + rng.uniform(0, 1)) + 0.1 * rng.normal(
            size=len(steps)
        )
        wave[2] = np.nan
        own = {
            "id": at,
            "time": 50 * at + steps,
            "x": wave,
            "mean": float(np.nanmean(wave) + at % 2),
        }
        own |= {"pace": ("slow", "fast")[at % 2], "subject": f"s{at // 2 % 4}"}
        rows.append(pandas.DataFrame(own))
    return pandas.concat(rows, ignore_index=True)


@pytest.fixture(autouse=True)
def _coarse_figures(monkeypatch):
    monkeypatch.setattr("flowformer.report.figures.PNG_DPI", 40)


def test_a_table_a_file_a_collection_and_its_arrays_are_the_same_to_fit(sensors, tmp_path):
    frame = sensors.drop(columns=["mean", "subject"])
    frame.to_csv(tmp_path / "x.csv", index=False)
    read = read_series(frame, label="pace")
    fitted = [
        fit(*given)
        for given in (
            (frame, "pace"),
            (tmp_path / "x.csv", "pace"),
            (str(tmp_path / "x.csv"), "pace"),
            (read, None),
            (read, read.labels),
            (read.series, read.labels),
            (list(read.series), np.array(read.labels)),
        )
    ]
    expected = fitted[0].predict_proba(list(read.series))
    for each in fitted:
        assert each.classes_.tolist() == ["fast", "slow"]
        assert_array_equal(each.predict_proba(list(read.series)), expected)
    for given in (frame, frame.drop(columns="pace"), tmp_path / "x.csv", read):
        assert_array_equal(fitted[0].predict_proba(given), expected)
    score = fitted[0].score(list(read.series), read.labels)
    for given in ((frame, "pace"), (tmp_path / "x.csv", None), (read, None)):
        assert fitted[0].score(*given) == score


def test_what_is_read_has_labels_or_says_that_none_are_given(sensors):
    frame = sensors.drop(columns=["mean", "subject", "pace"])
    with pytest.raises(ValueError, match="expected a label for each series: give y"):
        fit(read_series(frame), None)
    with pytest.raises(ValueError, match=r"expected a column 'pace' \(data\.label\)"):
        fit(frame, "pace")


def test_groups_are_whole_in_one_part(sensors, monkeypatch):
    from flowformer.train.series import data

    seen, part = [], data.part
    monkeypatch.setattr(data, "part", lambda *a, **o: seen.append(part(*a, **o)) or seen[-1])
    read = read_series(sensors.drop(columns="mean"), label="pace")
    fitted = fit(read, read.labels, epochs=1)
    ((train, validation),) = seen
    assert set(train.groups) & set(validation.groups) == set()
    assert len(set(validation.groups)) == 1
    assert "subject of its own, chose the epoch" in fitted.training_["result"]["protocol_note"]
    with pytest.warns(UserWarning, match="are in the train and in the validation part"):
        fit(read, read.labels, epochs=1, split="time")
    train, validation = seen[-1]
    assert train.spans.max() < validation.spans.min()


def test_cross_validation_takes_what_was_read(sensors):
    read = read_series(sensors.drop(columns="mean"), label="pace")
    scores = cross_val_score(
        classifier(epochs=1), read.series, read.labels, groups=read.groups, cv=GroupKFold(2)
    )
    assert np.isfinite(scores).all()


def test_the_defaults_take_series_of_any_length_and_fill_gaps(sensors):
    read = read_series(sensors.drop(columns="mean"), label="pace")
    fitted = fit(read, read.labels)
    longer = [np.tile(one, 4) for one in read.series[:3]]
    assert fitted.predict(longer).shape == (3,)


def test_a_report_draws_what_that_of_a_run_draws(sensors, tmp_path):
    frame = sensors.drop(columns=["mean", "subject"])
    fitted = fit(frame, "pace")
    page = fitted.report(frame, "pace", folder=tmp_path / "report", num_series=2)
    files = {path.name for path in page.parent.iterdir()}
    assert files == {
        "index.html",
        "learning-curves.png",
        "confusion-matrix.png",
        "flow-map-1.png",
        "flow-map-2.png",
    }
    text = page.read_text()
    assert f"{100 * fitted.score(frame, 'pace'):.1f}%" in text
    assert "tested on the series given to report" in text
    fitted.save(tmp_path / "x.safetensors")
    loaded = FlowformerClassifier.load(tmp_path / "x.safetensors")
    assert_array_equal(loaded.predict(frame), fitted.predict(frame))  # the columns are kept
    again = loaded.report(frame, folder=tmp_path / "report", num_series=0)
    assert {path.name for path in again.parent.glob("flow*")} == set()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x.png").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty, and holds no report"):
        fitted.report(frame, "pace", folder=tmp_path / "mine")
    with pytest.raises(
        ValueError, match=r"y: expected classes of the training data \(fast, slow\)"
    ):
        fitted.report(np.zeros((1, 1, 9)), ["slower"], folder=tmp_path / "r")


def test_verbose_says_what_it_was_given_how_far_it_is_and_what_it_came_to(
    sensors, capsys, monkeypatch
):
    fit(sensors.drop(columns="mean"), "pace", verbose=True)
    assert "\r" not in capsys.readouterr().err  # a file, where bars would stay
    monkeypatch.setattr("flowformer.progress._erases", lambda: True)
    fit(sensors.drop(columns="mean"), "pace", verbose=True)
    said = capsys.readouterr().err
    assert (
        "FlowformerClassifier: 40 series of 1 channel (x), 12 – 29 steps, 2 classes (pace), 4"
        in said
    )
    assert re.search(r"training: .* of \d+ batches, .* left", said)
    assert re.search(r"the validation accuracy is [\d.]+, epoch \d of 2, in \d+ s", said)
    fit(sensors.drop(columns="mean"), "pace")
    assert capsys.readouterr().err == ""


def test_a_regressor_learns_numbers_and_comes_back_from_a_file(sensors, tmp_path):
    frame = sensors.drop(columns=["pace", "subject"])
    regressor = regress(frame, "mean", epochs=20, learning_rate=1e-2)
    assert regressor.score(frame, "mean") > 0.8
    assert regressor.validation_rmse_ is not None
    assert 0 < regressor.validation_rmse_ < 0.4
    regressor.save(tmp_path / "x.safetensors")
    loaded = FlowformerRegressor.load(tmp_path / "x.safetensors")
    assert_array_equal(loaded.predict(frame), regressor.predict(frame))
    assert loaded.validation_rmse_ == regressor.validation_rmse_
    page = loaded.report(frame, folder=tmp_path / "report")
    names = {path.name for path in page.parent.iterdir()}
    assert {"predictions.png", "learning-curves.png", "flow-map-4.png"} < names
    with pytest.raises(ValueError, match=r"expected a file that FlowformerClassifier\.save wrote"):
        FlowformerClassifier.load(tmp_path / "x.safetensors")
    assert not hasattr(clone(regressor), "model_")


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_a_regressor_predicts_in_the_unit_of_its_labels(scale):
    rng = np.random.default_rng(0)
    series = rng.normal(size=(24, 2, 8))
    labels = scale * (5 + series.mean(axis=(1, 2)))
    fits = [regress(series, factor * labels, epochs=3) for factor in (1.0, 1 / scale)]
    predicted, plain = (each.predict(series) for each in fits)
    np.testing.assert_allclose(predicted, scale * plain, rtol=1e-5)
    first, second = (each.training_["result"]["validation_rmse"] for each in fits)
    assert first == pytest.approx(scale * second, rel=1e-5)


def test_labels_that_are_no_numbers_are_refused():
    series = np.random.default_rng(0).normal(size=(8, 1, 6))
    with pytest.raises(ValueError, match="y: expected numbers to predict, got could not convert"):
        regress(series, np.array(list("abcdabcd")))
    labels = np.arange(8.0)
    labels[3] = np.nan
    with pytest.raises(
        ValueError, match="y: expected a finite number to predict for series 3, got"
    ):
        regress(series, labels)
    with pytest.raises(ValueError, match="y: expected one number a series, got 7 for 8 series"):
        regress(series, np.arange(7.0))
    two = regress(series, [0, 1] * 4, epochs=1)
    assert two.predict(series).dtype == np.float64
