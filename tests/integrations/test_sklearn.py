import copy
import inspect
import json
import math
import pickle
import threading
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from aeon.testing.estimator_checking import parametrize_with_checks
from numpy.testing import assert_array_equal
from safetensors import safe_open
from safetensors.numpy import save
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from flowformer.integrations.sklearn import FlowformerClassifier, FlowformerRegressor
from flowformer.integrations.sklearn.estimator import FlowformerEstimator
from flowformer.train.series.config import PRESETS, SeriesDataConfig

# Of scikit-learn's checks, those that aeon's base class answers in its own way.
AEON_DIFFERS = {
    "check_no_attributes_set_in_init": "aeon sets is_fitted, metadata_ and classes_ at once",
    "check_dont_overwrite_parameters": "fit sets aeon's public is_fitted",
    "check_n_features_in": "series have channels and lengths, not one number of features",
    "check_n_features_in_after_fitting": "as above",
    "check_complex_data": "refused in our words",
    "check_dtype_object": "arrays of objects are lists of arrays",
    "check_estimators_empty_data_messages": "refused in our words",
    "check_classifier_data_not_an_array": "aeon takes arrays, lists of arrays and data frames only",
    "check_classifiers_train": "fits lists of lists",
    "check_classifiers_one_label": "aeon refuses a single class",
    "check_fit2d_1sample": "aeon refuses a single class in words of its own",
    "check_supervised_y_2d": "aeon refuses a column of labels",
    "check_fit2d_predict1d": "refused in our words",
    "check_requires_y_none": "aeon raises TypeError",
}


# Of those of regressors, likewise: what is said of class labels is not asked there.
AEON_DIFFERS_IN_REGRESSION = {
    name: why for name, why in AEON_DIFFERS.items() if "classif" not in name
} | {
    "check_fit2d_1sample": "refused in our words",
    "check_regressor_data_not_an_array": "aeon takes arrays, lists of arrays and data frames only",
    "check_regressors_train": "fits lists of lists",
}


def make(**params) -> FlowformerClassifier:
    return FlowformerClassifier(**{**FlowformerClassifier._get_test_params(), **params})


def fit(series, labels, **params) -> FlowformerClassifier:
    classifier = make(**params)
    classifier.fit(series, labels)
    return classifier


@pytest.fixture(autouse=True, scope="module")
def _no_shape_checks():
    """The jaxtyping hook wraps the constructor, whose bare signature aeon's checks look at."""
    checked = FlowformerEstimator.__init__
    FlowformerEstimator.__init__ = inspect.unwrap(checked)
    yield
    FlowformerEstimator.__init__ = checked


@pytest.fixture(scope="module")
def waves():
    """Noisy waves [n, channels, time] of two classes, slow and fast."""
    rng = np.random.default_rng(0)
    labels = np.tile([0, 1], 20)
    phase = rng.uniform(0, 0.5, (40, 1, 1))
    rate = np.where(labels == 0, 0.3, 1.2)[:, None, None]
    series = np.sin(phase + rate * np.arange(20) + np.array([[0.0], [1.5]]))
    return series + 0.1 * rng.normal(size=series.shape), np.array(["slow", "fast"])[labels]


@pytest.fixture(scope="module")
def fitted(waves):
    return fit(*waves, random_state=0)


@parametrize_with_checks([FlowformerClassifier, FlowformerRegressor])
def test_passes_aeons_estimator_checks(check):
    check()


# A check fits labels that are infinite, which scikit-learn's own look at the labels casts.
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_passes_scikit_learns_estimator_checks_that_apply():
    results = check_estimator(make(epochs=1), expected_failed_checks=AEON_DIFFERS, on_skip=None)
    statuses = {result["check_name"]: result["status"] for result in results}
    assert {name for name, status in statuses.items() if status == "xfail"} == set(AEON_DIFFERS)
    others = {name for name, status in statuses.items() if status not in ("passed", "xfail")}
    assert others == {"check_array_api_input"} & statuses.keys()  # scikit-learn 1.7 has none
    assert {statuses[name] for name in others} <= {"skipped"}


