"""Flow-Attention by name: `attn_implementation="flow"` for the models of transformers."""

from typing import Any

from flowformer.integrations.transformers.by_name import install, register
from flowformer.nn.mixers.flow import FlowAttention


def register_attention(name: str = "flow", **options: Any) -> None:
    """Make Flow-Attention an attention implementation of transformers, under this name.

    Any model whose attention goes through transformers' interface then takes it in place of its
    softmax: `from_pretrained(..., attn_implementation=name)`, or
    `model.set_attn_implementation(name)`. "flow", with the default options, is registered when this
    package is imported.

    Encoders, cross-attention and decoders; grouped heads; padding on either side as a mask [b, t],
    which is all that reaches the attention: nothing quadratic is made. Of what transformers hands
    over, `scaling` is not used (it is the softmax's: the feature map takes the heads as they are
    projected) and neither is `dropout` (there is no matrix of weights to drop from). No attention
    weights are returned.

    Args:
        name: the implementation's name.
        options: options of `flowformer.nn.mixers.flow.FlowAttention`: feature_map, clamp, eps, …

    Raises:
        ValueError: an option outside its choices or its range.
    """
    register(name, FlowAttention(**options))


install()
