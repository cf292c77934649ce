"""Images on the command line: a recipe on a folder, and what is done with its run."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from flowformer.train.run import train
from tests.compare.in_process import in_this_process
from tests.train.small_images import tiny_vision, write_images

__all__ = ["in_this_process"]  # a fixture

SMALL = [
    *("--data.image-size", 16, "--data.batch-size", 4, "--data.validation-fraction", 0.25),
    *("--model.patch-size", 8, "--model.dims", 8, "--model.depths", 1, "--model.num-heads", 2),
    *("--training.epochs", 1, "--training.threads", 1, "--training.accelerator", "cpu"),
    *("--training.progress", "none"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "data", {"train": 12, "val": 3})


@pytest.fixture(scope="module")
def run(tmp_path_factory, images) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(replace(tiny_vision(images, epochs=1), name="image-folder"), folder)
    return folder


def test_a_folder_is_trained_on_with_the_recipe_for_it(flowformer, images, tmp_path):
    folder = tmp_path / "run"
    outcome = flowformer(
        "train", "image-folder", "--data.path", images, *SMALL, "--run-dir", folder
    )
    assert outcome.code == 0, outcome.err
    assert "test accuracy" in outcome.out
    assert "IMAGE, flowformer evaluate" in outcome.out
    again = flowformer("train", "image-folder", "--run-dir", folder, "--resume")
    assert again.code == 0
    assert "has ended already" in again.err


def test_a_run_is_tested_again_and_on_another_folder(flowformer, images, run):
    outcome = flowformer("evaluate", run)
    assert outcome.code == 0
    assert "6 images" in outcome.out
    other = flowformer("evaluate", run, "--file", images / "train", "--json")
    assert json.loads(other.out)["count"] == 24


def test_several_images_are_classified(flowformer, images, run):
    files = sorted((images / "val" / "red").iterdir())
    outcome = flowformer("predict", run, *files)
    assert outcome.code == 0
    rows = list(csv.DictReader(outcome.out.splitlines()))
    assert [row["file"] for row in rows] == [str(file) for file in files]
    bad = flowformer("predict", run, files[0], images / "none.png")
    assert bad.code == 2
    assert "none.png: no such file" in bad.err


def test_what_there_is_none_of_is_told_in_the_words_of_the_command_line(flowformer, tmp_path):
    outcome = flowformer("train", "image-folder", "--run-dir", tmp_path / "run")
    assert outcome.code == 2
    assert "no images to train on: give --data.path" in outcome.err
    outcome = flowformer("train", "imagenet", "--data.path", tmp_path, "--run-dir", tmp_path / "a")
    assert outcome.code == 2
    assert "has no folder train" in outcome.err


@pytest.mark.usefixtures("in_this_process")
def test_mixers_are_compared_on_images(flowformer, images, tmp_path):
    small = [word for word in SMALL if word not in ("--training.progress", "none")]
    outcome = flowformer(
        *("compare", "image-folder", "--data.path", images, *small),
        *("--mixers", "flow,mobile", "--seeds", 1, "--output", tmp_path / "comparison"),
    )
    assert outcome.code == 0, outcome.err
    table = (tmp_path / "comparison" / "table.md").read_text()
    assert "flow" in table
    assert "mobile" in table