def test_the_regressor_passes_scikit_learns_checks_that_apply():
    small = FlowformerRegressor(**{**FlowformerRegressor._get_test_params(), "epochs": 1})
    results = check_estimator(
        small, expected_failed_checks=AEON_DIFFERS_IN_REGRESSION, on_skip=None, on_fail=None
    )
    failed = {r["check_name"]: repr(r["exception"]) for r in results if r["status"] == "failed"}
    assert failed == {}
    passed = {r["check_name"] for r in results if r["status"] == "passed"}
    assert passed & AEON_DIFFERS_IN_REGRESSION.keys() == set()


@pytest.mark.parametrize(
    ("params", "threads"),
    [
        ({}, 1),
        ({"threads": 3}, 3),
        ({"dim": 128}, None),
        ({"preset": "paper"}, None),
        ({"preset": "paper", "dim": 64, "feedforward": 128}, 1),
        ({"preset": "paper", "threads": 2}, 2),
    ],
)
def test_a_small_model_is_fitted_on_one_thread_unless_told(waves, monkeypatch, params, threads):
    before, seen = torch.get_num_threads(), []

    class TrainedError(Exception):
        pass

    def train(config, run_dir, *, data):
        del run_dir, data
        seen.append(config.training.threads)
        raise TrainedError

    monkeypatch.setattr("flowformer.train.run.train", train)
    with pytest.raises(TrainedError):
        FlowformerClassifier(**params).fit(*waves)
    assert seen == [threads]
    assert torch.get_num_threads() == before


def test_learns_what_can_be_learnt(waves):
    series, labels = waves
    settings = {"dim": 32, "epochs": 30, "learning_rate": 3e-3, "random_state": 0}
    classifier = fit(series[:30], labels[:30], **settings)
    assert classifier.score(series[30:], labels[30:]) >= 0.9
    assert classifier.validation_accuracy_ == 1.0
    assert 1 <= classifier.best_epoch_ <= 30


def test_the_default_finds_a_frequency_in_noise():
    rng = np.random.default_rng(0)
    labels = np.arange(160) % 4
    rate = 0.3 * (1 + labels)[:, None, None]
    series = 0.8 * np.sin(rate * np.arange(40)) + rng.normal(size=(160, 3, 40))
    classifier = FlowformerClassifier(epochs=15, random_state=0)
    classifier.fit(series[:80], labels[:80])
    assert classifier.score(series[80:], labels[80:]) > 0.9


def test_fits_in_threads_give_what_a_fit_alone_gives(waves, fitted, tmp_path):
    fits, state = {}, torch.get_rng_state()

    def run(at):
        fits[at] = fit(*waves, random_state=0)

    threads = [threading.Thread(target=run, args=(at,)) for at in range(3)]
    for thread in threads:
        thread.start()
    fitted.save(tmp_path / "fitted.safetensors")
    while any(thread.is_alive() for thread in threads):  # what does not train does not disturb
        FlowformerClassifier.load(tmp_path / "fitted.safetensors").predict_proba(waves[0])
    expected = fitted.predict_proba(waves[0])
    for each in fits.values():
        assert_array_equal(each.predict_proba(waves[0]), expected)
    assert torch.get_rng_state().equal(state)


def test_probabilities_belong_to_the_classes(waves, fitted):
    probabilities = fitted.predict_proba(waves[0])
    assert probabilities.shape == (40, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert_array_equal(fitted.classes_, ["fast", "slow"])
    assert_array_equal(fitted.classes_[probabilities.argmax(axis=1)], fitted.predict(waves[0]))


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param(np.array([10, -3]), id="integers"),
        pytest.param(np.array([2.0, 1.0]), id="floats"),
        pytest.param(np.array([True, False]), id="booleans"),
        pytest.param(np.array(["b", "a"], dtype=object), id="objects"),
    ],
)
def test_labels_of_any_kind_come_back_through_a_file(waves, labels, tmp_path):
    classifier = fit(waves[0], np.tile(labels, 20), epochs=1)
    assert_array_equal(classifier.classes_, np.sort(labels))
    classifier.save(tmp_path / "model.safetensors")
    loaded = FlowformerClassifier.load(tmp_path / "model.safetensors")
    predicted = loaded.predict(waves[0])
    assert predicted.dtype == labels.dtype
    assert_array_equal(predicted, classifier.predict(waves[0]))


