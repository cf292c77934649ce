"""The two functions of transformers' attention interface: one makes its masks, one attends.

Masks stay [b, t]: nothing quadratic is made. What they are handed as is no tensor, so that a model
that computes its attention itself fails instead of losing its causal order.
"""

from collections.abc import Callable
from functools import partial
from inspect import isfunction
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from flowformer.nn.mixers.head_attention import HeadAttention
from flowformer.nn.mixers.linformer import LinformerAttention
from flowformer.nn.mixers.mixer import attend_packed
from flowformer.nn.mixers.softmax import KVState, SoftmaxAttention
from flowformer.nn.replace.transformers_owner import (
    document_offsets,
    owner_of,
    says_causal,
)
from flowformer.ops import states_in_place
from flowformer.ops.inputs import is_kept, is_recorded
from flowformer.ops.nonfinite import may_look

_NO_TENSOR = (
    "this model computes with its attention mask itself, which the attentions of flowformer know "
    "as causal or as that of padding only: take another model, or another attn_implementation"
)


class AttentionMask(NamedTuple):
    """The mask that `padding_mask` hands to `attend`, by way of the model.

    Attributes:
        causal: no token sees a later one.
        padding: the real keys (True), [b, s]; None when all are.
        documents: of packed sequences, the number of the document of each token, [b, t]; no
            document sees another one. None when each row is one.
        new: the real tokens among those of this call, [b, t]; None when all are.
        pairs: makes the mask of pairs, [b, 1, t, s], as torch's softmax attention takes it.
    """

    causal: bool
    padding: Tensor | None = None
    documents: Tensor | None = None
    new: Tensor | None = None
    pairs: Callable[[], Tensor | None] | None = None

    def __getattr__(self, name: str) -> NoReturn:
        """It has nothing of a tensor."""
        raise AttributeError(f"no {name}: {_NO_TENSOR}")

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, int):
            raise TypeError(_NO_TENSOR)
        return tuple.__getitem__(self, key)

    @classmethod
    def __torch_function__(cls, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Refuse to be calculated with."""
        raise TypeError(_NO_TENSOR)


def padding_mask(*, windows: bool = False, **call: Any) -> AttentionMask:
    """Make a mask as transformers' interface does: whether it is causal, and the padding.

    Args:
        windows: let sliding windows pass. What is exchanged sees all tokens before; what is left
            softmax has its window, by the mask of pairs.
        call: what transformers hands over: batch_size, q_length, kv_length, q_offset, kv_offset,
            mask_function, attention_mask and others.

    Raises:
        NotImplementedError: the mask is neither causal nor that of padding nor of packed sequences,
            or the cache is static.
        ValueError: the mask is one of another batch.
    """
    from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

    function, attention_mask = call["mask_function"], call.get("attention_mask")
    documents, causal = None, function is not bidirectional_mask_function
    if causal:
        known, documents = _read_mask_function(function, windows=windows)
        if not known:
            raise NotImplementedError(
                "sliding windows and custom masks need a weight for each pair of tokens, which "
                "these attentions do not have"
            )
    new, sources = call["q_length"], call["kv_length"]
    if causal and call.get("kv_offset", 0) + sources != new + int(call.get("q_offset", 0)):
        raise NotImplementedError("a static cache holds places not yet filled: use a dynamic one")
    pairs = partial(sdpa_mask, **call) if causal else None
    if attention_mask is None:
        return AttentionMask(causal, None, documents, None, pairs)
    if attention_mask.shape[0] != call["batch_size"]:
        raise ValueError(
            f"attention_mask must have a row for each of the {call['batch_size']} sequences, got "
            f"shape {tuple(attention_mask.shape)}"
        )
    padding = attention_mask[:, -sources:].to(torch.bool)
    return AttentionMask(causal, padding, documents, _unless_whole(padding[:, -new:]), pairs)


def _unless_whole(mask: Tensor) -> Tensor | None:
    """Return a mask, or None of one that hides nothing, where that can be seen at no cost."""
    return None if may_look(mask) and bool(mask.all()) else mask


def _read_mask_function(function: Any, *, windows: bool) -> tuple[bool, Tensor | None]:
    """Return whether a mask function of transformers is known, and which documents it keeps apart.

    Where it is not `causal_mask_function` itself it is made by `and_masks`, of that one, one that
    knows the documents, and one that knows a window.
    """
    from transformers.masking_utils import causal_mask_function

    documents, parts = None, [function]
    while parts:
        part = parts.pop()
        if not isfunction(part):
            return False, None
        cells = [cell.cell_contents for cell in part.__closure__ or ()]
        held = dict(zip(part.__code__.co_freevars, cells, strict=True))
        if part.__code__.co_name == "and_mask":
            parts.extend(held["mask_functions"])
        elif "packed_sequence_mask" in held:
            documents = held["packed_sequence_mask"]
        elif held.keys() == {"mask_function", "position_ids"}:  # places inside their documents
            parts.append(held["mask_function"])
        elif not (part is causal_mask_function or (windows and held.keys() == {"sliding_window"})):
            return False, None
    return True, documents


_STAYS_SOFTMAX = (
    "the cross-attention of {owner} stays softmax: with {attention}, as it is set, the output for "
    "a token also depends on the later tokens, which are those to be predicted. One of linear cost "
    "that does not: register_attention(name, independent_sinks=True) or, in replace_attention, "
    "options={{'independent_sinks': True}}"
)
# Arguments that a module may hand over and no mixer has.
_FOREIGN = ("position_bias", "sliding_window", "softcap", "s_aux", "cache")


def attend(
    attention: HeadAttention,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: AttentionMask | Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend for a module of transformers: [b, h, t, d] in, [b, t, h, d] out.

    The mask says whether the call is causal; where there is none, `is_causal` or the module. An
    attention that is not causal, in a model that has causal ones, is cross-attention: it stays
    softmax where the output for a token depends on the later ones.

    Raises:
        NotImplementedError: the module's attention has a part that no mixer has, or a cache.
        ValueError: a mask of pairs was given to the model in place of one of padding.
        RuntimeError: the model chose its attention past `set_attn_implementation`.
    """
    for name in _FOREIGN:
        if others.get(name) is not None:
            raise NotImplementedError(f"{type(module).__name__} uses {name}, which no mixer has")
    mask, owner = _mask(module, attention_mask, is_causal), owner_of(module)
    if mask.causal and not owner.autoregressive:
        owner.autoregressive = True
    beside_causal = owner.autoregressive and not mask.causal and not says_causal(module)
    if beside_causal and not attention.capabilities.independent_sinks:
        if not torch.compiler.is_compiling():
            owner.tell(_STAYS_SOFTMAX.format(owner=owner.name, attention=type(attention).__name__))
        heads = (query, key, value)
        return _library_softmax(module, heads, mask.padding, scaling=scaling, **others)
    layer = getattr(key, "flowformer_layer", None)
    tensors = [heads.transpose(1, 2) for heads in (query, key, value)]
    if scaling is not None and isinstance(attention, (SoftmaxAttention, LinformerAttention)):
        tensors[0] = tensors[0] * (scaling * query.shape[-1] ** 0.5)  # these divide by the root
    if not mask.causal and (beside_causal or _is_cross(module)):
        _refuse_packed_context(others)
        return attention(*tensors, key_mask=mask.padding)[0], None
    offsets = _offsets(module, mask, tensors, others)
    return _attend_self(attention, tensors, mask, offsets, layer), None


def _attend_self(
    attention: HeadAttention,
    tensors: list[Tensor],
    mask: AttentionMask,
    offsets: Tensor | None,
    layer: Any,
) -> Tensor:
    if offsets is not None:
        return _attend_documents(attention, tensors, offsets, causal=mask.causal)
    if not mask.causal:
        return attention(*tensors, mask=mask.padding)[0]
    query, key, value = tensors
    new = query.shape[1]
    if layer is not None:
        return _go_on(attention, tensors, mask.new, layer)
    if new == key.shape[1]:
        return attention(*tensors, causal=True, mask=mask.new)[0]
    state, padding = _state_of_cache(attention, key, value, mask.padding, new=new)
    tensors = [query, key[:, -new:], value[:, -new:]]
    return attention(*tensors, causal=True, mask=padding, state=state)[0]


def _go_on(attention: HeadAttention, tensors: list[Tensor], mask: Any, layer: Any) -> Tensor:
    """Attend after the state that a layer of the cache holds, which takes the one after it."""
    call = {"causal": True, "mask": mask, "state": layer.state, "return_state": True}
    if is_recorded() or is_kept(*tensors):
        out, state = attention(*tensors, **call)
    else:
        with states_in_place():  # nobody else has this state
            out, state = attention(*tensors, **call)
    layer.advance(state)
    return out


def _mask(
    module: Any, attention_mask: AttentionMask | Tensor | None, is_causal: bool | None
) -> AttentionMask:
    if isinstance(attention_mask, AttentionMask):
        return attention_mask
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(
            f"expected a padding mask [b, t], got one of shape {tuple(attention_mask.shape)}: "
            "these attentions have no weight for a pair of tokens"
        )
    if is_causal is None and not hasattr(module, "is_causal"):
        # Softmax reads it off the mask of pairs; the two forms here are two functions.
        raise NotImplementedError(f"{type(module).__name__} does not say whether it is causal")
    causal = module.is_causal if is_causal is None else is_causal
    padding = None if attention_mask is None else attention_mask.bool()
    return AttentionMask(causal, padding, new=padding)


def _is_cross(module: Any) -> bool:
    """Return whether the keys are those of another sequence, with a mask of their own."""
    # Where one class serves both (Bart, Whisper), the cross-attention is the decoder's that is not
    # causal.
    decoder = getattr(module, "is_decoder", False) and not says_causal(module)
    return getattr(module, "is_cross_attention", "Cross" in type(module).__name__ or decoder)


def attend_window(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, **others: Any
) -> tuple[Tensor, None]:
    """Attend with transformers' softmax, in the window that its mask of pairs has."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    pairs = None if mask.pairs is None else mask.pairs()
    return sdpa_attention_forward(module, query, key, value, pairs, **others)


def _library_softmax(
    module: Any, heads: tuple[Tensor, ...], padding: Tensor | None, **others: Any
) -> tuple[Tensor, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    _refuse_packed_context(others)
    mask = None if padding is None else padding[:, None, None, :]
    query, key, value = heads
    return sdpa_attention_forward(module, query, key, value, mask, is_causal=False, **others)


def _refuse_packed_context(others: dict[str, Any]) -> None:
    if others.get("cu_seq_lens_q") is not None:
        raise NotImplementedError(
            "packed sequences (cu_seq_lens_q) have no cross-attention here: pad the batch"
        )


def _offsets(
    module: Any, mask: AttentionMask, tensors: list[Tensor], others: dict[str, Any]
) -> Tensor | None:
    """Return the starts of packed documents, all rows joined; None for padded rows."""
    given, keys = others.get("cu_seq_lens_q"), others.get("cu_seq_lens_k")
    rows, length = tensors[0].shape[:2]
    whole = length == tensors[1].shape[1]
    if given is not None:
        same = keys is None or keys is given or keys.equal(given)
        if mask.padding is not None or not whole or not same:
            raise ValueError(
                "packed sequences (cu_seq_lens_q, or position_ids that start anew) are those of "
                "queries and keys alike, without padding and without a cache: leave out "
                f"attention_mask and the cache; {type(module).__name__} got "
                f"{length} queries and {tensors[1].shape[1]} keys"
                f"{'' if mask.padding is None else ', and a mask'}"
            )
        return given
    documents = mask.documents
    if documents is None and mask.padding is None and whole:
        documents = others.get("seq_idx")
    return None if documents is None else document_offsets(documents.expand(rows, length))


def _attend_documents(
    attention: HeadAttention, tensors: list[Tensor], offsets: Tensor, *, causal: bool
) -> Tensor:
    """Attend inside each document, whatever the rows that hold them."""
    rows = tensors[0].shape[0]
    packed = [tensor.flatten(0, 1)[None] for tensor in tensors]
    call = {"causal": True, "mask": None} if causal else {"mask": None}
    return attend_packed(attention, packed, offsets, call)[0].unflatten(0, (rows, -1))


def _state_of_cache(
    attention: HeadAttention, key: Tensor, value: Tensor, mask: Tensor | None, *, new: int
) -> tuple[KVState, Tensor | None]:
    if not isinstance(attention, SoftmaxAttention):
        raise NotImplementedError(
            f"a key-value cache is not the state of {type(attention).__name__}: "
            "call the model, and generate, with use_cache=False"
        )
    past = None if mask is None else mask[:, :-new]
    return KVState(key[:, :-new], value[:, :-new], past), None if mask is None else mask[:, -new:]
