"""How many tokens of training turn a model with softmax into one of constant cost, at what loss?

    python -m benchmarks linearize                        # every mixer and share of the tokens
    python -m benchmarks linearize --mixers flow --shares 0.05     # some, beside what is kept
    python -m benchmarks linearize --recipe wiki-small --steps 1000 --batch-size 1

A model of text is trained with softmax by a recipe, converted to transformers' GPT-2 and linearized
with a share of the tokens of its training, half of them for the attention transfer and half for the
fine-tuning. Its run stands in runs/linearize; stopped or killed, the same command goes on, and what
is kept is not measured again. Each recipe has a result of its own.
"""

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.pages import Tables
from benchmarks.runner import ROOT, Result, keep, names, pin, read, share
from flowformer.integrations.transformers import linearize
from flowformer.integrations.transformers.runs import convert_to_gpt2
from flowformer.recipes import build_recipe
from flowformer.report.words import memory, to_markdown
from flowformer.train.language.config import LanguageConfig
from flowformer.train.language.data import load_text
from flowformer.train.run import train

NAME = "linearize"
CONTEXTS = (256, 1024, 4096)
MIXERS = ["flow-gated", "flow", "gated"]


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, NAME, threads=1, stop_after=None, anew=False, quick=False)
    parser.add_argument("--mixers", type=names, default=MIXERS, help="with commas between them")
    parser.add_argument("--recipe", default="char-shakespeare", help="a recipe of text")
    parser.add_argument("--steps", type=int, default=2000, help="of the training with softmax")
    about = "of the tokens of that training, with commas between them"
    parser.add_argument("--shares", type=shares, default=[0.02, 0.05, 0.1], help=about)
    about = "layers that stay softmax: the first so many, with commas between them"
    parser.add_argument("--keep", type=counts, default=[0], help=about)
    parser.add_argument("--batch-size", type=int, default=4, help="sequences of a step")
    parser.add_argument("--transfer-rate", type=float, default=3e-3)
    parser.add_argument("--tune-rate", type=float, default=1e-3)


def shares(text: str) -> list[float]:
    """Return the numbers in a list with commas."""
    return [float(number) for number in names(text)]


def counts(text: str) -> list[int]:
    """Return the whole numbers in a list with commas."""
    return [int(number) for number in names(text)]


def config_of(arguments: Namespace) -> LanguageConfig:
    """Return the run with softmax."""
    recipe = build_recipe(arguments.recipe)
    assert isinstance(recipe, LanguageConfig)
    training = replace(
        recipe.training,
        steps=arguments.steps,
        # Four times, where that divides the steps.
        evaluate_every=arguments.steps // (1 if arguments.steps % 4 else 4),
        threads=arguments.threads,
        accelerator="cpu",
    )
    return replace(recipe, model=replace(recipe.model, mixer="softmax"), training=training)


def setting_of(arguments: Namespace) -> dict[str, Any]:
    """Return what all cells have in common."""
    own = ("steps", "batch_size", "transfer_rate", "tune_rate")
    return {name: getattr(arguments, name) for name in own}


def cells(arguments: Namespace) -> Iterator[dict[str, Any]]:
    """Return what is asked for, the cheapest first."""
    for part in sorted(arguments.shares):
        for kept in arguments.keep:
            for mixer in arguments.mixers:
                yield {"mixer": mixer, "share": part, "kept": kept}


def measure(cell: dict[str, Any], folder: Path, arguments: Namespace) -> Result:
    """Linearize the model of the run anew."""
    config = config_of(arguments)
    text = load_text(config.data)
    parts = [text.tokenizer.decode(each[:]) for each in (text.train, text.test)]
    length, batch = config.data.length, config.data.batch_size  # of the training with softmax
    tokens = round(cell["share"] * arguments.steps * length * batch) // 2
    model, tokenizer = convert_to_gpt2(folder, at_least=max(CONTEXTS) + 10)
    done = linearize(
        model,
        tokenizer,
        parts,
        mixer=cell["mixer"],
        keep=range(cell["kept"]),
        length=length,
        batch_size=arguments.batch_size,
        transfer_tokens=tokens,
        transfer_rate=arguments.transfer_rate,
        tune_tokens=tokens,
        tune_rate=arguments.tune_rate,
        held_out=len(parts[1]) / sum(map(len, parts)),
        contexts=CONTEXTS,
    )
    stages = [asdict(stage) for stage in done.stages]
    costs = {"before": done.cost_before, "after": done.cost_after}
    found = {name: [asdict(each) for each in of] for name, of in costs.items()}
    print(
        f"{cell['mixer']}, {cell['kept']} kept, {done.stages[-1].tokens:,} tokens: "
        + ", ".join(f"{each.bits_per_character:.3f}" for each in done.stages)
        + " bits a character before, exchanged, after (a), after (b): "
        + f"{100 * done.more_bits:+.1f} %",
        flush=True,
    )
    return {**cell, "stages": stages, "costs": found, "parameters": list(done.parameters)}


