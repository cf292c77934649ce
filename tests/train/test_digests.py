"""What a run has read is kept: other data are refused by name, on going on and in a comparison."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowformer.compare.methods import MethodResult
from flowformer.compare.plan import Plan, make_plan, read_comparison, require_data
from flowformer.data import load_ts_files
from flowformer.data.trajectories.records import Trajectories
from flowformer.train import run
from flowformer.train.digests import digest_files
from flowformer.train.folder import RunFolder, has_ended, keep_digests, read_digests
from flowformer.train.kinds import kind_of
from flowformer.train.series.config import SeriesConfig, SeriesDataConfig
from flowformer.train.series.data import digest_data
from flowformer.train.series.study import Series
from tests.train.small_images import tiny_vision, write_images
from tests.train.small_sequences import LISTOPS, tiny_sequences
from tests.train.small_trajectories import random_trajectories, tiny_decisions

assert tiny_sequences  # a fixture


class StoppedError(Exception):
    """In place of the training."""


Case = tuple[Any, Callable[[], None], str]


@pytest.fixture
def series(tiny_config, waves, write_ts) -> Case:
    """A run's configuration, what changes its data, and what is then named."""
    train, test = write_ts(waves, "TRAIN"), write_ts(waves, "TEST")
    config = tiny_config()
    data = replace(config.data, train_file=train, test_file=test)
    split = waves.test
    scaled = replace(split, series=tuple(100 * values for values in split.series))

    def change() -> None:
        write_ts(replace(waves, test=scaled), "TEST")

    return replace(config, data=data), change, f"{test} has changed"


@pytest.fixture
def text(tiny_language) -> Case:
    config = tiny_language()

    def change() -> None:
        own = config.data.folder
        first, second, rest = own.read_text().split("\n", 2)
        own.write_text(f"{second}\n{first}\n{rest}")  # as many of each character
        shutil.rmtree(config.data.cache)

    return config, change, f"{config.data.folder} (train) has changed"


@pytest.fixture
def sequences(tiny_sequences) -> Case:
    config = tiny_sequences(replace(LISTOPS, sizes=(20, 10, 10)))

    def change() -> None:
        path = config.data.cache / "train-labels.npy"
        np.save(path, 9 - np.load(path))

    return config, change, "listops (train) has changed"


@pytest.fixture
def images(tmp_path) -> Case:
    folder = write_images(tmp_path / "images", {"train": 4, "test": 2})
    image = folder / "train" / "red" / "1.bmp"
    Image.fromarray(np.full((20, 24, 3), 2, np.uint8)).save(image)

    def change() -> None:
        size = image.stat().st_size
        Image.fromarray(np.full((20, 24, 3), 200, np.uint8)).save(image)
        assert image.stat().st_size == size

    return tiny_vision(folder), change, f"{image} has changed"


@pytest.fixture
def trajectories(tmp_path) -> Case:
    folder = tmp_path / "episodes"
    random_trajectories().save(folder)

    def change() -> None:
        data = Trajectories.load(folder)
        replace(data, observations=100 * data.observations).save(folder)

    config = tiny_decisions(folder)
    config = replace(config, evaluation=replace(config.evaluation, targets=(-50.0,)))
    return config, change, f"{folder} has changed"


@pytest.fixture(params=["series", "text", "sequences", "images", "trajectories"])
def case(request: pytest.FixtureRequest) -> Case:
    return request.getfixturevalue(request.param)


def test_a_run_is_not_gone_on_with_on_other_data(case, tmp_path, monkeypatch):
    config, change, named = case

    def stop(*_arguments: object, **_options: object) -> None:
        raise StoppedError

    monkeypatch.setattr("flowformer.train.loop.fit.fit", stop)
    for resume in (False, True):
        with pytest.raises(StoppedError):
            run.train(config, tmp_path / "run", resume=resume)
    change()
    with pytest.raises(ValueError, match="can only be resumed as it began: ") as raised:
        run.train(config, tmp_path / "run", resume=True)
    assert named in str(raised.value)
    # One of an older version does not say what it has read.
    RunFolder(tmp_path / "run").data.unlink()
    with pytest.raises(StoppedError):
        run.train(config, tmp_path / "run", resume=True)
    assert read_digests(RunFolder(tmp_path / "run"))


def test_what_a_comparison_reads_of_the_data_is_what_a_run_does(case):
    config, _, _ = case
    kind = kind_of(config)
    assert kind.digest(config) == kind.study(config).digests() != {}


def test_a_changed_setting_is_named_before_the_data_that_it_brings(tmp_path, series):
    config, change, named = series
    folder = RunFolder(tmp_path / "run")
    study = Series(config)
    study.record.write(folder)
    keep_digests(folder, study.digests())
    change()
    other = replace(config, data=replace(config.data, batch_size=2))
    with pytest.raises(ValueError, match=r"data\.batch_size was 8, got 2") as raised:
        has_ended(folder, Series(other).record, Series(other).digests())
    assert named not in str(raised.value)


