"""A training step of the arena's classifier over length: what is measured, kept and shown."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.__main__ import main, parser_of
from benchmarks.mixers.cost import arena_cost
from benchmarks.mixers.cost.arena_cost import COSTS, make_step
from benchmarks.mixers.cost.cells import measure_mixer
from benchmarks.pages import tables_of
from flowformer.compare.page import MixerCost
from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.models.sequences.model import SequenceClassifier

ONE_THREAD = ["--threads", "1"]


def cell(mixer: str, length: int, seconds: float | None, problem: str | None = None) -> dict:
    taken = None if seconds is None else 2**20 * length
    return {
        "mixer": mixer,
        "length": length,
        "pass_name": "training",
        "seconds": seconds,
        "memory": taken,
        "problem": problem,
    }


def measured(name: str, *options: str) -> list[dict[str, Any]]:
    parser = parser_of("arena_cost", arena_cost)
    return measure_mixer(COSTS, name, parser.parse_args([*options, *ONE_THREAD]))


def result_of(*cells: dict) -> dict[str, Any]:
    machine = {"processor": "a processor", "vectors": "AVX2", "cores": 2, "threads": 1}
    machine |= {"load": "0.10", "torch": "2.10"}
    setting = {"layers": 1, "dim": 256, "heads": 4, "feedforward": 1024, "batch": 1}
    setting |= {"device": "cpu", "threads": 1, "time_limit": 20, "memory_limit": "8.00 GiB"}
    return {"machine": machine, "setting": setting, "cells": list(cells)}


RESULT = result_of(
    cell("softmax", 1024, 0.5),
    cell("softmax", 2048, None, "over 20 s"),
    cell("softmax", 4096, None, "not tried: 2,048 over 20 s"),
    cell("flow", 1024, 0.25),
    cell("flow", 2048, 0.4),
    cell("flow", 4096, 10.0),
)


@pytest.mark.parametrize("mixer", COSTS.mixers)
def test_a_step_trains_every_layer(mixer: str, monkeypatch: pytest.MonkeyPatch):
    made: list[SequenceClassifier] = []

    def build(*arguments: Any, **options: Any) -> SequenceClassifier:
        made.append(SequenceClassifier(*arguments, **options))
        return made[-1]

    monkeypatch.setattr("benchmarks.mixers.cost.arena_cost.SequenceClassifier", build)
    torch.manual_seed(0)
    # From the mean: of one vector the last Longformer layer's local projections learn nothing.
    config = SequenceModelConfig(mixer=mixer, pooling="mean", dim=16, num_heads=2, feedforward=32)
    step = make_step(config, 63, batch=2, device=torch.device("cpu"))
    before = {name: values.clone() for name, values in made[0].named_parameters()}
    step()
    learned = {
        name
        for name, values in made[0].named_parameters()
        if values.grad is not None and values.grad.any() and not values.equal(before[name])
    }
    assert learned == before.keys()


def test_every_length_has_time_and_the_memory_of_a_model_and_its_optimizer(tmp_path: Path):
    cells = measured("flow", "--lengths", "128,64")
    assert [(each["mixer"], each["length"]) for each in cells] == [("flow", 64), ("flow", 128)]
    # A million parameters, their gradients and two moments, in float32.
    least = 16 * 1_000_000
    assert all(each["seconds"] > 0 and each["memory"] > least for each in cells)
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(result_of(*cells)))
    assert len(MixerCost.read(path).cells) == 2


@pytest.mark.slow  # the cells are those of test_mixer_cost.py, which ends one that takes too long
def test_a_length_that_takes_too_long_says_so_and_longer_ones_are_not_tried():
    first, second = measured("softmax", "--lengths", "65536,131072", "--time-limit", "1")
    assert first["problem"] == "over 1 s"
    assert second["problem"] == "not tried: 65,536 over 1 s"


def test_a_table_goes_on_from_the_mixers_that_it_has(tmp_path: Path):
    path = tmp_path / "cost.json"
    options = ["--lengths", "64", "--mixers", "softmax,flow", "--output", str(path), *ONE_THREAD]
    path.write_text(json.dumps(result_of(cell("softmax", 64, 123.0))))
    main(["arena_cost", *options, "--resume"])
    cells = json.loads(path.read_text())["cells"]
    assert [each["mixer"] for each in cells] == ["softmax", "flow"]
    assert cells[0]["seconds"] == 123.0


def test_a_table_of_another_setting_is_not_gone_on_with(tmp_path: Path):
    path = tmp_path / "cost.json"
    path.write_text(json.dumps(RESULT))
    options = ["--mixers", "flow", "--output", str(path), *ONE_THREAD, "--resume", "--layers", "2"]
    with pytest.raises(SystemExit, match=r"expected the setting \{'layers': 2.* got \{'layers': 1"):
        main(["arena_cost", *options])
    assert json.loads(path.read_text()) == RESULT


def test_a_mixer_without_a_bidirectional_form_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        parser_of("arena_cost", arena_cost).parse_args(["--mixers", "flow,gla"])
    assert "unknown mixer gla: choose from flow" in capsys.readouterr().err


def test_tables_show_steps_memory_and_why_a_mixer_ended(tmp_path: Path):
    (tmp_path / "arena_cost.json").write_text(json.dumps(RESULT))
    tables = tables_of("arena_cost", arena_cost, tmp_path)
    steps = tables["arena_cost_steps"].splitlines()
    assert steps[0] == "| steps/s (× softmax's) | 1,024 | 2,048 | 4,096 |"
    assert steps[2] == "| `flow` | 4 (2.00) | 2.5 | 0.1 |"
    assert steps[3] == "| `softmax` | 2 (1.00) | – | – |"
    assert "| `flow` | 1.00 GiB (1.00) | 2.00 GiB | 4.00 GiB |" in tables["arena_cost_memory"]
    assert tables["arena_cost_unfinished"] == "- 2,048 tokens, over 20 s: `softmax`"
    assert "1 layer of 256 with 4 heads" in tables["arena_cost_setting"]
    (unmeasured,) = set(tables_of("arena_cost", arena_cost, tmp_path / "empty").values())
    assert unmeasured == "*Not run yet: `python -m benchmarks arena_cost`.*"


def test_picture_has_a_line_for_each_mixer_as_far_as_it_went():
    for axes in arena_cost.draw(RESULT).axes:
        points = {
            line.get_label(): np.asarray(line.get_xdata()).tolist() for line in axes.get_lines()
        }
        assert points == {"flow": [1024, 2048, 4096], "softmax": [1024]}
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
