"""Our attentions by name: `attn_implementation="flow"` for the models of transformers.

Transformers has no hook for who may take an attention by name, nor for keeping it with a model.

Four methods of `PreTrainedModel` are wrapped when this package is imported. A model that computes
its attention itself is refused when it chooses ours. One that takes ours writes so into its
configuration and its weights: `from_pretrained` gives the same attention again, and one that was
exchanged by `replace_attention` too. An attention with parameters is a child of each module that
attends, and draws itself those that no file gives. Where this package is not imported, the
configuration asks for an implementation that is not there, and the weights hold one that the model
does not know: transformers refuses the first and warns of the second, and `load_state_dict` refuses
it.
"""

import inspect
import json
import re
import sys
import warnings
from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface, PreTrainedModel

from flowformer.nn.mixers import ATTENTIONS as MIXER_ATTENTIONS
from flowformer.nn.mixers.building import build_attention
from flowformer.nn.mixers.flow import FlowAttention
from flowformer.nn.mixers.head_attention import HeadAttention, Sizes
from flowformer.nn.replace.transformers import (
    CALL,
    CHILD,
    IMPLEMENTATION,
    SUPPORTED,
    build_child,
    child_of,
    give_child,
    is_decoders_cross,
    placed_like,
    register_implementation,
    restore,
    supported,
)
from flowformer.nn.replace.transformers import RECORD as KEY
from flowformer.nn.replace.transformers_attention import attend, padding_mask
from flowformer.nn.replace.transformers_owner import claim, own_modules, uses_interface


class Choice(NamedTuple):
    """A mixer that has parameters, or may have: each module gets an attention of its own."""

    mixer: str
    options: dict[str, Any]


ATTENTIONS: dict[str, FlowAttention | Choice] = {}  # those registered, by name


def register_attention(name: str = "flow", mixer: str = "flow", **options: Any) -> None:
    """Make an attention of ours an attention implementation of transformers, under this name.

    Any model whose attention goes through transformers' interface then takes it in place of its
    softmax: `from_pretrained(..., attn_implementation=name)`, or
    `model.set_attn_implementation(name)`. When this package is imported, "flow" is registered, and
    every causal mixer that has a state and needs no more than query, key and value, under its own
    name ("flow-gated", "linear", …), with their default options.

    Encoders, cross-attention and decoders; grouped heads; padding on either side as a mask [b, t],
    which is all that reaches the attention: nothing quadratic is made. `generate` carries the state
    of the attention in the model's cache: each token costs the same, whatever came before. Of what
    transformers hands over, `scaling` is not used (it is the softmax's: the feature map takes the
    heads as they are projected) and neither is `dropout` (there is no matrix of weights to drop
    from). No attention weights are returned.

    Args:
        name: the implementation's name.
        mixer: the mixer. Flow-Attention has no parameters and goes into every model; another one is
            put into the modules of `flowformer.nn.replace.transformers.SUPPORTED`, and its own
            parameters are trained with the model's.
        options: options of its attention: for "flow" feature_map, clamp, eps, … of
            `flowformer.nn.mixers.flow.FlowAttention`.

    Raises:
        ValueError: there is no such mixer, or an option outside its choices or its range.

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> from flowformer.integrations.transformers import register_attention
        >>> register_attention("flow", clamp=1.0)  # as the import does it
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> model = BertModel(BertConfig(**sizes, attn_implementation="flow"))
    """
    if mixer == "flow":
        register(name, FlowAttention(**options))
    else:
        check = dict(options)  # a mistake is told here, not when a model is built
        length = check.pop("max_length", None)
        sizes = Sizes(dim=16, num_heads=2, num_kv_heads=2, head_dim=8, max_length=length)
        with torch.random.fork_rng(devices=[]):
            build_attention(mixer, sizes, **check)
        register(name, Choice(mixer, options))


def register_mixers() -> None:
    """Register each causal mixer that has a state, and is no softmax, under its own name."""
    for name, kind in MIXER_ATTENTIONS.items():
        able = kind.capabilities
        if able.causal and able.state and able.variable_length and name not in ("flow", "softmax"):
            register(name, Choice(name, {}))


def register(name: str, attention: FlowAttention | Choice) -> None:
    """Make this attention an implementation of transformers."""
    if isinstance(attention, Choice):
        register_implementation(name, windows=False)
    else:
        AttentionInterface.register(name, partial(attend, attention))
        AttentionMaskInterface.register(name, padding_mask)
    ATTENTIONS[name] = attention


