"""How many training steps a second does the arena's Text classifier make with every mixer?

    python -m benchmarks arena_cost --threads 1

With every mixer that has a bidirectional form, at the lengths of the paper's table and at two
longer ones; about a quarter of an hour. The model has the defaults of SequenceModelConfig (one
layer of 256 with 4 heads, the classification from a vector before the sequence); a step is forward,
loss, backward and AdamW, in float32, on random bytes. Each length is measured in a process of its
own with a limit on memory and one on time; what does not fit says so, and longer sequences of that
mixer are then not tried.

Memory and time: see cells.py; the model, its gradients and the optimizer are in the memory.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.mixers.cost import cells
from benchmarks.mixers.cost.cells import Call, CallOf, Cell, Costs
from benchmarks.pages import Pictures, Tables, digits, legend, machine_of, style
from benchmarks.runner import Result
from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.models.sequences.model import SequenceClassifier
from flowformer.nn import MIXERS
from flowformer.report.figures import BLUE, GREEN, GREY, ORANGE
from flowformer.report.words import MISSING, duration, memory, to_markdown

BYTES = 1 + 256  # padding, and the values of a byte
CLASSES = 2

Cells = dict[tuple[str, int], Cell]

# The palette of Okabe and Ito, as in flowformer.report; ours is the thick one, and the mixers that
# the paper does not compare with share the grey.
LOOK: dict[str, dict[str, Any]] = {
    "flow": {"color": BLUE, "linewidth": 2.4, "zorder": 4},
    "softmax": {"color": ORANGE, "linewidth": 2.0},
    "linear": {"color": GREEN, "marker": "s"},
    "performer": {"color": "#CC79A7", "marker": "^"},
    "cosformer": {"color": "#000000", "marker": "D"},
    "bigbird": {"color": "#56B4E9", "marker": "v"},
    "reformer": {"color": "#E69F00", "marker": "P"},
}
OTHERS = {"color": GREY, "linewidth": 0.8, "alpha": 0.45, "markersize": 2, "zorder": 1}


def make_step(
    config: SequenceModelConfig,
    length: int,
    *,
    batch: int,
    device: torch.device,
    vocabulary: int = BYTES,
    classes: int = CLASSES,
) -> Call:
    """Return a training step of a classifier with fresh parameters, on random tokens."""
    model = SequenceClassifier(
        config, vocab_size=vocabulary, num_classes=classes, max_length=length
    ).to(device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs = torch.randint(1, vocabulary, (batch, length), device=device)
    labels = torch.randint(classes, (batch,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        loss = model(inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def maker(name: str, _: int, arguments: Namespace) -> CallOf:
    """Return what makes the steps of a cell."""
    config = SequenceModelConfig(mixer=name, num_layers=arguments.layers)
    device = torch.device(arguments.device)
    return lambda _, tokens: make_step(config, tokens, batch=arguments.batch, device=device)


def setting(arguments: Namespace) -> Result:
    """Return what all cells have in common."""
    model = SequenceModelConfig(num_layers=arguments.layers)
    return {
        "layers": model.num_layers,
        "dim": model.dim,
        "heads": model.num_heads,
        "feedforward": model.feedforward,
        **{key: getattr(arguments, key) for key in ("batch", "threads", "device", "time_limit")},
    }


COSTS = Costs(
    module=__name__,
    mixers=[name for name, mixer in MIXERS.items() if mixer.capabilities.bidirectional],
    passes=("training",),
    lengths=[1024, 2048, 3072, 4096, 16384, 65536],
    time_limit=20,
    maker=maker,
    label=lambda name, _: name,
    setting=setting,
)


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    cells.add_options(parser, COSTS, "arena_cost")
    parser.add_argument("--layers", type=int, default=1)


execute = partial(cells.execute, COSTS)


def cells_of(result: Result) -> Cells:
    """Return the cells by mixer and length, in the order of MIXERS."""
    found = {(cell["mixer"], cell["length"]): cell for cell in result["cells"]}
    order = list(MIXERS)
    return dict(sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])))


def axes_of(found: Cells) -> tuple[list[str], list[int]]:
    """Return the mixers and the lengths."""
    return list(dict.fromkeys(name for name, _ in found)), sorted({length for _, length in found})


def over_length(result: Result, head: str, figure: Callable[[Any, Any], str]) -> str:
    """Return a table of a figure of every mixer at every length, made beside softmax's cell."""
    found = cells_of(result)
    mixers, lengths = axes_of(found)
    rows = []
    for name in mixers:
        pairs = [(found.get((name, n)), found.get(("softmax", n))) for n in lengths]
        row = [
            figure(c, softmax) if c and c["problem"] is None else MISSING for c, softmax in pairs
        ]
        rows.append([f"`{name}`", *row])
    return to_markdown([head, *(f"{n:,}" for n in lengths)], rows).rstrip()


