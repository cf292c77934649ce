"""Steps per second and peak memory of training the Long Range Arena's Text classifier.

    python -m benchmarks.mixers.arena_cost --threads 1

With every mixer that has a bidirectional form, at the lengths of the paper's table and at two
longer ones; about a quarter of an hour. The model has the defaults of SequenceModelConfig (one
layer of 256 with 4 heads, the classification from a vector before the sequence); a step is forward,
loss, backward and AdamW, in float32, on random bytes. Each length is measured in a process of its
own with a limit on memory and one on time; what does not fit says so, and longer sequences of that
mixer are then not tried. The result is written after every mixer; --resume goes on from it.

Memory is what the process's resident memory rises by from before the model was made to its highest
point: the model, its gradients and the optimizer are in it (on a GPU: what was allocated). Time is
the median of up to ten steps after one that is not counted, or that one where it takes a second.
`python -m benchmarks.mixers.report_arena` makes the tables and the picture.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.mixers.cells import (
    Call,
    CallOf,
    Cell,
    cell_command,
    limit_of,
    measure_here,
    measure_lengths,
    parse_cells,
)
from benchmarks.runner import RESULTS, save
from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.models.sequences.model import SequenceClassifier
from flowformer.nn import MIXERS

BIDIRECTIONAL = [name for name, mixer in MIXERS.items() if mixer.capabilities.bidirectional]
LENGTHS = [1024, 2048, 3072, 4096, 16384, 65536]
PASSES = ("training",)
BYTES = 1 + 256  # padding, and the values of a byte
CLASSES = 2
OPTIONS = ("layers", "batch", "threads", "device", "memory_limit", "time_limit")


def make_step(
    config: SequenceModelConfig, length: int, *, batch: int, device: torch.device
) -> Call:
    """Return a training step of a classifier with fresh parameters, on random bytes."""
    model = SequenceClassifier(config, vocab_size=BYTES, num_classes=CLASSES, max_length=length).to(
        device
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs = torch.randint(1, BYTES, (batch, length), device=device)
    labels = torch.randint(CLASSES, (batch,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        loss = model(inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def maker(arguments: argparse.Namespace) -> Callable[[], CallOf]:
    """Return what makes the steps of a cell."""
    config = SequenceModelConfig(mixer=arguments.cell, num_layers=arguments.layers)
    device = torch.device(arguments.device)

    def call_of(_: str, tokens: int) -> Call:
        return make_step(config, tokens, batch=arguments.batch, device=device)

    return lambda: call_of


def measure_mixer(name: str, arguments: argparse.Namespace) -> list[Cell]:
    """Measure one mixer at all lengths, as far as it goes."""
    command = cell_command("benchmarks.mixers.arena_cost", name, arguments, OPTIONS)
    return measure_lengths(command, name, arguments)


def setting_of(arguments: argparse.Namespace) -> dict[str, object]:
    """Return what the cells of a table have in common."""
    model = SequenceModelConfig(num_layers=arguments.layers)
    return {
        "layers": model.num_layers,
        "dim": model.dim,
        "heads": model.num_heads,
        "feedforward": model.feedforward,
        **{key: getattr(arguments, key) for key in ("batch", "threads", "device", "time_limit")},
        "memory_limit": limit_of(arguments),
    }


def cells_so_far(path: Path, setting: dict[str, object]) -> list[Cell]:
    """Return the cells of an unfinished table; none where there is no file.

    Raises:
        ValueError: it was measured with another setting. The memory limit may be another: it
            follows from what is free, and a cell that does not fit says in what.
    """
    if not path.exists():
        return []
    result = json.loads(path.read_text())
    expected = {**setting, "memory_limit": result["setting"].get("memory_limit")}
    if result["setting"] != expected:
        raise ValueError(f"{path}: expected the setting {expected}, got {result['setting']}")
    return result["cells"]


def parse(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, or what is given in its place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "arena_cost.json")
    parser.add_argument("--resume", action="store_true", help="keep the mixers that it has")
    return parse_cells(
        parser, given, mixers=BIDIRECTIONAL, passes=PASSES, lengths=LENGTHS, time_limit=20
    )


def main(given: Sequence[str] | None = None) -> None:
    """Measure, print and save after every mixer."""
    arguments = parse(given)
    if arguments.cell:
        measure_here(maker(arguments), arguments)
        return
    if arguments.threads:
        torch.set_num_threads(arguments.threads)  # for the machine's description
    setting = setting_of(arguments)
    path: Path = arguments.output
    try:
        cells = cells_so_far(path, setting) if arguments.resume else []
    except ValueError as error:
        sys.exit(str(error))
    for name in arguments.mixers:
        if set(arguments.lengths) <= {cell["length"] for cell in cells if cell["mixer"] == name}:
            print(f"{name:<22}is there")
            continue
        others = [cell for cell in cells if cell["mixer"] != name]
        cells = others + measure_mixer(name, arguments)
        print(save(path.stem, {"setting": setting, "cells": cells}, path.parent), flush=True)


if __name__ == "__main__":
    main()
