"""Any attention inside a transformers model, through the library's own attention interface.

The model's modules stay, projections, rotary embeddings and all: each attention gets one of ours as
a child, and the model's attention implementation becomes "flowformer", a function that hands the
projected heads to that child. Masks stay [b, t]: nothing quadratic is made.

Not possible: a key-value cache with anything but softmax (a cache holds keys, not our states),
sliding windows, packed sequences, position biases, soft caps. Each raises when it is met.
"""

import json
from typing import Any

import torch
from torch import Tensor, nn

from flowformer.nn.attention import HeadAttention, Sizes
from flowformer.nn.baselines.linformer import LinformerAttention
from flowformer.nn.baselines.softmax import SoftmaxAttention
from flowformer.nn.mixers import build_attention
from flowformer.ops.baselines import KVState

IMPLEMENTATION = "flowformer"
CHILD = "mixer_attention"  # the name of our attention inside theirs

# Those whose whole attention is softmax(q·k) v of the heads handed to the interface.
SUPPORTED = (
    "BertSelfAttention",
    "BertCrossAttention",
    "RobertaSelfAttention",
    "RobertaCrossAttention",
    "DistilBertSelfAttention",
    "ViTAttention",
    "GPT2Attention",
    "LlamaAttention",
)


def supported(kind: type) -> bool:
    """Whether it is one of SUPPORTED, from transformers itself."""
    return kind.__module__.startswith("transformers.models.") and kind.__name__ in SUPPORTED


def build_child(module: Any, mixer: str, options: dict[str, Any]) -> HeadAttention:
    """The attention that goes into this module.

    Raises:
        ValueError: it is causal and the mixer has no causal form.
    """
    if mixer == "softmax":
        options = {"weight_dropout": _weight_dropout(module), **options}
    options = dict(options)
    sizes = _sizes(module, options.pop("max_length", None))
    attention = build_attention(mixer, sizes, **options)
    if module.is_causal and not attention.capabilities.causal:
        raise ValueError(
            f"{type(module).__name__} is causal and {mixer!r} has no causal form; "
            f"it can do: {attention.capabilities}"
        )
    return attention


def give_child(module: nn.Module, attention: HeadAttention, _role: Any) -> None:
    """Put the attention that `build_child` made into its place."""
    module.register_module(CHILD, attention)


def is_decoders_cross(module: Any) -> bool:
    """Whether a supported one is cross-attention: all of those are of autoregressive decoders."""
    return getattr(module, "is_cross_attention", "Cross" in type(module).__name__)


def _sizes(module: Any, max_length: int | None) -> Sizes:
    config = module.config
    heads = config.num_attention_heads
    return Sizes(
        dim=config.hidden_size,
        num_heads=heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        max_length=max_length,
    )


def _weight_dropout(module: Any) -> float:
    for name in ("attention_dropout", "attn_dropout", "dropout"):
        if hasattr(module, name):
            dropout = getattr(module, name)
            return dropout.p if isinstance(dropout, nn.Dropout) else dropout
    return 0.0


def hosts(model: nn.Module) -> list[Any]:
    """The transformers models in it that hold supported attentions: they choose the implementation.

    Raises:
        ValueError: there is none, for only a part of a transformers model was given.
    """
    from transformers.modeling_utils import PreTrainedModel

    found = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel)
        and any(supported(type(each)) for each in module.modules())
    ]
    if not found:
        raise ValueError(
            f"{type(model).__name__} is a part of a transformers model: give the model itself, "
            "whose configuration chooses the attention"
        )
    return found


def activate(models: list[Any], mixer: str, options: dict[str, Any]) -> None:
    """Make "flowformer" the attention implementation of these transformers models.

    Their configurations say so from then on: see `write_mixer`.
    """
    if not models:
        return
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, padding_mask)
    for model in models:
        model.set_attn_implementation(IMPLEMENTATION)
        write_mixer(model.config, mixer, options)
        for module in model.modules():
            if supported(type(module)) and not hasattr(module, CHILD):
                module.register_module(CHILD, None)  # it was left out: softmax


