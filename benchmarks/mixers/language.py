"""How good do language models of equal size become in the same steps, with each mixer?

    python -m benchmarks language characters            # Shakespeare by characters, 256 at a time
    python -m benchmarks language wiki lengths          # Wikipedia by words; longer contexts
    python -m benchmarks language --dry-run             # how long each will take
    python -m benchmarks language --quick               # does it run?

The recipes char-shakespeare and wiki-small as they are, four layers of 128 with four heads, but for
the steps: as many as take `flow` twenty minutes of a core. Every model has the parameters of the
one with `flow`, by narrower or wider feed-forward layers. On `lengths` the characters again, in
samples of longer contexts: as many tokens a step in as many steps, of which those of 256 are the
runs of `characters`.

Each seed of a part is one `flowformer compare`, printed before it starts, in comparisons/language;
all mixers have a seed before one has the next. Stopped or killed, it goes on by the same command,
within a run after its last measurement. A seed that has ended stands in results/language.json, each
run with its score, its cost, and its scores on the validation part over the steps.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.mixers import runs
from benchmarks.mixers.gating import CAUSAL, GATED
from benchmarks.mixers.runs import FOLDER, Row, mark, mean_and_spread, scores_of, tests_of
from benchmarks.pages import Pictures, Tables, made_on
from benchmarks.runner import Result, one_of, share
from flowformer.compare.significance import against
from flowformer.report.curves import height_with_legend, legend_below, line_styles
from flowformer.report.figures import plain
from flowformer.report.words import MISSING, duration, memory, show, to_markdown
from flowformer.scores.measures import BITS_PER_CHARACTER, PERPLEXITY, Measure
from flowformer.train.folder import RunFolder
from flowformer.train.run_files import read_history

NAME = "language"
CHARACTERS, WIKI, LENGTHS = PARTS = ("characters", "wiki", "lengths")
RECIPES = {CHARACTERS: "char-shakespeare", WIKI: "wiki-small"}
MEASURES = {CHARACTERS: BITS_PER_CHARACTER, WIKI: PERPLEXITY}
BASELINE = CAUSAL[0]
# Fewer where a run takes longer, never fewer seeds or shorter runs.
MIXERS = {
    CHARACTERS: [*CAUSAL, *GATED],
    WIKI: ["flow", "softmax", "linear", "mamba2", "flow-gated"],
    LENGTHS: ["flow", "softmax", "gated"],
}
STEPS = {CHARACTERS: 4500, WIKI: 2250}
SPEED = "tokens_per_second"  # of a run's result
MEASUREMENTS = 15  # on the validation part, while a run trains
CONTEXT = 256  # of the recipe of the characters
CONTEXTS = (CONTEXT, 1024, 2048, 4096)
TOKENS = 4096  # of a step
TINY = {"steps": 4, "mixers": ["flow", "softmax"]}
TINY_MODEL = "--model.dim 16 --model.num-heads 2 --model.num-layers 1 --model.feedforward 32"

Runs = list[Mapping[str, Any]]


def places(parts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield where the runs of some parts stand in the result: a part, or a part and its context."""
    for part in parts:
        if part != LENGTHS:
            yield (part,)
            continue
        yield from ((part, str(context)) for context in CONTEXTS if context != CONTEXT)


