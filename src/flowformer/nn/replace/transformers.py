"""Any attention inside a transformers model, through the library's own attention interface.

The model's modules stay, projections, rotary embeddings and all: each attention gets one of ours as
a child, and the model's attention implementation becomes "flowformer", a function that hands the
projected heads to that child. Masks stay [b, t]: nothing quadratic is made.

Not possible: a key-value cache with anything but softmax (a cache holds keys, not our states),
sliding windows, position biases, soft caps. Each raises when it is met.
"""

import json
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from flowformer.nn.mixers.building import build_attention
from flowformer.nn.mixers.head_attention import HeadAttention, Sizes
from flowformer.nn.mixers.softmax import SoftmaxAttention
from flowformer.nn.replace.transformers_attention import attend, padding_mask
from flowformer.nn.replace.transformers_owner import claim

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


def plain_class(kind: type) -> type:
    """Return the class that a module had before torch gave it one made for it alone."""
    # Parametrized… (parametrizations) and FSDP… (fully_shard) have its class as their last base.
    while kind.__module__.startswith(("torch.nn.utils.", "torch.distributed.")):
        if not kind.__bases__ or kind.__bases__[-1] in (nn.Module, object):
            break
        kind = kind.__bases__[-1]
    return kind


def supported(module: nn.Module) -> bool:
    """Return whether it is one of SUPPORTED, from transformers itself."""
    kind = plain_class(type(module))
    return kind.__module__.startswith("transformers.models.") and kind.__name__ in SUPPORTED


def build_child(module: Any, mixer: str, options: dict[str, Any]) -> HeadAttention:
    """Return the attention that goes into this module.

    Raises:
        ValueError: it is causal and the mixer has no causal form.
    """
    given = {"mixer": mixer, "options": dict(options)}
    if mixer == "softmax":
        options = {"weight_dropout": _weight_dropout(module), **options}
    options = dict(options)
    sizes = _sizes(module, options.pop("max_length", None))
    attention: Any = build_attention(mixer, sizes, **options)
    if module.is_causal and not attention.capabilities.causal:
        raise ValueError(
            f"{type(module).__name__} is causal and {mixer!r} has no causal form; "
            f"it can do: {attention.capabilities}"
        )
    attention.given = given  # for the configuration
    return attention


def give_child(module: nn.Module, attention: HeadAttention, _role: Any) -> None:
    """Put the attention that `build_child` made into its place."""
    module.register_module(CHILD, attention)


def is_decoders_cross(module: Any) -> bool:
    """Return whether a supported attention is the cross-attention of an autoregressive decoder."""
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
    """Return the transformers models in it that hold supported attentions, the outer ones first.

    Raises:
        ValueError: there is none, for only a part of a transformers model was given.
    """
    from transformers.modeling_utils import PreTrainedModel

    found = [
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and any(_supported_in(module))
    ]
    if not found:
        raise ValueError(
            f"{type(model).__name__} is a part of a transformers model: give the model itself, "
            "whose configuration chooses the attention"
        )
    return found


def _supported_in(model: nn.Module) -> Iterator[Any]:
    return filter(supported, model.modules())


def activate(models: list[Any]) -> None:
    """Make "flowformer" the attention implementation of these transformers models.

    Their configurations say so from then on.
    """
    if not models:
        return
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface, PreTrainedModel

    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, padding_mask)
    for model in models:
        inside = list(_supported_in(model))
        # An encoder and a decoder in one model have a configuration each, and may be of two kinds.
        if any(module.config is model.config for module in inside):
            model.set_attn_implementation(IMPLEMENTATION)
        for module in inside:
            if not hasattr(module, CHILD):  # it was left out
                softmax = build_child(module, "softmax", {})
                module.register_module(CHILD, softmax.train(module.training))
        _write_calls(model)
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                claim(part)


def _write_calls(model: Any) -> None:
    """Write into the model's configuration by which calls its attentions have been exchanged.

    `save_pretrained` writes it out: as `flowformer_attention` the mixer and its options (a list of
    them, each with its "modules", after several calls or where some were left out), and as the
    implementation to load with the call by which a model loaded with another becomes what was
    saved. No implementation has such a name, so `from_pretrained` does not load the weights into
    softmax unless that is asked for (`attn_implementation="sdpa"`). Softmax needs nothing of this.
    """
    found = [(name, module) for name, module in model.named_modules() if supported(module)]
    calls: dict[str, list[str]] = {}
    for name, module in found:
        given = getattr(module, CHILD).given
        if given["mixer"] != "softmax":
            calls.setdefault(json.dumps(given, default=str), []).append(name)
    whole = len(calls) == 1 and len(*calls.values()) == len(found)
    records, lines = [], []
    for text, names in calls.items():
        given = json.loads(text)
        records.append(given if whole else {**given, "modules": names})
        options = f", options={given['options']}" if given["options"] else ""
        chosen = "" if whole else f", predicate=lambda name, _: name in {names}"
        lines.append(f"flowformer.nn.replace_attention(model, {given['mixer']!r}{options}{chosen})")
    for name in ("flowformer_attention", "attn_implementation"):
        model.config.__dict__.pop(name, None)
    if records:
        model.config.flowformer_attention = records[0] if whole else records
        model.config.attn_implementation = "; ".join(lines)


def _attend(module: Any, *heads_and_mask: Any, **others: Any) -> tuple[Tensor, None]:
    """Attend as a function of transformers' interface, with the attention that is the child.

    Raises:
        RuntimeError: there is no child, for the model was made of the configuration of another.
    """
    attention = getattr(module, CHILD, None)
    if attention is None and supported(module):
        said = getattr(module.config, "flowformer_attention", None) or "softmax"
        raise RuntimeError(
            f"the configuration is that of a model after replace_attention ({said}), and this "
            "model is another one: call replace_attention(model, mixer, options=...) for it too, "
            "before its weights are loaded, or set_attn_implementation('sdpa'); to keep two "
            "models apart, give each a configuration of its own (copy.deepcopy)"
        )
    return attend(attention or _SOFTMAX, module, *heads_and_mask, **others)


# For modules of other classes in the same model.
_SOFTMAX = SoftmaxAttention()
