"""Training, from a configuration to a run folder."""

import csv
import errno
import json
import os
import pickle
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flowformer.compare.methods import MethodResult
from flowformer.data import SeriesDataset, SeriesSplit, from_arrays
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.train.config import OptimizerConfig
from flowformer.train.folder import RunFolder
from flowformer.train.loop.task import NonFiniteLossError
from flowformer.train.run import load_run, predict, train, write_report
from flowformer.train.run_files import ClassifierResult
from flowformer.train.series.config import SeriesDataConfig
from flowformer.train.series.data import predict_probabilities
from flowformer.train.series.study import Series, choose_series

EXPLODING = OptimizerConfig(learning_rate=1e30, gradient_clip=None)


def test_a_run_leaves_what_the_folder_promises(tmp_path, tiny_config, waves):
    result = train(tiny_config(epochs=3), tmp_path / "run", data=waves)
    folder = RunFolder(tmp_path / "run")
    assert ClassifierResult.read(folder) == result
    with folder.metrics.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["step"] for row in rows] == ["3", "6", "9"]
    with folder.predictions.open() as file:
        predictions = list(csv.DictReader(file))
    correct = [row["label"] == row["predicted"] for row in predictions]
    assert len(correct) == 13
    assert np.mean(correct) == result.test_accuracy
    best = rows[result.best_epoch - 1]
    assert float(best["validation_accuracy"]) == max(float(r["validation_accuracy"]) for r in rows)
    assert list((folder.root / "tensorboard").glob("events*"))
    assert folder.last.exists()
    assert folder.best.exists()


# Of 24 series 19 train, in batches of 8.
@pytest.mark.parametrize(("least", "taken"), [(1, 3), (3, 3), (4, 5), (8, 8)])
def test_an_epoch_of_few_series_has_the_steps_that_are_asked_for(
    tmp_path, tiny_config, waves, least, taken
):
    config = tiny_config()
    config = replace(config, data=replace(config.data, least_steps=least))
    result = train(config, tmp_path / "run", data=waves)
    assert result.best_step == taken * result.best_epoch


def test_training_learns(tmp_path, tiny_config, waves):
    assert train(tiny_config(epochs=40), tmp_path / "run", data=waves).test_accuracy == 1.0


def test_a_run_read_back_gives_its_predictions_again(tmp_path, tiny_config, waves):
    result = train(tiny_config(), tmp_path / "run", data=waves)
    run = load_run(tmp_path / "run")
    test = SeriesDataset(waves.test, run.preprocessing)
    probabilities = predict_probabilities(run.model, test, batch_size=8)
    assert np.mean(probabilities.argmax(axis=1) == waves.test.labels) == result.test_accuracy
    assert run.classes == waves.classes
    assert run.config == tiny_config()


@pytest.mark.parametrize("labels", [("", ""), ("?", "slow"), ("NaN", "?")], ids=str)
def test_series_are_classified_whether_their_labels_are_known_or_not(
    tmp_path, tiny_config, waves, labels
):
    train(tiny_config(epochs=1), tmp_path / "run", data=waves)
    lines = [":".join(["1,2,3"] * waves.channels + [label]) + "\n" for label in labels]
    header = "@classLabel true slow fast" if any(labels) else "@targetlabel false"
    (tmp_path / "new.ts").write_text(f"{header}\n@data\n{''.join(lines)}")
    rows = list(csv.DictReader(predict(tmp_path / "run", tmp_path / "new.ts").splitlines()))
    assert [row["label"] for row in rows] == [label if label == "slow" else "" for label in labels]
    assert all(row["predicted"] in waves.classes for row in rows)
    if "slow" in labels:
        with pytest.raises(ValueError, match="series 0: expected a label, got an unknown one"):
            Series.evaluate(tmp_path / "run", tmp_path / "new.ts")


@pytest.mark.parametrize("seeds_equal", [True, False], ids=["same-seed", "other-seed"])
def test_the_seed_decides_the_weights(tmp_path, tiny_config, waves, seeds_equal):
    for name, seed in [("a", 1), ("b", 1 if seeds_equal else 2)]:
        train(tiny_config(seed=seed), tmp_path / name, data=waves)
    a, b = ((tmp_path / name / "weights.safetensors").read_bytes() for name in "ab")
    assert (a == b) is seeds_equal


