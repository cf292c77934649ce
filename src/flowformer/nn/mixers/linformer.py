"""Linformer (Wang et al. 2020): softmax attention over a fixed number of mixed keys and values."""

from typing import Any, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.nn.mixers.head_attention import Capabilities, HeadAttention, Masks
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.ops.features import masked
from flowformer.ops.inputs import resolve_masks
from flowformer.ops.layout import Layout, takes_layouts


@takes_layouts("query", "key", "value")
def linformer_attention(
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    value: Float[Tensor, "b s g m"],
    *,
    key_mixing: Float[Tensor, "n r"],
    value_mixing: Float[Tensor, "n r"],
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
    **masks: Unpack[Masks],
) -> Float[Tensor, "b l h m"]:
    """out = softmax(Q (Eᵀ K)ᵀ / √d) Fᵀ V (equation 7), E and F cut to s rows.

    Real tokens are numbered 0, 1, …, and number n uses row n of E and F; padded keys enter neither
    sum. So a padded sequence gives what it gives alone, on whichever side the padding stands.

    Args:
        query: the queries.
        key: the keys; g divides h, and each key head serves h / g query heads.
        value: the values, with as many heads as the keys.
        key_mixing: E, one row for each possible position.
        value_mixing: F, of the same shape.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.
        masks: see `Masks`.

    Raises:
        ValueError: more keys than rows of the mixing matrices.
    """
    query_mask, key_mask = resolve_masks(query, key, **masks)
    if key.shape[1] > key_mixing.shape[0]:
        raise ValueError(
            f"linformer has mixing rows for {key_mixing.shape[0]} keys, got {key.shape[1]}: "
            "give it a larger max_length"
        )
    out = F.scaled_dot_product_attention(
        masked(query, query_mask).transpose(1, 2),
        _mixed(key, key_mixing, key_mask),
        _mixed(value, value_mixing, key_mask),
        enable_gqa=bool(query.shape[2] != key.shape[2]),  # traced, a tensor
    ).transpose(1, 2)
    return masked(out, query_mask)


def _mixed(
    tokens: Float[Tensor, "b s g d"],
    mixing: Float[Tensor, "n r"],
    mask: Bool[Tensor, "b s"] | None,
) -> Float[Tensor, "b g r d"]:
    if mask is None:
        return torch.einsum("bsgd,sr->bgrd", tokens, mixing[: tokens.shape[1]])
    number = (mask.cumsum(dim=1) - 1).clamp(min=0)
    # The tokens are zeroed and not the rows: padding may hold NaN, and 0 times NaN is NaN.
    tokens = masked(tokens, mask)
    return torch.einsum("bsgd,bsr->bgrd", tokens, mixing[number])


class LinformerAttention(HeadAttention):
    """Linformer (Wang et al. 2020, equation 7): learned matrices mix keys and values to `rank`.

    The two matrices are shared by the heads ("headwise sharing" in section 4 of the paper).

    Args:
        max_length: longest sequence of keys; the matrices have a row for each position.
        rank: number of mixed keys, called k in the paper.
    """

    capabilities = Capabilities(
        causal=False, cross=True, state=False, variable_length=False, independent_sinks=True
    )
    function = staticmethod(linformer_attention)

    def __init__(self, *, max_length: int, rank: int = 256) -> None:
        super().__init__()
        if rank < 1 or max_length < 1:
            raise ValueError(f"rank and max_length must be positive, got {rank=} and {max_length=}")
        self.key_mixing = nn.Parameter(torch.empty(max_length, rank))
        self.value_mixing = nn.Parameter(torch.empty(max_length, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both from N(0, 1/rank), the variance in the paper's theorem 2."""
        for mixing in (self.key_mixing, self.value_mixing):
            nn.init.normal_(mixing, std=mixing.shape[1] ** -0.5)

    def extra_repr(self) -> str:
        """Return the sizes, for print(model)."""
        return f"max_length={self.key_mixing.shape[0]}, rank={self.key_mixing.shape[1]}"

    def arguments(self) -> dict[str, Any]:
        """Return both matrices."""
        return {"key_mixing": self.key_mixing, "value_mixing": self.value_mixing}


class LinformerMixer(ProjectedMixer, name="linformer"):
    """Linformer (Wang et al. 2020): softmax over `rank` mixed keys; needs max_length."""

    kind = LinformerAttention
