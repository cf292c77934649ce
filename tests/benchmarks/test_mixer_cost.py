"""The cost of mixers over length: what is measured, and what a cell that does not fit says."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import parser_of
from benchmarks.mixers.cost import mixer_cost
from benchmarks.mixers.cost.cells import measure_mixer
from flowformer.compare.page import MixerCost

SMALL = ["--dim", "16", "--heads", "2", "--threads", "1"]
LARGE = ["--lengths", "65536,131072", "--passes", "forward", "--threads", "1"]


def cells_of(name: str, *options: str) -> list[dict[str, Any]]:
    arguments = parser_of("mixer_cost", mixer_cost).parse_args(["--mixers", name, *options])
    return measure_mixer(mixer_cost.COSTS, name, arguments)


def test_every_length_and_pass_has_time_and_memory_and_the_page_reads_them(tmp_path: Path):
    cells = cells_of("flow", "--lengths", "512,64", *SMALL)
    assert [(cell["length"], cell["pass_name"]) for cell in cells] == [
        (64, "forward"),
        (64, "training"),
        (512, "forward"),
        (512, "training"),
    ]
    assert all(cell["seconds"] > 0 and cell["memory"] >= 0 for cell in cells)
    path = tmp_path / "cost.json"
    path.write_text(json.dumps({"machine": {}, "setting": {}, "cells": cells}))
    assert len(MixerCost.read(path).cells) == 4


def test_a_mixer_without_a_bidirectional_form_is_measured_in_its_causal_one():
    (cell,) = cells_of("gla", "--lengths", "64", "--passes", "forward", *SMALL)
    assert cell["mixer"] == "gla (causal)"
    assert cell["problem"] is None


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="a memory limit is enforced on Linux only"
)
def test_a_length_that_does_not_fit_in_memory_says_so_and_longer_ones_are_not_tried():
    first, second = cells_of("flow", *LARGE, "--memory-limit", str(700 * 2**20))
    assert first["problem"] == "does not fit in 700 MiB"
    assert first["seconds"] is None
    assert second["problem"] == "not tried: 65,536 does not fit in 700 MiB"


def test_a_length_that_takes_too_long_says_so():
    first, second = cells_of("softmax", *LARGE, "--time-limit", "1")
    assert first["problem"] == "over 1 s"
    assert second["problem"] == "not tried: 65,536 over 1 s"


def test_a_mixer_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        parser_of("mixer_cost", mixer_cost).parse_args(["--mixers", "flow,fluw"])
    assert "unknown mixer fluw: choose from flow" in capsys.readouterr().err
