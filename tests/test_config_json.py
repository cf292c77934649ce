"""Configurations to JSON values and back."""

import json
from pathlib import Path

import pytest

from flowformer.config_json import flatten, from_plain, to_plain
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.train.series.config import SeriesConfig, SeriesDataConfig

CONFIG = SeriesConfig(
    name="own",
    data=SeriesDataConfig(train_file=Path("a/TRAIN.ts"), test_file=Path("a/TEST.ts")),
    model=TimeSeriesModelConfig(mixer_options={"clamp": 1.0, "competition": None}),
)


def test_a_configuration_comes_back_equal_through_json():
    assert from_plain(SeriesConfig, json.loads(json.dumps(to_plain(CONFIG)))) == CONFIG


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "training.epoch",
            3,
            r"unknown key training\.epoch: expected one of seed, accelerator, precision, threads, "
            "progress, logger, skip_nan, devices, nodes, strategy, timeout, epochs, protocol",
        ),
        ("training.epochs", "3", r"training\.epochs must be of type int, got '3'"),
        ("training.epochs", True, r"training\.epochs must be of type int, got True"),
        ("training.protocol", "fair", r"training\.protocol must be one of 'clean', 'published'"),
        ("optimizer.gradient_clip", "4", r"optimizer\.gradient_clip must be of type float"),
        ("optimizer.learning_rate", 0, r"^optimizer: learning_rate must be above 0, got 0\.0"),
        ("data", [], r"data must be a mapping, got \[\]"),
    ],
)
def test_a_wrong_value_is_named_by_its_path(path, value, message):
    plain = to_plain(CONFIG)
    *parents, last = path.split(".")
    place = plain
    for parent in parents:
        place = place[parent]
    place[last] = value
    with pytest.raises(ValueError, match=message):
        from_plain(SeriesConfig, plain)


def test_a_missing_key_is_named():
    plain = to_plain(CONFIG)
    del plain["name"]
    with pytest.raises(ValueError, match="missing key name of SeriesConfig"):
        from_plain(SeriesConfig, plain)


def test_a_key_with_a_default_may_be_left_out():
    plain = to_plain(CONFIG)
    del plain["training"]
    assert from_plain(SeriesConfig, plain) == CONFIG


def test_an_integer_stands_for_a_float():
    plain = to_plain(CONFIG)
    plain["optimizer"]["learning_rate"] = 1
    assert from_plain(SeriesConfig, plain).optimizer.learning_rate == 1.0


def test_nested_values_are_named_by_their_path_and_an_empty_mapping_is_a_value():
    assert flatten({"a": {"b": 1, "c": {}}, "d": None}) == {"a.b": 1, "a.c": {}, "d": None}
