"""The benchmark on a CPU: its peers are what they claim to be, and its goals what they say."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.attention import peers
from benchmarks.attention.cpu import attention as attention_cpu
from benchmarks.attention.cpu.goals import SGEMM, Measured, case, floor, rows
from benchmarks.attention.peers import BOTH, FORWARD, OURS, SOFTMAX
from benchmarks.runner import ROOT, alternate
from flowformer import flow_attention


@pytest.mark.parametrize("form", ["causal", "bidirectional"])
@pytest.mark.parametrize("length", [1, 63, 200])
def test_published_peer_computes_flow_attention(form, length):
    inputs = torch.randn(3, 2, length, 3, 16, generator=torch.Generator().manual_seed(length))
    expected = flow_attention(*inputs, causal=form == "causal", backend="reference")
    out = getattr(peers, f"published_{form}")(*inputs.transpose(2, 3)).transpose(1, 2)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_side_over_budget_sits_out_after_three_rounds():
    calls = {"slow": 0, "fast": 0}

    def count(name):
        calls[name] += 1

    sides = {name: lambda name=name: count(name) for name in calls}
    seconds = alternate(sides, repeats=5, budget=0.0)
    assert [len(times) for times in seconds.values()] == [3, 3]
    assert calls == {"slow": 4, "fast": 4}  # one call each unmeasured
    assert [len(times) for times in alternate(sides, repeats=5).values()] == [5, 5]


@pytest.mark.parametrize(
    ("reached", "bound", "holds"),
    [
        ([1.9, 2.0, 9.0], {"least": 2}, True),
        ([1.0, 1.9, 9.0], {"least": 2}, False),
        ([0.1, 2.0, 2.1], {"most": 2}, True),
        ([0.1, 2.1, 2.1], {"most": 2}, False),
        ([], {"most": 2}, False),
    ],
    ids=["median-reaches", "median-misses", "median-below", "median-above", "not-measured"],
)
def test_goal_holds_where_the_median_of_the_rounds_does(reached, bound, holds):
    assert case("", reached, **bound)["holds"] is holds


def test_ratios_are_those_that_the_table_names():
    length, heads = 4096, 8
    seconds = {
        f"{OURS}, {FORWARD}": [0.02, 0.04],
        f"{OURS}, {BOTH}": [0.06, 0.12],
        f"{SOFTMAX}, {FORWARD}": [0.2, 0.4],
        f"{SOFTMAX}, {BOTH}": [0.9, 1.8],
        # A product of 2 · 1024³ operations in as long as the 32,768 a token and head would take.
        SGEMM: [0.01 * 2**31 / (32_768 * length * heads), 0.02 * 2**31 / (32_768 * length * heads)],
    }
    table = rows(
        Measured(
            heads=heads,
            bandwidth=1e10,
            causal={length: seconds},
            bidirectional={},
            threads={f"{FORWARD}, 1": [2.0], f"{FORWARD}, 2": [1.0]},
            one_head={1024: [1e-3], 4096: [6e-3], 1_048_576: [1.1]},
            decoding={"1,000": [1.0], "1,000,000": [1.05], SOFTMAX: [42.0]},
            memory={OURS: {131_072: 2 * floor(131_072, heads)}},
        )
    )
    reached = {
        (row["what"], case["label"]): round(case["ratio"], 6)
        for row in table
        for case in row["cases"]
        if case["ratio"] is not None
    }
    assert reached == {
        ("causal forward", "4,096 tokens"): 10.0,
        ("causal forward and backward", "4,096 tokens"): 15.0,
        ("causal forward, 4,096 tokens", "forward"): 2.0,
        ("causal backward, 4,096 tokens", "backward"): 2.0,
        ("causal on two threads, 8 heads", "forward"): 2.0,
        ("peak memory of causal forward and backward, 131,072 tokens", "bytes"): 2.0,
        ("time a token, one head, 1,024 to 1,048,576 tokens", "the slowest"): 1.5,
        ("one decoding step", "position"): 1.05,
        ("one decoding step", "softmax"): 40.0,
    }


def test_quick_run_leaves_a_result_that_can_be_drawn_and_tabled(tmp_path):
    command = [sys.executable, "-m", "benchmarks", "attention_cpu", "--quick", "--output"]
    path = tmp_path / "attention_cpu.json"
    subprocess.run([*command, path], check=True, cwd=ROOT, capture_output=True)
    result = json.loads(path.read_text())
    assert len(result["rows"]) == 11
    first = result["rows"][0]["cases"]
    assert first[0]["ratio"] > 0
    assert first[-1]["said"] == "not measured"
    figure = attention_cpu.draw(result)
    assert [len(axes.get_lines()) > 1 for axes in figure.axes] == [True] * 4
    tables = [make(result) for make in attention_cpu.TABLES.values()]
    assert all("flowformer" in table or "wanted" in table for table in tables)
