"""The mask arguments that every baseline shares."""

from jaxtyping import Bool
from torch import Tensor


def sides(
    mask: Bool[Tensor, "b t"] | None,
    query_mask: Bool[Tensor, "b l"] | None,
    key_mask: Bool[Tensor, "b s"] | None,
) -> tuple[Bool[Tensor, "b l"] | None, Bool[Tensor, "b s"] | None]:
    """The masks of the queries and of the keys: `mask` stands for both.

    Raises:
        ValueError: `mask` and one of the others were both given.
    """
    if mask is None:
        return query_mask, key_mask
    if query_mask is not None or key_mask is not None:
        raise ValueError("mask stands for query_mask and key_mask: give either it or them")
    return mask, mask


def zero_padded(
    out: Tensor,
    query_mask: Bool[Tensor, "b l"] | None,
) -> Tensor:
    """The output [b, l, ...] with zeros at padded queries, whatever stood there."""
    if query_mask is None:
        return out
    return out.masked_fill(~query_mask.view(*query_mask.shape, *[1] * (out.ndim - 2)), 0)
