"""Retention (Sun et al. 2023): a decay that each head has from the start, and rotary positions."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.nn.mixers.gating import gated_output
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.nn.mixers.recurrence import RecurrentAttention, gated_linear_attention
from flowformer.nn.positions import check_head_dim, rotate, rotation
from flowformer.ops import LinearState
from flowformer.ops.features import check_eps, compute_dtype
from flowformer.ops.inputs import starting_state
from flowformer.ops.state import detach_state, reorder_state, to_state


class RetentionState(NamedTuple):
    """The state of a retention: constant size, whatever the number of tokens.

    Attributes:
        tokens: the number of real tokens, by which the next ones turn. Shape ``[b]``, int64.
        key_value: the memory S. Shape ``[b, h, d, m]``, float64 (float32 on a device without it).
    """

    tokens: Int[Tensor, " b"]
    key_value: Float[Tensor, "b h d m"]

    to = to_state
    detach = detach_state
    reorder = reorder_state

    @classmethod
    def initial(cls, batch: int, *sizes: Any) -> "RetentionState":
        """Return the state before the first token, of the sizes that a `LinearState` takes."""
        memory = LinearState.initial(batch, *sizes).key_value
        return cls(memory.new_zeros(batch, dtype=torch.int64), memory)


torch.serialization.add_safe_globals([RetentionState])


class RetentionAttention(RecurrentAttention):
    """Multi-scale retention (Sun et al. 2023, "Retentive Network", section 2).

    out_t = q_t S_t with S_t = γ S_{t-1} + k_tᵀ v_t (equation 6), where queries (times 1/√d) and
    keys are turned by their place (equations 3 to 5: xPos, whose decay is that of the head) and γ
    is 1 - 2^(-5 - head) (equation 8). Each head is then normalised to mean 0 and variance 1, and
    multiplied by silu(x W). Two of the paper's normalisations are left out: they scale a row, which
    the norm of the heads undoes. Values are as wide as keys, where the paper's are twice as wide.
    Causal only.

    Args:
        dim: width of the hidden states.
        num_heads: number of query heads.
        head_dim: width of a head, even.
        eps: of the normalisation.
    """

    linear_in_values = False  # its output is normalised

    def __init__(self, *, dim: int, num_heads: int, head_dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        check_eps(eps)
        check_head_dim(head_dim)
        self.eps, self.head_dim = eps, head_dim
        self.output_gate = nn.Linear(dim, num_heads * head_dim, bias=False)

    def recur(
        self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, mask: Any, state: Any
    ) -> tuple[Tensor, RetentionState]:
        """Return the output and the state after these tokens."""
        batch, length, heads, width = query.shape
        sizes = batch, heads, width, value.shape[3], query.device
        state = starting_state(state, RetentionState.initial, *sizes)
        real = query.new_ones(batch, length, dtype=torch.bool) if mask is None else mask
        count = state.tokens[:, None] + real.cumsum(1)
        dtype = compute_dtype(query.dtype)
        turn = rotation(count - 1, self.head_dim, dtype=dtype)
        out, memory = gated_linear_attention(
            rotate(query * self.head_dim**-0.5, turn),
            rotate(key, turn),
            value,
            log_decay=log_decays(heads, query.device, dtype).expand(batch, length, heads, 1),
            mask=mask,
            initial_state=LinearState(state.key_value),
        )
        out = F.layer_norm(out.to(dtype), out.shape[-1:], eps=self.eps).to(out.dtype)
        out = gated_output(self.output_gate, hidden, out)
        return out, RetentionState(count[:, -1], memory.key_value)


def log_decays(heads: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "1 1 h 1"]:
    """Return log γ of each head, γ = 1 - 2^(-5 - head)."""
    places = torch.arange(heads, device=device, dtype=dtype)
    return torch.log1p(-torch.exp(-(5 + places) * math.log(2)))[None, None, :, None]


class RetNetMixer(ProjectedMixer, name="retnet"):
    """Multi-scale retention (Sun et al. 2023): heads that forget at a fixed rate each; causal."""

    kind = RetentionAttention
