"""What is linearized, kept and shown."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main, parser_of
from benchmarks.models import linearize
from benchmarks.models.linearize import cells, config_of, cost_table, table


def cell(mixer: str, share: float, kept: int, after: float) -> dict[str, Any]:
    stages = [
        {"name": name, "tokens": tokens, "nats": nats, "bits_per_character": 2 * nats}
        for name, tokens, nats in (
            ("before", 0, 1.0),
            ("exchanged", 0, 4.0),
            ("transfer", 500, 1.5),
            ("tuning", 1000, after),
        )
    ]
    cost = [{"context": 256, "milliseconds": 2.0, "bytes": 4_000_000}]
    costs = {"before": cost, "after": [{**cost[0], "milliseconds": 1.0, "bytes": 1_500}]}
    return {"mixer": mixer, "share": share, "kept": kept, "stages": stages, "costs": costs}


RESULT = {
    "char-shakespeare": {
        "setting": {"steps": 2000, "batch_size": 4},
        "cells": [cell("flow", 0.1, 1, 1.02), cell("flow-gated", 0.05, 0, 0.99)],
    }
}


def test_the_tables() -> None:
    lines = table(RESULT).splitlines()
    assert "2,000 steps" in lines[0]
    assert [word.strip() for word in lines[-1].strip("|").split("|")] == [
        *("`flow-gated`", "no layer", "1,000", "5 %"),
        *("2.000", "3.000", "1.980", "-1.0 %"),
    ]
    costs = cost_table(RESULT).splitlines()
    assert "`flow-gated`" in costs[0]
    assert [word.strip() for word in costs[-1].strip("|").split("|")] == [
        *("256", "2.00 ms, 3.81 MiB", "1.00 ms, 0.00143 MiB"),
    ]


def test_softmax_is_trained_by_the_recipe() -> None:
    arguments = parser_of("linearize", linearize).parse_args(["--steps", "50", "--threads", "1"])
    config = config_of(arguments)
    assert (config.name, config.model.mixer, config.training.steps) == (
        "char-shakespeare",
        "softmax",
        50,
    )
    assert next(iter(cells(arguments))) == {"mixer": "flow-gated", "share": 0.02, "kept": 0}


def test_what_is_kept_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[Any, ...]] = []

    def measure(each: dict[str, Any], *_: Any) -> dict[str, Any]:
        measured.append((each["mixer"], each["share"]))
        return cell(each["mixer"], each["share"], each["kept"], 1.0)

    monkeypatch.setattr(linearize, "measure", measure)
    monkeypatch.setattr(linearize, "train", lambda *_, **__: None)
    monkeypatch.setattr(linearize, "pin", lambda _: None)
    output = ["--output", str(tmp_path / "linearize.json")]
    assert main(["linearize", "--mixers", "flow", "--shares", "0.1", *output]) == 0
    assert main(["linearize", "--mixers", "flow,gated", "--shares", "0.1", *output]) == 0
    assert measured == [("flow", 0.1), ("gated", 0.1)]
    with pytest.raises(ValueError, match="give --anew"):
        main(["linearize", "--steps", "3", *output])