def test_training_leaves_the_process_as_it_was(tmp_path, tiny_config, waves):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    train(tiny_config(epochs=1), tmp_path / "run", data=waves)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("protocol", ["clean", "published"])
def test_only_the_published_protocol_lets_the_test_set_choose(
    tmp_path, tiny_config, waves, protocol
):
    # Labels turned round, series of noise: what reads the test set in training goes another way.
    noise = np.random.default_rng(1)
    poisoned = SeriesSplit(
        series=tuple(noise.normal(50, 9, series.shape) for series in waves.test.series),
        labels=1 - waves.test.labels,
        name="test",
    )
    config = tiny_config(epochs=4, protocol=protocol)
    train(config, tmp_path / "a", data=waves)
    train(config, tmp_path / "b", data=replace(waves, test=poisoned))
    rows = [_rows_without_time(tmp_path / name) for name in "ab"]
    assert (rows[0] == rows[1]) is (protocol == "clean")
    if protocol == "clean":
        a, b = ((tmp_path / name / "weights.safetensors").read_bytes() for name in "ab")
        assert a == b
        a, b = ((tmp_path / name / "preprocessing.json").read_bytes() for name in "ab")
        assert a == b


def test_the_published_protocol_reports_the_best_test_accuracy_and_says_so(
    tmp_path, tiny_config, waves
):
    result = train(tiny_config(epochs=4, protocol="published"), tmp_path / "run", data=waves)
    rows = _rows_without_time(tmp_path / "run")
    accuracies = [float(row["validation_accuracy"]) for row in rows]
    assert result.test_accuracy == result.validation_accuracy == max(accuracies)
    assert "the test set chose the epoch" in result.protocol_note


def test_accuracies_are_counts_divided_once_so_that_rounding_decides_no_tie(
    tmp_path, tiny_config, waves
):
    train(tiny_config(epochs=4, protocol="published"), tmp_path / "run", data=waves)
    for row in _rows_without_time(tmp_path / "run"):  # 13 series in batches of 8 and 5
        assert float(row["validation_accuracy"]) in {correct / 13 for correct in range(14)}
        assert float(row["train_accuracy"]) in {correct / 24 for correct in range(25)}


def test_no_interval_stands_beside_the_best_of_many_looks_at_the_test_set(
    tmp_path, tiny_config, waves, write_ts
):
    files = {"train_file": write_ts(waves, "TRAIN"), "test_file": write_ts(waves, "TEST")}
    for protocol in ("clean", "published"):
        config = tiny_config(epochs=1, protocol=protocol)
        config = replace(config, data=replace(config.data, **files))
        train(config, tmp_path / protocol)
        own, other = (
            Series.evaluate(tmp_path / protocol, file) for file in (None, files["test_file"])
        )
        assert "95% interval" in other.describe()
        assert ("95% interval" in own.describe()) is (protocol == "clean")
        assert (own.to_dict()["accuracy_interval"] is None) is (protocol == "published")
        assert "the paper's    90.0 (by its own protocol)" in own.describe()