def test_an_array_a_list_and_a_padded_batch_give_equal_probabilities(waves, fitted):
    series = waves[0][:6]
    unequal = [one[:, : 20 - 3 * at] for at, one in enumerate(series)]
    together = fitted.predict_proba(unequal)
    assert_array_equal(fitted.predict_proba(list(series)), fitted.predict_proba(series))
    for at, one in enumerate(unequal):
        alone = fitted.predict_proba([one])
        np.testing.assert_allclose(together[at], alone[0], rtol=1e-4)


def test_fits_series_of_unequal_lengths(waves):
    series, labels = waves
    unequal = [one[:, : 20 - at % 7] for at, one in enumerate(series)]
    classifier = fit(unequal, labels, max_length=None)
    assert classifier.max_length_ == 25
    assert classifier.predict(unequal).shape == (40,)


def test_a_matrix_is_a_collection_of_univariate_series(waves):
    series, labels = waves[0][:, 0], waves[1]
    flat = fit(series, labels, random_state=0)
    deep = fit(series[:, None], labels, random_state=0)
    assert_array_equal(flat.predict_proba(series), deep.predict_proba(series[:, None]))


@pytest.mark.parametrize("random_state", [0, np.random.RandomState(3)], ids=["int", "generator"])
def test_equal_random_states_give_equal_probabilities(waves, random_state):
    first, second = (
        # A generator moves on as it is used: each fit gets one in the same state.
        fit(*waves, random_state=copy.deepcopy(random_state)).predict_proba(waves[0])
        for _ in range(2)
    )
    assert_array_equal(first, second)
    other = fit(*waves, random_state=1).predict_proba(waves[0])
    assert not np.array_equal(other, first)


def test_global_random_states_are_left_alone(waves, tmp_path):
    before = torch.get_rng_state(), repr(np.random.get_state())  # noqa: NPY002
    fit(*waves, random_state=0).save(tmp_path / "model.safetensors")
    FlowformerClassifier.load(tmp_path / "model.safetensors").predict(waves[0])
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == repr(np.random.get_state())  # noqa: NPY002


def test_without_validation_all_series_train_and_no_validation_accuracy_is_claimed():
    rng = np.random.default_rng(0)
    series, labels = rng.normal(size=(3, 1, 10)), np.array(["a", "b", "c"])  # one series a class
    classifier = fit(series, labels, validation_fraction=None, epochs=1)
    assert classifier.validation_accuracy_ is None
    np.testing.assert_allclose(classifier.preprocessing_.mean, [series.mean()])


def test_missing_values_are_refused_by_default_and_interpolated_on_request(waves):
    series, labels = waves[0].copy(), waves[1]
    series[3, 0, 5:8] = np.nan
    with pytest.raises(
        ValueError, match=r"X, series 3, channel 0, time 5: .*missing=.* 'interpolate' or 'mean'"
    ):
        fit(series, labels, missing="error")
    probabilities = fit(series, labels, missing="interpolate").predict_proba(series)
    assert np.isfinite(probabilities).all()


