"""How fast is attention on a GPU, beside its peers and the card's limits? `make bench-gpu`.

16 heads of width 128 and 64, batch × length = 65,536 (batch 1 beyond), short lengths first. At each
length the sides take turns, timed by CUDA events, and the median over the rounds is reported. What
does not fit or takes too long is a row that says so. Every length is saved when it is done: stopped
at any moment, the same command goes on there.
"""

import json
import os
import statistics
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.attention.cpu import goals
from benchmarks.attention.gpu.clock import BrokenContextError, Clock, CudaClock, Side, problem_of
from benchmarks.attention.gpu.goals import rows
from benchmarks.attention.gpu.peers import (
    FLA,
    FLA_SCALED,
    FLASH,
    GRAPH,
    fla_missing,
    inputs_of,
    make_inputs,
    peers,
    steps,
)
from benchmarks.attention.gpu.roofline import CARDS, COST
from benchmarks.attention.gpu.traffic import Call, Pass, both_passes, forward_passes, step_passes
from benchmarks.attention.peers import BOTH, CHUNKED, FORWARD, OURS, PASSES, PUBLISHED
from benchmarks.pages import Tables, milliseconds
from benchmarks.runner import Result, alternate, machine, share
from flowformer.files import write_atomically
from flowformer.ops.backends.triton.tuning import Settings, key_of, settings_for
from flowformer.report.words import memory as memory_in_words

NAME = "attention_gpu"
UNMEASURED = {
    "attention_gpu": (
        "**GPU timings are missing.** `make bench-gpu` on a machine with a card takes them and "
        "fills in this place."
    ),
    "attention_gpu_details": "Times, memory and decoding are missing too.",
}
PEERS = (OURS, FLASH, FLA, FLA_SCALED, CHUNKED, PUBLISHED)
DECODERS = (OURS, GRAPH, FLASH, FLA, CHUNKED)
DECODING = "decoding"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SETTINGS_PASSES: dict[str, Callable[[Call, Settings | None], list[Pass]]] = {
    FORWARD: forward_passes,
    BOTH: both_passes,
}

Row = dict[str, Any]
Sides = dict[str, Callable[[], object]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured; `--quick` has a smaller one."""

    heads: int = 16
    widths: tuple[int, ...] = (128, 64)
    tokens: int = 65_536
    lengths: tuple[int, ...] = tuple(2**n for n in range(9, 21))  # 512 … 1M
    batches: tuple[int, ...] = (1, 64)
    positions: tuple[int, ...] = (1000, 64_000, 1_000_000)
    copied: int = 2**30  # bytes: far more than a cache holds
    product: int = 8192
    rounds: int = 20
    budget: float = 0.5  # seconds for a side at a length
    shortest: float = 0.01
    limit: float = 5.0  # seconds of a call


QUICK = Plan(
    widths=(64,),
    tokens=4096,
    lengths=(512, 2048, 8192),
    batches=(1,),
    positions=(1000,),
    copied=2**24,
    product=256,
    rounds=3,
    budget=0.0,
    shortest=0.0,
)


@dataclass(frozen=True, kw_only=True)
class Group:
    """The rows of one length and pass: their sides take turns."""

    call: Call
    kind: str

    @property
    def form(self) -> str:
        """Causal or bidirectional."""
        return "causal" if self.call.causal else "bidirectional"

    def row(self, peer: str, **figures: Any) -> Row:
        """Return a row; what it lacks is None."""
        call = self.call
        return {
            "form": self.form,
            "dtype": str(call.dtype).removeprefix("torch."),
            "width": call.width,
            "batch": call.batch,
            "length": call.length,
            "kind": self.kind,
            "peer": peer,
            "seconds": None,
            "memory": None,
            "problem": None,
            **figures,
        }


def row_name(row: Row) -> str:
    """Return a row's place in the result."""
    return " ".join(
        f"{row[part]}" for part in ("form", "dtype", "width", "batch", "length", "kind", "peer")
    )


@dataclass(kw_only=True)
class Run:
    """What is known while it runs."""

    plan: Plan
    clock: Clock
    backend: str
    dtypes: tuple[torch.dtype, ...]
    path: Path
    until: float = float("inf")  # on the clock of time.monotonic
    result: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> dict[str, Row]:
        """The rows by name."""
        return self.result.setdefault("rows", {})

    def keep(self, row: Row) -> None:
        """Keep a row, and say it."""
        self.rows[row_name(row)] = row
        figures = row["problem"]
        if row["seconds"]:
            figures = f"{1e3 * statistics.median(row['seconds']):.4g} ms"
            figures += f", {row['memory'] / 2**20:,.0f} MiB"
        print(f"{row_name(row)}: {figures}", flush=True)

    def save(self) -> None:
        """Write everything at once, a line a row."""
        rows = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in self.rows.items()]
        head = {name: value for name, value in self.result.items() if name != "rows"}
        text = json.dumps(head, indent=1).removesuffix("\n}")
        joined = ",\n".join(rows)
        write_atomically(self.path, f'{text},\n "rows": {{\n{joined}\n }}\n}}\n')