def test_the_accuracy_is_told_where_it_cannot_be_kept(tmp_path, monkeypatch, caplog):
    def fail(path: Path, _content: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("flowformer.train.run_files.write_atomically", fail)
    result = MethodResult(test_accuracy=0.9876, seconds=1.0)
    with pytest.raises(OSError, match=r"predictions\.csv"):
        result.keep_tested(RunFolder(tmp_path), "")
    assert "the test accuracy is 98.76, which cannot be kept" in caplog.text


def test_a_run_of_another_kind_is_named_with_what_reads_it(tmp_path):
    (tmp_path / "config.json").write_text('{"task": "images"}')
    with pytest.raises(
        ValueError, match=r"a run on images, .*flowformer\.train\.run\.load_run reads runs of every"
    ):
        Series.load(tmp_path)


def test_the_published_protocol_needs_a_test_set(tmp_path, tiny_config, waves):
    with pytest.raises(ValueError, match="the published protocol needs a test set"):
        train(tiny_config(protocol="published"), tmp_path / "run", data=replace(waves, test=None))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("protocol", ["clean", "published"])
def test_series_of_one_class_are_refused_before_anything_is_written(
    tmp_path, tiny_config, protocol
):
    series = np.random.default_rng(0).normal(size=(8, 2, 5))
    data = from_arrays(series, ["up"] * 8, series, ["up"] * 8)
    with pytest.raises(ValueError, match=r"train: expected series of at least 2 .*8 of 'up'"):
        train(tiny_config(protocol=protocol), tmp_path / "run", data=data)
    assert not (tmp_path / "run" / "config.json").exists()


def test_without_a_test_set_there_is_no_test_accuracy(tmp_path, tiny_config, waves):
    result = train(tiny_config(), tmp_path / "run", data=replace(waves, test=None))
    assert result.test_accuracy is None
    assert not RunFolder(tmp_path / "run").predictions.exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(tmp_path, tiny_config, waves):
    config = replace(
        tiny_config(), optimizer=OptimizerConfig(learning_rate=1e30, gradient_clip=None)
    )
    message = r"the (train|validation) loss became (nan|inf) at step \d+ \(learning rate 1e\+30\)"
    with pytest.raises(NonFiniteLossError, match=message) as raised:
        train(config, tmp_path / "run", data=waves)
    folder = RunFolder(tmp_path / "run")
    batch = load_file(folder.nan_batch)
    assert raised.value.batch is not None
    assert batch.keys() == {"inputs", "attention_mask", "labels"}
    assert all(torch.equal(batch[name], raised.value.batch[name]) for name in batch)
    assert not folder.result.exists()


def test_a_folder_in_use_is_refused(tmp_path, tiny_config, waves):
    train(tiny_config(), tmp_path / "run", data=waves)
    before = (tmp_path / "run" / "config.json").stat().st_mtime_ns
    with pytest.raises(FileExistsError, match=r"run holds a run: go on with it \(--resume\)"):
        train(tiny_config(), tmp_path / "run", data=waves)
    assert (tmp_path / "run" / "config.json").stat().st_mtime_ns == before


def test_a_folder_of_something_else_is_refused_even_to_resume(tmp_path, tiny_config, waves):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty: choose another folder"):
        train(tiny_config(), tmp_path, resume=True, data=waves)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_has_ended_is_not_trained_again(tmp_path, tiny_config, waves):
    result = train(tiny_config(), tmp_path / "run", data=waves)
    before = (tmp_path / "run" / "weights.safetensors").stat().st_mtime_ns
    assert train(tiny_config(), tmp_path / "run", resume=True, data=waves) == result
    assert (tmp_path / "run" / "weights.safetensors").stat().st_mtime_ns == before


def test_a_run_of_an_earlier_version_is_read_tested_and_resumed(
    tmp_path, tiny_config, waves, write_ts
):
    config, run = tiny_config(), tmp_path / "run"
    result = train(config, run, data=waves)
    record = json.loads((run / "config.json").read_text())
    del record["config"]["model"]["kernel"]  # which it did not know
    (run / "config.json").write_text(json.dumps(record))
    tested = Series.evaluate(run, write_ts(waves, "TEST"))
    assert tested.metrics.accuracy == result.test_accuracy
    assert train(config, run, resume=True, data=waves) == result


def test_a_run_that_has_ended_refuses_other_settings_too(tmp_path, tiny_config, waves):
    train(tiny_config(), tmp_path / "run", data=waves)
    with pytest.raises(ValueError, match=r"as it began: training\.epochs was 2, got 9"):
        train(tiny_config(epochs=9), tmp_path / "run", resume=True, data=waves)


def test_a_run_is_resumed_only_as_it_began(tmp_path, tiny_config, waves):
    config = replace(
        tiny_config(), optimizer=OptimizerConfig(learning_rate=1e30, gradient_clip=None)
    )
    with pytest.raises(NonFiniteLossError):
        train(config, tmp_path / "run", data=waves)
    with pytest.raises(ValueError, match=r"optimizer\.learning_rate was 1e\+30, got 0\.001"):
        train(tiny_config(), tmp_path / "run", resume=True, data=waves)


def test_going_on_clears_away_what_a_kill_left_half_written(tmp_path, tiny_config, waves):
    config = replace(tiny_config(), optimizer=EXPLODING)
    with pytest.raises(NonFiniteLossError):
        train(config, tmp_path / "run", data=waves)
    left = RunFolder(tmp_path / "run").best.with_name(".older.ckpt.unfinished")
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(b"half")
    with pytest.raises(NonFiniteLossError):
        train(config, tmp_path / "run", resume=True, data=waves)
    assert not left.exists()


def test_resuming_where_nothing_began_begins(tmp_path, tiny_config, waves):
    result = train(tiny_config(), tmp_path / "run", resume=True, data=waves)
    assert result.epochs == 2


@pytest.mark.parametrize(
    ("mixer", "error", "message"),
    [
        ("flwo", ValueError, "expected one of flow, "),
        ("mamba2", NotImplementedError, "has no bidirectional form"),
    ],
)
def test_a_wrong_mixer_is_named_before_anything_is_written(
    tmp_path, tiny_config, waves, mixer, error, message
):
    config = tiny_config(model=TimeSeriesModelConfig(mixer=mixer))
    with pytest.raises(error, match=message):
        train(config, tmp_path / "run", data=waves)
    assert not (tmp_path / "run").exists()


def test_half_precision_trains(tmp_path, tiny_config, waves):
    result = train(tiny_config(epochs=40, precision="bf16-mixed"), tmp_path / "run", data=waves)
    assert result.test_accuracy == 1.0


def test_a_device_that_is_not_there_is_named_before_anything_is_written(
    tmp_path, tiny_config, waves
):
    with pytest.raises(ValueError, match=r"accelerator is mps, and there is none: use cpu"):
        train(tiny_config(accelerator="mps"), tmp_path / "run", data=waves)
    assert not (tmp_path / "run").exists()


def test_a_run_on_series_given_in_python_takes_no_named_ones_for_them(
    tmp_path, tiny_config, waves, write_ts
):
    named = SeriesDataConfig(dataset="JapaneseVowels", max_length=29)
    run = tmp_path / "run"
    config = replace(tiny_config(), data=named)
    train(config, run, data=waves)
    assert load_run(run).config.data == SeriesDataConfig(max_length=29)
    given = "run was trained on series given in Python"
    with pytest.raises(ValueError, match=f"{given}: give a labelled"):
        Series.evaluate(run)
    with pytest.raises(ValueError, match=f"{given}: give them here too"):
        write_report(run)
    with pytest.raises(ValueError, match=f"{given}: give them again"):
        train(load_run(run).config, run, resume=True)
    with pytest.raises(ValueError, match=r"data\.dataset was None, got JapaneseVowels"):
        train(config, run, resume=True)
    assert Series.evaluate(run, write_ts(waves, "TEST")).metrics.count == 13
    assert write_report(run, data=waves).exists()
    assert write_report(run, num_series=0).exists()


@pytest.mark.parametrize("kind", ["cut-short", "code"])
def test_damaged_weights_are_named_and_no_code_in_them_runs(
    tmp_path, tiny_config, waves, bomb, kind
):
    train(tiny_config(epochs=1), tmp_path / "run", data=waves)
    weights = RunFolder(tmp_path / "run").weights
    code, trace = bomb
    weights.write_bytes(weights.read_bytes()[:-4] if kind == "cut-short" else code)
    with pytest.raises(
        ValueError, match=r"weights\.safetensors does not hold the run's parameters"
    ):
        load_run(tmp_path / "run")
    assert not trace.exists()


@pytest.fixture
def bomb(tmp_path):
    """A pickle whose reading makes a file, and the path of that file."""
    trace = tmp_path / "the-code-ran"

    class Bomb:
        def __reduce__(self):
            return trace.touch, ()

    return pickle.dumps({"state_dict": Bomb()}, protocol=4), trace


@pytest.mark.parametrize("name", ["last", "best"])
@pytest.mark.parametrize("kind", ["cut-short", "empty", "code", "code-in-an-archive", "other"])
def test_a_damaged_checkpoint_is_named_and_no_code_in_it_runs(
    tmp_path, tiny_config, waves, bomb, name, kind
):
    config = tiny_config(epochs=1)
    train(config, tmp_path / "run", data=waves)
    folder = RunFolder(tmp_path / "run")
    folder.result.unlink()  # as if it had been killed just before its end
    path = getattr(folder, name)
    code, trace = bomb
    if kind == "cut-short":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "code-in-an-archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", code)
            archive.writestr("archive/version", "3\n")
    elif kind == "other":
        torch.save({"weights": torch.zeros(2)}, path)
    else:
        path.write_bytes(code if kind == "code" else b"")
    message = rf"{name}\.ckpt is no checkpoint of a run .*: delete .*checkpoints and resume"
    with pytest.raises(ValueError, match=message) as raised:
        train(config, tmp_path / "run", resume=True, data=waves)
    assert "weights_only" not in str(raised.value)
    assert not trace.exists()