def asked_of(place: tuple[str, ...], mixers: Sequence[str], *, quick: bool = False) -> list[str]:
    """Return the recipe of a place and its flags, without the seeds."""
    part = place[0] if place[0] in RECIPES else CHARACTERS
    steps = TINY["steps"] if quick else STEPS[part]
    each = max(1, steps // MEASUREMENTS)
    asked = [RECIPES[part], "--training.threads", "1", "--training.steps", str(steps)]
    asked += ["--training.evaluate-every", str(each)]
    if place[1:]:
        samples = TOKENS // int(place[1])
        asked += ["--data.length", place[1], "--data.batch-size", str(samples)]
        asked += ["--model.max-length", place[1]]
    asked += TINY_MODEL.split() if quick else ()
    return [*asked, "--mixers", ",".join(mixers), "--equal-parameters"]


def logged(output: Path, row: Row) -> dict[str, Any]:
    """Return what a run's folder has logged: tokens a second, and the score over the steps."""
    folder = RunFolder(output / "runs" / row["dataset"] / f"{row['method']}-seed{row['seed']}")
    speed = json.loads(folder.result.read_text())[SPEED]
    history = read_history(folder, "step")
    (column,) = (of.column for of in MEASURES.values() if of.column in history)
    curve = {"step": history["step"].astype(int).tolist(), "score": history[column].tolist()}
    return {SPEED: speed, "curve": curve}


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    name = one_of("part", PARTS)
    parser.add_argument("names", nargs="*", type=name, default=list(PARTS), metavar="PART")
    share(parser, NAME, mixers=None, seeds=3, again=False, dry_run=False, quick=False)


def execute(arguments: Namespace) -> None:
    """Compare in the parts that were asked for, and keep each seed beside what is there."""
    torch.set_num_threads(1)  # as each run has, for the machine's description
    quick, kept = arguments.quick, arguments.output
    seeds = 1 if quick else arguments.seeds

    def asked(place: tuple[str, ...]) -> tuple[Path, list[str]]:
        mixers = arguments.mixers or (TINY["mixers"] if quick else MIXERS[place[0]])
        return FOLDER / kept.stem / "-".join(place), asked_of(place, mixers, quick=quick)

    if arguments.dry_run:
        for place in places(arguments.names):
            output, setting = asked(place)
            runs.rehearse(output, [*setting, "--seeds", str(seeds)])
        return
    for part, seed in product(arguments.names, range(seeds)):
        for place in places([part]):
            output, setting = asked(place)
            one = [*setting, "--training.seed", str(seed), "--seeds", "1"]
            at = (*place, f"seed {seed}")
            runs.collect(kept, at, output, one, again=arguments.again, more=logged)


def runs_of(result: Result, *place: str) -> dict[str, Runs]:
    """Return the runs of each mixer at a place, seed after seed; of those that have every seed."""
    at = result
    for key in place:
        at = at.get(key, {})
    found: dict[str, Runs] = {}
    for part in at.values():
        for run in sorted(part["runs"], key=lambda run: run["seed"]):
            found.setdefault(run["method"], []).append(run)
    return {method: own for method, own in found.items() if len(own) == len(at)}


def at_context(result: Result, context: int) -> dict[str, Runs]:
    """Return the runs of each mixer at a context: those of the recipe's are of `characters`."""
    longer = [place for place in places([LENGTHS]) if runs_of(result, *place)]
    if context != CONTEXT:
        return runs_of(result, LENGTHS, str(context))
    shown = {method for place in longer for method in runs_of(result, *place)}
    return {method: own for method, own in runs_of(result, CHARACTERS).items() if method in shown}


def marked(found: Mapping[str, Runs], measure: Measure) -> dict[str, str]:
    """Return mean and spread of each mixer's scores, marked where they differ from flow's."""
    scores = scores_of(run for own in found.values() for run in own)
    tests = tests_of(scores, against(scores, BASELINE), measure)
    return {
        method: mean_and_spread(own, measure) + mark(tests.get((method, BASELINE)))
        for method, own in scores.items()
    }


def mean_of(own: Runs, name: str) -> float | None:
    """Return the mean of a figure over runs; None where it was not measured."""
    values = [run[name] for run in own if name in run]
    return mean(values) if values else None


def speed_of(found: Mapping[str, Runs], mixer: str) -> float | None:
    """Return the tokens a second of a mixer's training, the mean of its seeds; None without any."""
    return mean_of(found.get(mixer, []), SPEED)


def table(result: Result, part: str) -> str:
    """Return the scores of every mixer in a part and what they cost."""
    found, measure = runs_of(result, part), MEASURES[part]
    if not found:
        return UNMEASURED[f"{NAME}_{part}"]
    shown = marked(found, measure)
    rows = [
        [
            f"`{method}`",
            shown[method],
            f"{mean_of(own, SPEED):,.0f}",
            show(mean_of(own, "parameters"), "{:,.0f}".format),
            show(mean_of(own, "seconds"), duration),
            show(max(run.get("peak_memory", 0) for run in own) or None, memory),
        ]
        for method, own in found.items()
    ]
    header = ["mixer", measure.heading, "tokens a second, training", "parameters"]
    header += ["training a run", "peak memory"]
    seeds = len(next(iter(found.values())))
    steps = f"{found[next(iter(found))][0]['curve']['step'][-1]:,} steps"
    about = f"{seeds} seed{'s' * (seeds > 1)}, {steps}."
    return f"{about}\n\n{to_markdown(header, rows)}\n{made_on(result[part])}"


def characters(result: Result) -> str:
    """Return the table of the characters, with the picture of both parts over the steps."""
    made = table(result, CHARACTERS)
    if draw(result) is None:
        return made
    about = "The score on the validation part over the steps, with the spread of the seeds"
    return f"{made}\n\n![{about}](assets/{PICTURE})"


def wiki(result: Result) -> str:
    """Return the table of the words."""
    return table(result, WIKI)


def lengths(result: Result) -> str:
    """Return bits and tokens a second over the context, and the picture of them."""
    columns = {context: at_context(result, context) for context in CONTEXTS}
    if not columns[max(CONTEXTS)]:
        return UNMEASURED[f"{NAME}_{LENGTHS}"]
    shown = {context: marked(found, BITS_PER_CHARACTER) for context, found in columns.items()}

    def figure(context: int, method: str) -> str:
        own = columns[context].get(method)
        if own is None:
            return MISSING
        return f"{shown[context][method]}; {mean_of(own, SPEED):,.0f}"

    methods = dict.fromkeys(method for found in columns.values() for method in found)
    rows = [
        [f"`{method}`", *(figure(context, method) for context in columns)] for method in methods
    ]
    header = ["bits per character; tokens a second", *(f"{n:,} characters" for n in columns)]
    picture = f"![Bits per character and tokens a second over the context](assets/{OVER_LENGTH})"
    made = made_on([result[LENGTHS], result.get(CHARACTERS)])
    return f"{to_markdown(header, rows)}\n{made}\n\n{picture}"


def draw(result: Result) -> Figure | None:
    """Draw the scores over the steps, each mixer's mean with the spread of its seeds."""
    parts = {part: found for part in RECIPES if (found := runs_of(result, part))}
    if not parts:
        return None
    styles = _styles(*parts.values())
    height = height_with_legend(styles, 3.6)
    figure = Figure(figsize=(4.3 * len(parts) + 0.4, height), layout="constrained")
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, (part, found) in zip(panels, parts.items(), strict=True):
        for method, own in found.items():
            steps = own[0]["curve"]["step"]
            every = np.array([run["curve"]["score"] for run in own])
            style = {**styles[method], "marker": None}
            _with_spread(axes, steps, every, label=method, linewidth=1.4, **style)
        name = MEASURES[part].name
        plain(axes, f"{name[0].upper()}{name[1:]}, {RECIPES[part]}, validation")
        axes.set_xlabel("step", fontsize=8)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_yscale("log")  # the differences at the end are small beside those at the start
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.tick_params(which="minor", labelsize=7)
    legend_below(figure, *panels)
    return figure


def _styles(*columns: Mapping[str, Runs]) -> dict[str, dict[str, Any]]:
    """Return the look of the mixers in some columns, the same in every picture."""
    every = dict.fromkeys([*MIXERS[CHARACTERS], *(each for found in columns for each in found)])
    there = {method for found in columns for method in found}
    return {method: look for method, look in line_styles(list(every)).items() if method in there}


def _with_spread(axes: Axes, along: Sequence[float], every: np.ndarray, **style: Any) -> None:
    middle = every.mean(axis=0)
    axes.plot(along, middle, **style)
    if len(every) > 1:
        around = every.std(axis=0, ddof=1)
        axes.fill_between(
            along, middle - around, middle + around, color=style["color"], alpha=0.2, linewidth=0
        )


def draw_lengths(result: Result) -> Figure | None:
    """Draw bits per character and tokens a second over the context."""
    columns = {n: found for n in CONTEXTS if (found := at_context(result, n))}
    if len(columns) < 2:
        return None
    styles = _styles(*columns.values())
    figure = Figure(figsize=(7.6, height_with_legend(styles, 3.0)), layout="constrained")
    bits, speed = figure.subplots(1, 2)
    for method, style in styles.items():
        along = [n for n, found in columns.items() if method in found]
        for axes, name in ((bits, "score"), (speed, SPEED)):
            every = [[run[name] for run in columns[n][method]] for n in along]
            spread = [stdev(of) if len(of) > 1 else 0.0 for of in every]
            middle = [mean(of) for of in every]
            look = {"linewidth": 1.4, "markersize": 4, "capsize": 2, "label": method}
            axes.errorbar(along, middle, yerr=spread, **style, **look)
    for axes, title in ((bits, "Bits per character, test"), (speed, "Tokens a second, training")):
        plain(axes, title)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(columns), [f"{n:,}" for n in columns])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("characters of a sample", fontsize=8)
    speed.set_ylim(bottom=0)
    speed.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    legend_below(figure, bits)
    return figure


PICTURE, OVER_LENGTH = "language.png", "language-lengths.png"
TABLES: Tables = {
    f"{NAME}_{CHARACTERS}": characters,
    f"{NAME}_{WIKI}": wiki,
    f"{NAME}_{LENGTHS}": lengths,
}
PICTURES: Pictures = {PICTURE: draw, OVER_LENGTH: draw_lengths}
UNMEASURED = {
    f"{NAME}_{part}": f"*Not run yet: `python -m benchmarks {NAME} {part}`.*" for part in PARTS
}