def steps(result: Result) -> str:
    """Return steps per second and how many times softmax's they are."""

    def figure(cell: Any, softmax: Any) -> str:
        return digits(1 / cell["seconds"]) + ratio(
            softmax, lambda s: s["seconds"] / cell["seconds"]
        )

    return over_length(result, "steps/s (× softmax's)", figure)


def peak(result: Result) -> str:
    """Return peak memory and how many times softmax's it is."""

    def figure(cell: Any, softmax: Any) -> str:
        return memory(cell["memory"]) + ratio(softmax, lambda s: cell["memory"] / s["memory"])

    return over_length(result, "peak memory (× softmax's)", figure)


def ratio(softmax: Any, of: Callable[[Any], float]) -> str:
    """Return a ratio to softmax's figure, where there is one."""
    return f" ({of(softmax):.2f})" if softmax and softmax["problem"] is None else ""


def unfinished(result: Result) -> str:
    """Return a line for each length and reason that mixers ended at."""
    ended: dict[tuple[int, str], list[str]] = {}
    for (name, length), cell in cells_of(result).items():
        if cells.is_end(cell):
            ended.setdefault((length, cell["problem"]), []).append(f"`{name}`")
    lines = [
        f"- {length:,} tokens, {problem}: {', '.join(names)}"
        for (length, problem), names in sorted(ended.items())
    ]
    return "\n".join(lines or [cells.ALL_FINISHED])


def circumstances(result: Result) -> str:
    """Return what was measured on what, in a sentence."""
    model = result["setting"]
    layers = f"{model['layers']} layer" + ("s" if model["layers"] > 1 else "")
    return (
        f"{layers} of {model['dim']} with {model['heads']} heads, feed-forward part of "
        f"{model['feedforward']}, batches of {model['batch']}; at most {model['memory_limit']} and "
        f"{duration(model['time_limit'])} a cell. On {model['device']}: {machine_of(result)}."
    )


def draw(result: Result) -> Figure:
    """Draw steps per second and peak memory over the length, all axes logarithmic."""
    found = cells_of(result)
    mixers, lengths = axes_of(found)
    figure = Figure(figsize=(8.6, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, title, value in (
        (panels[0], "Training steps per second", lambda cell: 1 / cell["seconds"]),
        (panels[1], "Peak memory of a step, MiB", lambda cell: cell["memory"] / 2**20),
    ):
        for name in mixers:
            points = [
                (n, value(cell))
                for n in lengths
                if (cell := found.get((name, n))) and cell["problem"] is None
            ]
            if points:
                look = {"linewidth": 1.5, "marker": "o", "markersize": 4, "zorder": 3}
                look |= LOOK.get(name, OTHERS)
                label = name if name in LOOK else "other mixers"
                axes.plot(*zip(*points, strict=True), label=label, **look)
        style(axes, title)
        axes.set_xticks(lengths, [f"{n:,}" for n in lengths], rotation=45, ha="right")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    legend(figure, (*LOOK, "other mixers"))
    return figure


TABLES: Tables = {
    "arena_cost_setting": circumstances,
    "arena_cost_steps": steps,
    "arena_cost_memory": peak,
    "arena_cost_unfinished": unfinished,
}
PICTURES: Pictures = {"arena-cost.png": draw}
