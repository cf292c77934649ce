"""The mixers of gating_trials.py: for `flowformer compare --import`."""

from collections.abc import Sequence
from types import new_class
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.mixers.gating_trials import LONG, TRIALS, mixer_of
from flowformer.nn.mixers.gating import Decay, draw_convolution, with_gain
from flowformer.nn.mixers.head_attention import Capabilities, HeadAttention
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.ops import linear_attention, short_convolution


class TrialAttention(HeadAttention):
    """Causal `gated` without states, with what was tried.

    Args:
        dim: width of the hidden states.
        num_heads: number of heads.
        head_dim: width of a head.
        decay: the shortest and the longest time constant at first.
        gain: of queries and keys at first.
        activated: which of query, key and value pass silu after the convolution.
        feature_map: φ; None for neither φ nor gain nor denominator.
        shared: number of neighbouring heads that have all of their queries and keys in common.
        write: a value's factor: an input gate, or "step", the decay's, as in Mamba-2.
        skip: the weight at first by which a value is added to the output of its own token; None
            for no such addition.
        skips_norm: whether it is added behind the norm.
        norm: of each head before the gate, or "gated", of all heads behind it, as in Mamba-2.
        biases: whether the convolutions have them.
    """

    capabilities = Capabilities(causal=True, cross=False, state=False)
    inputs = ("query", "key", "value", "hidden")
    linear_in_values = False  # its output is normalised

    def __init__(  # noqa: PLR0913 - what was tried
        self,
        *,
        dim: int,
        num_heads: int,
        head_dim: int,
        decay: Sequence[float] = LONG,
        gain: float = 2.0,
        activated: Sequence[int] = (),
        feature_map: Literal["sigmoid", "relu"] | None = "sigmoid",
        shared: int = 1,
        write: Literal["gate", "step"] = "gate",
        skip: float | None = None,
        skips_norm: bool = False,
        norm: Literal["head", "gated"] = "head",
        biases: bool = False,
    ) -> None:
        super().__init__()
        inner = num_heads * head_dim
        self.activated, self.feature_map, self.shared = tuple(activated), feature_map, shared
        self.convolution = nn.Parameter(torch.empty(3, num_heads, head_dim, 4))
        draw_convolution(self.convolution)
        self.biases = nn.Parameter(torch.zeros(3, num_heads, head_dim)) if biases else None
        self.gain = nn.Parameter(torch.full((2, num_heads), gain)) if feature_map else None
        self.decay = Decay(dim, num_heads, decay)
        self.input_gate = nn.Linear(dim, num_heads) if write == "gate" else None
        self.gated_norm = norm == "gated"
        self.norm = nn.RMSNorm(inner if self.gated_norm else head_dim, eps=1e-6)
        self.output_gate = nn.Linear(dim, inner)
        self.skip = None if skip is None else nn.Parameter(torch.full((num_heads,), skip))
        self.skips_norm = skips_norm

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        hidden: Tensor,
        *,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Return the output."""
        self.require("causal" if causal else "bidirectional")
        query, key, value = (
            short_convolution(
                x,
                self.convolution[at],
                bias=None if self.biases is None else self.biases[at],
                activation="silu" if at in self.activated else None,
                mask=mask,
            )
            for at, x in enumerate((query, key, value))
        )
        query, key = self._features(query, key)
        step = self.decay.step(hidden)
        write = step if self.input_gate is None else 2 * self.input_gate(hidden).sigmoid()
        out = linear_attention(
            query,
            key,
            value * write[..., None],
            causal=True,
            log_decay=self.decay.from_step(step),
            normalize=self.feature_map is not None,
            mask=mask,
        )
        passed = 0 if self.skip is None else value * self.skip[:, None]
        out = out if self.skips_norm else out + passed
        gate = F.silu(self.output_gate(hidden)).unflatten(-1, value.shape[2:])
        if self.gated_norm:
            return self.norm((out * gate).flatten(2)).unflatten(-1, value.shape[2:]), None
        out = self.norm(out)
        return (out + passed if self.skips_norm else out) * gate, None

    def _features(self, *tensors: Tensor) -> list[Tensor]:
        """Return queries and keys after gain and φ, those of heads that share them put together."""
        prepared = []
        for at, each in enumerate(tensors):
            x = each if self.gain is None else with_gain(each, self.gain[at])
            groups = x.unflatten(2, (-1, self.shared)).flatten(3)
            x = groups.repeat_interleave(self.shared, 2)
            if self.feature_map is not None:
                x = x.sigmoid() if self.feature_map == "sigmoid" else F.relu(x) + 1e-6
            prepared.append(x)
        return prepared


def _register(trial: str, options: dict[str, Any]) -> None:
    def fill(at: dict[str, Any]) -> None:
        def start(self: TrialAttention, *, dim: int, num_heads: int, head_dim: int) -> None:
            TrialAttention.__init__(
                self, dim=dim, num_heads=num_heads, head_dim=head_dim, **options
            )

        at["__init__"] = start

    kind = new_class("TriedAttention", (TrialAttention,), {}, fill)
    text = f"A trial of gated attention: {trial}."
    body = {"kind": kind, "__doc__": text, "__module__": __name__}
    named = {"name": mixer_of(trial)}
    new_class("TriedMixer", (ProjectedMixer,), named, lambda at: at.update(body))


for _trial, _options in TRIALS.items():
    _register(_trial, _options)
