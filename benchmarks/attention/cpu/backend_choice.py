"""Where is the compiled backend slower than `chunked` or softmax? At sizes drawn at random.

All of a size is drawn: the attention and its form, forward or both passes, the dtype, rows that
are full, padded (a mask) or packed, and by their logarithms up to 16,384 tokens, widths of keys and
values up to 256, 512 rows and 16 heads. One thread; the least processor time of each side counts,
and what loses takes three times as many turns more before it does.
"""

import math
import random
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.attention.peers import CHUNKED, PASSES, SOFTMAX
from benchmarks.pages import Tables
from benchmarks.runner import machine as circumstances
from benchmarks.runner import minima, pin, processor_seconds, save, share
from flowformer import flow_attention, linear_attention, mobile_attention
from flowformer.ops.backends.cpu.library import instruction_set
from flowformer.report.words import to_markdown

NAME, NATIVE = "backend_choice", "cpu"
ATTENTIONS = {"flow": flow_attention, "linear": linear_attention, "mobile": mobile_attention}
DTYPES = ["float32"] * 6 + ["bfloat16", "float16", "float64"]
FILLS = ["full", "full", "padded", "packed"]
MARGIN = 1.05  # what a loss is from
SOFTMAX_FROM, SOFTMAX_TO = 64, 2048  # tokens; further on its time is many times ours


@dataclass(frozen=True, kw_only=True)
class Size:
    """A call: `passes` are of peers.py, `tokens` those of the longest row."""

    attention: str
    causal: bool
    passes: str
    dtype: str
    fill: str
    batch: int
    tokens: int
    heads: int
    width: int
    value_width: int

    @property
    def numbers(self) -> int:
        """Return the numbers in the largest tensor."""
        return self.batch * self.tokens * self.heads * max(self.width, self.value_width)


def drawn(seed: int) -> Size:
    """Draw a size."""
    dice = random.Random(seed)

    def up_to(most: int) -> int:
        return int((most + 1) ** dice.random())

    attention = dice.choice(list(ATTENTIONS))
    width = up_to(256)
    return Size(
        attention=attention,
        causal=attention != "mobile" and dice.random() < 0.5,
        passes=dice.choice(list(PASSES)),
        dtype=dice.choice(DTYPES),
        fill=dice.choice(FILLS),
        batch=up_to(512),
        tokens=up_to(16_384),
        heads=up_to(16),
        width=width,
        value_width=dice.choice([width, width, up_to(256)]),
    )


def rows_of(size: Size) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the mask of a batch; query, key, value and a gradient; and the real ones packed."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.full((size.batch,), size.tokens)
    if size.fill != "full":
        lengths = torch.randint(1, size.tokens + 1, (size.batch,), generator=generator)
        lengths[0] = size.tokens
    mask = torch.arange(size.tokens) < lengths[:, None]
    leading = size.batch, size.tokens, size.heads
    widths = [size.width, size.width, size.value_width, size.value_width]
    batch = [torch.randn(*leading, width, generator=generator) for width in widths]
    batch = [tensor.to(getattr(torch, size.dtype)) for tensor in batch]
    return mask, batch, [tensor[mask][None] for tensor in batch]


def sides_of(size: Size) -> dict[str, Callable[[], object]]:
    """Return the calls by the two backends, and of softmax where it may win."""
    mask, batch, pack = rows_of(size)
    call = PASSES[size.passes]
    options: dict[str, Any] = {"causal": True} if size.causal else {}
    if size.fill == "padded":
        options["mask"] = mask
    elif size.fill == "packed":
        options["cu_seqlens"] = F.pad(mask.sum(1).cumsum(0), (1, 0))
    given = pack if size.fill == "packed" else batch
    ours = [tensor.requires_grad_() for tensor in given[:3]] + given[3:]
    attention = ATTENTIONS[size.attention]
    sides: dict[str, Callable[[], object]] = {
        backend: partial(call, partial(attention, backend=backend, layout="bthd", **options), ours)
        for backend in (NATIVE, CHUNKED)
    }
    if SOFTMAX_FROM <= size.tokens <= SOFTMAX_TO:
        theirs = [tensor.detach().transpose(1, 2).contiguous() for tensor in batch]
        theirs = [tensor.requires_grad_() for tensor in theirs[:3]] + theirs[3:]
        seen = {"is_causal": size.causal}
        if size.fill != "full":  # a mask and is_causal exclude each other
            pairs = mask[:, None, None, :]
            seen = {"attn_mask": pairs & torch.ones(size.tokens, size.tokens).tril().bool()}
            seen = seen if size.causal else {"attn_mask": pairs}
        softmax = partial(F.scaled_dot_product_attention, **seen)
        sides[SOFTMAX] = partial(call, softmax, theirs)
    return sides


