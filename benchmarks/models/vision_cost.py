"""How many parameters and multiply-adds have the image models, beside the paper's?

Counted by PyTorch; nothing is computed: the models stand on the device "meta". `FlopCounterMode`
sees the operators that multiply matrices and convolve, neither norms nor activations; half of its
operations are multiply-adds. The attention is counted in the backend `chunked`, whose products it
sees (the CPU library is one operator, of which it sees nothing); the equations word for word
(`reference`) multiply fewer matrices: the flows are sums there, which it does not count. "Layers
alone" leaves the products inside the attention out, as counters do that look at modules.
"""

from argparse import Namespace
from dataclasses import replace
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from flowformer.models.images.config import VISION_PRESETS, VisionModelConfig
from flowformer.models.images.model import VisionClassifier

MIXERS = ("flow", "mobile", "linear", "softmax")

# Millions of parameters and G multiply-adds in the paper's table of ImageNet-1K.
PAPER: dict[tuple[str, str], tuple[str, str]] = {
    ("hierarchical", "flow"): ("41", "6.3"),
    ("hierarchical", "softmax"): ("", "6.7"),
    ("deit-small", "flow"): ("22", "4.2"),
    ("deit-small", "softmax"): ("", "4.6"),
}


class Cost(NamedTuple):
    """Of one image.

    Attributes:
        parameters: numbers that the model learns.
        total: multiply-adds that the counter sees.
        layers: those of linear layers and convolutions among them.
    """

    parameters: int
    total: int
    layers: int


def count(config: VisionModelConfig, *, image_size: int = 224, num_classes: int = 1000) -> Cost:
    """Count the parameters of a model and what classifying one image costs."""
    with torch.device("meta"), torch.no_grad():
        model = VisionClassifier(config, image_size=image_size, num_classes=num_classes).eval()
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, image_size, image_size))
    by_operator = counter.get_flop_counts()["Global"]
    layers = by_operator[torch.ops.aten.addmm] + by_operator[torch.ops.aten.convolution]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Cost(parameters, counter.get_total_flops() // 2, layers // 2)


def row(name: str, mixer: str) -> str:
    """Return the line of the table for a preset with a mixer."""
    cost = count(replace(VISION_PRESETS[name], mixer=mixer))
    parameters, operations = PAPER.get((name, mixer), ("", ""))
    return (
        f"| {name} | {mixer} | {cost.parameters / 1e6:.2f} | {parameters} "
        f"| {cost.total / 1e9:.2f} | {cost.layers / 1e9:.2f} | {operations} |"
    )


def execute(_: Namespace) -> None:
    """Print the table, in Markdown."""
    print("| model | mixer | parameters, M | paper | multiply-adds, G | layers alone | paper |")
    print("|---|---|---|---|---|---|---|")
    for name in VISION_PRESETS:
        for mixer in MIXERS:
            print(row(name, mixer))
