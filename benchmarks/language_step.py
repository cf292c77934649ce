"""Tokens per second and peak memory of a language model's training step, over the context.

    python -m benchmarks.language_step --contexts 512,4096 --mixers flow,softmax

The model of the recipe wiki-small with each mixer; every step reads the same number of tokens, cut
into fewer, longer samples as the context grows: forward, backward, gradient clipping and AdamW in
float32. At a context the mixers take turns in one process; memory is measured in a process of its
own for each cell, as what the resident memory rises by over a step, model and optimizer included.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from benchmarks.runner import ROOT, alternate, medians, pin, ratios, save
from flowformer.memory import forget_peak, offer_to_the_kernel, peak_memory, resident_memory
from flowformer.models.language.model import LanguageModel
from flowformer.nn import MIXERS
from flowformer.recipes.language import wiki_small
from flowformer.report.words import memory

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


def print_peak(mixer: str, context: int, samples: int) -> None:
    """Print the bytes that this process's resident memory rises by over two steps."""
    offer_to_the_kernel()
    make_step(mixer, SHORT, 1)()
    before = resident_memory()
    assert before is not None, "resident memory is read from /proc, which this system does not have"
    forget_peak()
    step = make_step(mixer, context, samples)
    step()
    step()
    print(peak_memory() - before)


def peak_of(mixer: str, context: int, arguments: argparse.Namespace) -> int:
    """Return the peak memory of a step, measured in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.language_step", "--cell", mixer]
    command += ["--contexts", str(context), "--tokens", str(arguments.tokens)]
    command += ["--threads", str(arguments.threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return int(done.stdout)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixers", type=lambda text: text.split(","), default=MIXERS_SHOWN)
    parser.add_argument(
        "--contexts", type=lambda text: list(map(int, text.split(","))), default=CONTEXTS
    )
    parser.add_argument("--tokens", type=int, default=8192, help="of a step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cell", choices=sorted(MIXERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.mixers) - set(MIXERS):
        parser.error(f"unknown mixer {', '.join(unknown)}: choose from {', '.join(MIXERS)}")
    if wrong := [each for each in arguments.contexts if arguments.tokens % each]:
        parser.error(
            f"--tokens must be a multiple of every context, got {arguments.tokens}, {wrong}"
        )
    return arguments


def main() -> None:
    """Measure, print, and save after every context."""
    arguments = parse()
    pin(arguments.threads)
    if arguments.cell:
        (context,) = arguments.contexts
        print_peak(arguments.cell, context, arguments.tokens // context)
        return
    cells: dict[str, dict[str, dict]] = {}
    for context in arguments.contexts:
        samples = arguments.tokens // context
        peaks = {mixer: peak_of(mixer, context, arguments) for mixer in arguments.mixers}
        steps = {mixer: make_step(mixer, context, samples) for mixer in arguments.mixers}
        seconds = alternate(steps, repeats=arguments.repeats)
        rates = {mixer: arguments.tokens / each for mixer, each in medians(seconds).items()}
        cells[str(context)] = cell = {
            "tokens_per_second": rates,
            "peak_memory": peaks,
            "over_softmax": {
                mixer: statistics.median(ratios(seconds["softmax"], seconds[mixer]))
                for mixer in arguments.mixers
                if "softmax" in seconds
            },
            "seconds": seconds,
        }
        for mixer, rate in rates.items():
            times = cell["over_softmax"].get(mixer, float("nan"))
            print(
                f"{context:>6,}  {mixer:<20}{rate:>9,.0f} tokens/s, {times:5.2f} times softmax's"
                f"  {memory(peaks[mixer])}"
            )
        print(save("language_step", {"tokens": arguments.tokens, "contexts": cells}), flush=True)


if __name__ == "__main__":
    main()
