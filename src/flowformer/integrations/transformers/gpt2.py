"""Our language model with softmax attention as transformers' GPT-2: the same numbers.

GPT-2 is what our model is with layer norms, biases and position vectors: other libraries read it,
and its attention can be exchanged there (`linearize`).
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from flowformer.models.language.config import LanguageModelConfig
from flowformer.models.language.model import LanguageModel
from flowformer.nn.positions import sinusoids

_ACTIVATIONS = {"gelu": "gelu", "gelu-tanh": "gelu_new", "relu": "relu"}
_LINEARS = {"out_projection": "attn.c_proj", "linear1": "mlp.c_fc", "linear2": "mlp.c_proj"}


@torch.no_grad()
def to_gpt2(model: LanguageModel, *, positions: int | None = None) -> GPT2LMHeadModel:
    """Return transformers' GPT-2 that computes what a model of ours does.

    Args:
        model: the model, with softmax attention.
        positions: places in GPT-2's table; None for those of the model. Sinusoidal places go on as
            far as wanted.

    Raises:
        ValueError: GPT-2 has no such mixer, positions, norm or activation, or not so many places.
    """
    config = model.config
    _check(config, positions)
    count = config.max_length if positions is None else positions
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=model.vocab_size,
            n_positions=count,
            n_embd=config.dim,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            n_inner=config.feedforward,
            activation_function=_ACTIVATIONS[config.activation],
            resid_pdrop=config.dropout,
            embd_pdrop=config.dropout,
            attn_pdrop=0.0,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    scale = config.dim**0.5 if config.scale_embeddings else 1.0
    own = {
        "transformer.wte.weight": model.embedding.weight * scale,
        "transformer.wpe.weight": _places(model, count),
        "lm_head.weight": model.output_weight,
        **_norm("transformer.ln_f", model.norm),
    }
    for at, block in enumerate(model.blocks):
        own.update(_block(f"transformer.h.{at}", block))
    theirs.load_state_dict(own)
    weight = model.embedding.weight
    nn.Module.to(theirs, device=weight.device, dtype=weight.dtype)  # theirs has no type
    return theirs.eval()


def _check(config: LanguageModelConfig, positions: int | None) -> None:
    wrong = [
        f"{name}={value!r}"
        for name, value, known in (
            ("mixer", config.mixer, ("softmax",)),
            ("positions", config.positions, ("learned", "sinusoidal", "sinusoidal-fairseq")),
            ("normalization", config.normalization, ("layer",)),
            ("activation", config.activation, _ACTIVATIONS),
        )
        if value not in known
    ]
    if wrong:
        raise ValueError(f"GPT-2 has no {', '.join(wrong)}")
    if positions is not None and positions > config.max_length and config.positions == "learned":
        raise ValueError(f"the model has learned {config.max_length} places, got {positions=}")


def _places(model: LanguageModel, count: int) -> Tensor:
    assert model.positions is not None
    if model.positions.kind == "learned":
        return model.positions.weight[:count]
    return sinusoids(torch.arange(count), model.config.dim, model.positions.kind)


def _block(place: str, block: Any) -> dict[str, Tensor]:
    """Return the parameters of a block; GPT-2 multiplies from the right, and joins the three."""
    mixer = block.get_submodule("mixer")
    linears: dict[str, Any] = {**dict(block.named_children()), **dict(mixer.named_children())}
    found = {**_norm(f"{place}.ln_1", block.norm1), **_norm(f"{place}.ln_2", block.norm2)}
    joined = [linears[f"{name}_projection"] for name in ("query", "key", "value")]
    weights = {
        "attn.c_attn": (
            torch.cat([each.weight for each in joined]),
            torch.cat([_bias(each) for each in joined]),
        ),
        **{theirs: (linears[own].weight, _bias(linears[own])) for own, theirs in _LINEARS.items()},
    }
    for name, (weight, bias) in weights.items():
        found[f"{place}.{name}.weight"], found[f"{place}.{name}.bias"] = weight.T, bias
    return found


def _norm(place: str, norm: nn.Module) -> dict[str, Tensor]:
    weight = norm.get_parameter("weight")
    return {f"{place}.weight": weight, f"{place}.bias": _bias(norm)}


def _bias(module: nn.Module) -> Tensor:
    bias = module._parameters.get("bias")
    weight = module.get_parameter("weight")
    return weight.new_zeros(len(weight)) if bias is None else bias
