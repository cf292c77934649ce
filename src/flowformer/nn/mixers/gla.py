"""Gated linear attention (Yang et al. 2024): its gates, around the recurrence."""

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.nn.mixers.recurrence import RecurrentAttention, gated_linear_attention
from flowformer.ops import LinearState
from flowformer.ops.features import check_eps


class GLAAttention(RecurrentAttention):
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
    """

    linear_in_values = False  # its output is normalised

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        head_dim: int,
        gate_rank: int = 16,
        gate_temperature: float = 16.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_eps(eps)
        if gate_rank < 1 or gate_temperature <= 0:
            raise ValueError(
                f"gate_rank and gate_temperature must be positive, got {gate_rank=} and "
                f"{gate_temperature=}"
            )
        inner = num_heads * head_dim
        self.decay = nn.Sequential(
            nn.Linear(dim, gate_rank, bias=False), nn.Linear(gate_rank, inner)
        )
        self.output_gate = nn.Linear(dim, inner)
        self.norm = nn.RMSNorm(head_dim, eps=eps)
        self.gate_temperature = gate_temperature

    def recur(
        self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, mask: Any, state: Any
    ) -> tuple[Tensor, LinearState]:
        """Return the output and the state after these tokens."""
        heads = query.shape[2:]
        out, state = gated_linear_attention(
            query * float(query.shape[-1]) ** -0.5,
            key,
            value,
            log_decay=F.logsigmoid(self.decay(hidden)).unflatten(-1, heads) / self.gate_temperature,
            mask=mask,
            initial_state=state,
        )
        out = self.norm(out.to(self.norm.weight.dtype)).to(out.dtype)  # they differ under autocast
        out = out * F.silu(self.output_gate(hidden)).unflatten(-1, heads)
        return out, state


class GLAMixer(ProjectedMixer, name="gla"):
    """Gated linear attention (Yang et al. 2024): a state that decays by features; causal."""

    kind = GLAAttention
