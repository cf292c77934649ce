"""What is the latency of DeiT-tiny with each mixer, exported to ONNX, in onnxruntime on a CPU?

One image, float32, one thread, random parameters; an export for each size of image. The mixers
take turns in one process, ratios are taken within a round, and their median is reported. The
logits of onnxruntime are compared with PyTorch's before.
"""

import sys
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from benchmarks.runner import alternate, medians, numbers, pin, save, share, times_softmax
from flowformer.models.images.config import VISION_PRESETS, VisionModelConfig
from flowformer.models.images.model import VisionClassifier

MIXERS = ["mobile", "flow", "softmax"]
SIZES = [224, 512]


def export(
    config: VisionModelConfig, mixer: str, images: Tensor, folder: Path
) -> tuple[onnxruntime.InferenceSession, float]:
    """Return a session with the model, on one thread, and how far its logits are off PyTorch's.

    The distance is that of the largest difference, over the largest of PyTorch's logits.
    """
    torch.manual_seed(0)
    config = replace(config, mixer=mixer, mixer_options=None)
    model = VisionClassifier(config, image_size=images.shape[-1], num_classes=1000).eval()
    file = folder / f"{mixer}-{images.shape[-1]}.onnx"
    torch.onnx.export(
        model,
        (images,),
        file,
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        verbose=False,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model(images).logits
    logits = torch.from_numpy(call(session, images))
    return session, float((logits - expected).abs().max() / expected.abs().max())


def call(session: onnxruntime.InferenceSession, images: Tensor) -> Any:
    """Return the logits of the images."""
    return session.run(["logits"], {"images": images.numpy()})[0]


def measure(
    sizes: list[int],
    *,
    mixers: list[str],
    repeats: int,
    shortest: float,
    config: VisionModelConfig = VISION_PRESETS["deit-tiny"],
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, Any]]:
    """Time all mixers at all sizes of images."""
    measured = {}
    for size in sizes:
        images = torch.randn(1, 3, size, size)
        with tempfile.TemporaryDirectory() as folder:
            exported = {mixer: export(config, mixer, images, Path(folder)) for mixer in mixers}
        sides = {mixer: partial(call, session, images) for mixer, (session, _) in exported.items()}
        seconds = alternate(sides, repeats=repeats, shortest=shortest)
        times = times_softmax(seconds)
        measured[str(size)] = {
            "milliseconds": {mixer: 1e3 * each for mixer, each in medians(seconds).items()},
            "softmax_over": times,
            "off_pytorch": {mixer: off for mixer, (_, off) in exported.items()},
            "seconds": seconds,
        }
        for mixer, each in measured[str(size)]["milliseconds"].items():
            say(
                f"{size} pixels: {mixer:<8}{each:8.1f} ms, softmax takes {times[mixer]:.2f} times"
                f" that; logits off by {exported[mixer][1]:.0e}"
            )
    return measured


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, "vision_latency", mixers=MIXERS, rounds=15)
    parser.add_argument("--sizes", type=numbers, default=SIZES, help="pixels on a side")


def execute(arguments: Namespace) -> None:
    """Measure, print and save."""
    if "softmax" not in arguments.mixers:
        sys.exit(f"--mixers must name softmax, got {','.join(arguments.mixers)}")
    pin(1)
    found = measure(
        arguments.sizes, mixers=arguments.mixers, repeats=arguments.rounds, shortest=0.2
    )
    result = {"model": "deit-tiny", "onnxruntime": onnxruntime.__version__, "sizes": found}
    save(arguments.output, result)
