"""DeltaNet (Schlag et al. 2021; Yang et al. 2024): a memory that is corrected, not only added to.

The chunked form below is exact; where another kernel runs, :mod:`recurrence` says.
"""

from typing import Any, ClassVar, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flowformer.nn.mixers.convolution import ConvolvedState
from flowformer.nn.mixers.gating import Decay, PartKeywords, Parts, RecurrenceInParts
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.nn.mixers.recurrence import (
    fast_kernel,
    from_chunks,
    in_chunks,
    is_one_token,
    read_and_add,
    run_recurrence,
    shifted,
)
from flowformer.ops.backends.decay import decays_between
from flowformer.ops.features import compute_dtype
from flowformer.ops.inputs import at_most, check_causal, check_tensors, is_for_any_length
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.nonfinite import contained
from flowformer.ops.state import LinearState

CHUNK = 32  # tokens of which the triangular system is solved at once

# Doublings of the chunks whose steps are put together, in a graph for any length: they reach over
# 2^20 chunks, of which no memory holds the states.
DOUBLINGS = 20


@takes_layouts("query", "key", "value", "beta", "log_decay")
@contained("query", "key", "value", "beta", "log_decay", always=True)
def delta_rule_attention(
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t g d"],
    value: Float[Tensor, "b t g m"],
    *,
    beta: Float[Tensor, "b t h"],
    log_decay: Float[Tensor, "b t h"] | None = None,
    mask: Bool[Tensor, "b t"] | None = None,
    initial_state: LinearState | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
) -> tuple[Float[Tensor, "b t h m"], LinearState]:
    """out_t = q_t S_t with S_t = α_t S_{t-1} + β_t k_tᵀ (v_t - α_t k_t S_{t-1}).

    What the memory returns for k_t is moved towards v_t by the share β_t: one step of gradient
    descent on |k_t S - v_t|² / 2, after it has forgotten by α_t (Yang et al. 2024, "Gated Delta
    Networks", equation 10). It is stable for β_t |k_t|² in [0, 2]. Causal by nature; a padded token
    leaves the state as it is.

    Args:
        query: the queries; a scale such as 1/√d is the caller's.
        key: the keys, of length 1 as a rule; g divides h, and each serves h / g query heads.
        value: the values, with as many heads as the keys.
        beta: β, the strength of the correction.
        log_decay: log α ≤ 0; None for α = 1.
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
    given = {"beta": beta} if log_decay is None else {"beta": beta, "log_decay": log_decay}
    for name, gate in given.items():
        if gate.shape != query.shape[:3]:
            raise ValueError(
                f"{name} must be [batch, time, head] = {list(query.shape[:3])}, got "
                f"{list(gate.shape)}"
            )
    exact = compute_dtype(query.dtype)  # a slow decay is none in half precision
    gates = torch.stack([gate.to(exact) for gate in given.values()], -1)
    if log_decay is None:
        attend = fast_kernel(query, "delta_rule", "chunk_delta_rule", _of_heads)
    else:
        attend = fast_kernel(query, "gated_delta_rule", "chunk_gated_delta_rule", _gates_of_heads)
    attend = attend or chunked_delta_rule
    return run_recurrence(attend, (query, key, value, gates), mask, initial_state, dtype_out)


def _of_heads(gates: Tensor, query: Tensor) -> tuple[Tensor, ...]:
    return (gates[..., 0].to(query.dtype),)


def _gates_of_heads(gates: Tensor, query: Tensor) -> tuple[Tensor, ...]:
    return gates[..., 1].float(), gates[..., 0].to(query.dtype)


def chunked_delta_rule(
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t h d"],
    value: Float[Tensor, "b t h m"],
    gates: Float[Tensor, "b t h e"],
    state: Float[Tensor, "b h d m"],
) -> tuple[Float[Tensor, "b t h m"], Float[Tensor, "b h d m"]]:
    """Solve for the corrections of a chunk, a triangular system (Yang et al. 2024, section 3.2).

    The correction u_t = β_t (v_t - α_t k_t S_{t-1}) sees what is left of the state S before the
    chunk and of the earlier corrections: with D_ts = Π_{s<r≤t} α_r and Γ_t = Π_{r≤t} α_r,
    (I + tril(D ∘ β K Kᵀ, -1)) U = β V - β Γ K S. Both right-hand sides are solved for all chunks at
    once; then chunk after chunk, out = Γ Q S + tril(D ∘ Q Kᵀ) U and Γ_C S + Kᵀ (D_C ∘ U). The gates
    are β and, if there is one, log α.

    With U = F - G S the latter is (Γ_C - Kᵀ (D_C ∘ G)) S + Kᵀ (D_C ∘ F), linear in S: where a loop
    over the chunks would fix the length of a graph, such steps are put together, pair by pair.
    """
    if is_one_token(query):
        return _one_token(query, key, value, gates, state)
    length, dtype = query.shape[1], compute_dtype(query.dtype)
    size = at_most(CHUNK, length)
    q, k, v, rates = (in_chunks(x.to(dtype), size) for x in (query, key, value, gates))
    strength, log_decay = rates[..., :1], rates[..., 1:]
    system, scores, writing = strength * (k @ k.mT), (q @ k.mT).tril(), k
    reading = k, q
    kept = None
    if log_decay.shape[-1]:
        between = decays_between(log_decay)[..., 0]
        left = log_decay.cumsum(-2).exp()
        system, scores = system * between, scores * between
        reading, writing = (k * left, q * left), k * between[..., -1, :, None]
        kept = left[..., -1, :, None].to(state.dtype)
    of_keys, of_queries = reading
    sides = torch.cat((strength * v, strength * of_keys), -1)
    # Substitution adds up rounding from token to token: it is as exact as the state.
    exact = (x.to(state.dtype) for x in (system.tril(-1), sides))
    solved = torch.linalg.solve_triangular(*exact, upper=False, unitriangular=True).to(dtype)
    fixed, of_state = solved.split((v.shape[-1], k.shape[-1]), -1)
    if is_for_any_length():
        steps = (writing.mT @ x for x in (-of_state, fixed))
        factor, added = (x.to(state.dtype) for x in steps)
        same = torch.eye(k.shape[-1], dtype=state.dtype, device=state.device)
        factor = factor + (same if kept is None else same * kept)
        before, state = _all_states(factor, added, state)
        before = before.to(dtype)
        out = of_queries @ before + scores @ (fixed - of_state @ before)
        return from_chunks(out, length), state
    outputs = []
    for n in range(q.shape[2]):
        before = state.to(dtype)
        correction = fixed[:, :, n] - of_state[:, :, n] @ before
        outputs.append(of_queries[:, :, n] @ before + scores[:, :, n] @ correction)
        added = (writing[:, :, n].mT @ correction).to(state.dtype)
        state = (state if kept is None else state * kept[:, :, n]) + added
    return from_chunks(torch.stack(outputs, 2), length), state


def _one_token(
    query: Tensor, key: Tensor, value: Tensor, gates: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Correct the memory once, as the recurrence says it."""
    v, rates = value[:, 0].to(state.dtype), gates[:, 0].to(state.dtype)
    strength, log_decay = rates[..., :1], rates[..., 1:]
    if log_decay.shape[-1]:
        state = state * log_decay.exp()[..., None]
    return read_and_add(query, key, state, lambda known: strength * (v - known))


