"""What time and memory does every mixer take over the length, forward and with backward?

    python -m benchmarks mixer_cost --lengths 256,1024 --mixers flow,softmax

One layer in float32, on one sequence, each length in a process of its own with a limit on memory
and one on time. What does not fit says so, and longer sequences of that mixer are then not tried.
A mixer without a bidirectional form is measured in its causal one; --causal measures that of all
that have it. `flowformer compare --cost benchmarks/results/mixer_cost.json` shows the result.

Memory and time: see cells.py; the memory of the parameters is not in it.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.mixers.cost import cells
from benchmarks.mixers.cost.cells import SHORT, Call, CallOf, Cell, Costs
from benchmarks.pages import Tables
from benchmarks.runner import Result
from flowformer.nn import MIXERS, ProjectedMixer, build_mixer
from flowformer.report.words import MISSING, duration, memory, to_markdown

CAUSAL = " (causal)"  # after the name of a mixer that is measured in its causal form


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


def maker(name: str, length: int, arguments: Namespace) -> CallOf:
    """Return what makes the calls of a mixer's passes."""
    device = torch.device(arguments.device)
    causal = is_causal(name, arguments.causal)
    mixer = build_mixer(name, arguments.dim, arguments.heads, max_length=max(length, SHORT))
    mixer = mixer.to(device)

    def call_of(pass_name: str, tokens: int) -> Call:
        training = pass_name == "training"
        shape = (arguments.batch, tokens, arguments.dim)
        inputs = torch.randn(shape, device=device, requires_grad=training)
        return make_call(mixer.train(training), inputs, causal=causal, training=training)

    return call_of


def label(name: str, arguments: Namespace) -> str | None:
    """Return what a mixer's cells are named, or None where it lacks the form asked for."""
    if arguments.causal and not MIXERS[name].capabilities.causal:
        return None
    return name + CAUSAL * is_causal(name, arguments.causal)


def setting(arguments: Namespace) -> Result:
    """Return what all cells have in common."""
    keys = ("dim", "heads", "batch", "device", "causal", "time_limit")
    return {key: getattr(arguments, key) for key in keys}


COSTS = Costs(
    module=__name__,
    mixers=list(MIXERS),
    passes=("forward", "training"),
    lengths=[2**power for power in range(8, 17)],
    time_limit=60,
    maker=maker,
    label=label,
    setting=setting,
)


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    cells.add_options(parser, COSTS, "mixer_cost")
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)


execute = partial(cells.execute, COSTS)


def cells_by_length(result: Result, pass_name: str) -> dict[tuple[str, int], Cell]:
    """Return the measured cells of a pass by mixer and length."""
    return {
        (cell["mixer"].removesuffix(CAUSAL), cell["length"]): cell
        for cell in result["cells"]
        if cell["pass_name"] == pass_name
    }


def over_length(
    result: Result, *, pass_name: str, column: str, form: Callable[[float], str]
) -> str:
    """Return a table of one figure of every mixer at every length."""
    found = cells_by_length(result, pass_name)
    lengths = sorted({length for _, length in found})
    names = dict.fromkeys(name for name, _ in found)

    def figure(cell: Cell) -> str:
        return form(cell[column]) if cell["problem"] is None else MISSING

    rows = [[f"`{name}`", *(figure(found[name, length]) for length in lengths)] for name in names]
    return to_markdown(["tokens", *(f"{length:,}" for length in lengths)], rows).rstrip()


def unfinished(result: Result) -> str:
    """Return a line for each pass and mixer that ended before the longest sequence."""
    lines = [
        f"- `{name}`, {pass_name}, {cell['length']:,} tokens: {cell['problem']}"
        for pass_name in COSTS.passes
        for (name, _), cell in cells_by_length(result, pass_name).items()
        if cells.is_end(cell)
    ]
    return "\n".join(lines or [cells.ALL_FINISHED])


TABLES: Tables = {
    "mixer_cost_training": partial(
        over_length, pass_name="training", column="seconds", form=duration
    ),
    "mixer_cost_memory": partial(over_length, pass_name="training", column="memory", form=memory),
    "mixer_cost_forward": partial(
        over_length, pass_name="forward", column="seconds", form=duration
    ),
    "mixer_cost_unfinished": unfinished,
}
