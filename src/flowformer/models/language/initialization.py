"""How the parameters of a language model are drawn, as GPT-2 and as fairseq draw them."""

from typing import TYPE_CHECKING

from torch import nn

from flowformer.nn import PositionalEmbedding, TransformerBlock

if TYPE_CHECKING:
    from flowformer.models.language.model import LanguageModel

GPT2_STD = 0.02


def initialize(model: "LanguageModel") -> None:
    """Draw the parameters as the configuration's `initialization` says.

    "gpt2" (Radford et al. 2019, section 2.3): normal with deviation 0.02, biases zero, and the two
    layers of a block that add to the residual stream smaller by √(2 · num_layers). The published
    GPT module forgot the output projection of its attention there.

    "fairseq": embeddings normal with deviation 1/√dim, projections of the attention uniform after
    Xavier (query, key and value smaller by √2), the feed-forward layers as torch draws them.

    Norms start as the identity, and sinusoidal tables are computed. What a mixer has beside its
    projections keeps the values that the mixer drew.
    """
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm | PositionalEmbedding):
            module.reset_parameters()
    fairseq = model.config.initialization == "fairseq"
    std = model.config.dim**-0.5 if fairseq else GPT2_STD
    nn.init.normal_(model.embedding.weight, std=std)
    if model.head is not None:
        nn.init.normal_(model.head.weight, std=std)
    if model.positions is not None and model.positions.kind == "learned":
        nn.init.normal_(model.positions.weight, std=std)
    for block in model.blocks:
        for name, linear in _linears(block).items():
            if fairseq:
                _draw_as_fairseq(name, linear)
            else:
                residual = name in ("out_projection", "linear2")
                scale = (2 * len(model.blocks)) ** -0.5 if residual else 1.0
                _draw_as_gpt2(linear, GPT2_STD * scale)


def _draw_as_gpt2(linear: nn.Linear, std: float) -> None:
    nn.init.normal_(linear.weight, std=std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def _draw_as_fairseq(name: str, linear: nn.Linear) -> None:
    linear.reset_parameters()
    if name == "out_projection":
        nn.init.xavier_uniform_(linear.weight)
        if linear.bias is not None:
            nn.init.zeros_(linear.bias)
    elif name.endswith("_projection"):
        nn.init.xavier_uniform_(linear.weight, gain=0.5**0.5)


def _linears(block: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a block and of its mixer, by name; not those inside the attention."""
    assert isinstance(block, TransformerBlock)
    assert isinstance(block.mixer, nn.Module)
    children = [*block.named_children(), *block.mixer.named_children()]
    return {name: child for name, child in children if isinstance(child, nn.Linear)}