def _all_states(
    factor: Float[Tensor, "b h n d d"],
    added: Float[Tensor, "b h n d m"],
    state: Float[Tensor, "b h d m"],
) -> tuple[Float[Tensor, "b h n d m"], Float[Tensor, "b h d m"]]:
    """Return the state before each step S ↦ factor S + added, and after the last.

    Each step is put together with the one before it, then with the two before these, and so on.
    """
    place = torch.arange(factor.shape[2], device=factor.device)
    for doubling in range(DOUBLINGS):
        earlier = place - 2**doubling
        some, earlier = (earlier >= 0)[:, None, None], earlier.clamp(min=0)
        added = torch.where(some, factor @ added[:, :, earlier] + added, added)
        factor = torch.where(some, factor @ factor[:, :, earlier], factor)
    return shifted(state, factor @ state[:, :, None] + added)


DeltaNetState = ConvolvedState
# Its name of before, under which states were saved.
torch.serialization.add_safe_globals([(ConvolvedState, f"{__name__}.DeltaNetState")])


class DeltaNetAttention(RecurrenceInParts):
    """DeltaNet (Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule …").

    Queries, keys and values pass a short convolution and silu; queries and keys get length 1;
    β_t = sigmoid(x_t W_β) for each head; the output of a head is normalised. Causal only.

    Args:
        dim: width of the hidden states.
        num_heads: number of query heads.
        head_dim: width of a head.
        eps: of the normalisation.
        parts: those of `Parts`: in place of the convolution of 4 tokens, the norm and no gate.
    """

    published = Parts(convolution=4, norm=True, output_gate=False)
    decays: ClassVar[bool] = False

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        head_dim: int,
        eps: float = 1e-5,
        **parts: Unpack[PartKeywords],
    ) -> None:
        super().__init__()
        self.strength = nn.Linear(dim, num_heads, bias=False)
        self.decay = Decay(dim, num_heads) if self.decays else None
        self.make_parts(dim, num_heads, head_dim, eps, parts)

    def update(
        self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, mask: Any, memory: Any
    ) -> tuple[Tensor, LinearState]:
        """Return the output of the delta rule, and its memory."""
        return delta_rule_attention(
            unit(query, float(query.shape[-1]) ** -0.5),
            unit(key),
            value,
            beta=torch.sigmoid(self.strength(hidden)),
            log_decay=None if self.decay is None else self.decay(hidden),
            mask=mask,
            initial_state=memory,
        )


def unit(x: Float[Tensor, "b t h d"], length: float = 1.0) -> Float[Tensor, "b t h d"]:
    """Return the heads with that length, rounded once to the dtype of x."""
    exact = x.to(compute_dtype(x.dtype))
    scale = torch.rsqrt(exact.square().sum(-1, keepdim=True) + 1e-6)
    return (exact * scale * length).to(x.dtype)


class GatedDeltaNetAttention(DeltaNetAttention):
    """Gated DeltaNet (Yang et al. 2024, "Gated Delta Networks: Improving Mamba2 with Delta Rule").

    DeltaNet whose memory also decays, α_t = exp(-softplus(W x_t + b) exp(A)) for each head, and
    whose output is multiplied by silu(W x + b) after the norm. Values are as wide as keys, where
    the paper's are twice as wide. Causal only.

    Args:
        dim: width of the hidden states.
        num_heads: number of query heads.
        head_dim: width of a head.
        eps: of the normalisation.
        parts: those of `Parts`: in place of the convolution of 4 tokens, the norm and the gate.
    """

    published = Parts(convolution=4, norm=True, output_gate=True)
    decays = True


class DeltaNetMixer(ProjectedMixer, name="deltanet"):
    """DeltaNet (Yang et al. 2024): a memory corrected by the delta rule; causal."""

    kind = DeltaNetAttention


class GatedDeltaNetMixer(ProjectedMixer, name="gated-deltanet"):
    """Gated DeltaNet (Yang et al. 2024): a memory that decays and is corrected; causal."""

    kind = GatedDeltaNetAttention
