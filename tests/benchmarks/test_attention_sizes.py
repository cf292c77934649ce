"""The benchmarks of all sizes: what they measure, what they draw, and what they say of it."""

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.attention.cpu import backend_choice, sizes
from benchmarks.attention.cpu.backend_choice import CHUNKED, NATIVE, SOFTMAX, Size, drawn, sides_of
from benchmarks.attention.cpu.rows import ALONE, Row
from benchmarks.attention.cpu.size_goals import SECTIONS
from benchmarks.runner import minima, read
from flowformer.ops.backends import fastest
from tests.ops.cases import needs_library

WITHIN = {"most": 1.25}
FASTER = {"least": 1.5}


def amounts(*each: float) -> Callable[[], float]:
    """Return a side that takes these amounts, one a call, and the last one from then on."""
    left = list(each)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def called(side: Any, _: int) -> float:
    """Return what a side takes."""
    return side()


@pytest.mark.parametrize(
    ("goal", "ours", "other", "ratio", "holds"),
    [
        (WITHIN, 2.0, 4.0, 0.5, True),
        (WITHIN, 6.0, 4.0, 1.5, False),
        (FASTER, 2.0, 4.0, 2.0, True),
        (FASTER, 4.0, 4.0, 1.0, False),
        (WITHIN, 3.0, None, 1.5, False),
    ],
    ids=["within", "beyond", "faster", "as-fast", "of-a-unit"],
)
def test_a_case_is_the_ratio_that_its_goal_is_of(goal, ours, other, ratio, holds):
    case = (lambda: amounts(ours), 2.0 if other is None else lambda: amounts(other))
    row = Row(what="", against="", cases={"a": case}, clock=called, **goal)
    (found,) = sizes.cases_of(row, quick=True)
    assert (found["label"], found["ratio"], found["holds"]) == ("a", ratio, holds)


def test_what_does_not_hold_gets_more_turns_and_the_least_of_all_counts():
    measure = partial(minima, repeats=2, clock=called)
    sides = {"a": amounts(1, 9, 8, 1, 7, 3, 7), "b": amounts(5)}  # the first is not measured
    assert measure(sides, lambda _: True) == {"a": 8, "b": 5}
    sides = {"a": amounts(1, 9, 8, 1, 7, 3, 7), "b": amounts(5)}
    assert measure(sides, lambda least: least["a"] < least["b"]) == {"a": 3, "b": 5}


@needs_library
def test_every_section_has_rows_with_one_goal_each():
    for name in SECTIONS.keys() - {"threads"}:  # looks for the shortest that gets two
        for row in SECTIONS[name]():
            assert (row.most > 0) != (row.least > 0), row.what
            assert row.cases or row.missing, row.what


@needs_library
def test_a_quick_run_leaves_a_table_and_keeps_the_sections_that_it_does_not_measure(tmp_path):
    output = tmp_path / "sizes.json"
    for only in ("short,memory", "step"):
        main(["attention_sizes", "--quick", "--only", only, "--output", str(output)])
    result = json.loads(output.read_text())
    assert list(result["sections"]) == ["short", "memory", "step"]
    table = sizes.table(result)
    assert f"| what | against | wanted | {ALONE} |\n| --- |" in table
    assert "| a decoding step, 8 heads of 64 | µs | ≤ 20 |" in table
    missing = Row(what="", against="", cases={}, most=1, missing="no peer")
    assert sizes.cases_of(missing, quick=False)[0]["said"] == "no peer"


@needs_library
@pytest.mark.parametrize("fill", ["full", "padded", "packed"])
@pytest.mark.parametrize("attention", backend_choice.ATTENTIONS)
def test_the_backends_compute_the_same_at_a_size_that_is_drawn(attention, fill):
    size = Size(
        attention=attention,
        causal=attention != "mobile",
        passes="forward",
        dtype="float64",
        fill=fill,
        batch=3,
        tokens=70,
        heads=2,
        width=5,
        value_width=9,
    )
    sides = sides_of(size)
    assert list(sides) == [NATIVE, CHUNKED, SOFTMAX]
    outs = [sides[name]() for name in (NATIVE, CHUNKED)]
    torch.testing.assert_close(*outs)


def test_sizes_are_drawn_anew_from_all_that_there_are():
    drawings = [drawn(seed) for seed in range(2000)]
    assert drawings[:50] == [drawn(seed) for seed in range(50)]
    for name, most in (("tokens", 16_384), ("width", 256), ("value_width", 256), ("heads", 16)):
        values = {getattr(size, name) for size in drawings}
        assert (min(values), max(values) > 0.9 * most, max(values) <= most) == (1, True, True)
    assert {size.attention for size in drawings} == set(backend_choice.ATTENTIONS)


def test_the_choice_of_a_backend_says_what_was_measured():
    said = re.search(r"at more than (\d+) of (\d+) sizes", fastest.__doc__ or "")
    assert said is not None
    result = read("backend_choice")
    lost, count = len(backend_choice.lost(result)), len(result["cells"])
    assert 1 - lost / count > int(said[1]) / int(said[2])