@pytest.mark.parametrize("what", ["values", "labels", "classes", "order"])
def test_whatever_changes_in_series_changes_their_digest(tiny_config, waves, what):
    train = waves.train
    changed = {
        "values": {"train": replace(train, series=(train.series[0] * 100, *train.series[1:]))},
        "labels": {"train": replace(train, labels=1 - train.labels)},
        "classes": {"classes": waves.classes[::-1]},
        "order": {"train": train.select(np.arange(len(train))[::-1], "train")},
    }[what]
    config = tiny_config()
    before = digest_data(config, waves)
    assert before == digest_data(config, replace(waves))
    after = digest_data(config, replace(waves, **changed))
    assert before["waves, train series"] != after["waves, train series"]


def test_of_very_many_files_each_folder_has_a_digest(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        for name in "xy":
            (tmp_path / folder / name).write_text(folder + name)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert digest_files(files).keys() == set(map(str, files))
    before = digest_files(files, most=3)
    assert before.keys() == {str(tmp_path / "a"), str(tmp_path / "b")}
    (tmp_path / "b" / "y").write_text("bz")
    after = digest_files(files, most=3)
    assert [place for place in before if before[place] != after[place]] == [str(tmp_path / "b")]


def test_a_file_whose_name_is_no_utf_8_is_kept_and_known_again(tmp_path):
    digests = {os.fsdecode(b"images/\xff\n\xe4.png"): "1", "images/ä.png": "2"}
    keep_digests(RunFolder(tmp_path), digests)
    assert read_digests(RunFolder(tmp_path)) == digests


@pytest.fixture
def compared(series: Case, tmp_path: Path) -> tuple[Plan, Case]:
    """Two methods on series, of which the first has finished."""
    config: SeriesConfig = series[0]
    plan = make_plan([config], {"dtw": {}, "rocket": {}}, seeds=1, root=tmp_path / "comparison")
    folder = plan.runs[0].folder
    keep_digests(folder, digest_data(config))
    MethodResult(test_accuracy=1.0, seconds=1.0).write(folder)
    return plan, series


def test_a_comparison_does_not_go_on_with_other_data(compared):
    plan, (_, change, named) = compared
    require_data(plan)
    change()
    with pytest.raises(ValueError, match="has read other data than there are now") as raised:
        require_data(plan)
    assert named in str(raised.value)


def test_a_comparison_joins_no_runs_that_have_read_different_data(compared):
    plan, (config, change, named) = compared
    second = plan.runs[1].folder
    keep_digests(second, digest_data(config))
    MethodResult(test_accuracy=0.5, seconds=1.0).write(second)
    assert len(read_comparison(plan).outcomes) == 2
    change()
    keep_digests(second, digest_data(config))
    with pytest.raises(ValueError, match="have read different data") as raised:
        read_comparison(plan)
    assert named in str(raised.value)


def test_a_table_of_finished_runs_needs_no_data_but_is_of_none_that_have_changed(compared):
    plan, (config, change, _) = compared
    second = plan.runs[1].folder
    keep_digests(second, digest_data(config))
    MethodResult(test_accuracy=0.5, seconds=1.0).write(second)
    require_data(plan)
    change()
    with pytest.raises(ValueError, match="has read other data than there are now"):
        require_data(plan)
    config.data.test_file.unlink()
    require_data(plan)
    second.result.unlink()
    with pytest.raises(FileNotFoundError):
        require_data(plan)


def test_a_classical_method_keeps_what_it_has_read(series, tmp_path, monkeypatch):
    config, _, _ = series

    def stop(*_arguments: object, **_options: object) -> None:
        raise StoppedError

    monkeypatch.setattr("flowformer.compare.classical.run_classical", stop)
    from flowformer.compare.methods import rocket

    with pytest.raises(StoppedError):
        rocket(config, tmp_path / "run", resume=True)
    assert read_digests(RunFolder(tmp_path / "run")) == digest_data(config)


def test_a_set_of_the_archive_is_named_as_its_file(tmp_path, waves, write_ts):
    folder = tmp_path / "sets"
    folder.mkdir()
    for part in ("TRAIN", "TEST"):
        write_ts(waves, part).rename(folder / f"Waves_{part}.ts")
    config = SeriesConfig(name="time-series", data=SeriesDataConfig(dataset="Waves", folder=folder))
    data = load_ts_files(folder / "Waves_TRAIN.ts", folder / "Waves_TEST.ts", name="Waves")
    names = [f"Waves_TRAIN.ts in {folder}", f"Waves_TEST.ts in {folder}"]
    assert list(digest_data(config, data)) == names


def test_a_set_that_the_folder_lacks_is_told_early_and_not_said_to_be_in_it(tmp_path):
    data = SeriesDataConfig(dataset="BasicMotions", folder=tmp_path)
    config = SeriesConfig(name="time-series", data=data)
    with pytest.warns(UserWarning, match="has no BasicMotions: it is read from aeon's package"):
        config.check_early()
    with pytest.warns(UserWarning, match="has no BasicMotions"):
        assert list(digest_data(config)) == ["BasicMotions_TRAIN.ts", "BasicMotions_TEST.ts"]
