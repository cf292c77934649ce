"""Time and memory of every mixer over the length, forward alone and forward with backward.

    python -m benchmarks.mixers.mixer_cost --lengths 256,1024 --mixers flow,softmax

One layer in float32, on one sequence, each length in a process of its own with a limit on memory
and one on time. What does not fit says so, and longer sequences of that mixer are then not tried.
A mixer without a bidirectional form is measured in its causal one; --causal measures that of all
that have it. `flowformer compare --cost benchmarks/results/mixer_cost.json` shows the result.

Memory is what the process's resident memory rises by, from before the inputs were made to its
highest point, parameters not included (on a GPU: what was allocated). Time is the median of up to
ten calls after one that is not counted, or that one where it takes a second.
"""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.mixers.cells import (
    SHORT,
    Call,
    CallOf,
    Cell,
    cell_command,
    limit_of,
    measure_here,
    measure_lengths,
    parse_cells,
)
from benchmarks.runner import save
from flowformer.nn import MIXERS, ProjectedMixer, build_mixer

LENGTHS = [2**power for power in range(8, 17)]
PASSES = ("forward", "training")
OPTIONS = ("dim", "heads", "batch", "threads", "device", "memory_limit", "time_limit")


def is_causal(name: str, causal: bool) -> bool:
    """Return whether a mixer is measured in its causal form."""
    return causal or not MIXERS[name].capabilities.bidirectional


def make_call(mixer: ProjectedMixer, inputs: Tensor, *, causal: bool, training: bool) -> Call:
    """Return a call of one pass."""

    def call() -> None:
        with torch.set_grad_enabled(training):
            out, _ = mixer(inputs, causal=causal)
            if training:
                # Of the sum: its gradient is expanded, and costs no memory of its own.
                out.sum().backward()
        if inputs.is_cuda:
            torch.cuda.synchronize()

    return call


def maker(arguments: argparse.Namespace) -> Callable[[], CallOf]:
    """Return what builds the mixer of a cell, and from it the calls of its passes."""
    name, (length,) = arguments.cell, arguments.lengths
    device = torch.device(arguments.device)
    causal = is_causal(name, arguments.causal)

    def make() -> CallOf:
        mixer = build_mixer(name, arguments.dim, arguments.heads, max_length=max(length, SHORT))
        mixer = mixer.to(device)

        def call_of(pass_name: str, tokens: int) -> Call:
            training = pass_name == "training"
            shape = (arguments.batch, tokens, arguments.dim)
            inputs = torch.randn(shape, device=device, requires_grad=training)
            return make_call(mixer.train(training), inputs, causal=causal, training=training)

        return call_of

    return make


def measure_mixer(name: str, arguments: argparse.Namespace) -> list[Cell]:
    """Measure one mixer at all lengths, each pass as far as it goes."""
    command = cell_command("benchmarks.mixers.mixer_cost", name, arguments, OPTIONS)
    command += ["--causal"] if arguments.causal else []
    label = f"{name} (causal)" if is_causal(name, arguments.causal) else name
    return measure_lengths(command, label, arguments)


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line, or what is given in its place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--name", default="mixer_cost", help="of the file in benchmarks/results")
    return parse_cells(
        parser, given, mixers=list(MIXERS), passes=PASSES, lengths=LENGTHS, time_limit=60
    )


def main() -> None:
    """Measure, print and save after every mixer."""
    arguments = parse()
    if arguments.cell:
        measure_here(maker(arguments), arguments)
        return
    setting = {
        key: getattr(arguments, key)
        for key in ("dim", "heads", "batch", "device", "causal", "time_limit")
    }
    setting["memory_limit"] = limit_of(arguments)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)  # for the machine's description
    cells: list[Cell] = []
    for name in arguments.mixers:
        if arguments.causal and not MIXERS[name].capabilities.causal:
            continue
        cells += measure_mixer(name, arguments)
        print(save(arguments.name, {"setting": setting, "cells": cells}), flush=True)


if __name__ == "__main__":
    main()
