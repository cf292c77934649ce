"""Losses that are none, and checkpoints that are damaged: what is left out, and what is used."""

import csv
import json

import pytest
import torch

from flowformer.models.series.model import TimeSeriesClassifier
from flowformer.train.folder import RunFolder
from flowformer.train.loop.checkpoints import read_checkpoint
from flowformer.train.loop.task import NonFiniteLossError
from flowformer.train.run import train


@pytest.fixture
def spoiled(monkeypatch):
    """Makes the losses of some calls of the classifier NaN, counted from 1."""

    def spoil(*numbers):
        calls, original = [], TimeSeriesClassifier.forward

        def counting(*arguments, **options):
            output = original(*arguments, **options)
            calls.append(output)
            if len(calls) not in numbers:
                return output
            assert output.loss is not None
            return output._replace(loss=output.loss * torch.nan)

        monkeypatch.setattr(TimeSeriesClassifier, "forward", counting)

    return spoil


def test_as_many_such_batches_as_may_be_are_left_out_and_counted(
    tmp_path, tiny_config, waves, spoiled
):
    # An epoch has three batches to train on and one for validation.
    spoiled(1, 6)
    train(tiny_config(skip_nan=2), tmp_path / "run", data=waves)
    assert [row["skipped"] for row in read_rows(tmp_path / "run")] == ["1", "1"]


def test_the_next_one_ends_the_run(tmp_path, tiny_config, waves, spoiled):
    spoiled(1, 6)
    with pytest.raises(NonFiniteLossError, match="the train loss became nan at step 4"):
        train(tiny_config(skip_nan=1), tmp_path / "run", data=waves)
    assert RunFolder(tmp_path / "run").nan_batch.exists()


def test_what_was_left_out_before_counts_when_a_run_goes_on(tmp_path, tiny_config, waves, spoiled):
    spoiled(1, 6, 9)
    for _ in range(2):  # its second call is the seventh
        with pytest.raises(NonFiniteLossError, match="the train loss became nan"):
            train(tiny_config(skip_nan=1), tmp_path / "run", resume=True, data=waves)
    assert len(read_rows(tmp_path / "run")) == 1


def test_where_a_batch_is_left_out_nothing_moves(tmp_path, tiny_config, waves, spoiled):
    spoiled(2, 3)
    config = tiny_config(skip_nan=2, epochs=1)
    train(config, tmp_path / "run", data=waves)
    checkpoint = read_checkpoint(RunFolder(tmp_path / "run").last)
    (state,) = checkpoint["optimizer_states"]
    assert {float(moments["step"]) for moments in state["state"].values()} == {1.0}


def test_an_epoch_without_any_finite_loss_ends_the_run(tmp_path, tiny_config, waves, spoiled):
    spoiled(1, 2, 3)
    with pytest.raises(RuntimeError, match="every batch of the epoch was left out"):
        train(tiny_config(skip_nan=9), tmp_path / "run", data=waves)


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(
    tmp_path, tiny_config, waves, caplog
):
    config = tiny_config(epochs=3)
    train(config, tmp_path / "whole", data=waves)
    train(config, tmp_path / "run", data=waves)
    folder = RunFolder(tmp_path / "run")
    folder.result.unlink()  # as if it had been killed just before its end
    folder.last.write_bytes(folder.last.read_bytes()[:-100])
    with caplog.at_level("WARNING", "flowformer.train"):
        train(config, folder.root, resume=True, data=waves)
    assert f"{folder.last} is no checkpoint of a run" in caplog.text
    assert f"going on from the checkpoint before it, {folder.previous}" in caplog.text
    weights = RunFolder(tmp_path / "whole").weights.read_bytes()
    assert folder.weights.read_bytes() == weights


def test_a_missing_last_checkpoint_does_too(tmp_path, tiny_config, waves):
    config = tiny_config(epochs=3)
    train(config, tmp_path / "run", data=waves)
    folder = RunFolder(tmp_path / "run")
    before = folder.weights.read_bytes()
    folder.result.unlink()
    folder.last.unlink()  # a kill between the two renames
    train(config, folder.root, resume=True, data=waves)
    assert folder.weights.read_bytes() == before


def test_a_run_of_before_there_were_several_processes_goes_on(tmp_path, tiny_config, waves):
    config = tiny_config(epochs=2)
    train(config, tmp_path / "run", data=waves)
    folder = RunFolder(tmp_path / "run")
    folder.result.unlink()
    stored = json.loads(folder.config.read_text())
    for name in ("skip_nan", "devices", "nodes", "strategy", "timeout"):
        del stored["config"]["training"][name]
    folder.config.write_text(json.dumps(stored))
    folder.previous.unlink()
    assert train(config, folder.root, resume=True, data=waves).epochs == 2


def read_rows(run):
    with RunFolder(run).metrics.open() as file:
        return list(csv.DictReader(file))
