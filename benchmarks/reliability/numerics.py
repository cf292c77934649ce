"""Is attention finite and exact for hard inputs, in every dtype and length? `make numerics`.

Every backend that is available takes the same inputs: nine kinds (`numerics_inputs.py`), five
scales, four dtypes, both feature maps, with the clamp and without, bidirectional, causal and token
by token; then lengths from 1 to 1,048,576. The exact result is `reference` in float64 on the same
rounded inputs; the causal form of more than 2,048 tokens, where it is too slow, is `chunked` in
float64, and how far these two are apart up to there is part of the result.

An error is the largest one of any element, relative to the largest exact element, of the output or
of one of the three gradients. Beside it stands the error that rounding the exact result makes: no
method has less. Where the exact result itself is beyond the dtype's range, infinity is right, and
such elements are left out.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks.pages import Tables, machine_of
from benchmarks.reliability.numerics_inputs import KINDS, Inputs, make_inputs
from benchmarks.runner import Result, save, share
from flowformer import FlowState, flow_attention, flow_attention_step
from flowformer.ops.backends import available_backends
from flowformer.report.words import to_markdown

DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
SCALES = (1e-4, 1e-2, 1.0, 1e2, 1e4)
OPTIONS: dict[str, dict[str, Any]] = {
    "sigmoid, clamp 1": {"feature_map": "sigmoid", "clamp": 1.0},
    "sigmoid, no clamp": {"feature_map": "sigmoid", "clamp": None},
    "relu, clamp 1": {"feature_map": "relu", "clamp": 1.0},
    "relu, no clamp": {"feature_map": "relu", "clamp": None},
}
TOKENS = 500  # of the table over kinds and scales
STEPS = 31  # tokens that are read one by one
LENGTHS = (1, 63, 500, 4_096, 65_536, 1_048_576)
QUADRATIC = 2_048  # more tokens are not given to the causal form of `reference`
SEGMENT = 65_536  # causal gradients of `chunked` are taken segment by segment: memory
# Of these the length is varied.
SOME_KINDS = ("normal", "constant", "huge-token", "alternating", "sorted")
SOME_OPTIONS = ("sigmoid, clamp 1", "relu, no clamp")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One cell before it is measured: what is computed, of what."""

    form: str  # bidirectional, causal or steps
    dtype: str
    kind: str
    scale: float
    options: str
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one backend made of one case.

    Attributes:
        backend: its name.
        case: what it computed.
        finite: whether all is finite that is so in the exact result, rounded to the dtype.
        error: of the output.
        rounding: error of the output that rounding alone makes.
        gradient_error: the worst of the gradients of query, key and value.
        gradient_rounding: the worst that rounding alone makes in them.
    """

    backend: str
    case: Case
    finite: bool
    error: float
    rounding: float
    gradient_error: float
    gradient_rounding: float


def compute(case: Case, inputs: Inputs, *, backend: str, dtype: torch.dtype) -> list[Tensor]:
    """Return the output and the gradients of query, key and value."""
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    cast = Inputs(*(x.to(device, dtype).detach() for x in inputs))
    options: dict[str, Any] = OPTIONS[case.options] | {"backend": backend}
    if case.form == "causal" and backend == "chunked" and case.tokens > SEGMENT:
        return _by_segments(cast, options)
    leaves = [x.requires_grad_() for x in cast[:3]]
    if case.form == "steps":
        state: FlowState | None = None
        steps = []
        for t in range(case.tokens):
            parts = [x[:, t : t + 1] for x in leaves]
            step, state = flow_attention_step(parts[0], parts[1], parts[2], state, **options)
            steps.append(step)
        out = torch.cat(steps, 1)
    else:
        out = flow_attention(*leaves, causal=case.form == "causal", **options)
    gradients = torch.autograd.grad(out, leaves, cast.gradient)
    return [x.detach().cpu() for x in (out, *gradients)]


def _by_segments(inputs: Inputs, options: dict[str, Any]) -> list[Tensor]:
    """As `compute`: a state is passed on, and its gradient back."""
    parts = [slice(at, at + SEGMENT) for at in range(0, inputs.query.shape[1], SEGMENT)]
    states: list[FlowState | None] = [None]
    outs = []
    with torch.no_grad():
        for part in parts:
            taken = [x[:, part] for x in inputs[:3]]
            out, state = flow_attention(
                *taken, causal=True, initial_state=states[-1], return_state=True, **options
            )
            outs.append(out)
            states.append(state)
    gradients: list[list[Tensor]] = []
    behind: list[Tensor] = []  # gradients of the state after the segment
    for part, before in reversed(list(zip(parts, states[:-1], strict=True))):
        leaves = [x[:, part].detach().requires_grad_() for x in inputs[:3]]
        carried = [] if before is None else [x.detach().requires_grad_() for x in before[1:]]
        state = None if before is None else FlowState(before.tokens, *carried)
        out, after = flow_attention(
            *leaves, causal=True, initial_state=state, return_state=True, **options
        )
        outputs, given = [out], [inputs.gradient[:, part]]
        for field, gradient in zip(after[1:], behind, strict=False):
            outputs.append(field)
            given.append(gradient)
        found = torch.autograd.grad(outputs, [*leaves, *carried], given)
        gradients.append(list(found[:3]))
        behind = list(found[3:])
    joined = [torch.cat(list(reversed(each)), 1) for each in zip(*gradients, strict=True)]
    return [torch.cat(outs, 1), *joined]


def oracle_of(case: Case) -> str:
    """Return the backend whose float64 is taken as exact."""
    quadratic = case.form == "causal" and case.tokens > QUADRATIC
    return "chunked" if quadratic else "reference"


@lru_cache(maxsize=1)
def exact(case: Case) -> tuple[Inputs, list[Tensor]]:
    """Return the inputs and the exact result; the backends of a case come one after another."""
    inputs = make_inputs(case.kind, case.tokens, case.scale, DTYPES[case.dtype])
    return inputs, compute(case, inputs, backend=oracle_of(case), dtype=torch.float64)


def relative_error(found: Tensor, exact_one: Tensor, dtype: torch.dtype) -> tuple[bool, float]:
    """Return whether all is finite that should be, and the largest error of what is finite.

    Relative to the largest exact element in the dtype's range, or to its smallest normal number
    where that is larger: what is below it has lost its digits by being there.
    """
    inside = exact_one.to(dtype).isfinite()
    if not inside.any():
        return True, 0.0
    right = inside & found.isfinite()
    largest = max(exact_one[inside].abs().max().item(), torch.finfo(dtype).tiny)
    apart_by = (found.double() - exact_one)[right].abs()
    return bool(right.sum() == inside.sum()), (
        apart_by.max() / largest
    ).item() if right.any() else 0.0


def measure(case: Case, backend: str) -> Row:
    """Compare one backend with the exact result."""
    inputs, exact_all = exact(case)
    dtype = DTYPES[case.dtype]
    found = compute(case, inputs, backend=backend, dtype=dtype)
    compared = [relative_error(x, y, dtype) for x, y in zip(found, exact_all, strict=True)]
    least = [relative_error(y.to(dtype), y, dtype)[1] for y in exact_all]
    return Row(
        backend=backend,
        case=case,
        finite=all(finite for finite, _ in compared),
        error=compared[0][1],
        rounding=least[0],
        gradient_error=max(error for _, error in compared[1:]),
        gradient_rounding=max(least[1:]),
    )


def stress_cases() -> Iterator[Case]:
    """Yield every kind at every scale."""
    for form, tokens, scales in (
        ("bidirectional", TOKENS, SCALES),
        ("causal", TOKENS, SCALES),
        ("steps", STEPS, SCALES[::2]),
    ):
        for dtype, kind, scale, options in product(DTYPES, KINDS, scales, OPTIONS):
            yield Case(
                form=form, dtype=dtype, kind=kind, scale=scale, options=options, tokens=tokens
            )


def length_cases(tokens: int) -> Iterator[Case]:
    """Yield a few kinds at a length, and at the longest of all one of them."""
    dtypes: tuple[str, ...] = tuple(DTYPES)
    kinds: tuple[str, ...] = SOME_KINDS
    settings = SOME_OPTIONS
    if tokens >= SEGMENT:
        dtypes, kinds = ("float16", "float32"), ("normal", "huge-token")
    if tokens == LENGTHS[-1]:
        dtypes, kinds, settings = ("float32",), ("normal",), SOME_OPTIONS[:1]
    for form, dtype, kind, options in product(("bidirectional", "causal"), dtypes, kinds, settings):
        yield Case(form=form, dtype=dtype, kind=kind, scale=1.0, options=options, tokens=tokens)


def run(cases: Iterator[Case], backends: list[str]) -> list[Row]:
    """Measure all backends on all cases; `reference` on no long causal ones."""
    rows = []
    for case in cases:
        for backend in backends:
            if backend != "reference" or oracle_of(case) == "reference":
                rows.append(measure(case, backend))
    return rows


def summarize(rows: list[Row], *names: str) -> list[dict[str, Any]]:
    """Return the worst of each group of rows, by fields of the case and the backend."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        of = {"backend": row.backend, **asdict(row.case)}
        groups.setdefault(tuple(of[name] for name in names), []).append(row)
    summaries = []
    for key, group in groups.items():
        worst = max(group, key=_excess)
        summaries.append(
            {
                **dict(zip(names, key, strict=True)),
                "cases": len(group),
                "not_finite": sum(not row.finite for row in group),
                "error": max(row.error for row in group),
                "gradient_error": max(row.gradient_error for row in group),
                "times_rounding": max(_times(row, row.error, row.rounding) for row in group),
                "gradient_times_rounding": max(
                    _times(row, row.gradient_error, row.gradient_rounding) for row in group
                ),
                "worst": asdict(worst),
            }
        )
    return summaries


