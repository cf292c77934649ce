"""The classical methods on aeon's embedded sets: figures, seeds, and what each reads."""

import os
import sys
from dataclasses import replace

import numpy as np
import pytest

from flowformer.compare import classical
from flowformer.compare.classical import ClassicalMethod, run_classical
from flowformer.data import Preprocessing, TimeSeriesData, from_arrays, load_uea

OPTIONS: dict[ClassicalMethod, dict] = {
    "dtw": {},
    "rocket": {"n_kernels": 300},
    "xgboost": {"n_estimators": 20},
}


@pytest.fixture(scope="module")
def vowels() -> TimeSeriesData:
    """A part of JapaneseVowels: series of unequal lengths, nine classes."""
    data = load_uea("JapaneseVowels")
    assert data.test is not None
    return replace(
        data,
        train=data.train.select(np.arange(0, len(data.train), 3), "train"),
        test=data.test.select(np.arange(0, len(data.test), 6), "test"),
    )


@pytest.mark.parametrize("method", OPTIONS)
def test_learns_unequal_series_of_several_channels(
    method: ClassicalMethod, vowels: TimeSeriesData
) -> None:
    outcome = run_classical(method, vowels, **OPTIONS[method])
    assert vowels.test is not None
    assert outcome.probabilities.shape == (len(vowels.test), 9)
    np.testing.assert_allclose(outcome.probabilities.sum(axis=1), 1, rtol=1e-5)
    assert outcome.accuracy > 0.7  # a guess is right in 11 % of all cases
    assert outcome.accuracy == np.mean(outcome.probabilities.argmax(axis=1) == vowels.test.labels)
    assert outcome.seconds > 0


def test_rocket_learns_basic_motions() -> None:
    assert run_classical("rocket", load_uea("BasicMotions"), n_kernels=500).accuracy > 0.95


@pytest.mark.parametrize("method", ["rocket", "xgboost"])
def test_a_seed_fixes_the_outcome(method: ClassicalMethod, vowels: TimeSeriesData) -> None:
    options = dict(OPTIONS[method])
    if method == "xgboost":
        options["subsample"] = 0.5  # nothing in it is random before
    one, two, other = (
        run_classical(method, vowels, seed=seed, **options).probabilities for seed in (1, 1, 2)
    )
    assert (one == two).all()
    assert (one != other).any()


def test_dtw_is_the_class_of_the_nearest_warped_series() -> None:
    """A late bump is nearer to an early bump than to none: only when time may warp."""
    time = np.arange(40.0)
    bump, late = (np.exp(-((time - at) ** 2) / 8)[None] for at in (10, 30))
    data = from_arrays([bump, 0 * bump + 0.2], ["bump", "flat"], [late], ["bump"])
    assert run_classical("dtw", data).accuracy == 1
    assert run_classical("dtw", data, distance_params={"window": 0.0}).accuracy == 0


def test_series_are_normalized_with_the_training_statistics(vowels: TimeSeriesData) -> None:
    """Nothing of the test split but its longest length enters what is fitted."""
    preprocessing = Preprocessing.fit(vowels.train)
    for _, represent in classical._METHODS.values():
        values = represent(vowels.train, preprocessing, vowels)
        real = np.concatenate([each.ravel() for each in values])
        real = real[np.isfinite(real) & (real != 0)]
        assert abs(real.mean()) < 1e-6
        assert abs(real.std() - 1) < 1e-6


def test_what_each_method_reads_of_a_series_that_has_ended() -> None:
    short, long = np.array([[1.0, 3.0]]), np.array([[1.0, 3.0, 2.0]])
    data = from_arrays([short, long], ["a", "b"])
    preprocessing = Preprocessing(mean=(2.0,), std=(1.0,))
    read = {
        name: represent(data.train, preprocessing, data)
        for name, (_, represent) in classical._METHODS.items()
    }
    assert [each.tolist() for each in read["dtw"]] == [[[-1, 1]], [[-1, 1, 0]]]
    assert read["rocket"].tolist() == [[[-1, 1, 0]], [[-1, 1, 0]]]
    np.testing.assert_array_equal(read["xgboost"], [[-1, 1, np.nan], [-1, 1, 0]])


def test_missing_values_follow_the_policy() -> None:
    series = np.random.default_rng(0).normal(size=(6, 2, 12))
    series[0, 0, 3] = np.nan
    data = from_arrays(series, list("ababab"), series, list("ababab"))
    with pytest.raises(ValueError, match="channel 0, time 3: expected a value, got a missing one"):
        run_classical("dtw", data)
    assert run_classical("dtw", data, missing="interpolate").accuracy == 1


@pytest.mark.parametrize("home", [True, False], ids=["home", "no-home"])
def test_numba_has_a_folder_where_neither_library_nor_home_is_writable(monkeypatch, tmp_path, home):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.delenv("NUMBA_CACHE_DIR")  # as it was in the end
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path) if home else "~")
    monkeypatch.setattr(classical.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(classical.os, "access", lambda path, _mode: path == tmp_path)
    classical._require("math", "dtw", "timeseries")
    assert ("NUMBA_CACHE_DIR" in os.environ) is not home
    assert len(list(tmp_path.glob("flowformer-numba-*"))) == (not home)


def test_there_must_be_a_test_split() -> None:
    data = from_arrays(np.zeros((2, 1, 5)), ["a", "b"], name="mine")
    with pytest.raises(ValueError, match="mine has no test split for dtw to predict"):
        run_classical("dtw", data)


@pytest.mark.usefixtures("shape_checks_off")  # they would refuse the unknown name first
def test_an_unknown_method_is_told_the_known_ones() -> None:
    data = from_arrays(np.zeros((2, 1, 5)), ["a", "b"])
    with pytest.raises(ValueError, match="'knn': expected one of dtw, rocket, xgboost"):
        run_classical("knn", data)  # type: ignore[arg-type] - the wrong name is what is tested


@pytest.mark.parametrize(
    ("method", "module", "extra"),
    [
        ("dtw", "aeon.classification.distance_based", "timeseries"),
        ("rocket", "aeon.classification.convolution_based", "timeseries"),
        ("xgboost", "xgboost", "baselines"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    method: ClassicalMethod, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    series = np.random.default_rng(0).normal(size=(2, 1, 12))
    data = from_arrays(series, ["a", "b"], series, ["a", "b"])
    package = module.partition(".")[0]
    message = rf"{package} is needed for {method}: pip install 'flowformer\[{extra}\]'"
    with pytest.raises(ImportError, match=message):
        run_classical(method, data)


def test_series_of_one_class_are_refused() -> None:
    series = np.zeros((4, 1, 5))
    data = from_arrays(series, ["up"] * 4, series, ["up"] * 4)
    with pytest.raises(ValueError, match=r"expected series of at least 2 .* got 4 of 'up'"):
        run_classical("dtw", data)
