"""A training step of our classifier against the published model's, at two data sets' shapes.

Forward, backward, gradient clipping and RAdam, batches of 16, alternating in one run. Ours masks
the padding (the default), which the published model does not do. It takes part twice, with the
backend that a call gets by itself and with `chunked`: what the native kernel changes in a step.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.published_timeseries import PublishedClassifier
from benchmarks.runner import alternate, medians, ratios, save
from flowformer.models.series.model import TimeSeriesClassifier, TimeSeriesModelConfig

# name: channels, classes, longest series, shortest series, measured steps
SETS = {
    "JapaneseVowels": (12, 9, 29, 7, 20),
    "SelfRegulationSCP1": (6, 2, 896, 896, 4),
}


def step_of(model: nn.Module, loss_of: Callable[[], Tensor]) -> Callable[[], None]:
    """Return one step of training."""
    optimizer = torch.optim.RAdam(model.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss_of().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 4.0)
        optimizer.step()

    return step


def measure(channels: int, classes: int, longest: int, shortest: int, repeats: int) -> dict:
    """Return the medians of all sides in seconds, and the ratios to ours."""
    torch.manual_seed(0)
    inputs, labels = torch.randn(16, longest, channels), torch.randint(classes, (16,))
    lengths = torch.randint(shortest, longest + 1, (16,))
    lengths[0] = longest
    mask = torch.arange(longest) < lengths[:, None]
    inputs = inputs * mask[..., None]
    published = PublishedClassifier(channels, classes, longest)

    def ours(backend: str | None) -> Callable[[], None]:
        # The default options of the published time-series code, and the backend.
        options = {**TimeSeriesModelConfig().resolved_mixer_options, "backend": backend}
        config = TimeSeriesModelConfig(mixer_options=options)
        model = TimeSeriesClassifier(
            config, channels=channels, num_classes=classes, max_length=longest
        )

        def loss() -> Tensor:
            loss = model(inputs, mask, labels=labels).loss
            assert loss is not None
            return loss

        return step_of(model, loss)

    sides = {
        "published": step_of(published, lambda: F.cross_entropy(published(inputs, mask), labels)),
        "ours, chunked": ours("chunked"),
        "ours": ours(None),
    }
    seconds = alternate(sides, repeats=repeats)
    return {
        "median_seconds": medians(seconds),
        "published_over_ours": statistics.median(ratios(seconds["published"], seconds["ours"])),
        "chunked_over_ours": statistics.median(ratios(seconds["ours, chunked"], seconds["ours"])),
        "seconds": seconds,
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    results = {}
    for name, sizes in SETS.items():
        results[name] = measure(*sizes)
        median = results[name]["median_seconds"]
        print(
            f"{name}: published {median['published']:.3f} s, ours {median['ours']:.3f} s a step, "
            f"{results[name]['published_over_ours']:.2f} times as fast, and "
            f"{results[name]['chunked_over_ours']:.2f} times as fast as with the chunked backend",
            flush=True,
        )
    print(save("training_step", {"sets": results}))


if __name__ == "__main__":
    main()