def _times(row: Row, error: float, rounding: float) -> float:
    """Return an error in units of rounding: half a unit in the last place, or what it makes."""
    return error / max(rounding, torch.finfo(DTYPES[row.case.dtype]).eps / 2)


def _excess(row: Row) -> float:
    return max(
        _times(row, row.error, row.rounding),
        _times(row, row.gradient_error, row.gradient_rounding),
    )


def apart(rows: list[Row]) -> float:
    """Return how far `chunked` is from `reference` in float64 where both are computed."""
    both = [
        row
        for row in rows
        if (row.backend, row.case.dtype, row.case.form) == ("chunked", "float64", "causal")
        and oracle_of(row.case) == "reference"
    ]
    return max(max(row.error, row.gradient_error) for row in both)


def result_of(rows: list[Row], long: list[Row]) -> dict[str, Any]:
    """Return what is kept of the cells over kinds and scales, and of those over lengths."""
    return {
        "backends": available_backends(),
        "tokens": {"bidirectional": TOKENS, "causal": TOKENS, "steps": STEPS},
        "cells": len(rows) + len(long),
        "stand_in_apart": apart(rows),
        "by_dtype": summarize(rows, "backend", "form", "dtype"),
        "by_kind": summarize(rows, "dtype", "kind", "scale"),
        "by_length": summarize(long, "backend", "form", "dtype", "tokens"),
        "farthest": [asdict(row) for row in sorted(rows + long, key=_excess)[-20:]],
        "not_finite": [asdict(row) for row in rows + long if not row.finite],
    }


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, "numerics")
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="tokens")


