"""cosFormer (Qin et al. 2022): relu features, weighted by the cosine of the distance."""

import math
from typing import Any, NamedTuple, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowformer.nn.mixers.head_attention import Capabilities, CausalCall, HeadAttention
from flowformer.nn.mixers.linear import real_tokens, weighted_mean
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.ops.features import check_eps
from flowformer.ops.inputs import check_causal, exact_arithmetic, starting_state
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.nonfinite import contained
from flowformer.ops.state import LinearState, detach_state, reorder_state, to_state


class CosformerState(NamedTuple):
    """The state of a causal cosFormer: constant size, whatever the number of tokens.

    Attributes:
        tokens: the number of real tokens so far, the position of the next. Shape ``[b]``, int64.
        key_value: Σ φ(k)ᵀ [v, 1]. Shape ``[b, h, 2 d, m + 1]``, float64 (float32 without it).
    """

    tokens: Int[Tensor, " b"]
    key_value: Float[Tensor, "b h f m_plus_1"]

    to = to_state
    detach = detach_state
    reorder = reorder_state

    @classmethod
    def initial(cls, batch: int, *sizes: Any) -> "CosformerState":
        """Return the state before the first token, of the sizes that a `LinearState` takes."""
        sums = LinearState.initial(batch, *sizes).key_value
        return cls(sums.new_zeros(batch, dtype=torch.int64), sums)


torch.serialization.add_safe_globals([CosformerState])


@takes_layouts("query", "key", "value")
@contained("query", "key", "value")
def cosformer_attention(
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    value: Float[Tensor, "b s g m"],
    *,
    max_length: int,
    eps: float,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
    **call: Unpack[CausalCall],
) -> Float[Tensor, "b l h m"] | tuple[Float[Tensor, "b l h m"], CosformerState]:
    """out_i = Σ_j w_ij v_j / max(Σ_j w_ij, ε), w_ij = relu(q_i)·relu(k_j) cos(π/2 · (i - j) / M).

    By cos(a - b) = cos a cos b + sin a sin b it is an inner product of features (equation 10):
    φ(x_i) = [relu(x_i) cos(π i / 2M), relu(x_i) sin(π i / 2M)]. M is at least the length, for past
    it the cosine is negative. The published code takes the length of the batch at hand, so that
    the result depends on the padding; here M is max_length, whatever the batch. Real tokens are
    numbered 0, 1, …, in queries and keys each.

    Args:
        query: the queries.
        key: the keys; g divides h, and each key head serves h / g query heads.
        value: the values, with as many heads as the keys.
        max_length: M.
        eps: least denominator: of a query whose weights are all zero, the output is zero.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.
        call: see `CausalCall`.

    Raises:
        ValueError: more than M tokens, causal with l ≠ s, a state without causal, or one of other
            sizes.
        TypeError: the state is of another kind.
    """
    causal, initial_state = call.get("causal", False), call.get("initial_state")
    if (initial_state is not None or call.get("return_state")) and not causal:
        raise ValueError("a state exists for causal attention only, got causal=False")
    check_eps(eps)
    q, k, query_mask, key_mask = real_tokens(query, key, **call)
    start = None
    if causal:
        check_causal(query, key)
        b, _, h, d = query.shape
        sizes = b, h, 2 * d, value.shape[3] + 1, query.device
        start = starting_state(initial_state, CosformerState.initial, *sizes)
    _check_length(query, key, max_length, initial_state)
    rest: dict[str, Any] = {**call}
    rest["initial_state"] = None if start is None else LinearState(start.key_value)
    with exact_arithmetic(query):
        result = weighted_mean(
            _features(q, _places(query, query_mask, start), max_length),
            _features(k, _places(key, key_mask, start), max_length),
            value,
            least=eps,
            **rest,
        )
    if start is None or not isinstance(result, tuple):
        return result
    added = query.shape[1] if query_mask is None else query_mask.sum(1)
    return result[0], CosformerState(start.tokens + added, result[1].key_value)


def _check_length(
    query: Tensor, key: Tensor, max_length: int, state: CosformerState | None
) -> None:
    length = max(query.shape[1], key.shape[1])
    # While a graph is traced the number so far is not known; the caller keeps the bound there.
    if state is not None and state.tokens.numel() and not torch.compiler.is_compiling():
        length += int(state.tokens.max())
    if length > max_length:
        raise ValueError(
            f"cosformer was given a max_length of {max_length} keys, got {length}: the cosine is "
            "negative past it; give it a larger max_length"
        )


def _places(
    x: Float[Tensor, "b t h d"], mask: Bool[Tensor, "b t"] | None, start: CosformerState | None
) -> Int[Tensor, "b t"]:
    """Return the numbers of the real tokens; of a padded one, any."""
    if mask is None:
        places = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    else:
        places = mask.cumsum(1) - 1
    return places if start is None else places + start.tokens[:, None]


def _features(
    x: Float[Tensor, "b t h d"], place: Int[Tensor, "b t"], max_length: int
) -> Float[Tensor, "b t h f"]:
    angle = (place.to(x.dtype) * (math.pi / 2 / max_length))[:, :, None, None]
    x = torch.relu(x)
    return torch.cat((x * angle.cos(), x * angle.sin()), -1)


class CosformerAttention(HeadAttention):
    """cosFormer (Qin et al. 2022): relu features and a cosine of the distance; linear.

    Args:
        max_length: M, the distance at which the cosine would be zero; bounds the length.
        eps: least denominator, as in the published code.
    """

    capabilities = Capabilities(
        causal=True, cross=True, state=True, variable_length=False, independent_sinks=True
    )
    function = staticmethod(cosformer_attention)

    def __init__(self, *, max_length: int, eps: float = 1e-6) -> None:
        super().__init__(max_length=max_length, eps=eps)
        if max_length < 1 or eps <= 0:
            raise ValueError(f"max_length and eps must be positive, got {max_length=} and {eps=}")
        check_eps(eps)


class CosformerMixer(ProjectedMixer, name="cosformer"):
    """cosFormer (Qin et al. 2022): relu features and a cosine of the distance; needs max_length."""

    kind = CosformerAttention
