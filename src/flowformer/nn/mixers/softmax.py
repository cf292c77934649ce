"""Softmax attention (Vaswani et al. 2017), over torch's `scaled_dot_product_attention`."""

from typing import Any, NamedTuple, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from flowformer.nn.mixers.head_attention import Capabilities, CausalCall, HeadAttention, call_masks
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.ops.features import masked
from flowformer.ops.inputs import check_causal
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.nonfinite import contained
from flowformer.ops.state import detach_state, move_state, reorder_state


class KVState(NamedTuple):
    """All keys and values so far: the state of causal softmax attention, growing with the length.

    Attributes:
        key: the keys so far.
        value: the values so far.
        mask: which of them are real tokens; None when all are.
    """

    key: Float[Tensor, "b s g d"]
    value: Float[Tensor, "b s g m"]
    mask: Bool[Tensor, "b s"] | None = None

    to = move_state
    detach = detach_state
    reorder = reorder_state


# A state that torch.save wrote is loaded by torch.load, which otherwise takes no classes.
torch.serialization.add_safe_globals([KVState])


@takes_layouts("query", "key", "value")
@contained("query", "key", "value")
def softmax_attention(
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    value: Float[Tensor, "b s g m"],
    *,
    dropout: float = 0.0,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
    **call: Unpack[CausalCall],
) -> Float[Tensor, "b l h m"] | tuple[Float[Tensor, "b l h m"], KVState]:
    """out_i = Σ_j softmax_j(q_i · k_j / √d) v_j, the sum over real keys (and j ≤ i when causal).

    Args:
        query: the queries.
        key: the keys; g divides h, and each key head serves h / g query heads.
        value: the values, with as many heads as the keys.
        dropout: probability with which a weight is dropped.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.
        call: see `CausalCall`; the state is a `KVState`.

    Raises:
        ValueError: causal with l ≠ s, a state without causal, or one of other sizes.
        TypeError: the state is of another kind.
    """
    causal, return_state = call.get("causal", False), call.get("return_state", False)
    initial_state: KVState | None = call.get("initial_state")
    query_mask, key_mask = call_masks(query, key, **call)
    if (initial_state is not None or return_state) and not causal:
        raise ValueError("a state exists for causal attention only, got causal=False")
    if causal:
        check_causal(query, key)
    if initial_state is not None:
        _check_state(initial_state, key)
        key_mask = _joined_mask(initial_state, key, key_mask)
        key = torch.cat((initial_state.key, key), dim=1)
        value = torch.cat((initial_state.value, value), dim=1)
    allowed = _allowed(query, key, key_mask, causal=causal)
    # Padding may hold NaN, and a weight of zero does not take it away.
    out = F.scaled_dot_product_attention(
        masked(query, query_mask).transpose(1, 2),
        masked(key, key_mask).transpose(1, 2),
        masked(value, key_mask).transpose(1, 2),
        attn_mask=allowed,
        is_causal=causal and allowed is None,
        dropout_p=dropout,
        enable_gqa=bool(query.shape[2] != key.shape[2]),  # traced, a tensor
    ).transpose(1, 2)
    if key_mask is not None and not causal:
        out = out.masked_fill(~key_mask.any(dim=1)[:, None, None, None], 0)
    out = masked(out, query_mask)
    return (out, KVState(key, value, key_mask)) if return_state else out


def _check_state(state: KVState, key: Float[Tensor, "b s g d"]) -> None:
    if not isinstance(state, KVState):
        raise TypeError(f"the state must be a KVState, got {type(state).__name__}")
    came, wanted = list(state.key.shape), list(key.shape)
    if came[:1] + came[2:] != wanted[:1] + wanted[2:]:
        raise ValueError(
            f"key of the state must be [batch, time, head, feature] of the sizes {wanted} but for "
            f"the time, got {came}"
        )


def _joined_mask(
    state: KVState,
    key: Float[Tensor, "b s g d"],
    key_mask: Bool[Tensor, "b s"] | None,
) -> Bool[Tensor, "b t"] | None:
    if state.mask is None and key_mask is None:
        return None
    past, new = (
        part_mask if part_mask is not None else part.new_ones(part.shape[:2], dtype=torch.bool)
        for part, part_mask in ((state.key, state.mask), (key, key_mask))
    )
    return torch.cat((past, new), dim=1)


def _allowed(
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    key_mask: Bool[Tensor, "b s"] | None,
    *,
    causal: bool,
) -> Bool[Tensor, "..."] | None:
    """Return which key each query may see; None when `is_causal` alone says it.

    No row is ever empty, for some of torch's kernels give NaN for the softmax of nothing: a padded
    causal query sees itself, and in a sequence without a real key all are seen. The caller sets
    these outputs to zero.
    """
    length, sources = query.shape[1], key.shape[1]
    if not causal:
        if key_mask is None:
            return None
        return (key_mask | ~key_mask.any(dim=1, keepdim=True))[:, None, None, :]
    if key_mask is None and length == sources:
        return None
    last_seen = torch.arange(sources - length, sources, device=query.device)[:, None]
    position = torch.arange(sources, device=query.device)
    allowed = position <= last_seen
    if key_mask is None:
        return allowed
    return (allowed & key_mask[:, None, None, :]) | (position == last_seen)


class SoftmaxAttention(HeadAttention):
    """Softmax attention (Vaswani et al. 2017); its state holds all keys and values and grows.

    Args:
        weight_dropout: probability with which an attention weight is dropped in training.
    """

    capabilities = Capabilities(
        causal=True, cross=True, state=True, growing_state=True, independent_sinks=True
    )
    function = staticmethod(softmax_attention)

    def __init__(self, *, weight_dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= weight_dropout < 1:
            raise ValueError(f"weight_dropout must be in [0, 1), got {weight_dropout}")
        self.weight_dropout = weight_dropout

    def arguments(self) -> dict[str, Any]:
        """Return the dropout of the weights, which acts in training."""
        return {"dropout": self.weight_dropout if self.training else 0.0}

    def extra_repr(self) -> str:
        """Return the option, for print(model)."""
        return f"weight_dropout={self.weight_dropout}"


class SoftmaxMixer(ProjectedMixer, name="softmax"):
    """Softmax attention (Vaswani et al. 2017), the usual transformer's; quadratic in the length."""

    kind = SoftmaxAttention

    @classmethod
    def published_options(cls, model: str, dropout: float) -> dict[str, Any]:
        """Return the dropout of weights that GPT-2 has, which decision transformers are made of."""
        return {"weight_dropout": dropout} if model == "trajectories" else {}
