"""Any attention inside a transformers model, through the library's own attention interface.

The model's modules stay, projections, rotary embeddings and all: each attention gets one of ours as
a child, and the model's attention implementation becomes "flowformer", a function that hands the
projected heads to that child. Masks stay [b, t]: nothing quadratic is made.

Not possible: a key-value cache with anything but softmax (a cache holds keys, not our states),
sliding windows, position biases, soft caps. Each raises when it is met.
"""

import json
from typing import Any

from torch import Tensor, nn

from flowformer.nn.attention import HeadAttention, Sizes
from flowformer.nn.baselines.softmax import SoftmaxAttention
from flowformer.nn.mixers import build_attention
from flowformer.nn.transformers_attention import attend, claim, padding_mask

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
    from transformers.modeling_utils import AttentionInterface, PreTrainedModel

    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, padding_mask)
    for model in models:
        model.set_attn_implementation(IMPLEMENTATION)
        write_mixer(model.config, mixer, options)
        for module in model.modules():
            if supported(type(module)) and not hasattr(module, CHILD):
                module.register_module(CHILD, None)  # it was left out: softmax
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                claim(part)


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


# For the modules that the predicate left out.
_SOFTMAX = SoftmaxAttention()
