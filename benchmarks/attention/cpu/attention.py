"""How fast is attention on a CPU, beside its peers and the machine's limit? `make bench`.

One sequence, 8 heads of width 64, float32, one thread on one core. At each length all peers and
both passes alternate in one run, beside a product of 1024 x 1024 matrices whose rate the limit is
made of; ratios are taken within a round, and their median is reported. `goals.py` says which
ratios are wanted. What cannot be measured stays in the result with the reason.
"""

import os
import statistics
import sysconfig
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from benchmarks.attention.cpu import goals
from benchmarks.attention.cpu.goals import SGEMM, Measured, fill
from benchmarks.attention.peers import (
    BOTH,
    CHUNKED,
    COMPILED,
    FAST,
    FORWARD,
    OURS,
    PASSES,
    PUBLISHED,
    SOFTMAX,
    WIDTH,
    Attention,
    Peer,
    forward,
    forward_backward,
    make_inputs,
    native_or_chunked,
    peers,
)
from benchmarks.pages import Pictures, Tables, legend, milliseconds, place_of, style
from benchmarks.runner import (
    CORES,
    Seconds,
    alternate,
    machine,
    medians,
    pin,
    rise,
    said_separately,
    save,
    share,
)
from flowformer import FlowState, flow_attention, flow_attention_step
from flowformer.machine import available_memory
from flowformer.report.figures import BLUE, GREEN, GREY, ORANGE