@pytest.mark.parametrize("mixer", ["softmax", "linear", "linformer"])
def test_other_mixers_are_one_word_away(waves, mixer):
    assert fit(*waves, mixer=mixer).predict_proba(waves[0]).shape == (40, 2)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_what_is_not_given(preset):
    settings = FlowformerClassifier(preset=preset, dim=24)._settings()
    configured = {
        **asdict(PRESETS[preset].model),
        **asdict(PRESETS[preset].optimizer),
        "epochs": PRESETS[preset].training.epochs,
        "optimizer": PRESETS[preset].optimizer.name,
        "device": PRESETS[preset].training.accelerator,
        "validation_fraction": SeriesDataConfig().validation_fraction,
        "batch_size": SeriesDataConfig().batch_size,
        "dim": 24,
    }
    shared = settings.keys() & configured.keys()
    assert {name: settings[name] for name in shared} == {n: configured[n] for n in shared}
    assert configured.keys() - shared == {"encoder", "name"}
    assert FlowformerClassifier().preset == "small"
    with pytest.raises(ValueError, match="unknown preset 'big': choose from small, paper"):
        FlowformerClassifier().set_params(preset="big")._settings()


def test_a_saved_estimator_predicts_the_same(waves, fitted, tmp_path):
    fitted.save(tmp_path / "model.safetensors")
    loaded = FlowformerClassifier.load(tmp_path / "model.safetensors")
    assert loaded.get_params() == fitted.get_params()
    assert loaded.best_epoch_ == fitted.best_epoch_
    assert_array_equal(loaded.predict_proba(waves[0]), fitted.predict_proba(waves[0]))
    with pytest.raises(ValueError, match="expected series of 2 channels, as in fit, got 1"):
        loaded.predict(waves[0][:, :1])


def test_a_pickled_estimator_predicts_the_same(waves, fitted):
    copied = pickle.loads(pickle.dumps(fitted))
    assert_array_equal(copied.predict_proba(waves[0]), fitted.predict_proba(waves[0]))


def test_what_cannot_be_saved_is_an_error_and_leaves_no_file(waves, tmp_path):
    classifier = fit(*waves, epochs=1, random_state=np.random.RandomState(0))
    with pytest.raises(ValueError, match=r"that JSON holds: RandomState"):
        classifier.save(tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


def test_saving_before_fitting_is_an_error(tmp_path):
    with pytest.raises(NotFittedError):
        make().save(tmp_path / "model.safetensors")


def test_loading_what_is_not_there_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing"):
        FlowformerClassifier.load(tmp_path / "nothing")


def test_a_saved_estimator_is_what_its_preset_was(waves, tmp_path, monkeypatch):
    small = PRESETS["small"]
    before = replace(small, model=replace(small.model, kernel=1, dim=8, num_heads=2))
    with monkeypatch.context() as patch:
        patch.setitem(PRESETS, "small", before)
        classifier = fit(*waves, preset="small", dim=None, num_heads=None)
    path = tmp_path / "model.safetensors"
    classifier.save(path)
    loaded = FlowformerClassifier.load(path)
    assert_array_equal(loaded.predict_proba(waves[0]), classifier.predict_proba(waves[0]))
    assert loaded.kernel is None


def test_an_estimator_of_before_there_were_presets_is_read(waves, tmp_path):
    names = ("positions", "norm", "pooling", "dropout")
    published = PRESETS["paper"].model
    classifier = fit(*waves, **{name: getattr(published, name) for name in names})
    path = tmp_path / "model.safetensors"
    classifier.save(path)
    with safe_open(path, framework="np") as file:
        ((key, text),) = file.metadata().items()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    state = json.loads(text)
    del state["training_"], state["columns_"]
    for name in ("preset", "kernel", "split", "threads", "verbose"):
        del state["params"][name]
    path.write_bytes(save(weights, {key: json.dumps(state)}))
    loaded = FlowformerClassifier.load(path)
    assert_array_equal(loaded.predict_proba(waves[0]), classifier.predict_proba(waves[0]))


@pytest.mark.parametrize("kind", ["pickle", "other-weights", "cut-short"])
def test_loading_another_file_is_an_error(fitted, kind, tmp_path):
    path = tmp_path / "model.safetensors"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(fitted))
    elif kind == "other-weights":
        path.write_bytes(save({"weight": np.zeros(2)}))
    else:
        fitted.save(path)
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"expected a file that FlowformerClassifier\.save wrote"
    ) as raised:
        FlowformerClassifier.load(path)
    assert "KeyError" not in str(raised.value)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"params": {"depth": 3}}, id="unknown-parameter"),
        pytest.param({"params": None}, id="no-parameters"),
        pytest.param({"classes": [1, 2, 3]}, id="other-classes"),
        pytest.param({"classes_dtype": "colour"}, id="no-dtype"),
        pytest.param({"preprocessing": {"mean": [0.0]}}, id="no-std"),
        pytest.param({"max_length_": 7}, id="other-length"),
    ],
)
def test_loading_a_file_whose_parts_disagree_is_an_error(fitted, changes, tmp_path):
    path = tmp_path / "model.safetensors"
    fitted.save(path)
    with safe_open(path, framework="np") as file:
        ((key, text),) = file.metadata().items()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    path.write_bytes(save(weights, {key: json.dumps(json.loads(text) | changes)}))
    with pytest.raises(ValueError, match=r"expected a file that FlowformerClassifier\.save wrote"):
        FlowformerClassifier.load(path)


