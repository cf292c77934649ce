"""Flow-Attention by name: `attn_implementation="flow"` for the models of transformers.

Transformers has no hook for who may take an attention by name, nor for keeping it with a model.

Three methods of `PreTrainedModel` are wrapped when this package is imported. A model that computes
its attention itself is refused when it chooses ours. One that takes ours writes so into its
configuration and its weights: `from_pretrained` gives the same attention again. Where this package
is not imported, the configuration asks for an implementation that is not there, and the weights
hold one that the model does not know: transformers refuses the first and warns of the second, and
`load_state_dict` refuses it.
"""

import inspect
import re
import sys
import warnings
from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface, PreTrainedModel

from flowformer.nn.mixers.flow import FlowAttention
from flowformer.nn.mixers.head_attention import HeadAttention
from flowformer.nn.replace.transformers_attention import attend, padding_mask
from flowformer.nn.replace.transformers_owner import claim, own_modules, uses_interface

KEY = "flowformer_attention"  # in a configuration and in a state dict

ATTENTIONS: dict[str, FlowAttention] = {}  # those registered, by name


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

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> from flowformer.integrations.transformers import register_attention
        >>> register_attention("flow", clamp=1.0)  # as the import does it
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = BertModel(BertConfig(**sizes, attn_implementation="flow"))
    """
    register(name, FlowAttention(**options))


def register(name: str, attention: FlowAttention) -> None:
    """Make this attention an implementation of transformers."""
    AttentionInterface.register(name, partial(attend, attention))
    AttentionMaskInterface.register(name, padding_mask)
    ATTENTIONS[name] = attention


def install() -> None:
    """Wrap the methods of `PreTrainedModel`; once, for they are wrapped when this is imported."""
    for name, wrap in (
        ("get_correct_attn_implementation", _restoring),
        ("post_init", _checking_built),
        ("set_attn_implementation", _checking_set),
    ):
        setattr(PreTrainedModel, name, wrap(getattr(PreTrainedModel, name)))


def _restoring(method: Callable[..., str]) -> Callable[..., str]:
    """Let a configuration that was saved with ours choose it again, where nobody chose another."""

    @wraps(method)
    def get_correct_attn_implementation(
        self: PreTrainedModel,
        requested_attention: str | None,
        is_init_check: bool = False,
    ) -> str:
        record = _record(self)
        if record is not None and requested_attention in (None, record["implementation"]):
            requested_attention = _saved_implementation(record)
        elif record is not None:
            _forget(self.config)
            if is_init_check and not isinstance(record, _Written):
                warnings.warn(
                    f"{type(self).__name__} was saved with attn_implementation="
                    f"{record['implementation']!r} ({record['mixer']}) and is loaded with "
                    f"{requested_attention!r}: its weights were trained for another attention",
                    stacklevel=2,
                )
        if requested_attention in ATTENTIONS and _has_own_table(type(self).__module__):
            raise _refusal(self, requested_attention, "its attention")
        return method(self, requested_attention, is_init_check)

    return get_correct_attn_implementation


class _Written(dict[str, Any]):
    """A record that was not read from a file: no weights come with it."""


def _record(model: PreTrainedModel) -> dict[str, Any] | None:
    """Return the attention that a configuration names; `replace_attention` names none."""
    record = getattr(model.config, KEY, None)
    return record if isinstance(record, dict) and "implementation" in record else None


def _saved_implementation(record: dict[str, Any]) -> str:
    """Return the name under which this attention is registered, now at the latest.

    Raises:
        ValueError: another one has that name.
    """
    name, attention = record["implementation"], FlowAttention(**record["options"])
    if name not in ATTENTIONS:
        register(name, attention)
    elif ATTENTIONS[name].options != attention.options:
        raise ValueError(
            f"the model was saved with attn_implementation={name!r} of the options "
            f"{record['options']}, which is registered here with "
            f"{ATTENTIONS[name].options._asdict()}: register it with those of the model, or give "
            "attn_implementation to choose another one"
        )
    return name


def _checking_built(method: Callable[..., None]) -> Callable[..., None]:
    @wraps(method)
    def post_init(self: PreTrainedModel) -> None:
        method(self)
        _adopt(self)

    return post_init


def _checking_set(method: Callable[..., None]) -> Callable[..., None]:
    @wraps(method)
    def set_attn_implementation(
        self: PreTrainedModel, attn_implementation: str | dict[str, Any], *args: Any, **others: Any
    ) -> None:
        before = [(part, part.config._attn_implementation) for part in _parts(self)]
        method(self, attn_implementation, *args, **others)
        try:
            name = attn_implementation if isinstance(attn_implementation, str) else ""
            for part in _parts(self) if name in ATTENTIONS else ():
                if part.config._attn_implementation != name:
                    raise _refusal(part, name, "all of its attention")
            _adopt(self)
        except ValueError:
            for part, implementation in before:
                part.config._attn_implementation_internal = implementation
            raise

    return set_attn_implementation


def _parts(model: PreTrainedModel) -> list[PreTrainedModel]:
    return [part for part in model.modules() if isinstance(part, PreTrainedModel)]


def _adopt(model: PreTrainedModel) -> None:
    """Check the models inside that chose ours, and write it into configuration and weights.

    Raises:
        ValueError: one of them computes its attention itself, or has none.
    """
    chosen = [(part, part.config._attn_implementation or "") for part in _parts(model)]
    for part, name in chosen:
        if name in ATTENTIONS:
            _refuse(part, name)
    for part, name in chosen:
        if name in ATTENTIONS:
            _write(part.config, name)
            claim(part)
            _mark(part)
            continue
        if _record(part) is not None:
            _forget(part.config)
        if KEY in part._buffers:
            delattr(part, KEY)


def _write(config: PreTrainedConfig, name: str) -> None:
    """Write into a configuration the choice for `from_pretrained`.

    transformers itself reads attn_implementation, of which it saves nothing.
    """
    options = ATTENTIONS[name].options._asdict()
    setattr(config, KEY, _Written(mixer="flow", options=options, implementation=name))
    parts = {part: getattr(config, part) for part in config.sub_configs}
    chosen = {key: part._attn_implementation for key, part in parts.items() if part is not None}
    config.__dict__["attn_implementation"] = {"": name, **chosen} if chosen else name


def _forget(config: PreTrainedConfig) -> None:
    delattr(config, KEY)
    config.__dict__.pop("attn_implementation", None)


def _mark(part: PreTrainedModel) -> None:
    """Put a weight into its state dict that no model without this attention knows."""
    part._keys_to_ignore_on_load_missing = {*(part._keys_to_ignore_on_load_missing or ()), KEY}
    if part.base_model is not part or KEY in part._buffers:
        return  # one is enough: a base model is loaded with and without what is above it
    device = next((parameter.device for parameter in part.parameters()), None)
    part.register_buffer(KEY, torch.empty(0, device=device))
    if _forgive_missing not in part._load_state_dict_post_hooks.values():
        part.register_load_state_dict_post_hook(_forgive_missing)


def _forgive_missing(_module: nn.Module, keys: Any) -> None:
    """Take the weights of a model with softmax, to be trained for ours."""
    keys.missing_keys[:] = [key for key in keys.missing_keys if key.split(".")[-1] != KEY]


def _refuse(part: PreTrainedModel, name: str) -> None:
    own = sorted({type(module).__name__ for module in own_modules(part) if _is_alone(module)})
    if own:
        raise _refusal(part, name, ", ".join(own))
    if part.can_generate() and not any(map(uses_interface, part.modules())):
        raise _refusal(part, name, "all that mixes its tokens")


def _refusal(part: PreTrainedModel, name: str, what: str) -> ValueError:
    return ValueError(
        f"{type(part).__name__} computes {what} itself, not through transformers' attention "
        f"interface, where attn_implementation={name!r} would take effect: take another model, "
        "or 'eager' for this one (in a model of several parts by a dict, such as "
        f"{{'text_config': {name!r}, 'vision_config': 'eager'}})"
    )


@cache
def _has_own_table(module: str) -> bool:
    """Return whether models of this Python module have a table of attentions of their own."""
    try:
        source = inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        return False  # what is built is looked at all the same
    return bool(re.search(r"_CLASSES\[(self\.)?(config\._)?attn_implementation\]", source))


def _is_alone(module: nn.Module) -> bool:
    """Return whether it is an attention with a mask that does not call the interface."""
    if not _is_attention(module) or uses_interface(module):
        return False
    masked = any("mask" in name for name in inspect.signature(module.forward).parameters)
    inside = any(_is_attention(each) for each in module.modules() if each is not module)
    return masked and not inside


def _is_attention(module: nn.Module) -> bool:
    name = type(module).__name__
    ours = isinstance(module, HeadAttention)  # of `replace_attention`
    return not ours and ("Attention" in name or "Attn" in name)


install()
