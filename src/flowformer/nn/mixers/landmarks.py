"""Landmarks of a sequence: the means of its segments, which Nyström methods put in its place."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.ops.inputs import at_most


def segment_means(
    tokens: Float[Tensor, "b t h d"], mask: Bool[Tensor, "b t"] | None, num_landmarks: int
) -> tuple[Float[Tensor, "b h m d"], Bool[Tensor, "b m"]]:
    """Cut each sequence into equal segments; return their means, and which segments exist.

    Of n real tokens, number i (from 0) belongs to segment floor(i·m / n). So padding is in no
    segment, lengths that m does not divide give segments that differ by one token, and fewer than m
    tokens are their own landmarks, with some segments empty. The mean of an empty segment is zero.

    Args:
        tokens: the tokens; padded ones must be zero.
        mask: real tokens (True).
        num_landmarks: m; no more than t segments are made (in a graph for any length, m).
    """
    b, t, h, d = tokens.shape
    m = at_most(num_landmarks, t)
    if mask is None:
        mask = tokens.new_ones(b, t, dtype=torch.bool)
    number = mask.cumsum(dim=1) - 1
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    # Padding before the first token would be segment -1; its tokens are zero and are not counted.
    segment = (number * m // count).clamp(min=0)
    place = (segment + m * torch.arange(b, device=tokens.device)[:, None]).flatten()
    total = tokens.new_zeros(b * m, h * d).index_add(0, place, tokens.reshape(b * t, h * d))
    size = tokens.new_zeros(b * m).index_add(0, place, mask.flatten().to(tokens.dtype))
    means = (total / size.clamp(min=1)[:, None]).unflatten(1, (h, d)).unflatten(0, (b, m))
    return means.transpose(1, 2), (size > 0).unflatten(0, (b, m))


def masked_softmax(
    scores: Float[Tensor, "#b h r c"], allowed: Bool[Tensor, "#b #h #r #c"]
) -> Float[Tensor, "#b h r c"]:
    """Softmax over the allowed columns; a row where none is allowed is zero, without gradient."""
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~allowed, lowest).softmax(dim=-1).masked_fill(~allowed, 0)
