"""What do masks, widths that are no whole vector, and packs cost the compiled backend?

Each call takes turns with the same one without them.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.runner import alternate, pin, save, share
from flowformer import flow_attention
from flowformer.ops.backends.cpu.library import instruction_set

MASKED = [4_096, 65_536, 262_144]  # tokens
WIDTHS = {4: 16, 8: 16, 10: 16, 20: 32, 24: 32, 50: 64, 60: 64}  # beside the next whole vectors
PACKS = ((16, 512, 8, 64), (64, 512, 8, 64), (256, 128, 8, 64), (256, 128, 4, 32))
PASSES = ("bidirectional", "both passes")

Calls = list[Callable[[], object]]


def processor_seconds(side: Callable[[], object], calls: int = 1) -> float:
    """Return the seconds of this thread, which the work of others does not enter."""
    start = time.thread_time()
    for _ in range(calls):
        side()
    return time.thread_time() - start


def inputs(*shape: int) -> list[Tensor]:
    """Draw query, key and value."""
    return [torch.randn(shape, requires_grad=True) for _ in range(3)]


def calls(given: list[Tensor], **options: Any) -> Calls:
    """Return the call of each of PASSES."""
    grad = torch.ones_like(given[0])

    def forward() -> None:
        with torch.no_grad():
            flow_attention(*given, **options)

    def both() -> None:
        torch.autograd.grad(flow_attention(*given, **options), given, grad)

    return [forward, both]


def masked(tokens: int) -> tuple[Calls, Calls]:
    """Return the calls of one head of 64 with a seventh of its tokens masked and with none."""
    given, mask = inputs(1, tokens, 1, 64), torch.ones(1, tokens, dtype=torch.bool)
    mask[:, ::7] = False
    return calls(given, mask=mask), calls(given)


def narrow(width: int) -> tuple[Calls, Calls]:
    """Return the calls of 8 heads of a width and of the next that is whole vectors."""
    return calls(inputs(1, 1024, 8, width)), calls(inputs(1, 1024, 8, WIDTHS[width]))


def packed(shape: tuple[int, ...]) -> tuple[Calls, Calls]:
    """Return the calls of sequences of one length in a pack and in a batch."""
    given, offsets = inputs(*shape), torch.arange(shape[0] + 1) * shape[1]
    flat = [x.detach().reshape(1, -1, *shape[2:]).requires_grad_() for x in given]
    return calls(flat, cu_seqlens=offsets), calls(given)


def ratios(with_it: Calls, without: Calls, rounds: int) -> list[float]:
    """Return how many times the time of the second each of the first takes, by their minima."""
    found = []
    for one, other in zip(with_it, without, strict=True):
        sides = {"with": one, "without": other}
        seconds = alternate(sides, repeats=rounds, budget=3, shortest=0.01, clock=processor_seconds)
        found.append(min(seconds["with"]) / min(seconds["without"]))
    return found


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, "attention_sizes", rounds=15, lengths=MASKED)


def execute(arguments: Namespace) -> None:
    """Measure, print a table, and keep it."""
    pin(1)
    rounds = arguments.rounds
    rows = {
        f"{tokens:,} tokens, a seventh masked": ratios(*masked(tokens), rounds)
        for tokens in arguments.lengths
    }
    rows |= {
        f"width {width} beside {WIDTHS[width]}": ratios(*narrow(width), rounds) for width in WIDTHS
    }
    rows |= {f"{shape} packed beside batched": ratios(*packed(shape), rounds) for shape in PACKS}
    print(f"{instruction_set()}, one thread: times of the call with over without")
    print("|  | {} | {} |\n|---|---|---|".format(*PASSES))
    for name, row in rows.items():
        print(f"| {name} | {row[0]:.2f} | {row[1]:.2f} |")
    save(arguments.output, {"isa": instruction_set(), "ratios": rows})
