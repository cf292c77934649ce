"""What a training run of a classifier leaves, without a training run."""

from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import numpy as np
import pytest

from flowformer.report.classifier import FinishedRun
from flowformer.report.figures import SeriesFlowMap

EPOCHS = 30
CLASSES = tuple(str(speaker) for speaker in range(1, 10))
CONFIG = {
    "name": "japanese-vowels",
    "data": {"dataset": "JapaneseVowels", "folder": None, "batch_size": 16},
    "model": {"mixer": "flow", "mixer_options": {"clamp": None}, "dim": 512, "num_heads": 8},
    "optimizer": {"name": "radam", "learning_rate": 0.001, "gradient_clip": 4.0},
    "training": {"epochs": EPOCHS, "protocol": "clean", "seed": 0},
}
RESULT = {
    "recipe": "japanese-vowels",
    "protocol": "clean",
    "protocol_note": "a stratified part of the training set chose the epoch; "
    "the test set was read once",
    "seed": 0,
    "validation_accuracy": 0.9815,
    "best_epoch": 23,
    "epochs": EPOCHS,
    "paper_accuracy": 0.989,
    "paper_source": "Flowformer (Wu et al., ICML 2022), UEA table",
    "parameters": 6_452_233,
    "seconds": 171.4,
}

MakeRun = Callable[..., FinishedRun]


@pytest.fixture(autouse=True)
def _coarse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is most of these tests' time, and no test looks at single pixels."""
    monkeypatch.setattr("flowformer.report.figures.PNG_DPI", 40)


@pytest.fixture
def without_shape_checks() -> Iterator[None]:
    """Users have no jaxtyping hook: this shows what they are told."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def make_run() -> MakeRun:
    def make(classes: tuple[str, ...] = CLASSES, **changes: Any) -> FinishedRun:
        """A run on series; `changes` replace entries of its result."""
        versions = {"python": "3.11.2", "flowformer": "0.1.0", "torch": "2.14.1"}
        record = {"recipe": RESULT["recipe"], "config": CONFIG, "versions": versions}
        record |= {"classes": classes, "channels": 12, "max_length": 29}
        # Every 46th prediction is wrong.
        labels = np.arange(370) % len(classes)
        predicted = (labels + (np.arange(370) % 46 == 45)) % len(classes)
        accuracy = float(np.mean(labels == predicted))
        result = {**RESULT, "test_accuracy": accuracy, **changes}
        return FinishedRun(
            record=record,
            result=result,
            history=_history(),
            test=None if result["test_accuracy"] is None else (labels, predicted),
            kept=result["best_epoch"],
        )

    return make


@pytest.fixture
def make_flow_map() -> Callable[..., SeriesFlowMap]:
    def make(time: int = 24, channels: int = 12, layers: int = 2, heads: int = 8, **changes: Any):
        rng = np.random.default_rng(time + channels)
        series = np.cumsum(rng.normal(size=(time, channels)), axis=0)
        change = np.abs(np.diff(series.mean(axis=1), prepend=0.0))
        logits = change[None, :, None] + 0.3 * rng.normal(size=(layers, time, heads))
        competition = np.exp(logits)
        competition *= time / competition.sum(axis=1, keepdims=True)
        parts = {
            "series": series,
            "label": "3",
            "predicted": "3",
            "source_competition": competition,
            "sink_allocation": 1 / (1 + np.exp(-1 - 0.4 * rng.normal(size=competition.shape))),
        }
        return SeriesFlowMap(**{**parts, **changes})

    return make


def _history() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    epochs = np.arange(1.0, EPOCHS + 1)
    left, noise = np.exp(-epochs / 5), 0.01 * rng.random(EPOCHS)
    return {
        "epoch": epochs,
        "train_loss": 2.2 * left + noise,
        "train_accuracy": 1 - 0.8 * left - noise,
        "validation_loss": 2.1 * left + 0.1 + 3 * noise,
        "validation_accuracy": 0.98 - 0.8 * left - noise,
    }
