"""The recurrent state of an attention as a layer of transformers' cache.

A cache of transformers is a list of layers, one for each attention of a model. Where an attention
carries a state, the layer of keys and values gives way to one that holds it, as long as it is
empty: `generate` makes its cache as ever. Softmax beside it keeps its keys and values, so that a
hybrid model has both in one cache.
"""

from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
)

from flowformer.nn.mixers.head_attention import State


class StateLayer(CacheLayerMixin):
    """A layer that holds the state of an attention in place of its keys and values.

    transformers hands the cache to the modules of a model, and to the function that attends only
    what `update` returned of it: the keys that come out here are marked with the layer.

    Attributes:
        state: the state after the tokens so far, batch first; None before the first.
    """

    is_compileable = False
    is_croppable = False
    is_sliding = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__()
        self.state: State | None = None
        self._tokens, self._awaited = 0, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There is nothing to make before the first state."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the new keys and values, [b, h, t, d], alone: the state stands for those before.

        Raises:
            RuntimeError: the keys of the call before did not reach the attention.
        """
        if self._awaited:
            raise RuntimeError(
                "the attention did not take up the state of the tokens before, for the model broke "
                "off, or hands it other keys than its cache returned: begin with a new cache, or "
                "call the model with use_cache=False"
            )
        self._awaited = key_states.shape[-2]
        marked: Any = key_states.view_as(key_states)
        marked.flowformer_layer = self  # which `attend` looks for
        return marked, value_states

    def advance(self, state: State) -> None:
        """Take the state after the tokens of the last update."""
        self.state, self.is_initialized = state, True
        self._tokens += self._awaited
        self._awaited = 0

    def get_seq_length(self) -> int:
        """Return the number of places so far, padding too, which an attention mask covers first."""
        return self._tokens

    def get_max_length(self) -> int:
        """There is no longest sequence: -1, as transformers says it."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length of a mask over all places, and where it begins."""
        return self._tokens + query_length, 0

    def offload(self) -> None:
        """It stays where it is: its size is constant."""

    def prefetch(self) -> None:
        """It is there."""

    def reset(self) -> None:
        """Forget all tokens."""
        self.state, self.is_initialized = None, False
        self._tokens, self._awaited = 0, 0

    def reorder_cache(self, beam_idx: Int[Tensor, " n"]) -> None:
        """Keep the rows `beam_idx`, in that order."""
        if self.state is not None:
            self.state = self.state.reorder(beam_idx.to(_first(self.state).device))

    def batch_select_indices(self, indices: Int[Tensor, " n"]) -> None:
        """Keep the rows `indices`, in that order."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row, one copy beside the other."""
        if self.state is not None:
            self.reorder_cache(torch.arange(len(_first(self.state))).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> NoReturn:
        """Refuse to take tokens back; see `refuse_crop`."""
        refuse_crop(tokens_to_remove)


def _first(state: Any) -> Tensor:
    """Return a tensor of a state, all of which have a row for each sequence."""
    return next(field for field in state if field is not None)


def refuse_crop(tokens: int) -> NoReturn:
    """Refuse to take tokens back, as assisted generation does.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        f"cannot take {abs(tokens)} tokens back: the state is a sum over them all. "
        "Keep a copy (copy.deepcopy) of the cache from before them, or compute the prefix again"
    )


def hold_states(cache: Any, places: Iterable[int]) -> None:
    """Let an empty cache hold a state in these of its layers, those of keys and values.

    Other kinds of cache, and one that has keys and values already, stay as they are.
    """
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    if not isinstance(cache, DynamicCache) or cache.get_seq_length() > 0:
        return
    made = cache.layer_class_to_replicate
    for place in places:
        while made is not None and len(cache.layers) <= place:
            cache.layers.append(made())
        kind = type(cache.layers[place]) if place < len(cache.layers) else None
        if kind in (DynamicLayer, DynamicSlidingWindowLayer):
            cache.layers[place] = StateLayer()


def new_cache(config: Any, places: Iterable[int]) -> Cache:
    """Return the cache that a model makes for itself, with states in these layers."""
    cache = DynamicCache(config=config)
    hold_states(cache, places)
    crosses = ("is_encoder_decoder", "add_cross_attention")
    if any(getattr(config, name, False) for name in crosses):
        return EncoderDecoderCache(cache, DynamicCache(config=config))
    return cache
