"""Several processes: the losses of one, exact figures, and one that is lost ends the run."""

import csv
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.distributed.checkpoint.api import CheckpointException

from flowformer.train.loop import checkpoints
from flowformer.train.loop.checkpoints import read_checkpoint, read_rest, read_whole

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")

RUNS = Path(__file__).with_name("distributed_runs.py")
ROOT = Path(__file__).parents[3]
# A sum over shares is rounded in another order: some 1e-7 of a loss and of a gradient, in each of
# at most 8 steps. What is found is 1e-7 of a figure, and 2e-7 of a parameter; an entry of the
# gradient that is rounding alone, which Adam divides by its own size, would move by more.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder in which all runs have been, and what they said."""
    folder = tmp_path_factory.mktemp("runs")
    subprocess.run(
        [sys.executable, "-W", "ignore", RUNS, folder],
        check=True,
        cwd=ROOT,
        env=os.environ
        | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
    )
    return folder, json.loads((folder / "said.json").read_text())


@pytest.mark.parametrize(
    "name",
    [
        *("series-ddp", "language-ddp", "language-fsdp", "sequences-ddp", "sequences-fsdp"),
        *("images-ddp", "trajectories-ddp"),
    ],
)
def test_two_processes_have_the_losses_of_one(runs, name):
    folder, said = runs
    assert [told["code"] for told in said[name]] == [0, 0], said[name]
    alone, rows = (_rows(folder / run) for run in (f"{name.partition('-')[0]}-alone", name))
    assert len(rows) == len(alone) == 2
    for one, two in zip(alone, rows, strict=True):
        assert one.keys() == two.keys()
        for column in one.keys() - {"seconds", "train_seconds"}:
            assert two[column] == pytest.approx(one[column], rel=TOLERANCE), column


@pytest.mark.parametrize("name", ["series-ddp", "language-ddp", "language-fsdp", "images-ddp"])
def test_they_end_with_the_same_parameters_and_files(runs, name):
    folder, _ = runs
    alone = folder / f"{name.partition('-')[0]}-alone"
    one, two = (load_file(run / "weights.safetensors") for run in (alone, folder / name))
    assert one.keys() == two.keys()
    for key in one:
        assert (one[key] - two[key]).abs().max() < TOLERANCE, key
    assert _files(folder / name) == _files(alone)


def test_no_sample_is_counted_twice_though_the_last_batch_is_one(runs):
    folder, _ = runs
    for row in _rows(folder / "series-ddp"):
        # 19 series to train on and 5 for validation: accuracies are whole numbers of them.
        for stage, count in (("train", 19), ("validation", 5)):
            right = row[f"{stage}_accuracy"] * count
            assert right == pytest.approx(round(right), abs=1e-9)


def test_shards_are_those_of_both_and_become_one_file(runs):
    folder, _ = runs
    best = folder / "language-fsdp" / "checkpoints" / "best.ckpt"
    assert len(list(best.glob("shard-*.safetensors"))) == 2
    weights = load_file(folder / "language-fsdp" / "weights.safetensors")
    whole = read_whole(best)
    assert {name.removeprefix("model.") for name in whole} == weights.keys()
    assert all(whole[f"model.{name}"].equal(value) for name, value in weights.items())


@pytest.mark.parametrize(
    ("cause", "kind", "said"),
    [
        (OSError(28, "No space left on device"), OSError, r"No space left .*last\.ckpt"),
        (KeyError("x"), ValueError, r"last\.ckpt: KeyError: 'x'"),
    ],
    ids=["disk", "other"],
)
def test_what_ends_the_writing_of_shards_names_them(monkeypatch, tmp_path, cause, kind, said):
    def fail(*_: object, **__: object) -> None:
        raise CheckpointException("of torch", {1: (cause, traceback.StackSummary())})

    monkeypatch.setattr(checkpoints, "load", fail)
    with pytest.raises(kind, match=said):
        checkpoints.load_shards(tmp_path / "last.ckpt", {"state_dict": {}}, {})


def test_a_damaged_or_missing_shard_is_named(runs, tmp_path):
    folder, _ = runs
    last = folder / "sequences-fsdp" / "checkpoints" / "last.ckpt"
    shard = sorted(last.glob("shard-*.safetensors"))[1]
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=r"last\.ckpt is no whole checkpoint: a shard is"):
            read_rest(last)
        shard.unlink()
        with pytest.raises(ValueError, match=r"last\.ckpt is no whole checkpoint: a shard is"):
            read_rest(last)
    finally:
        shard.write_bytes(content)
    with pytest.raises(ValueError, match="is a checkpoint in shards"):
        read_checkpoint(last)
    (tmp_path / "last.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match="is a checkpoint in one file"):
        read_rest(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("name", "whole"), [("killed", "language-ddp"), ("shards-killed", "language-fsdp")]
)
def test_one_that_is_killed_is_named_and_the_run_goes_on_to_the_same_end(runs, name, whole):
    folder, said = runs
    first, second, *again = said[name]
    assert second["code"] == -9
    assert first["code"] in (1, 75)
    assert "process 1 of 2 (pid " in first["said"]
    assert [told["code"] for told in again] == [0, 0]
    run = folder / name
    assert _same_bytes(run, folder / whole)
    assert not list(run.rglob(".*.unfinished"))


def test_one_that_hangs_is_named_and_one_process_can_go_on(runs):
    folder, said = runs
    first, second, again = said["stopped"]
    assert second["code"] == -9
    assert "process 1 of 2 (pid " in first["said"]
    assert "has not been heard of for" in first["said"]
    assert again["code"] == 0
    assert _rows(folder / "stopped")[-1]["step"] == 4


def test_a_loss_that_is_none_in_one_process_is_left_out_by_all_and_counted(runs):
    folder, said = runs
    assert [told["code"] for told in said["nan"]] == [0, 0]
    assert sum(row["skipped"] for row in _rows(folder / "nan")) == 1


def test_or_ends_all_and_its_share_of_the_batch_is_kept(runs):
    folder, said = runs
    assert [told["code"] for told in said["nan-ends"]] == [1, 1]
    assert "the train loss of another process is not finite" in said["nan-ends"][0]["said"]
    assert "the train loss became nan" in said["nan-ends"][1]["said"]
    assert (folder / "nan-ends" / "nan_batch-1.safetensors").exists()


def _rows(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _files(run: Path) -> set[str]:
    """Names of the files, of a folder of shards its own name."""
    found = set()
    for path in run.rglob("*"):
        if path.parent.name == "tensorboard":
            continue
        if path.suffix == ".ckpt" or (path.is_file() and path.parent.suffix != ".ckpt"):
            found.add(str(path.relative_to(run)))
    return found


def _same_bytes(one: Path, two: Path) -> bool:
    name = "weights.safetensors"
    return (one / name).read_bytes() == (two / name).read_bytes()
