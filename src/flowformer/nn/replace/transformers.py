"""Any attention inside a transformers model, through the library's own attention interface.

The model's modules stay, projections, rotary embeddings and all: each attention gets one of ours as
a child, and the model's attention implementation becomes "flowformer", a function that hands the
projected heads to that child. Masks stay [b, t]: nothing quadratic is made. The model's cache holds
the state of an attention that has one, and the keys and values of softmax.

Not possible: a key-value cache with an attention that has no state, position biases, soft caps.
Each raises when it is met. In place of a sliding window an exchanged attention sees all tokens
before.
"""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from flowformer.nn.mixers.building import build_attention
from flowformer.nn.mixers.head_attention import HeadAttention, Sizes
from flowformer.nn.mixers.softmax import SoftmaxAttention
from flowformer.nn.replace.transformers_attention import attend, attend_window, padding_mask
from flowformer.nn.replace.transformers_owner import claim, own_modules

IMPLEMENTATION = "flowformer"
CHILD = "mixer_attention"  # the name of our attention inside theirs
CALL = "flowformer.nn.replace_attention(model, "  # how a configuration says what was exchanged
RECORD = "flowformer_attention"  # in a configuration: which mixer, with which options

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
    "MistralAttention",
    "Qwen2Attention",
    "Qwen3Attention",
    "PhiAttention",
    "GemmaAttention",
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
        ValueError: the mixer has no form for it: causal, or seeing all tokens.
    """
    given = {"mixer": mixer, "options": dict(options)}
    if mixer == "softmax":
        options = {"weight_dropout": _weight_dropout(module), **options}
    options = dict(options)
    sizes = _sizes(module, options.pop("max_length", None))
    attention: Any = build_attention(mixer, sizes, **options)
    form = "causal" if module.is_causal else "bidirectional"
    if not getattr(attention.capabilities, form):
        raise ValueError(
            f"{type(module).__name__} is {form} and {mixer!r} has no {form} form; "
            f"it can do: {attention.capabilities}"
        )
    attention.given = given  # for the configuration
    return attention


def placed_like(module: nn.Module, attention: HeadAttention) -> HeadAttention:
    """Return the attention in that module's mode, where and as precise as its parameters are."""
    tensors = [*module.parameters(), *module.buffers()]
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    return (attention if like is None else attention.to(like)).train(module.training)


def give_child(module: nn.Module, attention: HeadAttention, _role: Any) -> None:
    """Put the attention that `build_child` made into its place."""
    module.register_module(CHILD, attention)


def child_of(module: nn.Module) -> HeadAttention | None:
    """Return the attention of ours that a module attends with, if it was given one."""
    child = module._modules.get(CHILD)
    return child if isinstance(child, HeadAttention) else None


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


def register_implementation(name: str = IMPLEMENTATION, *, windows: bool = True) -> None:
    """Make the children an attention implementation of transformers, under this name."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(name, attend_with_child)
    mask = partial(padding_mask, windows=True) if windows else padding_mask
    AttentionMaskInterface.register(name, mask)


def activate(models: list[Any]) -> None:
    """Make "flowformer" the attention implementation of these transformers models.

    Their configurations say so from then on.
    """
    if not models:
        return
    register_implementation()
    for model in models:
        inside = list(_supported_in(model))
        # An encoder and a decoder in one model have a configuration each, and may be of two kinds.
        if any(module.config is model.config for module in inside):
            model.set_attn_implementation(IMPLEMENTATION)
        complete(model, inside)


def complete(model: Any, inside: list[Any]) -> None:
    """Give softmax to those of the supported attentions inside that were left out, and say all."""
    from transformers.modeling_utils import PreTrainedModel

    for module in inside:
        if child_of(module) is None:
            softmax = build_child(module, "softmax", {})
            give_child(module, softmax.train(module.training), None)
    _write_calls(model)
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            claim(part, child_of)


def restore(model: Any) -> None:
    """Exchange the attention of a fresh model as its configuration says that it was.

    `activate` writes it there for the innermost model that holds them, by the names in that one.
    """
    records = getattr(model.config, RECORD, None)
    inside = [module for module in own_modules(model) if supported(module)]
    if not records or not inside or all(child_of(module) is not None for module in inside):
        return
    names = {module: name for name, module in model.named_modules()}
    for record in records if isinstance(records, list) else [records]:
        modules = record.get("modules")
        for module in inside:
            if modules is None or any(_ends(names[module], each) for each in modules):
                child = build_child(module, record["mixer"], record["options"])
                give_child(module, placed_like(module, child), None)
    complete(model, inside)


def _ends(name: str, end: str) -> bool:
    """Return whether a module's name is that one, in this model or in one inside."""
    return f".{name}".endswith(f".{end}") or f".{end}".endswith(f".{name}")


def _write_calls(model: Any) -> None:
    """Write into the model's configuration by which calls its attentions have been exchanged.

    `save_pretrained` writes it out: as `flowformer_attention` the mixer and its options (a list of
    them, each with its "modules", after several calls or where some were left out), and as the
    implementation to load with the call by which a model loaded with another becomes what was
    saved. No implementation has such a name, so `from_pretrained` does not load the weights into
    softmax unless that is asked for (`attn_implementation="sdpa"`): where
    `flowformer.integrations.transformers` is imported, it exchanges the attention again, and
    elsewhere it refuses. Softmax needs nothing of this.
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
        lines.append(f"{CALL}{given['mixer']!r}{options}{chosen})")
    for name in (RECORD, "attn_implementation"):
        model.config.__dict__.pop(name, None)
    if records:
        setattr(model.config, RECORD, records[0] if whole else records)
        model.config.attn_implementation = "; ".join(lines)


def attend_with_child(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **others: Any
) -> tuple[Tensor, None]:
    """Attend as a function of transformers' interface, with the attention that is the child.

    Raises:
        RuntimeError: there is no child, for the model was made of the configuration of another.
    """
    attention = child_of(module)
    if attention is None and supported(module):
        said = getattr(module.config, RECORD, None) or "softmax"
        raise RuntimeError(
            f"the configuration is that of a model after replace_attention ({said}), and this "
            "model is another one: call replace_attention(model, mixer, options=...) for it too, "
            "before its weights are loaded, or set_attn_implementation('sdpa'); to keep two "
            "models apart, give each a configuration of its own (copy.deepcopy)"
        )
    if others.get("sliding_window") is not None and attention is not None:
        if isinstance(attention, SoftmaxAttention):
            return attend_window(module, query, key, value, mask, **others)
        others["sliding_window"] = None
    return attend(attention or _SOFTMAX, module, query, key, value, mask, **others)


# For modules of other classes in the same model.
_SOFTMAX = SoftmaxAttention()
