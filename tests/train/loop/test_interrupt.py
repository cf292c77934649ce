"""Ctrl-C in training: heard between two batches, where nothing is half done."""

import signal

import pytest
import torch

from flowformer.train.folder import RunFolder
from flowformer.train.loop import task as recording
from flowformer.train.loop.fit import InterruptBetweenBatches
from flowformer.train.run import train
from flowformer.train.run_files import ClassifierResult

pytestmark = pytest.mark.usefixtures("ctrl_c_heard")


def test_pressed_while_a_checkpoint_is_written_it_leaves_a_whole_one_to_go_on_from(
    tmp_path, tiny_config, waves, monkeypatch
):
    save, heard = torch.save, []

    def press(checkpoint, file):
        if not heard:
            signal.raise_signal(signal.SIGINT)
            heard.append("not yet")
        save(checkpoint, file)

    monkeypatch.setattr(recording.torch, "save", press)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_config(epochs=3), tmp_path / "run", data=waves)
    assert heard == ["not yet"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    rows = RunFolder(tmp_path / "run").metrics.read_text().splitlines()
    assert len(rows) == 2  # the names and the first epoch, which was at its end
    result = train(tiny_config(epochs=3), tmp_path / "run", data=waves, resume=True)
    assert ClassifierResult.read(RunFolder(tmp_path / "run")) == result


def test_it_is_heard_at_the_end_where_no_batch_follows():
    heard = []

    def press():
        with InterruptBetweenBatches().listening():
            signal.raise_signal(signal.SIGINT)
            heard.append("not yet")

    with pytest.raises(KeyboardInterrupt):
        press()
    assert heard == ["not yet"]


def test_pressed_twice_it_is_heard_at_once():
    def press():
        with InterruptBetweenBatches().listening():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("went on")

    with pytest.raises(KeyboardInterrupt):
        press()


def test_another_handler_stays():
    pressed = []
    signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    with InterruptBetweenBatches().listening():
        signal.raise_signal(signal.SIGINT)
    assert pressed
