"""Calls of whole models, in a process of one source tree: what `end_to_end.py` has timed.

Run with a tree's package on the path. It imports nothing of the other benchmarks, which need not
fit the package of an earlier commit, and finds what it needs of that by name, since files move.
Each line that it reads is `[name, arguments, calls]` in JSON: a function below and what it is made
with; it answers with the seconds of that many calls.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import flowformer

Call = Callable[[], object]


@cache
def named(name: str) -> Any:
    """Return the class or the table of that name, wherever the package defines it.

    Raises:
        LookupError: it does so nowhere.
    """
    package = Path(flowformer.__file__).parent
    definition = re.compile(rf"^(class {name}\b|{name}\b.*=)", re.MULTILINE)
    for path in sorted(package.rglob("*.py")):
        if definition.search(path.read_text()):
            parts = path.relative_to(package).with_suffix("").parts
            return getattr(import_module(".".join((package.name, *parts))), name)
    raise LookupError(f"{package} defines no {name}")


def training_step(channels: int, classes: int, longest: int, shortest: int) -> Call:
    """Return a step of the time-series classifier: 16 series, forward, backward and RAdam."""
    inputs, labels = torch.randn(16, longest, channels), torch.randint(classes, (16,))
    lengths = torch.randint(shortest, longest + 1, (16,))
    lengths[0] = longest
    mask = torch.arange(longest) < lengths[:, None]
    model = named("TimeSeriesClassifier")(
        named("TimeSeriesModelConfig")(),
        channels=channels,
        num_classes=classes,
        max_length=longest,
    )
    optimizer = torch.optim.RAdam(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        model(inputs * mask[..., None], mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 4.0)
        optimizer.step()

    return step


@torch.no_grad()
def generated_token(preset: str, vocabulary: int) -> Call:
    """Return a step of generation, with the state that the one before has left."""
    config = replace(named("LANGUAGE_PRESETS")[preset], tie_embeddings=True)
    model = named("LanguageModel")(config, vocab_size=vocabulary).eval()
    decoder = named("CarriedDecoder")(model)
    logits = decoder.start(named("Prompt")(torch.randint(vocabulary, (1, 32)), None))

    @torch.no_grad()
    def step() -> None:
        nonlocal logits
        logits = decoder.step(logits.argmax(-1))

    return step


def image(preset: str, pixels: int) -> Call:
    """Return the forward pass of an image model."""
    config = named("VISION_PRESETS")[preset]
    model = named("VisionClassifier")(config, image_size=pixels, num_classes=1000).eval()
    images = torch.randn(1, 3, pixels, pixels)
    return torch.no_grad()(lambda: model(images))


@cache
def made(name: str, arguments: str) -> Call:
    """Return a call, made once."""
    torch.manual_seed(0)
    return globals()[name](**json.loads(arguments))


def main() -> None:
    """Answer until there is nothing more to read."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        name, arguments, calls = json.loads(line)
        call = made(name, json.dumps(arguments))
        start = time.thread_time()
        for _ in range(calls):
            call()
        print(time.thread_time() - start, flush=True)


if __name__ == "__main__":
    main()
