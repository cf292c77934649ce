"""How many pairs can a model of each mixer recall, and how wide must it be for that?

    python -m benchmarks recall                           # every size, of every seed
    python -m benchmarks recall --mixers gla --seeds 5    # some of them, beside what is kept

The recipe recall-small in sequences of 128 tokens: over the number of pairs at one width, and over
the width at one number of pairs. Each run stands in runs/recall; stopped or killed, it goes on by
the same command, and one that has ended stands in results/recall.json. What a guess reaches is one
over the pairs. All of it takes about 8 hours of a core, of which gla takes two, and flow-gated one.
"""

import shutil
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from benchmarks.pages import Pictures, Tables
from benchmarks.runner import ROOT, Result, machine, numbers, read, save, share
from flowformer.recipes import build_recipe
from flowformer.report.curves import format_scores, height_with_legend, legend_below, line_styles
from flowformer.report.figures import GREY, plain
from flowformer.report.words import MISSING, duration, to_markdown
from flowformer.scores.measures import ACCURACY
from flowformer.train.language.config import LanguageConfig
from flowformer.train.run import train

NAME = "recall"
FOLDER = ROOT / "runs" / NAME
MIXERS = ["softmax", "flow", "linear", "gated", "flow-gated"]
MIXERS += ["gla", "deltanet", "gated-deltanet", "mamba2"]
WIDTH, PAIRS = 64, 16  # of the sizes that vary the other


@dataclass(frozen=True, kw_only=True)
class Size:
    """A number of pairs, and the width of the model that is to recall them."""

    pairs: int
    width: int


def sizes(arguments: Namespace) -> list[Size]:
    """Return the sizes that are measured."""
    over_pairs = [Size(pairs=pairs, width=WIDTH) for pairs in arguments.pairs]
    over_widths = [Size(pairs=PAIRS, width=width) for width in arguments.widths]
    return list(dict.fromkeys(over_pairs + over_widths))


def config_of(mixer: str, size: Size, seed: int, arguments: Namespace) -> LanguageConfig:
    """Return the run of a cell."""
    recipe = build_recipe("recall-small")
    assert isinstance(recipe, LanguageConfig)
    model = replace(
        recipe.model,
        mixer=mixer,
        dim=size.width,
        feedforward=2 * size.width,
        max_length=arguments.length,
    )
    training = replace(
        recipe.training,
        steps=arguments.steps,
        evaluate_every=arguments.steps // 2,
        seed=seed,
        threads=arguments.threads,
        accelerator="cpu",
        progress="none",
    )
    data = replace(recipe.data, pairs=size.pairs, length=arguments.length)
    return replace(recipe, data=data, model=model, training=training)


def cells(arguments: Namespace) -> Iterator[tuple[str, Size, int]]:
    """Return what is asked for: all of one seed, then of the next."""
    for seed in range(arguments.seeds):
        for size in sizes(arguments):
            for mixer in arguments.mixers:
                yield mixer, size, seed


def measure(mixer: str, size: Size, seed: int, arguments: Namespace) -> Result:
    """Train, or go on, or read what has ended."""
    folder = FOLDER.with_name(arguments.output.stem)
    folder /= f"{mixer}-{size.pairs}-pairs-{size.width}-wide-seed{seed}"
    if arguments.anew:
        shutil.rmtree(folder, ignore_errors=True)
    result = train(config_of(mixer, size, seed, arguments), folder, resume=True)
    cell = {"mixer": mixer, "pairs": size.pairs, "width": size.width, "seed": seed}
    shown = f"{ACCURACY.show(result.test_score)} % in {duration(result.seconds)}"
    print(f"{mixer}, {size.pairs} pairs, {size.width} wide, seed {seed}: {shown}", flush=True)
    figures = ("test_score", "parameters", "seconds")
    return cell | {"machine": machine()} | {name: getattr(result, name) for name in figures}


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, NAME, mixers=MIXERS, threads=1, seeds=3, quick=False)
    share(parser, stop_after=None, anew=False, again=False)
    ours: dict[str, Any] = {"type": numbers, "help": "with commas between them"}
    parser.add_argument("--pairs", default=[4, 8, 16, 32], **ours)
    parser.add_argument("--widths", default=[16, 32, 64, 128], **ours)
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=1500, help="of 32 sequences")


