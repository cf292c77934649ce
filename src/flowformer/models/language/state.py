"""The state that a language model goes on from, and the places of tokens."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowformer.nn.mixers.attention import State
from flowformer.ops.packing import Batch, check_batch


class LanguageState(NamedTuple):
    """The state that the model carries from one call to the next.

    Attributes:
        layers: the state of each block's mixer; of constant size for flow and its linear kin.
        position: how many real tokens each row had so far: the place of the next. Shape ``[b]``.
    """

    layers: tuple[State, ...]
    position: Int[Tensor, " b"]

    def to(self, device: torch.device | str) -> "LanguageState":
        """Return the state on another device."""
        return LanguageState(
            tuple(layer.to(device) for layer in self.layers), self.position.to(device)
        )

    def detach(self) -> "LanguageState":
        """Return the state without its history of gradients (truncated back-propagation)."""
        return LanguageState(tuple(layer.detach() for layer in self.layers), self.position)

    def reorder(self, index: Int[Tensor, " n"]) -> "LanguageState":
        """Return the rows `index` of the batch (beam search keeps, drops and repeats sequences)."""
        return LanguageState(
            tuple(layer.reorder(index) for layer in self.layers),
            self.position.index_select(0, index),
        )


# A state that torch.save wrote is loaded by torch.load, which otherwise takes no classes.
torch.serialization.add_safe_globals([LanguageState])


def token_places(
    embedded: Float[Tensor, "b t dim"],
    mask: Bool[Tensor, "b t"] | None,
    past: LanguageState | None,
    cu_seqlens: Int[Tensor, " offsets"] | None,
    before: Int[Tensor, " b"] | None = None,
) -> Int[Tensor, "rows t"] | None:
    """Return the place of each token; padding has none of its own. None for 0, 1, … in all rows.

    With None the table of positions sees from the shape, without waiting for a device, that it is
    long enough. `before` counts the real tokens of each row that earlier ranks hold.
    """
    if mask is None and past is None and cu_seqlens is None and before is None:
        return None
    if cu_seqlens is not None:
        check_batch(Batch(mask, None, cu_seqlens, None))
    length, device = embedded.shape[1], embedded.device
    tokens = torch.arange(length, device=device)[None] if mask is None else mask.cumsum(1) - 1
    if before is not None:
        tokens = tokens + before[:, None]
    if cu_seqlens is not None:
        offsets = cu_seqlens.to(device)
        return tokens - offsets[torch.searchsorted(offsets, tokens, right=True) - 1]
    places = tokens.clamp(min=0)
    return places if past is None else places + past.position[:, None]
