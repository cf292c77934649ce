"""Gated linear attention as a layer."""

from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.nn.mixers.recurrence import gated_linear_attention
from flowformer.ops import LinearState
from flowformer.ops.features import check_eps


class GLAAttention(HeadAttention):
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

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=True, cross=False, state=True, variable_length=True, bidirectional=False
    )
    inputs: ClassVar[tuple[str, ...]] = ("query", "key", "value", "hidden")
    linear_in_values: ClassVar[bool] = False  # its output is normalised

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
        """Create the gates."""
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

    def forward(
        self,
        query: Float[Tensor, "b t h d"],
        key: Float[Tensor, "b t g d"],
        value: Float[Tensor, "b t g d"],
        hidden: Float[Tensor, "b t dim"],
        *,
        causal: bool = True,  # noqa: ARG002 - it has no other form
        mask: Bool[Tensor, "b t"] | None = None,
        state: LinearState | None = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "b t h d"], LinearState | None]:
        """Return the output and, if asked for, the state after these tokens."""
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
        return out, state if return_state else None


class GLAMixer(ProjectedMixer):
    """Gated linear attention (Yang et al. 2024): a state that decays by features; causal."""

    kind = GLAAttention