def test_a_run_goes_on_without_its_checkpoints_from_the_first_epoch(tmp_path, tiny_config, waves):
    result = train(tiny_config(), tmp_path / "run", data=waves)
    folder = RunFolder(tmp_path / "run")
    folder.result.unlink()
    shutil.rmtree(folder.best.parent)
    again = train(tiny_config(), tmp_path / "run", resume=True, data=waves)
    assert again == replace(result, seconds=again.seconds)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        ("", "is not JSON"),
        ("[]", "must be a mapping"),
        ('{"mean": [0.0, "a"], "std": [1.0, 1.0]}', r"mean must be of type float, got 'a'"),
        ('{"mean": [0.0], "std": [0.0]}', "expected finite means and positive stds"),
    ],
)
def test_a_damaged_preprocessing_is_named(tmp_path, tiny_config, waves, content, message):
    train(tiny_config(epochs=1), tmp_path / "run", data=waves)
    path = RunFolder(tmp_path / "run").preprocessing
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=rf"preprocessing\.json.*{message}"):
        load_run(tmp_path / "run")


def test_a_run_that_has_not_ended_is_not_read(tmp_path, tiny_config, waves):
    config = replace(tiny_config(), optimizer=EXPLODING)
    with pytest.raises(NonFiniteLossError):
        train(config, tmp_path / "run", data=waves)
    with pytest.raises(FileNotFoundError, match="it has not ended, go on with --resume"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize("mixer", ["softmax", "linear", "linformer"])
def test_another_mixer_is_one_word(tmp_path, tiny_config, waves, mixer):
    config = tiny_config(epochs=1)
    config = replace(config, model=replace(config.model, mixer=mixer))
    assert train(config, tmp_path / "run", data=waves).epochs == 1
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["config"]["model"]["mixer"] == mixer


def test_room_for_fewer_steps_than_the_series_have_is_refused(tmp_path, tiny_config, waves):
    config = tiny_config()
    config = replace(config, data=replace(config.data, max_length=6))
    with pytest.raises(ValueError, match="max_length must be at least 9, the longest series"):
        train(config, tmp_path / "run", data=waves)


def _rows_without_time(folder) -> list[dict[str, str]]:
    with RunFolder(folder).metrics.open() as file:
        return [
            {key: row[key] for key in row if not key.endswith("seconds")}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("protocol", ["clean", "published"])
def test_a_missing_value_in_the_test_set_is_refused_before_the_first_epoch(
    tmp_path, tiny_config, waves, protocol
):
    series = [values.copy() for values in waves.test.series]
    series[3][1, 2] = np.nan
    holed = SeriesSplit(series=tuple(series), labels=waves.test.labels, name="test")
    with pytest.raises(ValueError, match=r"test, series 3, channel 1, time 2: .* missing"):
        train(tiny_config(protocol=protocol), tmp_path / "run", data=replace(waves, test=holed))
    assert not (tmp_path / "run").exists()  # nothing that could only be resumed as it began


def test_a_run_without_a_test_set_does_not_say_that_one_was_read(tmp_path, tiny_config, waves):
    result = train(tiny_config(), tmp_path / "run", data=replace(waves, test=None))
    assert result.test_accuracy is None
    assert result.protocol_note.endswith("there is no test set")


def test_flow_maps_are_of_a_mistake_then_of_every_class_then_of_whichever_follow():
    labels, predicted = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 2])
    assert choose_series(labels, predicted, 3) == [1, 2, 4]
    assert choose_series(labels, predicted, 9) == [1, 2, 4, 0, 3]
