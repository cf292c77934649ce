"""The stress table measures what it says, on a few small cells."""

from dataclasses import replace

import pytest
import torch

from benchmarks.reliability import numerics
from benchmarks.reliability.numerics import (
    DTYPES,
    Case,
    apart,
    compute,
    exact,
    length_cases,
    measure,
    oracle_of,
    relative_error,
    run,
    stress_cases,
    summarize,
)
from benchmarks.reliability.numerics_inputs import KINDS, make_inputs

CASE = Case(
    form="causal", dtype="float32", kind="normal", scale=1.0, options="relu, no clamp", tokens=7
)


def test_an_error_is_relative_to_the_largest_that_the_dtype_holds():
    exact_one = torch.tensor([2.0, -4.0, 1e6], dtype=torch.float64)
    found = torch.tensor([2.0, -3.0, torch.inf], dtype=torch.float16)
    assert relative_error(found, exact_one, torch.float16) == (True, 0.25)
    assert relative_error(found, exact_one, torch.bfloat16)[0] is False


def test_what_is_not_finite_is_told_and_left_out_of_the_error():
    exact_one = torch.ones(2, dtype=torch.float64)
    assert relative_error(torch.tensor([torch.nan, 1.5]), exact_one, torch.float32) == (False, 0.5)


def test_below_the_normal_range_an_error_is_relative_to_its_end():
    exact_one = torch.full((1,), 1e-8, dtype=torch.float64)
    finite, error = relative_error(torch.zeros(1).half(), exact_one, torch.float16)
    assert finite
    assert error == pytest.approx(1e-8 / torch.finfo(torch.float16).tiny)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_of_their_scale_and_exact_in_the_dtype(kind, dtype):
    for scale in (1e-4, 1e4):
        for x in make_inputs(kind, 9, scale, DTYPES[dtype])[:3]:
            assert x.shape == (1, 9, 1, 16)
            assert x.isfinite().all()
            assert x.to(DTYPES[dtype]).double().equal(x)
            assert 0.05 * scale < x.abs().max() < 1e4 * scale


@pytest.mark.parametrize("form", ["bidirectional", "causal", "steps"])
def test_the_backends_are_exact_in_float64_and_rounded_in_half_precision(form):
    for backend in ("reference", "chunked"):
        row = measure(replace(CASE, form=form, dtype="float64"), backend)
        assert row.finite
        assert max(row.error, row.gradient_error) < 1e-13
        row = measure(replace(CASE, form=form, dtype="bfloat16"), backend)
        assert 0 < row.error <= 2 * row.rounding


def test_gradients_by_segments_are_those_of_one_call(monkeypatch):
    inputs, whole = exact(CASE)
    monkeypatch.setattr(numerics, "SEGMENT", 3)
    parts = compute(CASE, inputs, backend="chunked", dtype=torch.float64)
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_long_causal_sequences_are_not_given_to_the_quadratic_reference():
    long = replace(CASE, tokens=numerics.QUADRATIC + 1)
    assert oracle_of(long) == "chunked"
    assert oracle_of(replace(long, form="bidirectional")) == "reference"
    rows = run(iter([replace(CASE, tokens=2)]), ["reference", "chunked"])
    assert [row.backend for row in rows] == ["reference", "chunked"]


def test_every_kind_dtype_scale_and_option_is_tried_in_every_form():
    cases = list(stress_cases())
    for form, scales in (("bidirectional", 5), ("causal", 5), ("steps", 3)):
        assert sum(case.form == form for case in cases) == 9 * 4 * 4 * scales
    for tokens in numerics.LENGTHS:
        assert {case.form for case in length_cases(tokens)} == {"bidirectional", "causal"}
    assert len(list(length_cases(63))) == 2 * 4 * 5 * 2


def test_a_summary_has_the_worst_of_its_group():
    rows = [
        measure(replace(CASE, dtype="float64", scale=scale), backend)
        for scale in (1.0, 2.0)
        for backend in ("reference", "chunked")
    ]
    rows[3] = replace(rows[3], error=0.5, finite=False)
    of_reference, of_chunked = summarize(rows, "backend", "dtype")
    assert (of_reference["backend"], of_reference["cases"]) == ("reference", 2)
    assert (of_chunked["not_finite"], of_chunked["error"]) == (1, 0.5)
    assert of_chunked["worst"]["case"]["scale"] == 2.0
    assert of_chunked["times_rounding"] == pytest.approx(0.5 / max(rows[3].rounding, 2**-53))
    assert apart(rows) == 0.5
