"""A run folder as a training run leaves it, without a training run."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest

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

WriteRun = Callable[..., Path]


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
def write_run(tmp_path: Path) -> WriteRun:
    def write(classes: tuple[str, ...] = CLASSES, **changes: Any) -> Path:
        """Write a run folder; `changes` replace entries of result.json."""
        run_dir = tmp_path / "run"
        run_dir.mkdir(exist_ok=True)
        versions = {"python": "3.11.2", "flowformer": "0.1.0", "torch": "2.14.1"}
        config = {
            "recipe": RESULT["recipe"],
            "config": CONFIG,
            "versions": versions,
            "classes": classes,
            "channels": 12,
            "max_length": 29,
        }
        (run_dir / "config.json").write_text(json.dumps(config))
        correct, count = _write_predictions(run_dir / "predictions.csv", classes)
        result = {**RESULT, "test_accuracy": correct / count, **changes}
        (run_dir / "result.json").write_text(json.dumps(result))
        _write_metrics(run_dir / "metrics.csv")
        return run_dir

    return write


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


def _write_predictions(path: Path, classes: tuple[str, ...], count: int = 370) -> tuple[int, int]:
    """Every 46th prediction is wrong."""
    columns = ["index", "label", "predicted", *(f"probability_{name}" for name in classes)]
    correct = 0
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for index in range(count):
            label = index % len(classes)
            predicted = (label + (index % 46 == 45)) % len(classes)
            correct += label == predicted
            probabilities = np.full(len(classes), 0.02)
            probabilities[predicted] = 1 - 0.02 * (len(classes) - 1)
            writer.writerow([index, classes[label], classes[predicted], *probabilities])
    return correct, count


def _write_metrics(path: Path) -> None:
    rng = np.random.default_rng(0)
    losses = "train_loss", "train_accuracy", "validation_loss", "validation_accuracy"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", "step", *losses, "learning_rate", "seconds"])
        for epoch in range(1, EPOCHS + 1):
            left = np.exp(-epoch / 5)
            noise = 0.01 * rng.random()
            train = 2.2 * left + noise, 1 - 0.8 * left - noise
            validation = 2.1 * left + 0.1 + 3 * noise, 0.98 - 0.8 * left - noise
            writer.writerow([epoch, 14 * epoch, *train, *validation, 0.001, 5.7])
