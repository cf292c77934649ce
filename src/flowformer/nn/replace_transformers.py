"""Any attention inside a transformers model, through the library's own attention interface.

The model's modules stay, projections, rotary embeddings and all: each attention gets one of ours as
a child, and the model's attention implementation becomes "flowformer", a function that hands the
projected heads to that child. Masks stay [b, t]: nothing quadratic is made.

Not possible: a key-value cache with anything but softmax (a cache holds keys, not our states),
sliding windows, position biases, soft caps. Each raises when it is met.
"""

from typing import Any

from torch import Tensor, nn

from flowformer.nn.attention import HeadAttention, Sizes
from flowformer.nn.baselines.softmax import SoftmaxAttention
from flowformer.nn.mixers import build_attention
from flowformer.nn.transformers_attention import attend, padding_mask
from flowformer.nn.transformers_owner import claim

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


def supported(module: nn.Module) -> bool:
    """Whether it is one of SUPPORTED, from transformers itself."""
    kind = type(module)
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
    parameter = next(module.parameters())
    return attention.to(parameter).train(module.training)


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
        if isinstance(module, PreTrainedModel) and any(map(supported, module.modules()))
    ]
    if not found:
        raise ValueError(
            f"{type(model).__name__} is a part of a transformers model: give the model itself, "
            "whose configuration chooses the attention"
        )
    return found


def activate(models: list[Any]) -> None:
    """Make "flowformer" the attention implementation of these transformers models."""
    if not models:
        return
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface, PreTrainedModel

    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, padding_mask)
    for model in models:
        model.set_attn_implementation(IMPLEMENTATION)
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                claim(part)


def _attend(module: Any, *heads_and_mask: Any, **others: Any) -> tuple[Tensor, None]:
    """The attention function of transformers' interface, with the attention that is the child."""
    return attend(getattr(module, CHILD, None) or _SOFTMAX, module, *heads_and_mask, **others)


# For the modules that the predicate left out.
_SOFTMAX = SoftmaxAttention()
