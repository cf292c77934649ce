"""The knowledge that the attentions inside one model of transformers share, of its calls too."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor

from flowformer.nn.mixers.head_attention import HeadAttention
from flowformer.nn.mixers.softmax import SoftmaxAttention
from flowformer.ops.inputs import has_values, is_transformed

_COUNTS_PADDING = (
    "the batch is padded on the left and the positions count the padding, which changes what these "
    "attentions return for rotated queries and keys (softmax sees only their distance): give "
    "position_ids that start with 0 at the first token of each row, such as "
    "(attention_mask.cumsum(1) - 1).clamp(min=0)"
)

_RUNS_ON = (
    "packed documents (cu_seq_lens_q) come without positions of their own, which changes what "
    "these attentions return for rotated queries and keys (softmax sees only their distance): give "
    "position_ids that start with 0 at each document"
)


@dataclass
class Owner:
    """The knowledge that the attentions inside one model of transformers share.

    Attributes:
        name: the class of the model, for messages.
        implementation: the name of its attention when it was claimed.
        autoregressive: one of them is causal, so that another one that is not must show no token
            to an earlier one.
        rotary: queries and keys are rotated, and their places enter, not their distance alone.
        arguments: the names of those of its call, in their order.
        takes_more: it takes other keywords too, to hand them on.
        states: the layers of its cache that hold the state of an attention.
        told: the warnings given, once each.
    """

    name: str
    implementation: str
    autoregressive: bool
    rotary: bool
    arguments: tuple[str, ...]
    takes_more: bool
    states: tuple[int, ...] = ()
    told: set[str] = field(default_factory=set)

    def tell(self, message: str) -> None:
        """Warn of it, once."""
        if message not in self.told:
            self.told.add(message)
            warnings.warn(message, stacklevel=3)


_OWNER = "flowformer_owner"


# The name of a model's cache in transformers: from 5.24 on the first, before that the second.
CACHE_NAMES = ("cache", "past_key_values")


def claim(model: Any, attention_of: Callable[[nn.Module], HeadAttention | None]) -> None:
    """Tell every module of a model of transformers whose it is; those of models inside aside.

    It is known then which attentions stand beside a causal one (`attend` refuses the unclaimed),
    and which have a state, for which the model's cache has to have room.

    Args:
        model: the model.
        attention_of: returns the attention of ours that a module attends with, or None.
    """
    modules = list(own_modules(model))
    arguments = inspect.signature(model.forward).parameters
    owner = Owner(
        name=type(model).__name__,
        implementation=model.config._attn_implementation,
        autoregressive=any(says_causal(module) for module in modules),
        rotary=any("Rotary" in type(module).__name__ for module in modules)
        and not _is_softmax_throughout(modules),
        arguments=tuple(arguments),
        takes_more=any(each.kind is each.VAR_KEYWORD for each in arguments.values()),
        states=tuple(_layers_of_states(modules, attention_of)),
    )
    for module in modules:
        setattr(module, _OWNER, owner)
    if any(map(uses_interface, modules)) and _watch not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_watch, with_kwargs=True)


def _layers_of_states(
    modules: list[nn.Module], attention_of: Callable[[nn.Module], HeadAttention | None]
) -> Iterator[int]:
    """Yield the layers of the cache whose attention carries a state; softmax has keys there."""
    for module in modules:
        place, attention = getattr(module, "layer_idx", None), attention_of(module)
        if attention is None or not says_causal(module) or not isinstance(place, int):
            continue
        if attention.capabilities.state and not isinstance(attention, SoftmaxAttention):
            yield place


def _watch(
    model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Look at the positions and the cache that a model is called with, before any attention is.

    Positions of packed sequences become offsets, which are handed on to the attentions; a cache
    that is empty gets room for the states of those that have one.
    """
    owner = getattr(model, _OWNER)
    if model.config._attn_implementation != owner.implementation:
        return args, kwargs  # it has another attention by now
    given = {**dict(zip(owner.arguments, args, strict=False)), **kwargs}
    mask, places = given.get("attention_mask"), given.get("position_ids")
    offsets = None
    if mask is not None:
        if owner.rotary and _counts_padding(mask, places):
            owner.tell(_COUNTS_PADDING)
    else:
        if owner.rotary and _runs_on(given.get("cu_seq_lens_q"), places):
            owner.tell(_RUNS_ON)
        offsets = _packed_offsets(given, places)
    if offsets is None:
        changed = _cache_of_states(owner, model, given)
    else:
        # With a cache, transformers does not tell documents apart; and not every model tells its
        # mask of the positions, but most hand on what they do not know.
        changed = {"use_cache": False, **dict.fromkeys(CACHE_NAMES)}
        kwargs = {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}
    changed = {name: value for name, value in changed.items() if name in owner.arguments}
    kwargs = {name: value for name, value in kwargs.items() if name not in changed}
    args = tuple(changed.pop(name, old) for name, old in zip(owner.arguments, args, strict=False))
    if offsets is not None and owner.takes_more:
        changed.update(cu_seq_lens_q=offsets, cu_seq_lens_k=offsets)
    return args, {**kwargs, **changed}