def groups(plan: Plan, dtypes: tuple[torch.dtype, ...]) -> Iterator[Group]:
    """Yield what is measured, short lengths first."""
    for dtype in dtypes:
        for width in plan.widths:
            sizes = {"heads": plan.heads, "width": width, "dtype": dtype}
            for length in plan.lengths:
                batch = max(1, plan.tokens // length)
                for causal in (True, False):
                    call = Call(causal=causal, batch=batch, length=length, **sizes)
                    yield from (Group(call=call, kind=kind) for kind in PASSES)
            for position in plan.positions:
                for batch in plan.batches:
                    call = Call(causal=True, batch=batch, length=position, **sizes)
                    yield Group(call=call, kind=DECODING)


def makers(run: Run, group: Group) -> dict[str, tuple[Callable[[], Callable[[], object]], Any]]:
    """Return what makes each side of a group, and why it cannot be measured or None."""
    call, device = group.call, run.clock.device
    if group.kind == DECODING:
        return {
            name: (partial(make, call, device), missing)
            for name, (make, missing) in steps(run.backend).items()
        }
    inputs: list[torch.Tensor] = []

    def make(name: str) -> Callable[[], object]:
        if not inputs:
            inputs.extend(make_inputs(call, device))
        peer = table[name]
        given = inputs_of(peer, inputs)
        return partial(PASSES[group.kind], peer.make(call, device), given)

    table = peers(causal=call.causal, backend=run.backend)
    return {
        name: (partial(make, name), peer.missing or too_slow(run, group, name, peer.quadratic))
        for name, peer in table.items()
    }


def too_slow(run: Run, group: Group, name: str, quadratic: bool) -> str | None:
    """Return why a side is not tried: what it would take, by the longest that was measured."""
    call, wanted = group.call, group.row(name)
    alike = [
        row
        for row in run.rows.values()
        if row["seconds"]
        and row["length"] < call.length
        and all(row[part] == wanted[part] for part in ("form", "dtype", "width", "kind", "peer"))
    ]
    if not alike:
        return None
    last = max(alike, key=lambda row: row["length"])
    tokens = call.batch * call.length / (last["batch"] * last["length"])
    growth = tokens * (call.length / last["length"] if quadratic else 1)
    expected, limit = statistics.median(last["seconds"]) * growth, run.plan.limit
    if expected <= limit:
        return None
    return f"{expected:.3g} s a call expected, more than {limit:g}"


def measure(run: Run, group: Group) -> None:
    """Measure those sides of a group that have no row yet, and save."""
    sides: dict[str, Side] = {}
    memory: dict[str, int] = {}
    table = makers(run, group)
    names = [name for name in table if row_name(group.row(name)) not in run.rows]
    for name in names:
        make, reason = table[name]
        if reason is None:
            reason = ready(run, group, name, make, sides, memory)
        if reason is not None:
            run.keep(group.row(name, problem=reason))
    try:
        times = alternate(
            sides,
            repeats=run.plan.rounds,
            budget=run.plan.budget,
            shortest=run.plan.shortest,
            clock=run.clock.seconds,
        )
    except BrokenContextError as error:  # of which side it was, nobody knows
        keep_broken(run, group, list(sides), error)
        raise
    for name, side in sides.items():
        figures: Row = {"problem": side.problem}
        if side.problem is None:
            seconds = [float(f"{taken:.5g}") for taken in times[name]]
            figures = {"seconds": seconds, "memory": memory[name]}
            figures |= counted(run, group) if name == OURS else {}
        run.keep(group.row(name, **figures))
    run.save()


def keep_broken(run: Run, group: Group, names: list[str], error: BrokenContextError) -> None:
    """Keep rows that say what broke, so that the next process does not try them again."""
    for name in names:
        run.keep(group.row(name, problem=str(error)))
    run.save()


def ready(
    run: Run,
    group: Group,
    name: str,
    make: Callable[[], Callable[[], object]],
    sides: dict[str, Side],
    memory: dict[str, int],
) -> str | None:
    """Make a side and call it twice: it compiles, its memory is measured. Return what is wrong."""
    made: list[Callable[[], object]] = []

    def try_it() -> None:
        made.append(make())
        made[0]()  # compiles
        memory[name] = run.clock.peak(made[0])

    try:
        reason = problem_of(try_it)
    except BrokenContextError as error:
        keep_broken(run, group, [name], error)
        raise
    if reason is None:
        sides[name] = Side(made[0])
    return reason


def counted(run: Run, group: Group) -> Row:
    """Return the bytes that ours moves and the operations of its products."""
    call = group.call
    if group.kind == DECODING:
        passes = step_passes(call)
    else:
        key = key_of(call.width, call.width, call.dtype, call.causal, call.length)
        passes = SETTINGS_PASSES[group.kind](call, settings_for(key, run.clock.device))
    return {"moved": sum(p.moved for p in passes), "flop": sum(p.flop for p in passes)}


def limits(run: Run) -> dict[str, Any]:
    """Measure a copy's bytes a second, and a product's operations a second for each dtype."""
    plan, device = run.plan, run.clock.device
    source = torch.ones(plan.copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    sides: Sides = {"copy": partial(target.copy_, source)}
    for dtype in run.dtypes:
        a, b, out = (
            torch.ones(plan.product, plan.product, dtype=dtype, device=device) for _ in range(3)
        )
        sides[str(dtype).removeprefix("torch.")] = partial(torch.mm, a, b, out=out)
    times = alternate(sides, repeats=plan.rounds, shortest=plan.shortest, clock=run.clock.seconds)
    seconds = {name: statistics.median(taken) for name, taken in times.items()}
    copy = seconds.pop("copy")
    return {
        "bandwidth": 2 * plan.copied / copy,
        "product": {name: 2 * plan.product**3 / taken for name, taken in seconds.items()},
    }


def described(run: Run) -> dict[str, Any]:
    """Return what the rows of one file have in common: the card and the versions."""
    versions = {"torch": str(torch.__version__), "triton": triton.__version__}
    if fla_missing() is None:
        from importlib.metadata import version

        versions["fla"] = version("flash-linear-attention")
    return {"card": run.clock.name, "backend": run.backend, "heads": run.plan.heads, **versions}


def resume(run: Run, *, anew: bool) -> None:
    """Read what was measured before, on the same card with the same versions.

    Raises:
        SystemExit: the file is of another card or of other versions.
    """
    same = described(run)
    if run.path.exists() and not anew:
        kept = json.loads(run.path.read_text())
        if kept["same"] != same:
            sys.exit(f"{run.path} is of {kept['same']}, this is {same}: --anew, or --output")
        run.result = kept
    else:
        run.result = {"same": same}


def measure_all(run: Run) -> bool:
    """Measure what is missing; return whether it is complete now."""
    run.result["machine"] = machine()
    known = run.result.setdefault("limits", {"product": {}})
    names = {str(dtype).removeprefix("torch.") for dtype in run.dtypes}
    if not names <= known["product"].keys():
        run.result["limits"] = known | limits(run)
    datasheet = CARDS.get(run.clock.name)
    run.result["datasheet_flop"] = None if datasheet is None else datasheet.flop
    for group in groups(run.plan, run.dtypes):
        if time.monotonic() > run.until:
            return False
        with torch.set_grad_enabled(group.kind == BOTH):
            measure(run, group)
    return True


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, NAME, quick=False, anew=False, stop_after=float("inf"))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bf16"])
    parser.add_argument("--backend", default="triton", help="what is measured as ours")


def execute(arguments: Namespace) -> None:
    """Measure, print and save."""
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: `python -m benchmarks gpu_roofline` estimates without one")
    run = Run(
        plan=QUICK if arguments.quick else Plan(),
        clock=CudaClock(),
        backend=arguments.backend,
        dtypes=tuple(DTYPES[name] for name in arguments.dtypes),
        path=arguments.output,
        until=time.monotonic() + arguments.stop_after,
    )
    resume(run, anew=arguments.anew)
    try:
        complete = measure_all(run)
    except BrokenContextError as error:
        print(f"{error}: going on in another process", flush=True)
        rest = [word for word in sys.argv[1:] if word != "--anew"]
        rest += ["--stop-after", str(max(0.0, run.until - time.monotonic()))]
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *rest])
    print(run.path if complete else f"{run.path}: not complete, the same command goes on")


