"""Softmax attention (Vaswani et al. 2017), over torch's `scaled_dot_product_attention`."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from flowformer.nn.mixers.attention import Capabilities, HeadAttention
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.ops.features import masked
from flowformer.ops.inputs import check_causal, resolve_masks
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.nonfinite import contained


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

    def detach(self) -> "KVState":
        """Return the state without its history of gradients."""
        return self._map(Tensor.detach)

    def to(self, device: torch.device | str) -> "KVState":
        """Return the state on another device."""
        return self._map(lambda part: part.to(device))

    def reorder(self, batch_index: Tensor) -> "KVState":
        """Return the state of the sequences `batch_index`, in that order (beam search)."""
        return self._map(lambda part: part.index_select(0, batch_index))

    def _map(self, change: Callable[[Tensor], Tensor]) -> "KVState":
        mask = None if self.mask is None else change(self.mask)
        return KVState(change(self.key), change(self.value), mask)


# A state that torch.save wrote is loaded by torch.load, which otherwise takes no classes.
torch.serialization.add_safe_globals([KVState])


@takes_layouts("query", "key", "value")
@contained("query", "key", "value")
def softmax_attention(  # noqa: PLR0913 - the keywords that every attention here takes
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    value: Float[Tensor, "b s g m"],
    *,
    causal: bool = False,
    mask: Bool[Tensor, "b l"] | None = None,
    query_mask: Bool[Tensor, "b l"] | None = None,
    key_mask: Bool[Tensor, "b s"] | None = None,
    dropout: float = 0.0,
    initial_state: KVState | None = None,
    return_state: bool = False,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
) -> Float[Tensor, "b l h m"] | tuple[Float[Tensor, "b l h m"], KVState]:
    """out_i = Σ_j softmax_j(q_i · k_j / √d) v_j, the sum over real keys (and j ≤ i when causal).

    Args:
        query: the queries.
        key: the keys; g divides h, and each key head serves h / g query heads.
        value: the values, with as many heads as the keys.
        causal: let query i see the keys up to i only; needs l == s.
        mask: real tokens (True) of queries and keys, in self-attention.
        query_mask: real tokens of the queries; the output at the others is zero.
        key_mask: real tokens of the keys; a query with no real key gives zero.
        dropout: probability with which a weight is dropped.
        initial_state: the keys and values of the tokens before these (causal only).
        return_state: also return the state after these tokens (causal only).
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.

    Raises:
        ValueError: causal with l ≠ s, a state without causal, or one of other sizes.
        TypeError: the state is of another kind.
    """
    query_mask, key_mask = resolve_masks(
        query, key, causal=causal, mask=mask, query_mask=query_mask, key_mask=key_mask
    )
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

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=True,
        cross=True,
        state=True,
        growing_state=True,
        variable_length=True,
        independent_sinks=True,
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
