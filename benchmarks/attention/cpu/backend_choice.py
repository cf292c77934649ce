"""Where is the compiled backend slower than `chunked`? Its lead over sizes and dtypes."""

from argparse import ArgumentParser, Namespace
from functools import partial
from itertools import product
from typing import Any

import torch

from benchmarks.runner import alternate, medians, pin, save, share
from flowformer import flow_attention

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
SHAPES = [
    shape
    for shape in product((1, 16), (1, 16, 64, 256, 1024), (1, 8), (8, 32, 64, 128, 256))
    if torch.Size(shape).numel() <= 4_000_000
]
BACKENDS = ("cpu", "chunked")
SIZES = ("dtype", "causal", "batch", "tokens", "heads", "width")


def leads(dtype: torch.dtype, causal: bool, shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Return how many times as fast the compiled backend is, forward and in both passes."""
    inputs = [torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(3)]
    grad = torch.ones(shape, dtype=dtype)

    def forward(backend: str) -> None:
        with torch.no_grad():
            flow_attention(*inputs, causal=causal, backend=backend)

    def both(backend: str) -> None:
        out = flow_attention(*inputs, causal=causal, backend=backend)
        torch.autograd.grad(out, inputs, grad)

    found: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "causal": causal}
    found["batch"], found["tokens"], found["heads"], found["width"] = shape
    for name, call in (("forward", forward), ("both", both)):
        times = medians(alternate({b: partial(call, b) for b in BACKENDS}, repeats=rounds))
        found[name] = times["chunked"] / times["cpu"]
    return found


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, "backend_choice", rounds=5)
    most = max(torch.Size(shape).numel() for shape in SHAPES)
    parser.add_argument("--largest", type=int, default=most, help="numbers in a tensor, at most")


def execute(arguments: Namespace) -> None:
    """Measure, print where it is slower, and keep everything."""
    pin(1)
    shapes = [shape for shape in SHAPES if torch.Size(shape).numel() <= arguments.largest]
    cells = [leads(*cell, arguments.rounds) for cell in product(DTYPES, (False, True), shapes)]
    print(f"{len(cells)} sizes; the compiled backend is slower in these:")
    for cell in cells:
        if min(cell["forward"], cell["both"]) < 1:
            print(
                "  ",
                {key: value if key in SIZES else round(value, 2) for key, value in cell.items()},
            )
    save(arguments.output, {"cells": cells})
