"""What ranks that share a sequence send one another, and a million tokens on four of them.

    python -m benchmarks.parallel.sequence_parallel [--only bytes|cost|step|plan]

The ranks are hosts in network namespaces of this machine (benchmarks/parallel/hosts.py; needs root), with
gloo. `bytes`: one attention, forward and backward, at lengths of 4,096 to 262,144: the bytes that
it hands to collectives, and those that the network interface of a host counted. `cost`: the
processor's time of one rank's part, beside that of an attention to the same tokens alone. `step`: a
training step of a language model of one layer, 64 wide, on 1,048,576 tokens. `plan`: calculated
from the bytes: 16 million tokens on 256 GPUs. Written to results/sequence_parallel.json.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from benchmarks.attention.cpu.peak_memory import PROC, resident
from benchmarks.parallel.hosts import run, sent
from benchmarks.runner import RESULTS, save
from flowformer.models.language.config import LanguageModelConfig
from flowformer.models.language.model import LanguageModel
from flowformer.ops import flow_attention
from flowformer.ops.parallel import sequence_parallel_flow_attention

NAME = "sequence_parallel"
HEADS, WIDTH = 2, 32
LENGTHS = (4_096, 16_384, 65_536, 262_144)
RANKS = (2, 4)
FORMS: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "bidirectional": {},
    "bidirectional, no clamp": {"clamp": None},
}
SETTLED = 0.3  # seconds after which nothing of a call is on its way any more
COST_SHAPE, COST_ROUNDS = (1, 16_384, 8, 64), 5
TOKENS, STEP_RANKS = 2**20, 4
MODEL = LanguageModelConfig(
    dim=64, num_heads=2, num_layers=1, feedforward=256, dropout=0.0, positions="rotary"
)

# The plan: published peak rates of one H100 SXM in an eight-GPU server with 400 Gb/s a GPU.
GPUS, PLAN_TOKENS, PLAN_LAYERS, PLAN_HEADS, PLAN_WIDTH = 256, 2**24, 24, 16, 64
NETWORK_BYTES, LATENCY, FLOPS = 50e9, 100e-6, 400e12  # latency: of a collective of all
BYTES = 8  # of a carried number


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Count the bytes that this rank hands to collectives, and the collectives."""
    counts = {"collectives": 0, "bytes": 0}

    def counting(collective: Callable[..., Any], place: int) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            tensor = arguments[place]
            counts["collectives"] += 1
            counts["bytes"] += tensor.numel() * tensor.element_size()
            return collective(*arguments, **keywords)

        return call

    with ExitStack() as stack:
        for name, place in {"all_to_all_single": 1, "all_reduce": 0, "all_gather": 1}.items():
            call = counting(getattr(dist, name), place)
            stack.enter_context(mock.patch.object(dist, name, call))
        yield counts


def section(call: Callable[[], object]) -> dict[str, int]:
    """Return what this host hands to collectives and what it sends, in a call of all hosts."""
    dist.barrier()
    time.sleep(SETTLED)
    before = sent()
    with counted() as counts:
        call()
    dist.barrier()
    time.sleep(SETTLED)
    return {**counts, "sent": sent() - before}


