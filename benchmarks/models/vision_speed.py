"""How many images a second does the hierarchical model classify with each mixer?

The published body, float32, one thread, with random parameters and images: the whole model at 224
pixels, and its first two stages (50,176 and 12,544 tokens) at 896, where `encode` stops behind
them. At each case the mixers take turns in one process, after a call unmeasured on a smaller image;
ratios are taken within a round, and their median is reported. At 896 pixels softmax takes minutes:
one round is the default.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.runner import Seconds, medians, one_of, pin, save, seconds_of, share, times_softmax
from flowformer.models.images.config import VISION_PRESETS, VisionModelConfig
from flowformer.models.images.model import VisionClassifier

MIXERS = ["flow", "softmax"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is timed.

    Attributes:
        image_size: pixels on a side.
        batch: images in a call.
        stages: how many stages are computed; None for the whole model with its head.
        goal: images a second of flow over those of softmax, at least.
        rounds: in which all mixers take part.
    """

    image_size: int
    batch: int
    stages: int | None
    goal: float
    rounds: int


CASES = {
    "224 pixels, whole model": Case(image_size=224, batch=4, stages=None, goal=1, rounds=7),
    "896 pixels, first two stages": Case(image_size=896, batch=1, stages=2, goal=3, rounds=1),
}


def side(config: VisionModelConfig, mixer: str, case: Case) -> Callable[[Tensor], Tensor]:
    """Return the forward pass of a model with that mixer."""
    torch.manual_seed(0)
    config = replace(config, mixer=mixer, mixer_options=None)
    model = VisionClassifier(config, image_size=case.image_size, num_classes=1000).eval()

    @torch.no_grad()
    def call(images: Tensor) -> Tensor:
        if case.stages is None:
            return model(images).logits
        return model.encode(images, [case.stages - 1], stop_early=True)[0]

    return call


def measure(
    cases: Mapping[str, Case],
    *,
    mixers: list[str],
    config: VisionModelConfig = VISION_PRESETS["hierarchical"],
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Time all mixers in all cases."""
    measured = {}
    for name, case in cases.items():
        images = torch.randn(case.batch, 3, case.image_size, case.image_size)
        sides = {mixer: side(config, mixer, case) for mixer in mixers}
        for forward in sides.values():  # loads code and starts threads
            forward(images[:1, :, : config.stride, : config.stride])
        seconds: Seconds = {mixer: [] for mixer in mixers}
        for _ in range(case.rounds):
            for mixer, forward in sides.items():
                seconds[mixer].append(seconds_of(partial(forward, images)))
        rates = {mixer: case.batch / each for mixer, each in medians(seconds).items()}
        times = times_softmax(seconds)
        measured[name] = {
            "batch": case.batch,
            "goal": case.goal,
            "images_per_second": rates,
            "over_softmax": times,
            "seconds": seconds,
        }
        for mixer, rate in rates.items():
            say(f"{name}: {mixer:<8}{rate:8.4f} images/s, {times[mixer]:5.2f} times softmax's")
    return measured


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, "vision_speed", mixers=MIXERS, rounds=None)
    names = one_of("case", CASES)
    parser.add_argument("cases", nargs="*", type=names, default=list(CASES), metavar="CASE")


def execute(arguments: Namespace) -> None:
    """Measure, print, and save after every case."""
    if "softmax" not in arguments.mixers:
        sys.exit(f"--mixers must name softmax, got {','.join(arguments.mixers)}")
    pin(1)
    measured: dict[str, dict[str, Any]] = {}
    for name in arguments.cases:
        case = CASES[name]
        if arguments.rounds is not None:
            case = replace(case, rounds=arguments.rounds)
        measured |= measure({name: case}, mixers=arguments.mixers)
        save(arguments.output, {"cases": measured})
