"""The recurrent state of the model as a cache of transformers."""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NoReturn

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from flowformer.models.language.model import LanguageState
from flowformer.nn.replace.transformers_cache import refuse_crop
from flowformer.nn.replace.transformers_owner import CACHE_NAMES

# What the release that is installed calls it, in outputs and in the calls of generate.
(CACHE,) = {field.name for field in fields(BaseModelOutputWithPast)}.intersection(CACHE_NAMES)


class FlowformerCache(Cache):
    """The state that the model carries from call to call: `LanguageState`, not keys and values.

    Of constant size for flow and its linear kin, whatever the number of tokens. A new one is empty;
    the model fills it in place. Its rows are reordered, repeated and selected (beam search, several
    continuations of one prompt), but no token can be taken back: a state is a sum over all of them.

    Attributes:
        state: the state of the model; None before the first token.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])  # the state of all layers is one, and it is ours
        self.state: LanguageState | None = None
        self._length = 0

    def advance(self, state: LanguageState | None, tokens: int) -> None:
        """Take the state after `tokens` more places."""
        self.state = state
        self._length += tokens

    def __len__(self) -> int:
        """Return the number of layers; 0 before the first token."""
        return 0 if self.state is None else len(self.state.layers)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(layers={len(self)}, length={self._length})"

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 - of all layers alike
        """Return the number of places so far, padding too, which an attention mask covers first."""
        return self._length

    def get_max_length(self, layer_idx: int | None = None) -> int:  # noqa: ARG002
        """There is no longest sequence: -1, as transformers says it."""
        return -1

    @property
    def is_linear(self) -> list[bool]:
        """No: `generate` is to leave out the tokens that it has seen, as of keys and values."""
        return [False]

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002
        """Return the length of a mask over all places, and where it begins."""
        return self._length + query_length, 0

    def has_previous_state(
        self,
        layer_idx: int | None = None,  # noqa: ARG002 - of all layers alike
        state_idx: int | None = None,  # noqa: ARG002
    ) -> bool:
        """Return whether there were tokens before."""
        return self.state is not None

    def reset(self) -> None:
        """Forget all tokens."""
        self.state, self._length = None, 0

    def reorder_cache(self, beam_idx: Int[Tensor, " n"]) -> None:
        """Keep the rows `beam_idx`, in that order."""
        if self.state is not None:
            self.state = self.state.reorder(beam_idx.to(self.state.position.device))

    def batch_select_indices(self, indices: Int[Tensor, " n"]) -> None:
        """Keep the rows `indices`, in that order."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row, one copy beside the other."""
        if self.state is not None:
            rows = torch.arange(self.batch_size, device=self.state.position.device)
            self.reorder_cache(rows.repeat_interleave(repeats))

    @property
    def batch_size(self) -> int:
        """Number of rows; -1 before the first token."""
        return -1 if self.state is None else self.state.position.shape[0]

    @property
    def is_croppable(self) -> bool:
        """Tokens cannot be taken back."""
        return False

    def crop(self, tokens_to_remove: int) -> NoReturn:
        """Refuse to take tokens back; see `refuse_crop`."""
        refuse_crop(tokens_to_remove)

    def update(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse keys and values.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("this cache holds the states of mixers, not keys and values")


def cache_keyword(cache: Cache | None) -> dict[str, Any]:
    """Return the field of an output, or the keyword of a call, that holds the cache."""
    return {CACHE: cache}


def given_cache(given: Mapping[str, Any]) -> FlowformerCache | None:
    """Return the cache among the keywords of a call, by either name that transformers has for it.

    Args:
        given: the keywords, but for those that the model knows itself.

    Raises:
        ValueError: two different ones.
        TypeError: another kind of cache, or one under a name that nobody reads.
    """
    caches = {name: given[name] for name in CACHE_NAMES if given.get(name) is not None}
    for name, value in given.items():
        if name not in CACHE_NAMES and _is_like_a_cache(name, value):
            raise TypeError(
                f"unexpected keyword {name}={type(value).__name__}: a FlowformerCache is given as "
                f"{CACHE}, and under another name it would be lost"
            )
    for name, cache in caches.items():
        if not isinstance(cache, FlowformerCache):
            raise TypeError(
                f"{name} must be a FlowformerCache, got {type(cache).__name__}: "
                "keys and values are not the state of this model"
            )
    first = next(iter(caches.values()), None)
    if any(cache is not first for cache in caches.values()):
        raise ValueError(f"{' and '.join(caches)} are two caches: give one, as {CACHE}")
    return first


_CACHE_LIKE = re.compile(r"(^|_)(caches?|past|state|mems)($|_)")


def _is_like_a_cache(name: str, value: Any) -> bool:
    if isinstance(value, Cache | LanguageState):
        return True
    places = name == "cache_position"  # which the model counts itself
    return value is not None and not places and bool(_CACHE_LIKE.search(name))