def attention_bytes() -> list[dict[str, Any]]:
    """Return the bytes of every form and length, of this host."""
    group = dist.group.WORLD
    assert group is not None
    nothing = section(lambda: None)["sent"]  # the barrier's own
    rows = []
    for (form, options), length in product(FORMS.items(), LENGTHS):
        shape = (1, length // group.size(), HEADS, WIDTH)
        tensors = [torch.randn(shape, requires_grad=True) for _ in range(3)]
        weights = torch.randn(shape)
        outputs: list[torch.Tensor] = []

        def forward(tensors=tensors, options=options, outputs=outputs) -> None:
            outputs.append(sequence_parallel_flow_attention(*tensors, mesh=group, **options))

        def backward(outputs=outputs, weights=weights) -> None:
            (outputs[0] * weights).sum().backward()

        row: dict[str, Any] = {"form": form, "ranks": group.size(), "length": length}
        for name, call in (("forward", forward), ("backward", backward)):
            found = section(call)
            row[name] = {**found, "sent": found["sent"] - nothing}
        rows.append(row)
    return rows


def largest(hosts: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return, for each row, that of the host which sent most."""
    rows = zip(*hosts, strict=True)
    return [max(row, key=lambda each: each["forward"]["sent"]) for row in rows]


def attention_cost() -> list[dict[str, Any]]:
    """Return the processor's seconds of one rank's part, and of an attention without ranks."""
    group = dist.group.WORLD
    assert group is not None
    sides = {
        "whole": flow_attention,
        "sharded": partial(sequence_parallel_flow_attention, mesh=group),
    }
    rows = []
    for form in ("causal", "bidirectional"):
        tensors = [torch.randn(COST_SHAPE, requires_grad=True) for _ in range(3)]
        row: dict[str, Any] = {"form": form, "shape": COST_SHAPE}
        for name, attend in sides.items():
            seconds = [_passes(attend, tensors, FORMS[form]) for _ in range(COST_ROUNDS)]
            row[name] = dict(
                zip(("forward", "backward"), map(min, zip(*seconds, strict=True)), strict=True)
            )
        rows.append(row)
    return rows


def _passes(
    attend: Callable[..., torch.Tensor], tensors: list[torch.Tensor], options: dict[str, Any]
) -> tuple[float, float]:
    start = time.process_time()
    total = attend(*tensors, **options).sum()
    middle = time.process_time()
    total.backward()
    return middle - start, time.process_time() - middle


def training_step() -> dict[str, Any]:
    """Make two steps, and return what the second took of this host."""
    group = dist.group.WORLD
    assert group is not None
    torch.manual_seed(0)
    model = LanguageModel(MODEL, vocab_size=256)
    model.set_gradient_checkpointing(True)
    model.set_sequence_parallel(group)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    base = resident("VmRSS")
    losses: list[float] = []
    result: dict[str, Any] = {}
    for tokens in (STEP_RANKS * 64, TOKENS):
        ids = torch.randint(256, (1, tokens // group.size()))
        (PROC / "clear_refs").write_text("5")
        start, worked = time.perf_counter(), time.process_time()
        found = section(lambda ids=ids: losses.append(_step(model, optimizer, ids)))
        result = {
            "loss": losses[-1],
            "seconds": time.perf_counter() - start - 2 * SETTLED,
            "processor_seconds": time.process_time() - worked,
            "peak_bytes": resident("VmHWM") - base,
            "sent": found["sent"],
            "tokens": tokens,
        }
    return result


def _step(model: LanguageModel, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> float:
    optimizer.zero_grad()
    loss = model(ids, labels=ids, return_logits=False).loss
    loss.backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
    optimizer.step()
    return float(loss.detach())


def state_numbers(heads: int, width: int) -> int:
    """Return how many numbers a causal rank adds to the sums of others, of one sequence."""
    return heads * (width * width + 4 * width + 1) + 1


def plan(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Calculate 16 million tokens on 256 GPUs from the bytes that were measured.

    Bytes that a host sends go as the numbers of the state, and as (ranks - 1) / ranks.
    """
    row = max((row for row in rows if row["form"] == "causal"), key=lambda each: each["ranks"])
    ranks = row["ranks"]
    growth = state_numbers(PLAN_HEADS, PLAN_WIDTH) / state_numbers(HEADS, WIDTH)
    growth *= (GPUS - 1) / GPUS * ranks / (ranks - 1)
    layer = {name: row[name]["sent"] * growth for name in ("forward", "backward")}
    collectives = sum(row[name]["collectives"] for name in layer)
    dim, local = PLAN_HEADS * PLAN_WIDTH, PLAN_TOKENS // GPUS
    # 12 dim² weights a layer: 6 operations a weight and token forward and backward.
    compute = local * 12 * dim**2 * 6 / FLOPS
    sending = sum(layer.values()) / NETWORK_BYTES + collectives * LATENCY
    return {
        "gpus": GPUS,
        "tokens": PLAN_TOKENS,
        "tokens_a_gpu": local,
        "layers": PLAN_LAYERS,
        "heads": PLAN_HEADS,
        "width": PLAN_WIDTH,
        "network_bytes_a_second": NETWORK_BYTES,
        "latency_seconds": LATENCY,
        "operations_a_second": FLOPS,
        "bytes_a_layer": layer,
        "collectives_a_layer": collectives,
        "bytes_a_step": sum(layer.values()) * PLAN_LAYERS,
        "seconds_sending": sending * PLAN_LAYERS,
        "seconds_computing": compute * PLAN_LAYERS,
        # Ring attention passes the keys and values of all others on, and their gradients back.
        "ring_bytes_a_layer": 3 * 2 * 2 * dim * (PLAN_TOKENS - local),
    }


def main() -> None:
    """Measure, calculate and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("bytes", "cost", "step", "plan"))
    only = parser.parse_args().only
    torch.set_num_threads(1)  # before the hosts are forked
    path = Path(RESULTS, f"{NAME}.json")
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    result |= {"heads": HEADS, "width": WIDTH}
    if only in (None, "bytes"):
        result["bytes"] = [row for ranks in RANKS for row in largest(run(attention_bytes, ranks))]
        for row in result["bytes"]:
            print(row)
    if only in (None, "cost"):
        (result["cost"],) = run(attention_cost, 1)
        print(result["cost"])
    if only in (None, "step"):
        result["step"] = run(training_step, STEP_RANKS)
        print(result["step"])
    if only in (None, "plan"):
        result["plan"] = plan(result["bytes"])
        print(result["plan"])
    result.pop("machine", None)
    print(save(NAME, result))


if __name__ == "__main__":
    main()
