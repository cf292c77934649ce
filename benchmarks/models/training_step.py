"""Is a training step as fast as the published model's, and what does the native kernel change?

At the shapes of two data sets: forward, backward, gradient clipping and RAdam, batches of 16,
alternating in one run. Ours masks
the padding (the default), which the published model does not do. It takes part twice, with the
backend that a call gets by itself and with `chunked`: what the native kernel changes in a step.
"""

import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.runner import alternate, medians, one_of, ratios, save, share
from flowformer.models.series.model import TimeSeriesClassifier, TimeSeriesModelConfig
from flowformer.nn.mixers.building import mixer_options

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
        options = {**mixer_options(TimeSeriesModelConfig(), "series"), "backend": backend}
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


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, "training_step", rounds=None, threads=torch.get_num_threads())
    one = one_of("set", SETS)
    parser.add_argument("sets", nargs="*", type=one, default=list(SETS), metavar="SET")


def execute(arguments: Namespace) -> None:
    """Measure, print and save."""
    torch.set_num_threads(arguments.threads)
    results = {}
    for name in arguments.sets:
        *sizes, rounds = SETS[name]
        results[name] = measure(*sizes, repeats=arguments.rounds or rounds)
        median = results[name]["median_seconds"]
        print(
            f"{name}: published {median['published']:.3f} s, ours {median['ours']:.3f} s a step, "
            f"{results[name]['published_over_ours']:.2f} times as fast, and "
            f"{results[name]['chunked_over_ours']:.2f} times as fast as with the chunked backend",
            flush=True,
        )
    save(arguments.output, {"sets": results})


# The published time-series classifier, written anew as a peer for timing: the projections,
# transpositions and einsums of the code of Wu et al. (2022) in their order, with padding that takes
# part in attention. Never used by the library.


class PublishedAttention(nn.Module):
    """Projections and the bidirectional equations, without a clamp."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Attend: [b, t, dim] -> [b, t, dim]."""
        b, t, dim = x.shape
        q, k, v = (
            layer(x).view(b, t, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        q, k = torch.sigmoid(q), torch.sigmoid(k)
        row = 1.0 / torch.einsum("bhtd,bhd->bht", q + 1e-6, k.sum(2) + 1e-6)
        column = 1.0 / torch.einsum("bhtd,bhd->bht", k + 1e-6, q.sum(2) + 1e-6)
        sink = torch.einsum("bhtd,bhd->bht", q + 1e-6, (k * column[..., None]).sum(2) + 1e-6)
        source = torch.einsum("bhtd,bhd->bht", k + 1e-6, (q * row[..., None]).sum(2) + 1e-6)
        allocation, competition = torch.sigmoid(sink), torch.softmax(source, -1) * t
        key_value = k.transpose(-2, -1) @ (v * competition[..., None])
        out = (q @ key_value) * row[..., None] * allocation[..., None]
        return self.out(out.transpose(1, 2).contiguous().reshape(b, t, dim))


class PublishedLayer(nn.Module):
    """Post-norm, with the feed-forward part as 1 x 1 convolutions over transposed tokens."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.attention = PublishedAttention(dim, heads)
        self.conv1, self.conv2 = nn.Conv1d(dim, feedforward, 1), nn.Conv1d(feedforward, dim, 1)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transform: [b, t, dim] -> [b, t, dim]."""
        x = y = self.norm1(x + self.dropout(self.attention(x)))
        y = self.dropout(F.gelu(self.conv1(y.transpose(-1, 1))))
        return self.norm2(x + self.dropout(self.conv2(y).transpose(-1, 1)))


class PublishedClassifier(nn.Module):
    """Embedding, learned positions, two layers, flatten, one linear layer."""

    def __init__(self, channels: int, classes: int, max_length: int) -> None:
        super().__init__()
        dim, heads, feedforward, dropout = 512, 8, 2048, 0.1
        self.scale = dim**0.5
        self.embedding = nn.Linear(channels, dim)
        self.positions = nn.Parameter(torch.empty(max_length, 1, dim).uniform_(-0.02, 0.02))
        self.layers = nn.ModuleList(
            PublishedLayer(dim, heads, feedforward, dropout) for _ in range(2)
        )
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(dropout)
        self.head = nn.Linear(dim * max_length, classes)

    def forward(self, inputs: Tensor, padding_mask: Tensor) -> Tensor:
        """Classify: [b, t, channels], [b, t] (True = real) -> [b, classes]."""
        x = self.embedding(inputs.permute(1, 0, 2)) * self.scale
        x = self.dropout(x + self.positions[: x.shape[0]]).permute(1, 0, 2)
        for layer in self.layers:
            x = layer(x)
        x = self.dropout(F.gelu(self.norm(x).permute(1, 0, 2)).permute(1, 0, 2))
        return self.head((x * padding_mask[..., None]).reshape(x.shape[0], -1))