def goals_table(result: Result) -> str:
    """Return the table of goals."""
    same = result["same"]
    machine = {"processor": same["card"], "vectors": f"torch {same['torch']}"}
    table = {"rows": rows(result), "machine": machine, "backend": same["backend"]}
    return goals.table(table)


def details(result: Result) -> str:
    """Return times and memory over length, decoding, the card, and what is missing."""
    found = list(result["rows"].values())
    kinds = sorted({(row["dtype"], row["width"]) for row in found}, key=_by_cost)
    tables = [
        table
        for dtype, width in kinds
        for form in ("causal", "bidirectional")
        for kind in (FORWARD, BOTH)
        for table in [times(result, form, dtype, width, kind)]
        if table
    ]
    tables += [table for dtype, width in kinds if (table := decoding(result, dtype, width))]
    return "\n\n".join([*tables, card(result)])


def _by_cost(kind: tuple[str, int]) -> tuple[int, int]:
    return COST[getattr(torch, kind[0])], -kind[1]


def times(result: Result, form: str, dtype: str, width: int, kind: str) -> str | None:
    """Return the time and peak memory of every peer over length, and our share of the limits."""
    found = [
        row
        for row in result["rows"].values()
        if (row["form"], row["dtype"], row["width"], row["kind"]) == (form, dtype, width, kind)
    ]
    names = [name for name in PEERS if any(row["peer"] == name for row in found)]
    if not names:
        return None
    limits = ["memory, %", "tensor cores, %"]
    head = [f"{form}, {kind}, {dtype}, width {width}: tokens", *names, *limits]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for length in sorted({row["length"] for row in found}):
        by_peer = {row["peer"]: row for row in found if row["length"] == length}
        cells = [cell(by_peer.get(name)) for name in names]
        lines.append(f"| {length:,} | {' | '.join([*cells, *shares(result, by_peer)])} |")
    return "\n".join(lines)


