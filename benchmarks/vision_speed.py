"""Forward throughput of the hierarchical model with each mixer, against the same with softmax.

    python -m benchmarks.vision_speed

The published body, float32, one thread, with random parameters and images: the whole model at 224
pixels, and its first two stages (50,176 and 12,544 tokens) at 896, where `encode` stops behind
them. At each case the mixers take turns in one process; ratios are taken within a round, and their
median is reported.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.runner import RESULTS, alternate, medians, pin, ratios, save
from flowformer.models.presets import VISION_PRESETS
from flowformer.models.vision import VisionClassifier
from flowformer.models.vision_config import VisionModelConfig

MIXERS = ["flow", "softmax"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is timed.

    Attributes:
        image_size: pixels on a side.
        batch: images in a call.
        stages: how many stages are computed; None for the whole model with its head.
        goal: images a second of flow over those of softmax, at least.
    """

    image_size: int
    batch: int
    stages: int | None
    goal: float


CASES = {
    "224 pixels, whole model": Case(image_size=224, batch=4, stages=None, goal=1),
    "896 pixels, first two stages": Case(image_size=896, batch=1, stages=2, goal=3),
}


def side(config: VisionModelConfig, mixer: str, case: Case, images: Tensor) -> Callable[[], Tensor]:
    """Return a call of a model with that mixer on the images."""
    torch.manual_seed(0)
    config = replace(config, mixer=mixer, mixer_options=None)
    model = VisionClassifier(config, image_size=case.image_size, num_classes=1000).eval()

    @torch.no_grad()
    def call() -> Tensor:
        if case.stages is None:
            return model(images).logits
        return model.encode(images, [case.stages - 1], stop_early=True)[0]

    return call


def measure(
    cases: Mapping[str, Case],
    *,
    mixers: list[str],
    repeats: int,
    config: VisionModelConfig = VISION_PRESETS["hierarchical"],
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Time all mixers in all cases."""
    measured = {}
    for name, case in cases.items():
        images = torch.randn(case.batch, 3, case.image_size, case.image_size)
        sides = {mixer: side(config, mixer, case, images) for mixer in mixers}
        seconds = alternate(sides, repeats=repeats)
        rates = {mixer: case.batch / each for mixer, each in medians(seconds).items()}
        times = {
            mixer: statistics.median(ratios(seconds["softmax"], seconds[mixer])) for mixer in mixers
        }
        measured[name] = {
            "batch": case.batch,
            "goal": case.goal,
            "images_per_second": rates,
            "over_softmax": times,
            "seconds": seconds,
        }
        for mixer, rate in rates.items():
            say(f"{name}: {mixer:<8}{rate:8.3f} images/s, {times[mixer]:5.2f} times softmax's")
    return measured


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mixers", type=lambda text: text.split(","), default=MIXERS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the result goes")
    arguments = parser.parse_args()
    if "softmax" not in arguments.mixers:
        parser.error(f"--mixers must name softmax, got {','.join(arguments.mixers)}")
    pin(1)
    cases = measure(CASES, mixers=arguments.mixers, repeats=arguments.repeats)
    print(save("vision_speed", {"cases": cases}, arguments.folder))


if __name__ == "__main__":
    main()
