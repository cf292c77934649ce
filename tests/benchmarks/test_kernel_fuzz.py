"""The fuzz of the kernels draws what it says, compares with the exact result, and tells faults."""

import json
import os
import signal
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.reliability import kernel_fuzz
from benchmarks.reliability.kernel_cases import ATTENTIONS, DTYPES, FILLS, drawn, inputs_of
from benchmarks.reliability.kernel_fuzz import (
    BACKWARD,
    EPS,
    FACTOR,
    FORWARD,
    STEPS,
    apart,
    beyond,
    bound,
    measure,
)
from flowformer.ops.backends.cpu.library import instruction_set
from tests.ops.cases import needs_library

SMALL = replace(
    drawn(0),
    attention="flow",
    causal=True,
    dtype="float32",
    sequences=2,
    queries=5,
    keys=5,
    heads=2,
    groups=1,
    width=3,
    value_width=2,
    fill="holes",
    side="both",
    options={},
    scaled=False,
    decay=0.0,
    scale=1.0,
    threads=1,
    past=2,
    after=True,
    gradients=True,
    spoiled=True,
)


def test_a_seed_draws_one_case_and_all_seeds_all_that_there_is():
    cases = [drawn(seed) for seed in range(1000)]
    assert cases[:30] == [drawn(seed) for seed in range(30)]
    for name, values in (("attention", ATTENTIONS), ("dtype", DTYPES), ("fill", FILLS)):
        assert {getattr(case, name) for case in cases} == set(values)
    for name in ("scaled", "decay", "past", "after", "spoiled", "gradients", "causal"):
        assert {bool(getattr(case, name)) for case in cases} == {False, True}, name
    assert any(case.heads > case.groups > 1 for case in cases)
    assert {case.width for case in cases} >= {1, 16, 17, 64, 65, 130}


def test_padding_is_spoiled_and_nothing_else():
    inputs = inputs_of(SMALL)
    spoiled = inputs.spoiled()
    for name, tensor in inputs.tensors.items():
        expected = inputs.others["mask"][:, :, None, None].expand_as(tensor)
        assert torch.equal(~spoiled.tensors[name].isnan(), expected)
        assert torch.equal(spoiled.tensors[name][expected], tensor[expected])


@pytest.mark.parametrize("strides", ["heads first", "spread"])
def test_tensors_lie_in_another_order_and_hold_the_same(strides):
    inputs = inputs_of(replace(SMALL, groups=2))
    for name, tensor in inputs.laid_out(strides).tensors.items():
        assert torch.equal(tensor, inputs.tensors[name])
        assert tensor.stride() != inputs.tensors[name].stride()


def test_an_error_is_infinite_where_not_the_same_is_finite():
    exact = torch.tensor([1.0, -torch.inf, 1e6], dtype=torch.float64)
    assert apart(torch.tensor([1.5, -torch.inf, torch.inf]).half(), exact) == 0.5
    assert apart(torch.tensor([1.0, -torch.inf, torch.inf]), exact) == torch.inf
    assert apart(torch.tensor([1.0, torch.inf, 1e6]), exact) == torch.inf
    assert apart(torch.tensor([torch.nan, -torch.inf, 1e6]), exact) == torch.inf
    assert apart(torch.ones(2), exact) == torch.inf


def test_a_bound_is_two_roundings_and_what_the_equations_lose():
    half, single, double = (EPS[name] for name in ("bfloat16", "float32", "float64"))
    summed = double * 4 * (SMALL.queries + SMALL.keys) ** 0.5
    for dtype, lost, expected in (
        ("bfloat16", 1e-3, 4 * half + FACTOR * 1e-3),
        ("float32", 0.0, 4 * single * (1 + FACTOR)),
        ("float64", 1e-3, 4 * double + FACTOR * 1e-3 * double / single + summed),
    ):
        assert bound(replace(SMALL, dtype=dtype), 4.0, lost) == pytest.approx(expected)


@needs_library
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_case_is_computed_in_every_way_and_within_its_bounds(attention, dtype):
    options = {} if attention != "linear" else {"normalize": True}
    causal = attention != "mobile"
    case = replace(SMALL, attention=attention, dtype=dtype, options=options, causal=causal)
    if not causal:
        case = replace(case, past=0, after=False)
    rows = measure(case)
    assert {row.way for row in rows} == {FORWARD, BACKWARD} | ({STEPS} if causal else set())
    assert "gradient of value" in {row.what for row in rows}
    assert ("gradient of state before: key_value" in {row.what for row in rows}) == causal
    assert max(row.share for row in rows) <= 1


@needs_library
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_small_fault_of_the_kernels_is_beyond_its_bound(dtype, monkeypatch):
    computed = kernel_fuzz.compute
    wrong = 1 + 1000 * EPS[dtype]

    def with_a_fault(case, inputs, *, backend, gradients, exact=None):
        found = computed(case, inputs, backend=backend, gradients=gradients, exact=exact)
        if backend == kernel_fuzz.KERNELS and gradients:
            found["gradient of value"] = wrong * found["gradient of value"]
        return found

    monkeypatch.setattr(kernel_fuzz, "compute", with_a_fault)
    rows = measure(replace(SMALL, dtype=dtype))
    assert [row.what for row in rows if row.share > 1] == ["gradient of value"]
    assert beyond(rows).startswith("backward, gradient of value: ")


@needs_library
def test_a_run_keeps_its_table_and_one_case_alone_keeps_nothing(tmp_path, capsys):
    output, isa = tmp_path / "fuzz.json", str(instruction_set())
    assert main(["kernel_fuzz", "--isa", isa, "--case", "3", "--output", str(output)]) == 0
    assert f"{isa}: 1 calls, 0 beyond their bounds" in capsys.readouterr().out
    assert not output.exists()
    main(["kernel_fuzz", "--isa", isa, "--quick", "--output", str(output)])
    result = json.loads(output.read_text())
    assert result["sets"][isa]["cases"] > 0
    assert f"| {isa} |" in kernel_fuzz.table(result)
    assert "none of them beyond its bound" in kernel_fuzz.circumstances(result)


def test_a_finding_is_told_with_the_command_that_repeats_it(monkeypatch, capsys, tmp_path):
    finding = {"seed": 7, "said": "the process ended with -11: nothing"}
    outcome = {"cases": 3, "wrong": 1, "seconds": 60.0, "worst": {}, "findings": [finding]}
    monkeypatch.setattr(kernel_fuzz, "why_unavailable", lambda: None)
    monkeypatch.setattr(kernel_fuzz, "fuzz_separately", lambda *_, **__: outcome)
    assert main(["kernel_fuzz", "--isa", "avx2", "--output", str(tmp_path / "fuzz.json")]) == 1
    said = capsys.readouterr().out
    assert "seed 7: the process ended with -11: nothing" in said
    assert "python -m benchmarks kernel_fuzz --isa avx2 --case 7" in said


@needs_library
def test_a_process_that_ends_is_a_finding_with_its_seed(monkeypatch):
    monkeypatch.setattr(kernel_fuzz, "fuzz", ends_at_five)
    outcome = kernel_fuzz.fuzz_separately("avx2", first=4)
    assert (outcome["cases"], outcome["wrong"]) == (2, 1)
    (finding,) = outcome["findings"]
    assert finding == {"seed": 5, "said": "the process ended with -9: nothing"}


def ends_at_five(isa: str, first: int) -> None:
    """Print two seeds, of which the second kills the process."""
    assert isa == os.environ["FLOWFORMER_ISA"]
    sys.stdout.write(f"{first}\n{first + 1}\n")
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)