def write_mixer(config: Any, mixer: str, options: dict[str, Any]) -> None:
    """Write into a configuration of transformers which mixer the model attends with.

    `save_pretrained` writes it out, and as the attention implementation the call by which a model
    that was loaded with another becomes what was saved. No implementation has that name, so
    `from_pretrained` refuses to load the weights into softmax unless it is told to
    (`attn_implementation="sdpa"`). Softmax needs nothing of this.
    """
    if mixer == "softmax":
        for name in ("flowformer_attention", "attn_implementation"):
            config.__dict__.pop(name, None)
        return
    options = json.loads(json.dumps(options, default=str))
    config.flowformer_attention = {"mixer": mixer, "options": options}
    given = f", options={options}" if options else ""
    config.attn_implementation = f"flowformer.nn.replace_attention(model, {mixer!r}{given})"


def _attend(module: Any, *heads_and_mask: Any, **others: Any) -> tuple[Tensor, None]:
    """The attention function of transformers' interface, with the attention that is the child.

    Raises:
        RuntimeError: there is no child, for the model was made of the configuration of another.
    """
    if not hasattr(module, CHILD):
        said = getattr(module.config, "flowformer_attention", None)
        raise RuntimeError(
            f"the configuration is that of a model after replace_attention ({said}), and this "
            "model is a new one: call replace_attention(model, mixer, options=...) for it too, "
            "before its weights are loaded, or set_attn_implementation('sdpa')"
        )
    return attend(getattr(module, CHILD) or _SOFTMAX, module, *heads_and_mask, **others)


def attend(
    attention: HeadAttention,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend for a module of transformers: [b, h, t, d] in, [b, t, h, d] out.

    Raises:
        NotImplementedError: the module's attention has a part that no mixer has, or a cache.
        ValueError: a mask of pairs was given to the model in place of one of padding.
    """
    for name in ("position_bias", "sliding_window", "softcap", "s_aux"):
        if others.get(name) is not None:
            raise NotImplementedError(f"{type(module).__name__} uses {name}, which no mixer has")
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(
            f"expected a padding mask [b, t], got one of shape {tuple(attention_mask.shape)}: "
            "these attentions have no weight for a pair of tokens"
        )
    query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))
    if scaling is not None and isinstance(attention, (SoftmaxAttention, LinformerAttention)):
        query = query * (scaling * query.shape[-1] ** 0.5)  # these divide by the root themselves
    if not (_is_causal(module) if is_causal is None else is_causal):
        masks = {"key_mask" if _is_cross(module) else "mask": attention_mask}
        return attention(query, key, value, **masks)[0], None
    state, mask = None, attention_mask
    if query.shape[1] < key.shape[1]:
        state, mask = _state_of_cache(attention, key, value, mask, new=query.shape[1])
        key, value = key[:, -query.shape[1] :], value[:, -query.shape[1] :]
    return attention(query, key, value, causal=True, mask=mask, state=state)[0], None


def _is_causal(module: Any) -> bool:
    if not hasattr(module, "is_causal"):
        # Softmax reads it off the mask of pairs; the two forms here are two functions.
        raise NotImplementedError(f"{type(module).__name__} does not say whether it is causal")
    return module.is_causal


def _is_cross(module: Any) -> bool:
    """Whether the keys are those of another sequence, with a mask of their own."""
    # Where one class serves both (Bart, Whisper), the cross-attention is the decoder's that is not
    # causal.
    decoder = getattr(module, "is_decoder", False)
    return getattr(module, "is_cross_attention", "Cross" in type(module).__name__ or decoder)


# For the modules that the predicate left out.
_SOFTMAX = SoftmaxAttention()


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


def padding_mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    mask_function: Any,
    attention_mask: Tensor | None = None,
    **_others: Any,
) -> Tensor | None:
    """The mask function of transformers' interface: the padding mask [b, t] as it is.

    Raises:
        NotImplementedError: the mask is neither causal nor that of padding, or the cache is static.
    """
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

    if mask_function not in (causal_mask_function, bidirectional_mask_function):
        raise NotImplementedError(
            "sliding windows, packed sequences and custom masks need a weight for each pair of "
            "tokens, which these attentions do not have"
        )
    if mask_function is causal_mask_function and kv_length != q_length + int(q_offset):
        raise NotImplementedError("a static cache holds places not yet filled: use a dynamic one")
    return None if attention_mask is None else attention_mask[:, -kv_length:].to(torch.bool)
