"""DeltaNet as a layer."""

from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.ops import LinearState
from flowformer.ops.baselines import delta_rule_attention, short_convolution
from flowformer.ops.features import check_eps
from flowformer.ops.inputs import starting_state
from flowformer.ops.state import carry_dtype, detach_state, reorder_state, to_state


class DeltaNetState(NamedTuple):
    """The state of a DeltaNet layer: constant size, whatever the number of tokens.

    Attributes:
        query: the last tokens' queries, for the convolution. Shape ``[b, w - 1, h, d]``.
        key: likewise.
        value: likewise.
        key_value: the memory S. Shape ``[b, h, d, d]``.

    All are float64 (float32 on a device without float64).
    """

    query: Float[Tensor, "b w h d"]
    key: Float[Tensor, "b w h d"]
    value: Float[Tensor, "b w h d"]
    key_value: Float[Tensor, "b h d d"]

    to = to_state
    detach = detach_state
    reorder = reorder_state

    @classmethod
    def initial(
        cls, batch: int, recent: int, heads: int, width: int, device: torch.device
    ) -> "DeltaNetState":
        """Return the state before the first token."""
        shape = (batch, recent, heads, width)
        query, key, value = (
            torch.zeros(shape, dtype=carry_dtype(device), device=device) for _ in range(3)
        )
        memory = LinearState.initial(batch, heads, width, width, device)
        return cls(query, key, value, memory.key_value)


torch.serialization.add_safe_globals([DeltaNetState])


class DeltaNetAttention(HeadAttention):
    """DeltaNet (Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule …").

    Queries, keys and values pass a short convolution and silu; queries and keys get length 1;
    β_t = sigmoid(x_t W_β) for each head; the output of a head is normalised. Causal only.

    Args:
        dim: width of the hidden states.
        num_heads: number of query heads.
        head_dim: width of a head.
        convolution: number of tokens that the convolution sees; 1 for the token itself only.
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
        convolution: int = 4,
        eps: float = 1e-5,
    ) -> None:
        """Create the convolutions and the strength β."""
        super().__init__()
        check_eps(eps)
        if convolution < 1:
            raise ValueError(f"convolution must be positive, got {convolution}")
        shape = (3, num_heads, head_dim, convolution)
        self.convolution = nn.Parameter(torch.empty(shape))
        self.strength = nn.Linear(dim, num_heads, bias=False)
        self.norm = nn.RMSNorm(head_dim, eps=eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the convolutions as `nn.Conv1d` does one of a single channel."""
        bound = self.convolution.shape[-1] ** -0.5
        nn.init.uniform_(self.convolution, -bound, bound)

    def forward(
        self,
        query: Float[Tensor, "b t h d"],
        key: Float[Tensor, "b t g d"],
        value: Float[Tensor, "b t g d"],
        hidden: Float[Tensor, "b t dim"],
        *,
        causal: bool = True,  # noqa: ARG002 - it has no other form
        mask: Bool[Tensor, "b t"] | None = None,
        state: DeltaNetState | None = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "b t h d"], DeltaNetState | None]:
        """Return the output and, if asked for, the state after these tokens."""
        batch, _, heads, width = query.shape
        empty = DeltaNetState.initial(
            batch, self.convolution.shape[-1] - 1, heads, width, query.device
        )
        start = starting_state(state, empty)
        groups = heads // key.shape[2]
        key, value = (x.repeat_interleave(groups, 2) for x in (key, value))
        (query, recent_q), (key, recent_k), (value, recent_v) = (
            short_convolution(x, weight, recent, mask)
            for x, weight, recent in zip(
                (query, key, value), self.convolution, start[:3], strict=True
            )
        )
        out, memory = delta_rule_attention(
            _unit(query) * width**-0.5,
            _unit(key),
            value,
            beta=torch.sigmoid(self.strength(hidden)),
            mask=mask,
            initial_state=LinearState(start.key_value),
        )
        out = self.norm(out.to(self.norm.weight.dtype)).to(out.dtype)  # they differ under autocast
        if not return_state:
            return out, None
        return out, DeltaNetState(recent_q, recent_k, recent_v, memory.key_value)


def _unit(x: Float[Tensor, "b t h d"]) -> Float[Tensor, "b t h d"]:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class DeltaNetMixer(ProjectedMixer):
    """DeltaNet (Yang et al. 2024): a memory corrected by the delta rule; causal."""

    kind = DeltaNetAttention