def test_a_series_longer_than_the_model_has_room_for_says_what_to_do(waves, fitted):
    longer = np.concatenate([waves[0], waves[0]], axis=2)
    with pytest.raises(ValueError, match=r"at most 20 .* got one of 40: fit .*max_length=40"):
        fitted.predict(longer)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        pytest.param({"mixer": "convolution"}, "flow", id="mixer"),
        pytest.param({"num_heads": 3}, "divisible by num_heads", id="heads"),
        pytest.param({"epochs": 0}, "epochs must be at least 1, got 0", id="epochs"),
        pytest.param({"learning_rate": 0.0}, "learning_rate must be above 0", id="rate"),
        pytest.param({"validation_fraction": 1.5}, "validation_fraction", id="fraction"),
        pytest.param({"max_length": 5}, "max_length must be at least 20", id="length"),
    ],
)
def test_a_wrong_parameter_is_an_error_of_fit(waves, params, message):
    classifier = make(**params)
    with pytest.raises(ValueError, match=message):
        classifier.fit(*waves)


@pytest.mark.usefixtures("shape_checks_off")  # the checks of types would speak first
@pytest.mark.parametrize("value", [2.5, "3", True])
@pytest.mark.parametrize("name", ["dim", "epochs", "batch_size"])
def test_a_parameter_of_the_wrong_type_is_named_by_fit(waves, name, value):
    classifier = make(**{name: value})
    with pytest.raises(ValueError, match=f"{name} must be of type int, got {value!r}"):
        classifier.fit(*waves)


def test_a_clone_of_a_fitted_estimator_is_unfitted(waves, fitted):
    copied = clone(fitted)
    assert isinstance(copied, FlowformerClassifier)
    assert copied.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        copied.predict(waves[0])


ANY_LENGTH = {"pooling": "mean", "positions": "sinusoidal"}