NAME = "attention_cpu"
SHORT = 128  # tokens of the call that loads code and starts threads


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is measured; `--quick` has a smaller one."""

    heads: int = 8
    lengths: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
    one_head: tuple[int, ...] = (1024, 4096, 16_384, 65_536, 262_144, 1_048_576)
    memory: tuple[int, ...] = (512, 2048, 8192, 32_768, 131_072)
    positions: tuple[int, ...] = (1000, 1_000_000)
    cache: int = 8192
    threads_at: int = 4096
    copied: int = 2**26  # numbers: 256 MiB, far more than a cache holds
    thorough: bool = True  # compile, and measure the memory of others too
    repeats: int = 30
    budget: float = 1.5  # seconds for a side at a length
    shortest: float = 0.01


QUICK = Plan(
    heads=2,
    lengths=(128, 256),
    one_head=(1024, 4096),
    memory=(512,),
    positions=(10, 1000),
    cache=512,
    threads_at=256,
    copied=2**20,
    thorough=False,
    repeats=3,
    budget=0.0,
    shortest=0.0,
)


@dataclass(kw_only=True)
class Run:
    """What is known while it runs: the plan, the backend, and the reasons of what is missing."""

    plan: Plan
    backend: str
    start: float = field(default_factory=time.perf_counter)
    missing: dict[str, str] = field(default_factory=dict)
    compile_seconds: dict[str, float] = field(default_factory=dict)

    def say(self, text: str) -> None:
        """Print a line of progress."""
        print(f"{time.perf_counter() - self.start:5.0f} s  {text}", flush=True)

    def alternate(self, sides: Mapping[str, Callable[[], object]]) -> Seconds:
        """Alternate under the plan."""
        plan = self.plan
        return alternate(sides, repeats=plan.repeats, budget=plan.budget, shortest=plan.shortest)


def usable(run: Run, form: str) -> dict[str, tuple[Peer, Attention]]:
    """Return the peers of a form that can be measured here, the compiled one once compiled."""
    ready = {}
    for name, peer in peers(causal=form == "causal", backend=run.backend).items():
        if peer.missing or (name == COMPILED and not run.plan.thorough):
            run.missing[name] = peer.missing or "left out of a quick run"
            continue
        attention = peer.make()
        if name == COMPILED and not compiles(run, form, peer, attention):
            continue
        ready[name] = peer, attention
    return ready


def compiles(run: Run, form: str, peer: Peer, attention: Attention) -> bool:
    """Compile both passes, note the seconds; where that fails, note the reason."""
    inputs = make_inputs(2048, run.plan.heads, heads_first=peer.heads_first)
    for name, call in PASSES.items():
        run.say(f"{form}: compiling {CHUNKED}, {name}")
        start = time.perf_counter()
        try:
            call(attention, inputs)
        except RuntimeError as error:  # every error of torch.compile is one
            reason = str(error).strip().splitlines()[0]
            run.missing[COMPILED] = f"{form}, {name}: {type(error).__name__}: {reason}"
            run.say(run.missing[COMPILED])
            return False
        run.compile_seconds[f"{form}, {name}"] = time.perf_counter() - start
    return True


def product() -> Callable[[], object]:
    """Return the product of two 1024 x 1024 matrices, into memory that is there."""
    a, b, out = (torch.rand(1024, 1024) for _ in range(3))
    return partial(torch.mm, a, b, out=out)


def over_length(run: Run, form: str) -> dict[int, Seconds]:
    """Time all peers and passes at each length."""
    ready = usable(run, form)
    times = {}
    for length in run.plan.lengths:
        inputs = {
            heads_first: make_inputs(length, run.plan.heads, heads_first=heads_first)
            for heads_first in (False, True)
        }
        sides: dict[str, Callable[[], object]] = {SGEMM: product()}
        for name, (peer, attention) in ready.items():
            for kind, call in PASSES.items():
                if length <= peer.longest[kind]:
                    sides[f"{name}, {kind}"] = partial(call, attention, inputs[peer.heads_first])
                else:
                    run.missing[f"{name}, {form}, {kind}, above {peer.longest[kind]:,} tokens"] = (
                        peer.why
                    )
        times[length] = run.alternate(sides)
        median = medians(times[length])
        said = [
            f"{name} {1e3 * median[f'{name}, {kind}']:.2f}"
            for kind in PASSES
            for name in (OURS, SOFTMAX)
            if f"{name}, {kind}" in median
        ]
        run.say(f"{form}, {length:,} tokens, ms forward / both passes: {', '.join(said)}")
    return times


def over_threads(run: Run) -> Seconds:
    """Time both passes, and the matrix product as a control, on one thread and on two."""
    if len(CORES) < 2:
        run.missing["two threads"] = "this process may use one core only"
        return {}
    peer = peers(causal=True, backend=run.backend)[OURS]
    inputs = make_inputs(run.plan.threads_at, run.plan.heads, heads_first=peer.heads_first)
    calls: dict[str, Callable[[], object]] = {SGEMM: product()}
    calls |= {kind: partial(call, peer.make(), inputs) for kind, call in PASSES.items()}

    def on(threads: int, call: Callable[[], object]) -> None:
        torch.set_num_threads(threads)
        call()

    pin(2)
    sides = {
        f"{name}, {threads}": partial(on, threads, call)
        for name, call in calls.items()
        for threads in (1, 2)
    }
    times = run.alternate(sides)
    pin(1)
    median = medians(times)
    said = [f"{name} {median[f'{name}, 1'] / median[f'{name}, 2']:.2f}" for name in calls]
    run.say(f"two threads, times as fast: {', '.join(said)}")
    return times


def over_long_sequences(run: Run) -> dict[int, list[float]]:
    """Time the causal forward pass of one head, up to a million tokens, alternating lengths."""
    peer = peers(causal=True, backend=run.backend)[OURS]
    sides = {
        str(length): partial(
            forward, peer.make(), make_inputs(length, 1, heads_first=peer.heads_first)
        )
        for length in run.plan.one_head
    }
    times = {int(length): seconds for length, seconds in run.alternate(sides).items()}
    said = [f"{1e9 * statistics.median(times[n]) / n:.0f} ns at {n:,}" for n in times]
    run.say(f"one head, a token: {', '.join(said)}")
    return times


@torch.no_grad()
def state_after(tokens: int, run: Run) -> FlowState | None:
    """Return the state after that many tokens, read in pieces."""
    piece = 65_536
    state = None
    for start in range(0, tokens, piece):
        shape = (3, 1, min(piece, tokens - start), run.plan.heads, WIDTH)
        _, state = flow_attention(
            *torch.randn(shape), causal=True, initial_state=state, return_state=True
        )
    return state


def decoding(run: Run) -> Seconds:
    """Time one step at each position, and softmax over a cache that is already filled."""
    plan = run.plan
    token = torch.randn(3, 1, 1, plan.heads, WIDTH)
    sides: dict[str, Callable[[], object]] = {
        f"{position:,}": partial(flow_attention_step, *token, state_after(position, run))
        for position in plan.positions
    }
    cache = torch.randn(2, 1, plan.heads, plan.cache, WIDTH)
    query = torch.randn(1, plan.heads, 1, WIDTH)
    sides[SOFTMAX] = partial(torch.nn.functional.scaled_dot_product_attention, query, *cache)
    with torch.no_grad():
        times = run.alternate(sides)
    said = [f"{1e6 * seconds:.0f} at {name}" for name, seconds in medians(times).items()]
    run.say(f"one step, µs: {', '.join(said)}")
    return times


def over_memory(run: Run) -> dict[str, dict[int, int]]:
    """Measure the peak memory of both passes of each peer, in fresh processes."""
    peaks: dict[str, dict[int, int]] = {}
    for name, peer in peers(causal=True, backend=run.backend).items():
        if name in run.missing or not (name == OURS or run.plan.thorough):
            continue
        peaks[name] = {}
        for length in run.plan.memory:
            reason = memory_reason(peer, peaks[name], length)
            if reason is None:
                try:
                    peaks[name][length] = int(
                        said_separately(
                            print_peak,
                            name=name,
                            backend=run.backend,
                            length=length,
                            heads=run.plan.heads,
                        )
                    )
                except RuntimeError as error:
                    reason = str(error)
            if reason is not None:
                run.missing[f"{name}, peak memory from {length:,} tokens on"] = reason
                break
        said = [f"{peak / 2**20:,.0f} at {length:,}" for length, peak in peaks[name].items()]
        run.say(f"{name}, peak MiB: {', '.join(said)}")
    return peaks


def memory_reason(peer: Peer, peaks: dict[int, int], length: int) -> str | None:
    """Return why a length is left out: too slow, or too large for this machine."""
    if length > peer.longest[BOTH]:
        return peer.why
    free = available_memory()
    if peaks and free is not None:
        last, peak = list(peaks.items())[-1]
        expected, most = peak * length / last, free / 2
        if expected > most:
            return f"{expected / 2**30:.0f} GiB expected, half of what is free: {most / 2**30:.0f}"
    return None


def print_peak(name: str, backend: str, length: int, heads: int) -> None:
    """Print the bytes that resident memory rises by in the causal forward and backward pass.

    From before the inputs are made to the highest point while inputs, output and all gradients are
    held. What is resident counts every allocator and every page, torch's or not. For a fresh
    process: memory that earlier work freed and the allocator kept would be used again unseen.
    """
    pin(1)
    peer = peers(causal=True, backend=backend)[name]
    attention = peer.make()

    def both(tokens: int) -> tuple[torch.Tensor, ...]:
        inputs = make_inputs(tokens, heads, heads_first=peer.heads_first)
        results = forward_backward(attention, inputs)
        assert torch.isfinite(results[0][0, -1]).all()
        return *inputs, *results

    both(SHORT)
    print(rise(lambda: both(length)))


def bandwidth(run: Run) -> float:
    """Return the bytes a second, read and written, of a copy that no cache holds."""
    source = torch.rand(run.plan.copied)
    target = torch.empty_like(source)
    times = run.alternate({"copy": partial(target.copy_, source)})
    return 2 * 4 * run.plan.copied / statistics.median(times["copy"])


def measure(run: Run) -> dict[str, Any]:
    """Measure everything; return what is saved."""
    before = machine()["load"]
    rate = bandwidth(run)
    run.say(f"a copy moves {rate / 1e9:.1f} GB/s, {run.backend} is measured as ours")
    measured = Measured(
        heads=run.plan.heads,
        bandwidth=rate,
        causal=over_length(run, "causal"),
        bidirectional=over_length(run, "bidirectional"),
        threads=over_threads(run),
        one_head=over_long_sequences(run),
        decoding=decoding(run),
        memory=over_memory(run),
    )
    return {
        "backend": run.backend,
        "heads": run.plan.heads,
        "width": WIDTH,
        "load_before": before,
        "seconds": time.perf_counter() - run.start,
        **fill(measured),
        "compile_seconds": run.compile_seconds,
        "extension_flags": f"{sysconfig.get_config_var('OPT')}",
        "missing": run.missing,
    }


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, NAME, quick=False)
    backend = native_or_chunked()
    parser.add_argument("--backend", default=backend, help="what is measured as ours")


def execute(arguments: Namespace) -> None:
    """Measure, print and save."""
    pin(1)
    run = Run(plan=QUICK if arguments.quick else Plan(), backend=arguments.backend)
    with tempfile.TemporaryDirectory() as cache:
        # Empty, so that the seconds of compiling are those of a first time; then used again by
        # the processes that measure memory.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        result = measure(run)
    for row in result["rows"]:
        run.say(f"{row['what']}, against {row['against']}")
        for case in row["cases"]:
            run.say(f"    {case['label']}: {case['said']}")
    save(arguments.output, result)


# The palette of Okabe and Ito, as in flowformer.report; ours is the thick one.
LOOK: dict[str, dict[str, Any]] = {
    OURS: {"color": BLUE, "linewidth": 2.4, "zorder": 3},
    SOFTMAX: {"color": ORANGE},
    PUBLISHED: {"color": GREEN},
    CHUNKED: {"color": "#56B4E9"},
    COMPILED: {"color": "#CC79A7"},
    FAST: {"color": "#E69F00"},
}
ONE_HEAD = {"color": BLUE, "linewidth": 1.2, "linestyle": ":", "marker": "o", "markersize": 2.5}
PAIR = {OURS: "Flow-Attention", SOFTMAX: "softmax"}
LIMIT = {"color": GREY, "linestyle": (0, (4, 2)), "linewidth": 1.2}


def draw(result: dict[str, Any]) -> Figure:
    """Draw time and peak memory over length, all axes logarithmic."""
    figure = Figure(figsize=(7.6, 6.0), layout="constrained")
    panels = figure.subplots(2, 2)
    times, limits = result["seconds_by_length"], result["limit_by_length"]
    for axes, form, kind, title in (
        (panels[0, 0], "causal", FORWARD, "Causal, forward"),
        (panels[0, 1], "causal", BOTH, "Causal, forward and backward"),
        (panels[1, 0], "bidirectional", FORWARD, "Bidirectional, forward"),
    ):
        for name in LOOK:
            draw_line(axes, name, times[form].get(f"{name}, {kind}", {}), scale=1e3)
        if kind == FORWARD:
            lengths, limit = points(limits[form], 1e3)
            axes.plot(lengths, limit, label="the machine's limit", **LIMIT)
        if form == "causal" and kind == FORWARD:
            lengths, alone = points(result["one_head_by_length"], 1e3)
            axes.plot(lengths, alone, label=f"{OURS}, one head", **ONE_HEAD)
        panel(axes, title, "ms")
    memory = panels[1, 1]
    for name in LOOK:
        draw_line(memory, name, result["peak_memory_by_length"].get(name, {}), scale=2**-20)
    lengths, least = points(result["smallest_memory_by_length"], 2**-20)
    memory.plot(lengths, least, label="inputs, output, gradients", **{**LIMIT, "linestyle": ":"})
    panel(memory, "Causal, forward and backward: peak memory", "MiB")
    legend(figure)
    return figure


def draw_short(result: dict[str, Any]) -> Figure:
    """Draw the time of causal attention over length, ours and softmax, with the measured ratios."""
    figure = Figure(figsize=(7.6, 3.0), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind, title, row in zip(
        panels,
        PASSES,
        ("Causal attention, forward", "Causal attention, forward and backward"),
        result["rows"],
        strict=False,
    ):
        sides = {name: result["seconds_by_length"]["causal"][f"{name}, {kind}"] for name in PAIR}
        for name, by_length in sides.items():
            draw_line(axes, name, by_length, scale=1e3)
            length, slowest = list(by_length)[-1], 1e3 * list(by_length.values())[-1]
            place = {"textcoords": "offset points", "xytext": (6, 0), "va": "center"}
            look = {"color": LOOK[name]["color"], "fontsize": 8.5}
            axes.annotate(
                PAIR[name], (int(length), slowest), annotation_clip=False, **place, **look
            )
        for case in row["cases"]:
            length = case["label"].split()[0].replace(",", "")
            ours, theirs = (1e3 * sides[name][length] for name in (OURS, SOFTMAX))
            axes.plot([int(length)] * 2, [ours, theirs], color=GREY, linewidth=0.8, zorder=1)
            middle, below = (ours * theirs) ** 0.5, case["ratio"] < 5  # no room between the lines
            axes.annotate(
                f"{case['ratio']:.3g} ×",
                (int(length), ours if below else middle),
                xytext=(13, -7) if below else (0, 0),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
            )
        panel(axes, title, "ms")
        axes.set(xlim=(90, 45_000), ylim=(0.2, 9_000))
    return figure


def points(by_length: Mapping[str, float], scale: float) -> tuple[list[int], list[float]]:
    """Return lengths and values."""
    return [int(n) for n in by_length], [scale * value for value in by_length.values()]


def draw_line(axes: Axes, name: str, by_length: Mapping[str, float], *, scale: float) -> None:
    """Draw one peer, where it was measured."""
    if by_length:
        look = {"linewidth": 1.4, "marker": "o", "markersize": 2.5, **LOOK[name]}
        axes.plot(*points(by_length, scale), label=name, **look)


def panel(axes: Axes, title: str, unit: str) -> None:
    """Style a panel."""
    style(axes, title)
    axes.xaxis.set_major_locator(LogLocator(base=4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda n, _: f"{n:,.0f}"))
    axes.set_ylabel(unit, fontsize=8)


def times(result: dict[str, Any]) -> str:
    """Return the milliseconds of every peer over length, forward / both passes."""
    tables = []
    for form, sides in result["seconds_by_length"].items():
        lengths = list(result["limit_by_length"][form])
        names = [name for name in LOOK if f"{name}, {FORWARD}" in sides]
        head = [f"{form}, tokens", *names, "limit, forward"]
        lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for n in lengths:
            cells = [
                " / ".join(milliseconds(sides.get(f"{name}, {kind}", {}).get(n)) for kind in PASSES)
                for name in names
            ]
            limit = milliseconds(result["limit_by_length"][form][n])
            lines.append(f"| {int(n):,} | {' | '.join(cells)} | {limit} |")
        tables.append("\n".join(lines))
    alone = {int(n): seconds for n, seconds in result["one_head_by_length"].items()}
    tables.append(
        f"| one head, causal forward, tokens | {' | '.join(f'{n:,}' for n in alone)} |\n"
        f"|---|{'---|' * len(alone)}\n"
        f"| ns a token | {' | '.join(f'{1e9 * alone[n] / n:.0f}' for n in alone)} |"
    )
    return "\n\n".join(tables)


def circumstances(result: dict[str, Any]) -> str:
    """Return the machine and its rates, and what is missing, as a list."""
    machine = result["machine"]
    compiling = ", ".join(f"{name} {s:.0f} s" for name, s in result["compile_seconds"].items())
    facts = [
        f"{place_of(machine)}, Python {machine['python']}; load {result['load_before']} before and "
        f"{machine['load']} after",
        f"float32 product of 1024 × 1024 on one thread: {result['sgemm_gflop_per_second']:.0f} "
        f"GFLOP/s; copy: {result['copy_gb_per_second']:.1f} GB/s read and written",
        f"measured as flowformer: the backend `{result['backend']}`; all in "
        f"{result['seconds'] / 60:.0f} minutes",
        f"compiling {CHUNKED}: {compiling or 'not measured'}",
        f"fast-transformers is compiled with {result['extension_flags']}, with which this Python "
        "compiles extensions",
        *(
            f"matrix product on two threads: {threads[f'{SGEMM}, 1'] / threads[f'{SGEMM}, 2']:.2f} "
            "times as fast as on one"
            for threads in [result["threads"]]
            if threads
        ),
        *(f"left out: {what}: {why}" for what, why in result["missing"].items()),
    ]
    return "\n".join(f"- {fact}" for fact in facts)


TABLES: Tables = {
    "attention_cpu": goals.table,
    "attention_cpu_times": times,
    "attention_cpu_machine": circumstances,
}
PICTURES: Pictures = {"attention-cpu.png": draw, "attention-length.png": draw_short}
