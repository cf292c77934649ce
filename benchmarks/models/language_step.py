"""How many tokens a second does a language model train on, over the context?

    python -m benchmarks language_step --contexts 512,4096 --mixers flow,softmax

The model of the recipe wiki-small with each mixer; every step reads the same number of tokens, cut
into fewer, longer samples as the context grows: forward, backward, gradient clipping and AdamW in
float32. At a context the mixers take turns in one process; memory is measured in a process of its
own for each cell, as what the resident memory rises by over a step, model and optimizer included.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from benchmarks.pages import Tables
from benchmarks.runner import (
    Result,
    alternate,
    medians,
    numbers,
    pin,
    rise,
    said_separately,
    save,
    share,
    times_softmax,
)
from flowformer.memory import offer_to_the_kernel
from flowformer.models.language.model import LanguageModel
from flowformer.recipes.language import wiki_small
from flowformer.report.words import memory, to_markdown

MIXERS_SHOWN = ["flow", "softmax", "linear", "flow-no-competition", "flow-no-allocation"]
CONTEXTS = [512, 2048, 4096, 8192]
SHORT = 64  # tokens of the step that loads code and starts threads


def make_step(mixer: str, context: int, samples: int) -> Callable[[], None]:
    """Return a training step of a model with fresh parameters, on random tokens."""
    recipe = wiki_small()
    vocabulary = recipe.data.vocab_size
    assert vocabulary is not None
    torch.manual_seed(0)
    config = replace(recipe.model, mixer=mixer, mixer_options=None, max_length=context)
    model = LanguageModel(config, vocab_size=vocabulary).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.optimizer.learning_rate)
    ids = torch.randint(vocabulary, (samples, context))

    def step() -> None:
        optimizer.zero_grad()
        loss = model(ids, labels=ids, return_logits=False).loss
        assert loss is not None
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def print_peak(mixer: str, context: int, samples: int, threads: int) -> None:
    """Print the bytes that this process's resident memory rises by over two steps."""
    pin(threads)
    offer_to_the_kernel()
    make_step(mixer, SHORT, 1)()

    def steps() -> Callable[[], None]:
        step = make_step(mixer, context, samples)
        step()
        step()
        return step

    print(rise(steps))


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, "language_step", rounds=5, threads=1, mixers=MIXERS_SHOWN)
    parser.add_argument("--contexts", type=numbers, default=CONTEXTS)
    parser.add_argument("--tokens", type=int, default=8192, help="of a step")


def execute(arguments: Namespace) -> None:
    """Measure, print, and save after every context."""
    tokens, threads = arguments.tokens, arguments.threads
    if wrong := [each for each in arguments.contexts if tokens % each]:
        sys.exit(f"--tokens must be a multiple of every context, got {tokens}, {wrong}")
    pin(threads)
    cells: dict[str, Result] = {}
    for context in arguments.contexts:
        samples = tokens // context
        sizes = {"context": context, "samples": samples}
        peaks = {
            mixer: int(said_separately(print_peak, mixer=mixer, threads=threads, **sizes))
            for mixer in arguments.mixers
        }
        steps = {mixer: make_step(mixer, **sizes) for mixer in arguments.mixers}
        seconds = alternate(steps, repeats=arguments.rounds)
        rates = {mixer: tokens / each for mixer, each in medians(seconds).items()}
        cells[str(context)] = cell = {
            "tokens_per_second": rates,
            "peak_memory": peaks,
            "over_softmax": times_softmax(seconds) if "softmax" in seconds else {},
            "seconds": seconds,
        }
        for mixer, rate in rates.items():
            times = cell["over_softmax"].get(mixer, float("nan"))
            print(
                f"{context:>6,}  {mixer:<20}{rate:>9,.0f} tokens/s, {times:5.2f} times softmax's"
                f"  {memory(peaks[mixer])}"
            )
        save(arguments.output, {"tokens": tokens, "contexts": cells})


def table(result: Result) -> str:
    """Return tokens per second and peak memory of a training step over the context."""
    contexts = result["contexts"]
    header = ["tokens/s (× softmax's), peak memory", *(f"context {int(c):,}" for c in contexts)]
    names = next(iter(contexts.values()))["tokens_per_second"]

    def figure(name: str, cell: Result) -> str:
        rate, times = cell["tokens_per_second"][name], cell["over_softmax"][name]
        return f"{rate:,.0f} ({times:.2f}), {memory(cell['peak_memory'][name])}"

    rows = [[f"`{name}`", *(figure(name, cell) for cell in contexts.values())] for name in names]
    return to_markdown(header, rows).rstrip()


TABLES: Tables = {"language_step": table}