def execute(arguments: Namespace) -> None:
    """Measure, print and save."""
    torch.set_num_threads(1)
    backends = [name for name, reason in available_backends().items() if reason is None]
    rows = run(stress_cases(), backends)
    print(f"{len(rows):,} cells over kinds and scales", flush=True)
    long: list[Row] = []
    for tokens in (tokens for tokens in LENGTHS if tokens <= arguments.longest):
        long += run(length_cases(tokens), backends)
        print(f"{tokens:,} tokens", flush=True)
        # After each length: the longest ones take most of the time.
        save(arguments.output, result_of(rows, long))


def _cell(group: Result | None, *, gradient: bool = False) -> str:
    if group is None:
        return "–"
    error, times = f"{group['error']:.1e}", f"{group['times_rounding']:.1f}×"
    cell = f"{error}, {group['gradient_error']:.1e}" if gradient else f"{error} ({times})"
    return cell + f", **{group['not_finite']} not finite**" * bool(group["not_finite"])


def _by_backend(groups: list[Result], rows: tuple[str, ...], head: list[str]) -> str:
    """Return a table with a column a backend."""
    found = {(tuple(one[row] for row in rows), one["backend"]): one for one in groups}
    keys = list(dict.fromkeys(key for key, _ in found))
    backends = list(dict.fromkeys(group["backend"] for group in groups))
    body = [
        [
            *(f"{part:,}" if isinstance(part, int) else str(part) for part in key),
            *(_cell(found.get((key, backend))) for backend in backends),
        ]
        for key in keys
    ]
    return to_markdown([*head, *backends], body).rstrip()


def dtypes_table(result: Result) -> str:
    """Return the worst over all kinds, scales and options, by form and dtype."""
    groups = result["by_dtype"]
    return _by_backend(groups, ("form", "dtype"), ["form", "dtype"])


def kinds_table(result: Result) -> str:
    """Return the worst over backends, forms and options of two dtypes, by kind and scale."""
    groups = result["by_kind"]
    found = {(one["dtype"], one["kind"], one["scale"]): one for one in groups}
    scales = sorted({one["scale"] for one in groups})
    body = [
        [kind, dtype, *(_cell(found.get((dtype, kind, scale)), gradient=True) for scale in scales)]
        for kind in KINDS
        for dtype in ("float32", "float16")
    ]
    header = ["inputs", "dtype", *(f"scale {scale:g}" for scale in scales)]
    return to_markdown(header, body).rstrip()


def lengths_table(result: Result) -> str:
    """Return the worst over a few kinds and options, by form, dtype and length."""
    groups = result["by_length"]
    return _by_backend(groups, ("form", "dtype", "tokens"), ["form", "dtype", "tokens"])


def circumstances(result: Result) -> str:
    """Return what was computed, and how far the stand-in is from the reference, in a sentence."""
    missing = "; ".join(f"no `{name}`: {why}" for name, why in result["backends"].items() if why)
    return (
        f"{result['cells']:,} cells, {len(result['not_finite'])} of them not finite where the "
        f"exact result is. Where both are computed, `chunked` in float64 is "
        f"{result['stand_in_apart']:.0e} from `reference`. {machine_of(result, cores=False)}"
        f"{f' ({missing})' if missing else ''}."
    )


TABLES: Tables = {
    "numerics-dtypes": dtypes_table,
    "numerics-kinds": kinds_table,
    "numerics-lengths": lengths_table,
    "numerics-run": circumstances,
}