def execute(arguments: Namespace) -> None:
    """Measure what was asked for, and keep it beside what is there.

    Raises:
        ValueError: what is there is of another training.
    """
    pin(arguments.threads)
    if arguments.quick:
        arguments.steps, arguments.mixers, arguments.shares = 4, ["flow-gated"], [0.5]
    output, recipe = arguments.output, arguments.recipe
    kept = {} if arguments.anew else (read(output.stem, output.parent) or {}).get(recipe, {})
    setting = setting_of(arguments)
    if kept and kept["setting"] != setting:
        raise ValueError(
            f"{recipe} in {output} is of {kept['setting']}, and {setting} is asked for: "
            "give --anew, or another --output"
        )
    folder = ROOT / "runs" / NAME / f"{recipe}-{arguments.steps}"
    began = time.monotonic()
    train(config_of(arguments), folder, resume=True)
    found = {key_of(cell): cell for cell in kept.get("cells", [])}
    for cell in cells(arguments):
        if key_of(cell) in found:
            continue
        if arguments.stop_after is not None and time.monotonic() - began > arguments.stop_after:
            print("stopped: the same command goes on")
            break
        found[key_of(cell)] = measure(cell, folder, arguments)
        keep(output, [recipe], {"setting": setting, "cells": list(found.values())})


def key_of(cell: Result) -> tuple[Any, ...]:
    """Return what tells a cell from others."""
    return tuple(cell[name] for name in ("mixer", "share", "kept"))


def table(result: Result) -> str:
    """Return the bits of each mixer after each share of the tokens, a table for each recipe."""
    header = ["mixer", "softmax stays in", "tokens", "share", "before", "after (a)", "after (b)"]
    tables = []
    for recipe, part in of_recipes(result).items():
        rows = [
            [
                f"`{cell['mixer']}`",
                f"the first {cell['kept']}" if cell["kept"] else "no layer",
                f"{cell['stages'][-1]['tokens']:,}",
                f"{100 * cell['share']:g} %",
                *(
                    f"{each['bits_per_character']:.3f}"
                    for each in cell["stages"]
                    if each["name"] != "exchanged"
                ),
                f"{100 * (cell['stages'][-1]['nats'] / cell['stages'][0]['nats'] - 1):+.1f} %",
            ]
            for cell in part["cells"]
        ]
        setting = part["setting"]
        about = (
            f"Bits of a character of held-out text; `{recipe}` with softmax, "
            f"{setting['steps']:,} steps, of whose tokens the share is; "
            f"sequences a step: {setting['batch_size']}"
        )
        tables.append(f"{about}\n\n{to_markdown([*header, 'more'], rows).rstrip()}")
    return "\n\n".join(tables)


def of_recipes(result: Result) -> dict[str, Any]:
    """Return the parts of a result, without what it says of the machine."""
    return {recipe: part for recipe, part in result.items() if "cells" in part}


def cost_table(result: Result) -> str:
    """Return the time and memory of a token of the first recipe, each mixer in all layers."""
    part = next(iter(of_recipes(result).values()))
    cells = {cell["mixer"]: cell["costs"] for cell in part["cells"] if not cell["kept"]}
    before = next(iter(cells.values()))["before"]
    columns = {"softmax": before}
    columns |= {f"`{mixer}`": costs["after"] for mixer, costs in cells.items()}
    header = ["tokens before", *columns]
    rows = [
        [
            f"{softmax['context']:,}",
            *(
                f"{of[at]['milliseconds']:.2f} ms, {memory(of[at]['bytes'])}"
                for of in columns.values()
            ),
        ]
        for at, softmax in enumerate(before)
    ]
    return to_markdown(header, rows)


TABLES: Tables = {"linearize": table, "linearize-cost": cost_table}
