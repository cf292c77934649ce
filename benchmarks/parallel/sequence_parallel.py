"""What do ranks that share a sequence send, and what does a part cost? As root: `make parallel`.

    python -m benchmarks sequence_parallel [--only bytes|cost|step|plan]

The ranks are hosts in network namespaces of this machine (hosts.py; needs root), with gloo.
`bytes`: one attention, forward and backward, at lengths of 4,096 to 262,144: the bytes that it
hands to collectives, and those that the network interface of a host counted. `cost`: the
processor's time of one rank's part, beside that of an attention to the same tokens alone. `step`: a
training step of a language model of one layer, 64 wide, on 1,048,576 tokens. `plan`: calculated
from the bytes: 16 million tokens on 256 GPUs.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from benchmarks.pages import Tables, machine_of
from benchmarks.parallel.hosts import run, sent
from benchmarks.runner import Result, read, save, share
from flowformer.machine import forget_peak, peak_memory, resident_memory
from flowformer.models.language.config import LanguageModelConfig
from flowformer.models.language.model import LanguageModel
from flowformer.ops import flow_attention
from flowformer.ops.parallel import sequence_parallel_flow_attention
from flowformer.report.words import to_markdown

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
    base = resident_memory() or 0
    losses: list[float] = []
    result: dict[str, Any] = {}
    for tokens in (STEP_RANKS * 64, TOKENS):
        ids = torch.randint(256, (1, tokens // group.size()))
        forget_peak()
        start, worked = time.perf_counter(), time.process_time()
        found = section(lambda ids=ids: losses.append(_step(model, optimizer, ids)))
        result = {
            "loss": losses[-1],
            "seconds": time.perf_counter() - start - 2 * SETTLED,
            "processor_seconds": time.process_time() - worked,
            "peak_bytes": peak_memory() - base,
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


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, NAME)
    parser.add_argument("--only", choices=("bytes", "cost", "step", "plan"))


def execute(arguments: Namespace) -> None:
    """Measure, calculate and write."""
    torch.set_num_threads(1)  # before the hosts are forked
    result: Result = read(arguments.output.stem, arguments.output.parent) or {}
    result |= {"heads": HEADS, "width": WIDTH}
    parts: dict[str, Callable[[], Any]] = {
        "bytes": lambda: [row for n in RANKS for row in largest(run(attention_bytes, n))],
        "cost": lambda: run(attention_cost, 1)[0],
        "step": lambda: run(training_step, STEP_RANKS),
        "plan": lambda: plan(result["bytes"]),
    }
    for name in parts if arguments.only is None else [arguments.only]:
        result[name] = parts[name]()
        print(f"{name}: {result[name]}")
    result.pop("machine", None)
    save(arguments.output, result)


def bytes_table(result: Result) -> str:
    """Return the bytes that a host sends, by form, ranks and length."""
    rows = result["bytes"]
    lengths = sorted({row["length"] for row in rows})
    header = ["form", "ranks", "pass", *(f"{length:,} tokens" for length in lengths)]
    table = []
    for form, ranks in dict.fromkeys((row["form"], row["ranks"]) for row in rows):
        for name in ("forward", "backward"):
            sent = {
                row["length"]: row[name]["sent"]
                for row in rows
                if (row["form"], row["ranks"]) == (form, ranks)
            }
            table.append([form, str(ranks), name, *(f"{sent[length]:,}" for length in lengths)])
    return to_markdown(header, table).rstrip()


def cost_table(result: Result) -> str:
    """Return the processor's time of a rank's part, beside that of an attention alone."""
    rows = []
    for row in result["cost"]:
        whole, sharded = row["whole"], row["sharded"]
        for name in ("forward", "backward"):
            cells = [f"{1e3 * side[name]:,.0f} ms" for side in (whole, sharded)]
            rows.append([row["form"], name, *cells, f"{sharded[name] / whole[name]:.1f}"])
    header = ["form", "pass", "`flow_attention`", "the same tokens as a rank's part", "ratio"]
    return to_markdown(header, rows).rstrip()


def circumstances(result: Result) -> str:
    """Return what it was measured on, in a sentence."""
    return (
        f"{machine_of(result)}: other work ran beside it, so that seconds of the clock say little."
    )


def step_table(result: Result) -> str:
    """Return what the step of a million tokens took."""
    ranks = result["step"]
    header = ["rank", "tokens", "peak memory above the start", "sent", "seconds"]
    header += ["of a processor", "loss"]
    rows = [
        [
            str(rank),
            f"{step['tokens'] // len(ranks):,} of {step['tokens']:,}",
            f"{step['peak_bytes'] / 2**20:,.0f} MiB",
            f"{step['sent'] / 2**10:,.0f} KiB",
            f"{step['seconds']:.0f}",
            f"{step['processor_seconds']:.0f}",
            f"{step['loss']:.4f}",
        ]
        for rank, step in enumerate(ranks)
    ]
    return to_markdown(header, rows).rstrip()


def plan_table(result: Result) -> str:
    """Return the calculated plan."""
    plan = result["plan"]
    layer = plan["bytes_a_layer"]
    rows = [
        ["tokens, GPUs, tokens a GPU", _numbers(plan, "tokens", "gpus", "tokens_a_gpu")],
        ["layers, heads, width of a head", _numbers(plan, "layers", "heads", "width")],
        ["assumed: network", f"{plan['network_bytes_a_second'] / 1e9:.0f} GB/s a GPU"],
        ["assumed: latency of a collective", f"{plan['latency_seconds'] * 1e6:.0f} µs"],
        ["assumed: computing", f"{plan['operations_a_second'] / 1e12:.0f} TFLOP/s a GPU"],
        ["sent by a GPU a layer, forward", f"{layer['forward'] / 1e6:.2f} MB"],
        ["sent by a GPU a layer, backward", f"{layer['backward'] / 1e6:.2f} MB"],
        ["the same by ring attention, both", f"{plan['ring_bytes_a_layer'] / 1e9:,.0f} GB"],
        ["sent by a GPU a step", f"{plan['bytes_a_step'] / 1e6:,.0f} MB"],
        ["collectives a layer", str(plan["collectives_a_layer"])],
        ["time of sending a step", f"{plan['seconds_sending'] * 1e3:,.0f} ms"],
        ["time of computing a step", f"{plan['seconds_computing'] * 1e3:,.0f} ms"],
    ]
    return to_markdown(["", ""], rows).rstrip()


def _numbers(plan: dict[str, Any], *names: str) -> str:
    return ", ".join(f"{plan[name]:,}" for name in names)


TABLES: Tables = {
    "parallel_bytes": bytes_table,
    "parallel_cost": cost_table,
    "parallel_step": step_table,
    "parallel_machine": circumstances,
    "parallel_plan": plan_table,
}
