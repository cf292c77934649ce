"""Mamba-2 (Dao & Gu 2024): a state-space layer as linear attention with one key for all heads."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.nn.mixers.blockwise import check_positive
from flowformer.nn.mixers.gating import Decay, draw_convolution, normalised
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.nn.mixers.recurrence import RecurrentAttention, gated_linear_attention
from flowformer.ops import ConvolutionState, LinearState
from flowformer.ops.convolution import short_convolutions
from flowformer.ops.features import check_eps
from flowformer.ops.inputs import starting_state
from flowformer.ops.state import detach_state, reorder_state, to_state


class Mamba2State(NamedTuple):
    """The state of a Mamba-2 layer: constant size, whatever the number of tokens.

    Attributes:
        value: the last tokens' x, for the convolution. Shape ``[b, w - 1, h, d]``.
        key_query: their B and C, likewise. Shape ``[b, w - 1, 2, n]``.
        key_value: the memory S. Shape ``[b, h, n, d]``.

    All are float64 (float32 on a device without float64).
    """

    value: Float[Tensor, "b w h d"]
    key_query: Float[Tensor, "b w two n"]
    key_value: Float[Tensor, "b h n d"]

    to = to_state
    detach = detach_state
    reorder = reorder_state

    @classmethod
    def initial(cls, taps: int, batch: int, *sizes: Any) -> "Mamba2State":
        """Return the state before the first token; sizes as those of a `LinearState`."""
        heads, size, width, device = sizes
        value, key_query = (
            ConvolutionState.initial(batch, taps, *channels, device).recent
            for channels in ((heads, width), (2, size))
        )
        return cls(value, key_query, *LinearState.initial(batch, *sizes))


torch.serialization.add_safe_globals([Mamba2State])


class Mamba2Attention(RecurrentAttention):
    """Mamba-2 (Dao & Gu 2024, "Transformers are SSMs", sections 2 and 7; its published layer).

    out_t = C_t S_t + D x_t with S_t = α_t S_{t-1} + Δ_t B_tᵀ x_t, Δ_t = softplus(W x + b) and
    α_t = exp(-Δ_t exp(A)) for each head. The values x, and the keys B and queries C that all heads
    share, pass a short convolution and silu. The output is multiplied by silu(z), z = W_z x, and
    then normalised over all heads together. Causal only.

    The paper's layer is twice as wide as the hidden states: `head_dim=2 * dim // num_heads`.

    Args:
        dim: width of the hidden states.
        num_heads: number of heads.
        head_dim: width of a head.
        state_size: n, width of keys and queries.
        convolution: number of tokens that the convolution sees.
        eps: of the normalisation.
    """

    inputs = ("value", "hidden")
    linear_in_values = False  # its output is normalised

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        head_dim: int,
        state_size: int = 128,
        convolution: int = 4,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        check_eps(eps)
        check_positive(state_size=state_size, convolution=convolution)
        self.num_heads = num_heads
        self.key_query_projection = nn.Linear(dim, 2 * state_size, bias=False)
        self.decay = Decay(dim, num_heads)
        self.output_gate = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.norm = nn.RMSNorm(num_heads * head_dim, eps=eps)
        self.value_convolution = nn.Parameter(torch.empty(num_heads, head_dim, convolution))
        self.key_query_convolution = nn.Parameter(torch.empty(2, state_size, convolution))
        self.value_bias = nn.Parameter(torch.empty(num_heads, head_dim))
        self.key_query_bias = nn.Parameter(torch.empty(2, state_size))
        self.skip = nn.Parameter(torch.ones(num_heads))  # D
        for weight, bias in (
            (self.value_convolution, self.value_bias),
            (self.key_query_convolution, self.key_query_bias),
        ):
            draw_convolution(weight)
            nn.init.uniform_(bias, -(convolution**-0.5), convolution**-0.5)

    def recur(
        self, value: Tensor, hidden: Tensor, mask: Any, state: Any
    ) -> tuple[Tensor, Mamba2State]:
        """Return the output and the state after these tokens."""
        groups = self.num_heads // value.shape[2]
        value = value.repeat_interleave(groups, 2) if groups > 1 else value
        batch, _, heads, width = value.shape
        both = self.key_query_projection(hidden).unflatten(-1, (2, -1))
        recent, memory = None, None
        if state is not None:
            sizes = batch, heads, both.shape[3], width, value.device
            taps = self.value_convolution.shape[-1]
            state = starting_state(state, Mamba2State.initial, taps, *sizes)
            recent, memory = state[:2], LinearState(state.key_value)
        (value, both), last = short_convolutions(
            (value, both),
            (self.value_convolution, self.key_query_convolution),
            recent,
            biases=(self.value_bias, self.key_query_bias),
            activation="silu",
            mask=mask,
            return_state=True,
        )
        assert last is not None, "asked for"
        key, query = (both[:, :, at : at + 1].expand(-1, -1, heads, -1) for at in (0, 1))
        step = self.decay.step(hidden)
        out, memory = gated_linear_attention(
            query,
            key,
            value * step[..., None].to(value.dtype),
            log_decay=self.decay.from_step(step)[..., None],
            mask=mask,
            initial_state=memory,
        )
        out = out + value * self.skip[:, None].to(value.dtype)
        gate = F.silu(self.output_gate(hidden))
        out = normalised(self.norm, out.flatten(2) * gate).unflatten(-1, (heads, width))
        return out, Mamba2State(last[0], last[1], memory.key_value)


class Mamba2Mixer(ProjectedMixer, name="mamba2"):
    """Mamba-2 (Dao & Gu 2024): a state-space layer whose heads share keys and queries; causal."""

    kind = Mamba2Attention
