"""Performer (Choromanski et al. 2021): softmax attention through positive random features."""

import math
from typing import Any, NamedTuple, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flowformer.nn.mixers.head_attention import Capabilities, CausalCall, HeadAttention
from flowformer.nn.mixers.linear import real_tokens, weighted_mean
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.nn.mixers.recurrence import gated_linear_attention
from flowformer.ops.features import check_eps
from flowformer.ops.inputs import check_causal, exact_arithmetic, starting_state
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.linear import divided, with_ones
from flowformer.ops.nonfinite import contained
from flowformer.ops.state import LinearState, detach_state, reorder_state, to_state

# Below this, a step of the running maximum multiplies what was before by zero.
LOWEST_STEP = -100.0
LOWEST_MAXIMUM = -1e30  # of no key; finite, for all may be padded


class PerformerState(NamedTuple):
    """The state of a causal Performer: constant size, whatever the number of tokens.

    Attributes:
        maximum: the largest exponent of a key's features so far. Shape ``[b, h]``.
        key_value: Σ φ(k)ᵀ [v, 1], relative to it. Shape ``[b, h, f, m + 1]``.

    Both are float64 (float32 on a device without float64).
    """

    maximum: Float[Tensor, "b h"]
    key_value: Float[Tensor, "b h f m_plus_1"]

    to = to_state
    detach = detach_state
    reorder = reorder_state

    @classmethod
    def initial(cls, *sizes: Any) -> "PerformerState":
        """Return the state before the first token, of the sizes that a `LinearState` takes."""
        sums = LinearState.initial(*sizes).key_value
        return cls(torch.full_like(sums[..., 0, 0], LOWEST_MAXIMUM), sums)


torch.serialization.add_safe_globals([PerformerState])