def install() -> None:
    """Wrap the methods of `PreTrainedModel`; once, for they are wrapped when this is imported."""
    for name, wrap in (
        ("get_correct_attn_implementation", _restoring),
        ("post_init", _checking_built),
        ("set_attn_implementation", _checking_set),
        ("_initialize_weights", _drawing_children),
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
        if not hasattr(self.config, KEY):
            pass
        elif record is not None and requested_attention in (None, record["implementation"]):
            requested_attention = _saved_implementation(record)
        elif record is None and (requested_attention or CALL).startswith((CALL, IMPLEMENTATION)):
            register_implementation()
            requested_attention = IMPLEMENTATION
        else:
            _forget_for(self, requested_attention, told=is_init_check)
        if requested_attention in ATTENTIONS and _has_own_table(type(self).__module__):
            raise _refusal(self, requested_attention, "its attention")
        return method(self, requested_attention, is_init_check)

    return get_correct_attn_implementation


def _forget_for(model: PreTrainedModel, requested: str | None, *, told: bool) -> None:
    """Forget the attention that a configuration was saved with, for another one is asked for."""
    record = getattr(model.config, KEY)
    if told and not isinstance(record, _Written):
        if _record(model) is None:
            records = record if isinstance(record, list) else [record]
            mixers = ", ".join(sorted({repr(each["mixer"]) for each in records}))
            saved = f"after replace_attention with {mixers}"
        else:
            saved = f"with attn_implementation={record['implementation']!r} ({record['mixer']})"
        warnings.warn(
            f"{type(model).__name__} was saved {saved} and is loaded with {requested!r}: its "
            "weights were trained for another attention",
            stacklevel=3,
        )
    _forget(model.config)


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
    name, mixer, options = record["implementation"], record["mixer"], record["options"]
    if name not in ATTENTIONS:
        register_attention(name, mixer, **options)
        return name
    known, given = _named(ATTENTIONS[name]), _named(_attention(mixer, options))
    if known != given:
        raise ValueError(
            f"the model was saved with attn_implementation={name!r} of {mixer!r} and the options "
            f"{options}, which is registered here with {known[0]!r} and {known[1]}: register it "
            "with those of the model, or give attn_implementation to choose another one"
        )
    return name


def _attention(mixer: str, options: dict[str, Any]) -> FlowAttention | Choice:
    return FlowAttention(**options) if mixer == "flow" else Choice(mixer, options)


def _named(attention: FlowAttention | Choice) -> tuple[str, dict[str, Any]]:
    """Return its mixer and its options as a file holds them."""
    if isinstance(attention, Choice):
        return attention.mixer, json.loads(json.dumps(attention.options))
    return "flow", attention.options._asdict()


def _checking_built(method: Callable[..., None]) -> Callable[..., None]:
    @wraps(method)
    def post_init(self: PreTrainedModel) -> None:
        method(self)
        if self.config._attn_implementation == IMPLEMENTATION:
            restore(self)
        _adopt(self)

    return post_init


def _drawing_children(method: Callable[..., None]) -> Callable[..., None]:
    """Let an attention with parameters draw those that no file gave: a model knows no rule."""

    @wraps(method)
    def _initialize_weights(self: PreTrainedModel, module: Any, *args: Any, **others: Any) -> None:
        method(self, module, *args, **others)
        child = child_of(module) if isinstance(module, nn.Module) else None
        if child is None:
            return
        tensors = [*child.parameters(), *child.buffers()]
        if all(getattr(tensor, _DRAWN, False) for tensor in tensors):
            return
        given: Any = child
        fresh = build_child(module, given.given["mixer"], given.given["options"])
        child.load_state_dict(fresh.state_dict())
        for tensor in tensors:
            setattr(tensor, _DRAWN, True)

    return _initialize_weights


_DRAWN = "_is_hf_initialized"  # by which transformers knows what need not be drawn


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
        attention = ATTENTIONS.get(name)
        if attention is not None:
            claim(part, _taken(part, name, attention))
            _write(part.config, name)
            _mark(part)
            continue
        _take_out(part)
        if _record(part) is not None:
            _forget(part.config)
        if KEY in part._buffers:
            delattr(part, KEY)


def _taken(
    part: PreTrainedModel, name: str, attention: FlowAttention | Choice
) -> Callable[[nn.Module], HeadAttention | None]:
    """Let a model take an attention; return which one a module attends with.

    Raises:
        ValueError: it has parameters, and the model no attention that it is known to fit into.
    """
    if isinstance(attention, FlowAttention):
        _take_out(part)
        return lambda module: attention if uses_interface(module) else None
    given, kind = attention._asdict(), MIXER_ATTENTIONS[attention.mixer]
    fitting = [module for module in own_modules(part) if supported(module)]
    if not fitting and any(map(uses_interface, own_modules(part))):
        raise ValueError(
            f"attn_implementation={name!r} is put into {', '.join(SUPPORTED)}, and "
            f"{type(part).__name__} has none of these: take 'flow', which has no parameters"
        )
    for module in fitting:
        stays = is_decoders_cross(module) and not kind.capabilities.independent_sinks
        wanted = _SOFTMAX if stays else given
        if getattr(child_of(module), "given", None) != wanted:
            child = placed_like(module, build_child(module, **wanted))
            setattr(child, _CHOSEN, True)
            give_child(module, child, None)
    return child_of


_SOFTMAX: dict[str, Any] = {"mixer": "softmax", "options": {}}
_CHOSEN = "chosen_by_name"


def _take_out(part: PreTrainedModel) -> None:
    """Take out the attentions that an earlier choice, or `replace_attention`, put into a model."""
    for module in own_modules(part):
        child: Any = child_of(module)
        if child is None:
            continue
        owner: Any = module
        if hasattr(child, _CHOSEN) or owner.config._attn_implementation != IMPLEMENTATION:
            del module._modules[CHILD]


def _write(config: PreTrainedConfig, name: str) -> None:
    """Write into a configuration the choice for `from_pretrained`.

    transformers itself reads attn_implementation, of which it saves nothing.
    """
    mixer, options = _named(ATTENTIONS[name])
    setattr(config, KEY, _Written(mixer=mixer, options=options, implementation=name))
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