def execute(arguments: Namespace) -> None:
    """Measure what was asked for, and keep it beside what is there.

    Raises:
        ValueError: what is there is of another length or number of steps.
    """
    if arguments.quick:
        arguments.pairs, arguments.widths = [4, 16], [16, WIDTH]
        arguments.mixers, arguments.seeds, arguments.steps = ["softmax", "deltanet"], 1, 4
    setting = {"length": arguments.length, "steps": arguments.steps}
    kept = None if arguments.anew else read(arguments.output.stem, arguments.output.parent)
    if kept is not None and kept["setting"] != setting:
        raise ValueError(
            f"{arguments.output} is of {kept['setting']}, and {setting} is asked for: give --anew, "
            "or another --output"
        )
    found = {key_of(cell): cell for cell in (kept or {"cells": []})["cells"]}
    began = time.monotonic()
    for mixer, size, seed in cells(arguments):
        if arguments.stop_after is not None and time.monotonic() - began > arguments.stop_after:
            print("stopped: the same command goes on")
            break
        if (mixer, size.pairs, size.width, seed) in found and not arguments.again:
            continue
        cell = measure(mixer, size, seed, arguments)
        found[key_of(cell)] = cell
        save(arguments.output, {"setting": setting, "cells": list(found.values())})


def key_of(cell: Result) -> tuple[Any, ...]:
    """Return what tells a cell from others."""
    return tuple(cell[name] for name in ("mixer", "pairs", "width", "seed"))


def accuracies(result: Result) -> dict[str, dict[Size, list[float]]]:
    """Return the accuracy of each seed, of each mixer at each size."""
    found: dict[str, dict[Size, list[float]]] = {}
    for cell in result["cells"]:
        size = Size(pairs=cell["pairs"], width=cell["width"])
        found.setdefault(cell["mixer"], {}).setdefault(size, []).append(cell["test_score"])
    return found


def ordered(result: Result) -> tuple[list[Size], list[Size]]:
    """Return the sizes over the pairs, and those over the width."""
    there = {size for of in accuracies(result).values() for size in of}
    over_pairs = sorted((size for size in there if size.width == WIDTH), key=lambda s: s.pairs)
    over_widths = sorted((size for size in there if size.pairs == PAIRS), key=lambda s: s.width)
    return over_pairs, over_widths


def table(result: Result) -> str:
    """Return the accuracy of each mixer over the pairs and over the width, and the picture."""
    over_pairs, over_widths = ordered(result)
    header = ["accuracy, %", *(f"{size.pairs} pairs" for size in over_pairs)]
    header += [f"{size.width} wide" for size in over_widths]
    columns = [*over_pairs, *over_widths]
    rows = [["a guess", *(ACCURACY.show(1 / size.pairs) for size in columns)]]
    for mixer, of in accuracies(result).items():
        rows.append([f"`{mixer}`", *(spread(of.get(size, [])) for size in columns)])
    setting = result["setting"]
    about = (
        f"Sequences of {setting['length']} tokens, {setting['steps']:,} steps of 32; pairs at a "
        f"width of {WIDTH}, widths at {PAIRS} pairs; mean ± spread of the seeds."
    )
    picture = "![Accuracy over the pairs and over the width](../assets/recall.png)"
    return f"{about}\n\n{to_markdown(header, rows)}\n{picture}"


def spread(values: list[float]) -> str:
    """Return mean and standard deviation."""
    if not values:
        return MISSING
    around = f" ± {ACCURACY.show(stdev(values))}" if len(values) > 1 else ""
    return ACCURACY.show(mean(values)) + around


def draw(result: Result) -> Figure:
    """Draw the accuracy over the pairs and over the width."""
    found = accuracies(result)
    figure = Figure(figsize=(7.6, height_with_legend(found, 3.0)), layout="constrained")
    by_pairs, by_width = figure.subplots(1, 2, sharey=True)
    over_pairs, over_widths = ordered(result)
    panels: tuple[tuple[Axes, list[Size], str, str], ...] = (
        (by_pairs, over_pairs, "pairs", f"Answers that are right, {WIDTH} wide"),
        (by_width, over_widths, "width", f"{PAIRS} pairs"),
    )
    for axes, along, name, title in panels:
        for mixer, style in line_styles(list(found)).items():
            means = {getattr(s, name): mean(found[mixer][s]) for s in along if s in found[mixer]}
            axes.plot(*zip(*means.items(), strict=True), **style, markersize=4, label=mixer)
        places = [getattr(size, name) for size in along]
        guesses = [1 / size.pairs for size in along]
        axes.plot(places, guesses, color=GREY, linestyle=":", label="a guess")
        axes.set_xscale("log", base=2)
        axes.set_xticks(places)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(name, fontsize=8)
        axes.set_ylim(0, 1.02)
        plain(axes, title)
        format_scores(axes, ACCURACY)
    legend_below(figure, by_pairs)
    return figure


TABLES: Tables = {NAME: table}
PICTURES: Pictures = {"recall.png": draw}