@takes_layouts("query", "key", "value")
@contained("query", "key", "value")
def performer_attention(
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    value: Float[Tensor, "b s g m"],
    *,
    directions: Float[Tensor, "f d"],
    eps: float,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
    **call: Unpack[CausalCall],
) -> Float[Tensor, "b l h m"] | tuple[Float[Tensor, "b l h m"], PerformerState]:
    """out_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / φ(q_i) · Σ_j φ(k_j) (FAVOR+, equations 5 and 7).

    φ(x)_f = exp(ω_f · x' - |x'|² / 2) + ε with x' = x / d^¼, whose inner products have the mean
    exp(q · k / √d) over Gaussian ω_f. Exponents are taken relative to the largest one of the query
    itself, and of all keys: a common factor of numerator and denominator. In the causal form the
    published code takes the largest over all keys, future ones included; here it is the largest so
    far, and the sums of before are brought down when it grows.

    Args:
        query: the queries.
        key: the keys; g divides h, and each key head serves h / g query heads.
        value: the values, with as many heads as the keys.
        directions: the ω, one in each row.
        eps: the ε, relative to the largest feature.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.
        call: see `CausalCall`.

    Raises:
        ValueError: causal with l ≠ s, a state without causal, or one of other sizes.
        TypeError: the state is of another kind.
    """
    causal, return_state = call.get("causal", False), call.get("return_state", False)
    initial_state = call.get("initial_state")
    if (initial_state is not None or return_state) and not causal:
        raise ValueError("a state exists for causal attention only, got causal=False")
    check_eps(eps, zero=True)
    q, k, query_mask, key_mask = real_tokens(query, key, **call)
    with exact_arithmetic(query):
        q, k = _exponent(q, directions), _exponent(k, directions)
        q = (q - q.detach().amax(-1, keepdim=True)).exp() + eps
        if causal:
            check_causal(query, key)
            k = k.repeat_interleave(query.shape[2] // key.shape[2], 2)
            sizes = query.shape[0], query.shape[2], directions.shape[0], value.shape[3] + 1
            state = starting_state(initial_state, PerformerState.initial, *sizes, query.device)
            out, state = _causal(q, k, value, eps=eps, mask=query_mask, state=state)
            return (out, state) if return_state else out
        largest = _visible(k.detach().amax(-1), key_mask).amax(1)[:, None, :, None]
        return weighted_mean(q, (k - largest).exp() + eps, value, **call)


def _exponent(
    x: Float[Tensor, "b t h d"], directions: Float[Tensor, "f d"]
) -> Float[Tensor, "b t h f"]:
    """ω_f · x' - |x'|² / 2."""
    x = x * float(x.shape[-1]) ** -0.25
    return x @ directions.to(x.dtype).mT - x.square().sum(-1, keepdim=True) / 2


def _visible(x: Float[Tensor, "b t h"], mask: Bool[Tensor, "b t"] | None) -> Float[Tensor, "b t h"]:
    """Return x, too small to be a maximum at padded tokens."""
    return x if mask is None else torch.where(mask[:, :, None], x, LOWEST_MAXIMUM)


def _causal(
    q: Float[Tensor, "b t h f"],
    exponent: Float[Tensor, "b t h f"],
    value: Float[Tensor, "b t g m"],
    *,
    eps: float,
    mask: Bool[Tensor, "b t"] | None,
    state: PerformerState,
) -> tuple[Float[Tensor, "b t h m"], PerformerState]:
    """Sum relative to the running maximum, which is a linear attention with a decay."""
    peak = _visible(exponent.detach().amax(-1), mask).to(state.maximum.dtype)
    peaks = torch.cat((state.maximum[:, None], peak), 1).cummax(1).values
    step = (peaks[:, :-1] - peaks[:, 1:]).clamp(min=LOWEST_STEP)
    relative = exponent - peaks[:, 1:, :, None].to(q.dtype)
    if mask is not None:  # before the first real token the maximum is none, and exp(∞) no number
        relative = relative.masked_fill(~mask[:, :, None, None], 0)
    product, linear = gated_linear_attention(
        q,
        relative.exp() + eps,
        with_ones(value, q.dtype).repeat_interleave(q.shape[2] // value.shape[2], 2),
        log_decay=step[..., None].to(q.dtype),
        mask=mask,
        initial_state=LinearState(state.key_value),
    )
    out = divided(product, value.dtype)
    return out, PerformerState(peaks[:, -1], linear.key_value)


def orthogonal_directions(num_features: int, width: int) -> Float[Tensor, "f d"]:
    """Rows from N(0, I) each, orthogonal to the others of its block of `width` rows.

    A block is the orthogonal factor of a Gaussian matrix; the lengths are drawn apart, so that each
    row by itself is Gaussian, and every estimate unbiased (Choromanski et al. 2021, section 2.4).
    Drawn in float64 from torch's generator for the CPU.
    """
    blocks = [_rotation(width)[: num_features - start] for start in range(0, num_features, width)]
    lengths = torch.randn(num_features, width, dtype=torch.float64).norm(dim=1, keepdim=True)
    return torch.cat(blocks) * lengths


def _rotation(width: int) -> Float[Tensor, "d d"]:
    orthogonal, upper = torch.linalg.qr(torch.randn(width, width, dtype=torch.float64))
    return orthogonal * upper.diagonal().sign()  # without the signs it is not uniform


class RandomDirections(nn.Module):
    """Orthogonal Gaussian directions ω, saved and loaded with the parameters.

    Called by a layer in training, it counts the calls and draws anew after every `redraw_every`, as
    the Performer's authors do, so that a model does not adapt to one draw. Count and directions
    are buffers: a run that is resumed goes on where it was, and replicas receive those of rank 0.
    The count is read on the host: one small transfer a call on a GPU, none with None.

    Args:
        shape: [..., features, width]; each matrix is drawn by itself.
        redraw_every: training calls between draws; None never redraws.
    """

    directions: Tensor
    calls: Tensor

    def __init__(self, *shape: int, redraw_every: int | None) -> None:
        super().__init__()
        if min(shape) < 1:
            raise ValueError(
                f"the number of features and their width must be positive, got {shape}"
            )
        if redraw_every is not None and redraw_every < 1:
            raise ValueError(f"redraw_every must be positive or None, got {redraw_every}")
        self.redraw_every = redraw_every
        self.register_buffer("directions", torch.empty(shape))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.redraw()

    def redraw(self) -> None:
        """Draw other directions, in place."""
        _draw(self.directions)

    def forward(self) -> Float[Tensor, "... f d"]:
        """Return the directions; in training, count the call and redraw when it is time."""
        if self.training and self.redraw_every is not None:
            _count_call(self.directions, self.calls, self.redraw_every)
            return self.directions.clone()  # the backward pass needs those of this call
        return self.directions

    def extra_repr(self) -> str:
        """Return the sizes, for print(model)."""
        return f"{tuple(self.directions.shape)}, redraw_every={self.redraw_every}"


def _draw(directions: Tensor) -> None:
    with torch.no_grad():
        for matrix in directions.flatten(0, -3) if directions.ndim > 2 else [directions]:
            matrix.copy_(orthogonal_directions(*matrix.shape))


# An operator of its own, because whether it draws depends on a tensor: torch.compile takes it as it
# is, where a Python branch would end the graph.
@torch.library.custom_op("flowformer::count_call", mutates_args=("directions", "calls"))
def _count_call(directions: Tensor, calls: Tensor, redraw_every: int) -> None:
    calls.add_(1)
    if int(calls) % redraw_every == 0:
        _draw(directions)


class PerformerAttention(HeadAttention):
    """FAVOR+ (Choromanski et al. 2021): an estimate of softmax attention by positive features.

    The directions are shared by the heads, as in the authors' code.

    Args:
        head_dim: width of a head.
        num_features: number of directions; the estimate's variance falls as one over it. None
            means d log d, of the order that theorem 4 asks for.
        redraw_every: training calls between draws of the directions; None never redraws.
        eps: added to every feature, relative to the largest.
    """

    capabilities = Capabilities(causal=True, cross=True, state=True, independent_sinks=True)
    function = staticmethod(performer_attention)

    def __init__(
        self,
        *,
        head_dim: int,
        num_features: int | None = None,
        redraw_every: int | None = 1000,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(eps=eps)
        check_eps(eps, zero=True)
        if num_features is None:
            num_features = max(1, int(head_dim * math.log(head_dim)))
        self.features = RandomDirections(num_features, head_dim, redraw_every=redraw_every)

    def arguments(self) -> dict[str, Any]:
        """Return the directions too; a state belongs to those it was made with."""
        return {**super().arguments(), "directions": self.features()}


class PerformerMixer(ProjectedMixer, name="performer"):
    """Performer (Choromanski et al. 2021): softmax attention through positive random features."""

    kind = PerformerAttention