def cell(row: Row | None) -> str:
    """Return a row's time and peak memory, or why there are none."""
    if row is None:
        return "–"
    if not row["seconds"]:
        return str(row["problem"])
    return f"{milliseconds(statistics.median(row['seconds']))} ms, {memory_in_words(row['memory'])}"


def shares(result: Result, by_peer: dict[str, Row]) -> list[str]:
    """Return our share of a copy's bandwidth and of the tensor cores' rate, in per cent."""
    row = by_peer.get(OURS)
    if row is None or not row["seconds"]:
        return ["–", "–"]
    taken = statistics.median(row["seconds"])
    moved = row["moved"] / taken / result["limits"]["bandwidth"]
    dtype = getattr(torch, row["dtype"])
    rate = result["datasheet_flop"] or max(result["limits"]["product"].values())
    return [f"{100 * moved:.0f}", f"{100 * COST[dtype] * row['flop'] / taken / rate:.0f}"]


def decoding(result: Result, dtype: str, width: int) -> str | None:
    """Return the microseconds of a decoded token."""
    found = [
        row
        for row in result["rows"].values()
        if (row["dtype"], row["width"], row["kind"]) == (dtype, width, DECODING)
    ]
    names = [name for name in DECODERS if any(row["peer"] == name for row in found)]
    if not names:
        return None
    head = [f"one token, {dtype}, width {width}: batch", "after tokens", *names]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for batch, length in sorted({(row["batch"], row["length"]) for row in found}):
        by_peer = {
            row["peer"]: row for row in found if (row["batch"], row["length"]) == (batch, length)
        }
        cells = [step_cell(by_peer.get(name)) for name in names]
        lines.append(f"| {batch} | {length:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def step_cell(row: Row | None) -> str:
    """Return the microseconds of a step, or why there are none."""
    if row is None or not row["seconds"]:
        return cell(row)
    return f"{1e6 * statistics.median(row['seconds']):,.0f} µs"


def card(result: Result) -> str:
    """Return the card, its measured rates and the versions, as a list."""
    same, limits, machine = result["same"], result["limits"], result["machine"]
    datasheet = result["datasheet_flop"]
    products = [f"{name} {rate / 1e12:.0f} TFLOP/s" for name, rate in limits["product"].items()]
    versions = [f"{name} {same[name]}" for name in ("torch", "triton", "fla") if name in same]
    rate = "the fastest of these: the card is in no table"
    if datasheet is not None:
        rate = f"the datasheet's {datasheet / 1e12:.0f} TFLOP/s"
    facts = [
        f"{same['card']}; {', '.join(versions)}; backend `{same['backend']}`; host "
        f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}",
        f"the limit of memory is that of a copy: {limits['bandwidth'] / 1e12:.3g} TB/s, read and "
        "written",
        f"a product of two square matrices: {', '.join(products)}; the limit of the tensor cores: "
        f"{rate}",
    ]
    return "\n".join(f"- {fact}" for fact in facts)


TABLES: Tables = {"attention_gpu": goals_table, "attention_gpu_details": details}
