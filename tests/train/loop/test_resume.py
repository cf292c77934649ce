"""A run that was killed and resumed ends bitwise as one that was not."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flowformer.config_json import to_plain
from flowformer.train.kinds import Experiment
from tests.train.small_images import tiny_vision, write_images
from tests.train.small_sequences import tiny_sequences
from tests.train.small_trajectories import random_trajectories, tiny_decisions

__all__ = ["tiny_sequences"]  # a fixture

SAME_BYTES = (
    "weights.safetensors",
    "predictions.csv",
    "preprocessing.json",
    "tokenizer.json",
    "episodes.csv",
)
KILLER = Path(__file__).with_name("killed_runs.py")


pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")


def test_a_run_killed_at_any_moment_and_resumed_ends_bitwise_the_same(
    tmp_path, tiny_config, waves, write_ts
):
    config = tiny_config()
    data = replace(
        config.data, train_file=write_ts(waves, "TRAIN"), test_file=write_ts(waves, "TEST")
    )
    names = kill_and_resume(replace(config, data=data), "series", tmp_path)
    # Two a file: config, preprocessing; best (once at least), last and metrics of 2 epochs; 3 more.
    assert {f"write-{number}" for number in range(1, 21)} <= names
    assert {f"step-{number}" for number in range(1, 5)} <= names


@pytest.mark.slow  # the files of another kind; where runs are killed and go on is the same
def test_so_does_the_run_of_a_language_model(tmp_path, tiny_language):
    names = kill_and_resume(tiny_language(), "language", tmp_path)
    # Two a file: config, tokenizer; best (once at least), last and metrics of 2 rounds; 2 more. The
    # text was tokenised by the run that is left alone: killing that is tested in tests/data.
    assert {f"write-{number}" for number in range(1, 19)} <= names
    assert {f"step-{number}" for number in range(1, 5)} <= names


@pytest.mark.slow
def test_so_does_the_run_of_a_classifier_of_sequences(tmp_path, tiny_sequences):
    names = kill_and_resume(tiny_sequences(), "sequences", tmp_path)
    # Two a file: config; best (once at least), last and metrics of 2 rounds; 3 more. The set was
    # prepared by the run that is left alone.
    assert {f"write-{number}" for number in range(1, 17)} <= names
    assert {f"step-{number}" for number in range(1, 5)} <= names


@pytest.mark.slow
def test_so_does_the_run_of_an_image_model(tmp_path):
    folder = write_images(tmp_path / "images", {"train": 6, "val": 3})
    names = kill_and_resume(tiny_vision(folder), "images", tmp_path)
    # As of series; the third and fourth file of an epoch are those of its end.
    assert {f"write-{number}" for number in range(1, 21)} <= names
    assert {f"step-{number}" for number in range(1, 5)} <= names


@pytest.mark.slow
def test_so_does_the_run_of_a_decision_model(tmp_path):
    random_trajectories().save(tmp_path / "data")
    config = tiny_decisions(tmp_path / "data", evaluation={"targets": (-60.0,)})
    names = kill_and_resume(config, "trajectories", tmp_path)
    # Two a file: config, preprocessing; best, last and metrics of 2 rounds; 3 more.
    assert {f"write-{number}" for number in range(1, 23)} <= names
    assert {f"step-{number}" for number in range(1, 5)} <= names


def kill_and_resume(config: Experiment, kind: str, folder: Path) -> set[str]:
    """Compares every killed run with the one left alone; returns the names of the moments."""
    path = folder / "experiment.json"
    path.write_text(json.dumps(to_plain(config)))
    base = folder / "runs"
    subprocess.run(
        [sys.executable, "-W", "ignore", KILLER, path, base, kind],
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    expected = _outcome(base / "uninterrupted")
    names = {path.stem for path in base.glob("*.killed")}
    for name in names:
        assert _outcome(base / name) == expected, name
    return names


def _outcome(folder: Path) -> dict[str, object]:
    """All that a run leaves, but for the time that it took."""
    result = json.loads((folder / "result.json").read_text())
    for name in ("seconds", "tokens_per_second"):
        result.pop(name, None)
    with (folder / "metrics.csv").open() as file:
        rows = [
            {key: row[key] for key in row if not key.endswith("seconds")}
            for row in csv.DictReader(file)
        ]
    files = sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "tensorboard"
    )
    return {
        "result": result,
        "rows": rows,
        "files": files,
        **{name: (folder / name).read_bytes() for name in files if name in SAME_BYTES},
    }