def _cache_of_states(owner: Owner, model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Make room for states in the cache of a call, and return what of the call is to be changed.

    In training a model that was not asked for a cache makes none: nobody reads it, and its states
    would be differentiated. Documents packed by offsets have no cache either.
    """
    packed = any(given.get(name) is not None for name in ("cu_seq_lens_q", "seq_idx"))
    if not owner.states or packed:
        return {}
    from flowformer.nn.replace.transformers_cache import hold_states, new_cache

    for name in CACHE_NAMES:
        if given.get(name) is not None:
            hold_states(given[name], owner.states)
            return {}
    wanted = given.get("use_cache")
    if wanted is None:
        wanted = getattr(model.config, "use_cache", False) and not model.training
    if not wanted:
        return {"use_cache": False}
    return dict.fromkeys(CACHE_NAMES, new_cache(model.config, owner.states))


def _packed_offsets(given: dict[str, Any], places: Tensor | None) -> Tensor | None:
    """Return the starts of the documents that positions tell; None where nothing is packed."""
    documents = documents_of(places)
    if documents is None or given.get("cu_seq_lens_q") is not None:
        return None
    caches = [given[name] for name in CACHE_NAMES if given.get(name) is not None]
    if any(cache.get_seq_length() > 0 for cache in caches):
        return None
    # One row of positions serves all rows of the batch.
    tokens = given.get("input_ids")
    tokens = given.get("inputs_embeds") if tokens is None else tokens
    rows = documents.shape[0] if tokens is None else tokens.shape[0]
    return document_offsets(documents.expand(rows, -1))


def own_modules(model: nn.Module) -> Iterator[nn.Module]:
    """Yield a model of transformers and its modules, but for models of transformers inside."""
    from transformers.modeling_utils import PreTrainedModel

    yield model
    for child in model.children():
        if not isinstance(child, PreTrainedModel):
            yield from own_modules(child)


def _is_softmax_throughout(modules: list[nn.Module]) -> bool:
    """Return whether `replace_attention` gave these modules softmax and nothing else."""
    given = [module for module in modules if isinstance(module, HeadAttention)]
    return bool(given) and all(isinstance(module, SoftmaxAttention) for module in given)


def says_causal(module: nn.Module) -> bool:
    """Return whether it says of itself that no token sees a later one."""
    return getattr(module, "is_causal", None) is True


def uses_interface(module: nn.Module) -> bool:
    """Return whether its class calls the attention function that the configuration names."""
    return any(
        "ALL_ATTENTION_FUNCTIONS" in inspect.unwrap(function).__code__.co_names
        for kind in type(module).__mro__
        if kind.__module__ != "transformers.modeling_utils"  # where it is defined
        for function in vars(kind).values()
        if inspect.isfunction(function) and hasattr(inspect.unwrap(function), "__code__")
    )


def owner_of(module: Any) -> Owner:
    """Whose module it is.

    Raises:
        RuntimeError: nobody has claimed it.
    """
    owner = getattr(module, _OWNER, None)
    if owner is None:
        raise RuntimeError(
            f"this {type(module).__name__} was given its attention past the checks: choose it by "
            "model.set_attn_implementation(name), or by attn_implementation=name when loading"
        )
    return owner


def _counts_padding(mask: Any, position_ids: Tensor | None) -> bool:
    """Return whether a row is padded on the left and its first token is not at 0.

    Softmax of rotated queries and keys sees the distance alone; a map of features sees the place.
    """
    if not isinstance(mask, Tensor) or mask.ndim != 2 or mask.is_meta:
        return False
    if not has_values(*(each for each in (mask, position_ids) if each is not None)):
        return False
    # In a step of generation they are those of the new token alone.
    if position_ids is not None and position_ids.shape != (*position_ids.shape[:1], mask.shape[1]):
        return False
    first = (mask != 0).to(torch.uint8).argmax(1, keepdim=True)
    moved = first > 0
    if position_ids is not None:
        places = position_ids.to(mask.device).expand(mask.shape[0], -1)
        moved = moved & (places.gather(1, first) != 0)
    return bool(moved.any())


def _runs_on(offsets: Any, position_ids: Tensor | None) -> bool:
    """Return whether positions do not start anew with a packed document."""
    if torch.compiler.is_compiling() or not isinstance(offsets, Tensor):
        return False
    starts = offsets[1:-1].long()  # of all documents but the first
    if position_ids is None or not starts.numel():
        return starts.numel() > 0
    places = position_ids.flatten()
    known = position_ids.ndim == 2 and int(starts[-1]) < places.numel()
    return known and bool((places[starts.to(places.device)] != 0).any())


def document_offsets(documents: Tensor) -> Tensor | None:
    """Return the starts of documents, [documents + 1], all rows joined.

    None where each row is one. In compiled code it must be one: shapes cannot depend on it.

    Args:
        documents: the number of the document of each token, [b, t].

    Raises:
        ValueError: torch.func maps over rows that are not one.
    """
    one = (documents == documents[:, :1]).all()
    if torch.compiler.is_compiling():
        check_values(one, "packed sequences in compiled code: give cu_seq_lens_q")
        return None
    if one.is_meta or _is_true(one):
        return None
    if is_transformed(documents):
        raise ValueError(
            "packed sequences cannot be mapped over by torch.func, for their lengths are read: "
            "give each document a row of its own"
        )
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    ends = torch.tensor([documents.numel()], device=documents.device)
    return torch.cat((starts.flatten().nonzero()[:, 0], ends))


def check_values(right: Tensor, message: str) -> None:
    """Refuse values; in compiled code when it runs.

    Raises:
        ValueError: they are not right.
    """
    if torch.compiler.is_compiling():
        torch._assert_async(right, message)  # pyright: ignore[reportPrivateImportUsage]
    elif not (right.is_meta or _is_true(right)):
        raise ValueError(message)


def _is_true(flag: Tensor) -> bool:
    """Return whether it is true, everywhere where torch.func maps over it."""
    while is_functorch_wrapped_tensor(flag):
        flag = get_unwrapped(flag)
    return bool(flag.all())


def documents_of(position_ids: Tensor | None) -> Tensor | None:
    """Return the document of each token, [b, t]: one starts where positions do not go on."""
    if position_ids is None or position_ids.ndim != 2:
        return None
    first = position_ids[:, :1] - 1
    return (torch.diff(position_ids, prepend=first, dim=-1) != 1).cumsum(-1)