def test_cross_validation_of_unequal_lengths_leaves_room_by_default(waves):
    series, labels = waves
    unequal = [one[:, : 16 + at // 10] for at, one in enumerate(series)]  # the last are longest
    classifier = make(max_length=None, epochs=1)
    scores = cross_val_score(classifier, unequal, labels, cv=KFold(4))
    assert np.isfinite(scores).all()
    assert fit(unequal, labels, max_length=None, epochs=1).max_length_ == math.ceil(1.25 * 19)
    assert fit(series, labels, max_length=None, epochs=1).max_length_ == 20  # none is longer


def test_mean_pooling_of_sinusoidal_places_takes_series_of_any_length(waves, tmp_path):
    classifier = fit(*waves, max_length=None, epochs=1, **ANY_LENGTH)
    classifier.save(tmp_path / "any.safetensors")
    longer = np.concatenate([waves[0], waves[0]], axis=2)[:4]
    together = classifier.predict_proba([*waves[0][:2], *longer])
    for one in (classifier, FlowformerClassifier.load(tmp_path / "any.safetensors")):
        np.testing.assert_allclose(one.predict_proba(longer), together[2:], rtol=1e-4)


@pytest.mark.parametrize(
    "params", [{"positions": "learned"}, {"pooling": "flatten"}, {"mixer": "linformer"}], ids=str
)
def test_what_is_of_a_place_bounds_the_length_and_says_the_line_to_write(waves, params):
    classifier = fit(*waves, max_length=None, epochs=1, **(ANY_LENGTH | params))
    with pytest.raises(ValueError, match=r"got one of 21: fit FlowformerClassifier\(max_length=21"):
        classifier.predict(np.concatenate([waves[0], waves[0][:, :, :1]], axis=2))


def test_series_that_are_time_first_are_told_and_not_fitted_the_wrong_way_round(waves):
    series, labels = waves
    turned = [one[:, : 20 - at % 7].T for at, one in enumerate(series)]
    with pytest.raises(ValueError, match=r"X, series 1: expected 20 channels, .*\[one\.T for one"):
        make().fit(turned, labels)
    with pytest.warns(UserWarning, match="X: series of 20 channels and 2 time steps: if"):
        classifier = fit(series.transpose(0, 2, 1), labels, epochs=1)
    with pytest.raises(ValueError, match=r"of 20 channels, as in fit, got 2 .* 20 time steps: if"):
        classifier.predict(series)


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ([], "X: expected at least one series, got none"),
        (np.zeros(5), r"X: expected an array \[n, channels, time\] .*, got shape \(5,\)"),
        (np.zeros((4, 1, 2, 3)), r"X: expected an array .*, got shape \(4, 1, 2, 3\)"),
        ([np.zeros((1, 2, 3))] * 4, r"series 0: expected an array \[channels, time\]"),
        (np.full((4, 1, 5), "a"), "series 0: expected real numbers, got dtype <U1"),
        ([np.zeros((1, 5)), np.zeros((2, 4))] * 2, "series 1: expected 1 channels, as in series 0"),
    ],
    ids=["none", "one-axis", "four-axes", "list-of-three", "text", "channels"],
)
def test_what_are_no_series_is_told_in_our_words(series, message):
    with pytest.raises(ValueError, match=message):
        make().fit(series, ["a", "b"] * 2)


def test_lists_of_numbers_tensors_and_lists_of_labels_are_as_arrays(waves):
    series, labels = waves
    expected = fit(series[:, :1], labels, epochs=1, random_state=0).predict_proba(series[:, :1])
    for same in (series[:, 0].tolist(), series[:, :1].tolist(), torch.tensor(series[:, :1])):
        classifier = fit(same, labels.tolist(), epochs=1, random_state=0)
        assert_array_equal(classifier.predict_proba(same), expected)
        assert classifier.score(same, tuple(labels)) == classifier.score(series[:, :1], labels)


@pytest.mark.parametrize("unequal", [False, True], ids=["array", "list"])
def test_cross_validation_takes_arrays_and_lists(waves, unequal):
    series, labels = waves
    collection = [one[:, : 20 - at % 7] for at, one in enumerate(series)] if unequal else series
    scores = cross_val_score(make(random_state=0), collection, labels, cv=2)
    assert scores.shape == (2,)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_a_grid_search_in_a_pipeline_finds_its_settings(waves, tmp_path):
    pipeline = make_pipeline(FunctionTransformer(np.log1p, check_inverse=False), make(epochs=1))
    grid = {"flowformerclassifier__num_layers": np.array([1, 2])}
    search = GridSearchCV(pipeline, grid, cv=2).fit(np.abs(waves[0]), waves[1])
    best = search.best_params_["flowformerclassifier__num_layers"]
    classifier = search.best_estimator_[-1]
    assert classifier.num_layers == best
    assert len(classifier.model_.blocks) == best
    classifier.save(tmp_path / "model.safetensors")  # the grid's NumPy scalar goes into JSON
    assert FlowformerClassifier.load(tmp_path / "model.safetensors").num_layers == best
