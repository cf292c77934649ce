"""Gated linear attention (Yang et al. 2024): its gates, around the recurrence."""

from typing import Any, Unpack

from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.nn.mixers.gating import PartKeywords, Parts, RecurrenceInParts
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.nn.mixers.recurrence import gated_linear_attention
from flowformer.ops import LinearState


class GLAAttention(RecurrenceInParts):
    """Gated linear attention (Yang et al. 2024, "… with Hardware-Efficient Training", section 4).

    α_t = sigmoid(x_t W₁ W₂ + b)^(1/τ) for each feature of each head; the output of a head is
    normalised and multiplied by silu(x_t W_r + b_r). Keys are as wide as values, where the paper's
    are half as wide. Causal only.

    Args:
        dim: width of the hidden states.
        num_heads: number of query heads.
        head_dim: width of a head.
        gate_rank: columns of W₁.
        gate_temperature: τ; the larger, the slower a state decays.
        eps: of the normalisation.
        parts: those of `Parts`: in place of no convolution, the norm and the gate.
    """

    published = Parts(convolution=0, norm=True, output_gate=True)

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        head_dim: int,
        gate_rank: int = 16,
        gate_temperature: float = 16.0,
        eps: float = 1e-5,
        **parts: Unpack[PartKeywords],
    ) -> None:
        super().__init__()
        if gate_rank < 1 or gate_temperature <= 0:
            raise ValueError(
                f"gate_rank and gate_temperature must be positive, got {gate_rank=} and "
                f"{gate_temperature=}"
            )
        inner = num_heads * head_dim
        self.decay = nn.Sequential(
            nn.Linear(dim, gate_rank, bias=False), nn.Linear(gate_rank, inner)
        )
        self.gate_temperature = gate_temperature
        self.make_parts(dim, num_heads, head_dim, eps, parts)

    def update(
        self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, mask: Any, memory: Any
    ) -> tuple[Tensor, LinearState]:
        """Return the output of the recurrence, and its memory."""
        decay = F.logsigmoid(self.decay(hidden)).unflatten(-1, query.shape[2:])
        return gated_linear_attention(
            query * float(query.shape[-1]) ** -0.5,
            key,
            value,
            log_decay=decay / self.gate_temperature,
            mask=mask,
            initial_state=memory,
        )


class GLAMixer(ProjectedMixer, name="gla"):
    """Gated linear attention (Yang et al. 2024): a state that decays by features; causal."""

    kind = GLAAttention
