"""DeltaNet (Schlag et al. 2021; Yang et al. 2024): a memory that is corrected, not only added to.

The chunked form below is exact; where another kernel runs, :mod:`recurrence` says.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.jit._trace import is_tracing  # torch.jit does not export it

from flowformer.nn.mixers.convolution import short_convolution
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.nn.mixers.recurrence import (
    RecurrentAttention,
    fast_kernel,
    from_chunks,
    in_chunks,
    run_recurrence,
)
from flowformer.ops.features import check_eps, compute_dtype
from flowformer.ops.inputs import check_causal, check_tensors, starting_state
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.nonfinite import contained
from flowformer.ops.state import LinearState, detach_state, reorder_state, to_state

CHUNK = 32  # tokens of which the triangular system is solved at once


@takes_layouts("query", "key", "value", "beta")
@contained("query", "key", "value", "beta", always=True)
def delta_rule_attention(
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t g d"],
    value: Float[Tensor, "b t g m"],
    *,
    beta: Float[Tensor, "b t h"],
    mask: Bool[Tensor, "b t"] | None = None,
    initial_state: LinearState | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
) -> tuple[Float[Tensor, "b t h m"], LinearState]:
    """out_t = q_t S_t with S_t = S_{t-1} + β_t k_tᵀ (v_t - k_t S_{t-1}).

    What the memory returns for k_t is moved towards v_t by the share β_t: one step of gradient
    descent on |k_t S - v_t|² / 2. It is stable for β_t |k_t|² in [0, 2]. Causal by nature; a padded
    token leaves the state as it is.

    Args:
        query: the queries; a scale such as 1/√d is the caller's.
        key: the keys, of length 1 as a rule; g divides h, and each serves h / g query heads.
        value: the values, with as many heads as the keys.
        beta: β, the strength of the correction.
        mask: real tokens (True); the output at the others is zero.
        initial_state: the state after the tokens before these.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.

    Returns:
        The output, and the state after these tokens.

    Raises:
        ValueError: the tensors do not fit each other, or the state is one of other sizes.
        TypeError: the state is of another kind.
    """
    dtype_out = value.dtype
    query, key, value = check_tensors(query, key, value)
    check_causal(query, key)
    if beta.shape != query.shape[:3]:
        raise ValueError(
            f"beta must be [batch, time, head] = {list(query.shape[:3])}, got {list(beta.shape)}"
        )
    attend = fast_kernel(query, "delta_rule", "chunk_delta_rule", _of_heads) or chunked_delta_rule
    return run_recurrence(
        attend, (query, key, value, beta[..., None]), mask, initial_state, dtype_out
    )


def _of_heads(beta: Tensor, query: Tensor) -> Tensor:
    return beta[..., 0].to(query.dtype)


def chunked_delta_rule(
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t h d"],
    value: Float[Tensor, "b t h m"],
    beta: Float[Tensor, "b t h 1"],
    state: Float[Tensor, "b h d m"],
) -> tuple[Float[Tensor, "b t h m"], Float[Tensor, "b h d m"]]:
    """Solve for the corrections of a chunk, a triangular system (Yang et al. 2024, section 3.2).

    The correction u_t = β_t (v_t - k_t S_{t-1}) sees the state S before the chunk and the earlier
    corrections: (I + tril(β K Kᵀ, -1)) U = β V - β K S. Both right-hand sides are solved for all
    chunks at once; then chunk after chunk, out = Q S + tril(Q Kᵀ) U and S + Kᵀ U.
    """
    if is_tracing():
        raise NotImplementedError(
            "torch.jit.trace would fix the length of DeltaNet, whose chunks depend on one another: "
            "use torch.export, or another mixer"
        )
    length, dtype = query.shape[1], compute_dtype(query.dtype)
    q, k, v, strength = (in_chunks(x.to(dtype), CHUNK) for x in (query, key, value, beta))
    system = (strength * (k @ k.mT)).tril(-1)
    sides = torch.cat((strength * v, strength * k), -1)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    fixed, of_state = solved.split((v.shape[-1], k.shape[-1]), -1)
    scores = (q @ k.mT).tril()
    outputs = []
    for n in range(q.shape[2]):
        before = state.to(dtype)
        correction = fixed[:, :, n] - of_state[:, :, n] @ before
        outputs.append(q[:, :, n] @ before + scores[:, :, n] @ correction)
        state = state + (k[:, :, n].mT @ correction).to(state.dtype)
    return from_chunks(torch.stack(outputs, 2), length), state


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


torch.serialization.add_safe_globals([DeltaNetState])


class DeltaNetAttention(RecurrentAttention):
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

    linear_in_values = False  # its output is normalised

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        head_dim: int,
        convolution: int = 4,
        eps: float = 1e-5,
    ) -> None:
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

    def recur(
        self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, mask: Any, state: Any
    ) -> tuple[Tensor, DeltaNetState]:
        """Return the output and the state after these tokens."""
        batch, _, heads, width = query.shape
        memory = LinearState.initial(batch, heads, width, width, query.device).key_value
        recent = memory.new_zeros(3, batch, self.convolution.shape[-1] - 1, heads, width)
        start = starting_state(state, DeltaNetState(*recent, key_value=memory))
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
        return out, DeltaNetState(recent_q, recent_k, recent_v, memory.key_value)


def _unit(x: Float[Tensor, "b t h d"]) -> Float[Tensor, "b t h d"]:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


class DeltaNetMixer(ProjectedMixer, name="deltanet"):
    """DeltaNet (Yang et al. 2024): a memory corrected by the delta rule; causal."""

    kind = DeltaNetAttention
