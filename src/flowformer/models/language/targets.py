"""What a language model is to predict, and at which tokens."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from flowformer.models import inputs
from flowformer.models.cross_entropy import IGNORED
from flowformer.models.shards import SequenceShards


def check_mask(mask: Tensor | None, input_ids: Tensor) -> None:
    """Refuse a mask that is not boolean, or of another shape than the tokens.

    Raises:
        ValueError: it is.
    """
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise ValueError(f"attention_mask must be bool, True = a real token, got {mask.dtype}")
    if mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids, {tuple(input_ids.shape)}, "
            f"got {tuple(mask.shape)}"
        )


def shifted(
    labels: Int[Tensor, "b t"],
    mask: Bool[Tensor, "b t"] | None,
    cu_seqlens: Int[Tensor, " offsets"] | None,
    shards: SequenceShards | None,
) -> Int[Tensor, "b t"]:
    """Labels as targets: that of token t + 1 stands at t, if both are of one document."""
    if mask is not None:
        labels = labels.masked_fill(~mask, IGNORED)
    if cu_seqlens is not None:
        starts = cu_seqlens.to(labels.device).long()
        if shards is not None:
            starts = starts - shards.before(torch.tensor([labels.shape[1]], device=labels.device))
        starts = starts[(starts >= 0) & (starts < labels.shape[1])]
        labels = labels.index_fill(1, starts, IGNORED)
    if shards is not None:
        following = shards.first_of_next(labels)
        return torch.cat((labels, following), 1)[:, 1:]
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def last_real(
    hidden: Float[Tensor, "b t dim"],
    mask: Bool[Tensor, "b t"] | None,
    shards: SequenceShards | None,
) -> Float[Tensor, "b 1 dim"]:
    """The hidden state of the last real token in each row."""
    if shards is not None:
        return shards.last_real(hidden, mask)
    return inputs.last_real(hidden, mask)[:, None]
