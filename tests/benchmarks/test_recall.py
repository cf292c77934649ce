"""Recall over pairs and width: what is trained, kept and shown."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.axes import Axes

from benchmarks.__main__ import main, parser_of
from benchmarks.mixers import recall
from benchmarks.mixers.recall import Size, config_of, draw, execute, sizes, table
from flowformer.train.language.config import LanguageConfig


def cell(mixer: str, pairs: int, width: int, seed: int, accuracy: float) -> dict:
    figures = {"test_score": accuracy, "parameters": 1000, "seconds": 60.0}
    return {"mixer": mixer, "pairs": pairs, "width": width, "seed": seed, **figures}


RESULT = {
    "setting": {"length": 128, "steps": 1500},
    "cells": [
        cell("softmax", 8, 64, 0, 0.5),
        cell("softmax", 16, 64, 0, 0.25),
        cell("softmax", 16, 64, 1, 0.35),
        cell("deltanet", 16, 64, 0, 1.0),
        cell("deltanet", 16, 32, 0, 0.75),
    ],
}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[LanguageConfig, Path]]:
    """What would have been trained."""
    runs: list[tuple[LanguageConfig, Path]] = []

    def train(config: LanguageConfig, folder: Path, *, resume: bool) -> SimpleNamespace:
        assert resume
        runs.append((config, folder))
        return SimpleNamespace(test_score=0.5, parameters=7, seconds=1.0)

    monkeypatch.setattr(recall, "train", train)
    return runs


def test_a_size_is_in_the_data_and_in_the_model() -> None:
    arguments = parser_of("recall", recall).parse_args([])
    config = config_of("gla", Size(pairs=32, width=16), 3, arguments)
    assert (config.data.pairs, config.data.length, config.model.max_length) == (32, 128, 128)
    assert (config.model.mixer, config.model.dim, config.model.feedforward) == ("gla", 16, 32)
    assert (config.training.seed, config.training.threads) == (3, 1)
    every = sizes(arguments)
    assert len(every) == 4 + 4 - 1  # the one that both have is trained once
    assert Size(pairs=recall.PAIRS, width=recall.WIDTH) in every


def test_what_is_asked_for_is_kept_beside_what_is_there(tmp_path, trained) -> None:
    output = tmp_path / "recall.json"
    output.write_text(json.dumps(RESULT))
    sized = ["--pairs", "8", "--widths", "64", "--seeds", "1", "--output", str(output)]
    assert main(["recall", "--mixers", "softmax,gla", *sized]) == 0
    assert [(config.model.mixer, config.data.pairs) for config, _ in trained] == [
        *(("gla", 8), ("gla", 16))  # softmax's are there, whatever has become of their folders
    ]
    assert len({folder for _, folder in trained}) == 2
    kept = json.loads(output.read_text())["cells"]
    assert len(kept) == 5 + 2
    assert {one["test_score"] for one in kept if one["mixer"] == "gla"} == {0.5}
    assert kept[:5] == RESULT["cells"]
    assert all(one["machine"]["commit"] for one in kept[5:])
    with pytest.raises(
        ValueError, match=r"is of \{'length': 128, 'steps': 1500\}, and .*'steps': 2"
    ):
        main(["recall", "--steps", "2", *sized])


def test_it_stops_when_it_is_told_to_and_keeps_what_it_has(tmp_path, trained) -> None:
    arguments = parser_of("recall", recall).parse_args(
        ["--output", str(tmp_path / "recall.json"), "--stop-after", "-1"]
    )
    execute(arguments)
    assert not trained
    assert not (tmp_path / "recall.json").exists()


def test_the_table_has_means_and_what_a_guess_reaches() -> None:
    lines = table(RESULT).splitlines()
    assert "128 tokens, 1,500 steps of 32" in lines[0]
    assert lines[2] == "| accuracy, % | 8 pairs | 16 pairs | 32 wide | 64 wide |"
    assert lines[4] == "| a guess | 12.5 | 6.2 | 6.2 | 6.2 |"
    assert lines[5] == "| `softmax` | 50.0 | 30.0 ± 7.1 | – | 30.0 ± 7.1 |"
    assert lines[6] == "| `deltanet` | – | 100.0 | 75.0 | 100.0 |"
    assert lines[-1].endswith("(../assets/recall.png)")


def points(axes: Axes) -> dict[str, list[list[float]]]:
    return {str(line.get_label()): np.asarray(line.get_xydata()).tolist() for line in axes.lines}


def test_the_picture_has_a_line_of_each_mixer_and_of_a_guess() -> None:
    by_pairs, by_width = draw(RESULT).axes
    lines = points(by_pairs)
    assert lines["softmax"] == [[8, 0.5], [16, pytest.approx(0.3)]]
    assert lines["deltanet"] == [[16, 1.0]]
    assert lines["a guess"] == [[8, 1 / 8], [16, 1 / 16]]
    lines = points(by_width)
    assert lines["deltanet"] == [[32, 0.75], [64, 1.0]]