def lead(seconds: dict[str, float]) -> float:
    """Return how many times as fast as the best of the others the compiled backend is."""
    return min(of for side, of in seconds.items() if side != NATIVE) / seconds[NATIVE]


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, NAME, rounds=5, quick=False)
    parser.add_argument("--sizes", type=int, default=800, help="how many, at most")
    parser.add_argument("--minutes", type=float, default=15, help="after which it ends")
    parser.add_argument("--largest", type=int, default=2_000_000, help="numbers in a tensor")


def execute(arguments: Namespace) -> None:
    """Measure, print where another is faster, and keep everything."""
    pin(1)
    most = 20_000 if arguments.quick else arguments.largest
    sizes = (size for size in map(drawn, count()) if size.numbers <= most)
    cells, end = [], time.monotonic() + 60 * arguments.minutes
    for size in islice(sizes, 20 if arguments.quick else arguments.sizes):
        seconds = minima(
            sides_of(size),
            lambda found: lead(found) * MARGIN >= 1,
            repeats=arguments.rounds,
            budget=0.3,
            shortest=0.001,
            clock=processor_seconds,
        )
        cells.append(asdict(size) | {"seconds": seconds})
        if lead(seconds) * MARGIN < 1:
            print(cells[-1], flush=True)
        if time.monotonic() > end:
            break
    result = {"isa": instruction_set(), "cells": cells}
    print(table({"machine": circumstances(), **result}))
    save(arguments.output, result)


def lost(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the sizes at which another is faster by more than the margin, the worst first."""
    cells = [cell for cell in result["cells"] if lead(cell["seconds"]) * MARGIN < 1]
    return sorted(cells, key=lambda cell: lead(cell["seconds"]))


def sentence(result: dict[str, Any]) -> str:
    """Return how many they are; the docstring of `fastest` in flowformer.ops.backends knows it."""
    cells = [cell["seconds"] for cell in result["cells"]]
    chunked, softmax = (
        sum(seconds.get(other, math.inf) * MARGIN < seconds[NATIVE] for seconds in cells)
        for other in (CHUNKED, SOFTMAX)
    )
    return (
        f"of {len(cells)} sizes that `python -m benchmarks {NAME}` drew, `chunked` is more than "
        f"5 % faster at {chunked}, and softmax at {softmax}"
    )


def table(result: dict[str, Any]) -> str:
    """Return the sizes at which another is faster."""
    header = ["call", "(batch, tokens, heads, width, value width)", "faster", "times as fast"]
    rows = []
    for cell in lost(result):
        form = "causal" if cell["causal"] else "bidirectional"
        words = (cell[name] for name in ("attention", "fill", "dtype", "passes"))
        shape = tuple(cell[name] for name in ("batch", "tokens", "heads", "width", "value_width"))
        seconds = cell["seconds"]
        other = min(seconds.keys() - {NATIVE}, key=seconds.__getitem__)
        ratio = f"{seconds[NATIVE] / seconds[other]:.2f}"
        rows.append([f"{form} {', '.join(words)}", str(shape), f"`{other}`", ratio])
    machine = result["machine"]
    where = f"{machine['processor']} ({result['isa']}), commit {machine['commit']}"
    said = f"On {where}, load {machine['load']} at the end: {sentence(result)}."
    return f"{to_markdown(header, rows)}\n{said}" if rows else said


TABLES: Tables = {NAME: table}
