"""Exchange the attention inside a torch, timm or transformers model, keeping its projections."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowformer.nn.mixers.building import (
    build_attention,
    independent_choices,
    require_independent_sinks,
)
from flowformer.nn.mixers.head_attention import HeadAttention, Sizes
from flowformer.nn.multihead import ADDED_KEYS, ROLES, MultiheadAttention, Role
from flowformer.nn.replace import transformers as replace_transformers
from flowformer.nn.replace.transformers import placed_like, plain_class

Predicate = Callable[[str, nn.Module], bool]


def replace_attention(
    model: nn.Module,
    mixer: str = "flow",
    *,
    options: dict[str, Any] | None = None,
    predicate: Predicate | None = None,
    role: Callable[[str, nn.Module], Role | None] | None = None,
) -> list[str]:
    """Exchange, in place, the attention of a model; the weights of all projections stay.

    What can be exchanged: `nn.MultiheadAttention` (so nn.Transformer and its encoder and decoder),
    timm's `Attention` (so its vision transformers) and, in transformers, the attentions of
    `flowformer.nn.replace.transformers.SUPPORTED`. With "softmax" the model computes what it did
    before; dropout of attention weights is kept with it, and the others have no weights to drop.

    The modules stay the same objects, with their parameters, parametrizations, adapters, hooks and
    ties; what an optimizer or a wrapper holds stays valid. From then on a state dict names the
    mixer, and a configuration of transformers too: a fresh model does not take it silently.

    The cross-attention of an autoregressive decoder is left as it is where an output would depend
    on later queries (a warning names it and what can be had): in transformers, and of torch what
    stands in a layer beside its `self_attn`. A `nn.MultiheadAttention` anywhere else is taken to be
    self-attention, unless its keys have another width or its name says "cross": see `role`.

    Args:
        model: the model.
        mixer: a key of `flowformer.nn.mixers.ATTENTIONS`.
        options: keywords of its attention (`clamp=None`; `max_length=197` for linformer).
        predicate: called with the name and module of each attention found; False leaves it alone.
        role: called likewise, returns "self", "cross" or "decoder-cross" (see
            `flowformer.nn.MultiheadAttention`), or None for the choice above.

    Returns:
        The names of the modules exchanged. Others whose class is one of attention are named in a
        warning.

    Raises:
        ValueError: nothing was exchanged (the message lists the classes seen whose name contains
            "attention"), an attention has parts that no mixer has, or `role` says that it is the
            cross-attention of a decoder, which this mixer would show its future.

    Examples:
        >>> from torch import nn
        >>> from flowformer.nn import replace_attention
        >>> decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2), 1)
        >>> replace_attention(decoder, "linear")
        ['layers.0.self_attn', 'layers.0.multihead_attn']
    """
    found = [
        _Found(name, module, kind)
        for name, module in model.named_modules(remove_duplicate=False)
        if (kind := _kind(module)) is not None and (predicate is None or predicate(name, module))
    ]
    if not found:
        raise ValueError(_nothing_found(model))
    hosts = []
    if any(each.kind is _TRANSFORMERS for each in found):
        hosts = replace_transformers.hosts(model)
    # All are built before the first is exchanged: an error leaves the model as it was. A module
    # that stands in several places is one module afterwards too.
    places: dict[nn.Module, list[_Found]] = {}
    for each in found:
        places.setdefault(each.module, []).append(each)
    plans = [_plan(model, each, mixer, options or {}, role) for each in places.values()]
    exchanged = {plan.module: plan for plan in plans if not plan.leaks}
    if not exchanged:
        require_independent_sinks(plans[0].attention)
    _check_wrappers(model, list(exchanged.values()))
    for plan in exchanged.values():
        plan.kind.exchange(plan.module, plan.attention, plan.role)
    replace_transformers.activate(hosts)
    _say_what_was_left(model, plans, mixer)
    return [each.name for each in found if each.module in exchanged]


class _Kind(NamedTuple):
    """The way to exchange attentions of one library.

    Attributes:
        build: makes the attention of a mixer, with its options, for the module.
        exchange: lets the module attend with it, in that role.
    """

    build: Callable[[Any, str, dict[str, Any]], HeadAttention]
    exchange: Callable[[Any, HeadAttention, Role], None]


class _Found(NamedTuple):
    name: str
    module: nn.Module
    kind: _Kind


class _Plan(NamedTuple):
    """The exchange of one module; `guessed`: nobody told its role."""

    names: list[str]
    module: nn.Module
    kind: _Kind
    attention: HeadAttention
    role: Role
    guessed: bool

    @property
    def leaks(self) -> bool:
        """Whether it would show a decoder its future, and is left as it is."""
        return self.role == "decoder-cross" and not self.attention.capabilities.independent_sinks


def _plan(
    model: nn.Module,
    places: list[_Found],
    mixer: str,
    options: dict[str, Any],
    role: Callable[[str, nn.Module], Role | None] | None,
) -> _Plan:
    _, module, kind = places[0]
    told: list[Role | None] = [] if role is None else [role(each.name, module) for each in places]
    roles: list[Role] = [each for each in told if each is not None]
    if wrong := set(roles) - set(ROLES):
        raise ValueError(f"role must return one of {', '.join(ROLES)} or None, got {wrong}")
    plan = _Plan(
        names=[each.name for each in places],
        module=module,
        kind=kind,
        attention=placed_like(module, kind.build(module, mixer, options)),
        # Of a module in several places the role that asks most.
        role=ROLES[max(map(ROLES.index, roles or [_role(model, each) for each in places]))],
        guessed=not roles,
    )
    if plan.leaks and not plan.guessed:
        require_independent_sinks(plan.attention)
    return plan


def _role(model: nn.Module, found: _Found) -> Role:
    """Return the role that the layer around it tells, or else its widths and its name."""
    name, module, kind = found
    if kind is _TRANSFORMERS:
        return "decoder-cross" if replace_transformers.is_decoders_cross(module) else "self"
    if isinstance(module, MultiheadAttention):
        return module.role
    if not isinstance(module, nn.MultiheadAttention):
        return "self"
    parts = name.split(".")
    # Between them and the layer a compiled or checkpointed module may stand.
    for at in reversed(range(len(parts))):
        layer, child = model.get_submodule(".".join(parts[:at])), parts[at]
        if hasattr(layer, "self_attn"):  # so it is called in the decoders of torch, fairseq, DETR
            return "self" if child == "self_attn" else "decoder-cross"
    widths = {module.embed_dim, module.kdim, module.vdim}
    called = "cross" in ".".join(parts[-2:]).lower()
    return "cross" if called or len(widths) > 1 else "self"


def _check_wrappers(model: nn.Module, plans: list[_Plan]) -> None:
    """Refuse new tensors in a model whose wrapper has counted what it keeps equal or sharded.

    Raises:
        ValueError: there are some.
    """
    wrappers = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DDP"}
    seen = {kind.__name__ for module in model.modules() for kind in type(module).__mro__}
    for plan in plans:
        tensors = [*plan.attention.parameters(), *plan.attention.buffers()]
        if tensors and (around := wrappers & seen):
            raise ValueError(
                f"{type(plan.attention).__name__} has parameters or buffers of its own, which "
                f"{', '.join(sorted(around))} would not know of: exchange the attention first, "
                "then wrap the model"
            )


def _say_what_was_left(model: nn.Module, plans: list[_Plan], mixer: str) -> None:
    left = [name for plan in plans if plan.leaks for name in plan.names]
    if left:
        warnings.warn(
            f"left as it is: {', '.join(left)}, the cross-attention of an autoregressive decoder, "
            f"to which {mixer!r} would show its future, for each output depends on all queries. "
            f"Those that can be had there, by a second call with a predicate: "
            f"{independent_choices()}. If nothing is predicted from what comes before, let `role` "
            "return 'cross'",
            stacklevel=3,
        )
    guessed = [
        name
        for plan in plans
        if plan.guessed and plan.role == "cross"
        if not plan.attention.capabilities.independent_sinks
        for name in plan.names
    ]
    if guessed:
        warnings.warn(
            f"taken to be cross-attention, but not of an autoregressive decoder: "
            f"{', '.join(guessed)}. Each output of {mixer!r} depends on all queries there. Let "
            "`role` return 'cross' for them, or 'decoder-cross' in such a decoder",
            stacklevel=3,
        )
    if passed := _passed_over(model):
        warnings.warn(
            f"passed over, for these are none of {_KNOWN}: {passed}",
            stacklevel=3,
        )


def _passed_over(model: nn.Module) -> str:
    """Return the innermost modules whose class is called attention and that we cannot exchange."""
    known = [name for name, module in model.named_modules() if _kind(module) is not None]
    seen: dict[str, list[str]] = {}
    inner: list[str] = []
    # Children follow their parents: read backwards, what holds one comes after it.
    for name, module in reversed(list(model.named_modules())):
        kind = plain_class(type(module))
        if not _is_attention(module) or kind.__module__.startswith("flowformer."):
            continue
        related = any(_is_inside(each, name) or _is_inside(name, each) for each in known)
        if not related and not any(_is_inside(each, name) for each in inner):
            inner.append(name)
            seen.setdefault(f"{kind.__module__}.{kind.__qualname__}", []).append(name)
    return "; ".join(f"{kind} ({', '.join(names[::-1])})" for kind, names in sorted(seen.items()))


def _is_attention(module: nn.Module) -> bool:
    """Return whether its class, or that which it had before it was scripted, is called so."""
    name = getattr(module, "original_name", plain_class(type(module)).__name__).lower()
    return "attention" in name or "attn" in name


def _is_inside(name: str, other: str) -> bool:
    return name == other or other == "" or name.startswith(f"{other}.")


def _nothing_found(model: nn.Module) -> str:
    seen = {plain_class(type(each)) for each in model.modules() if _is_attention(each)}
    names = sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in seen)
    return (
        f"no attention to exchange was found: expected {_KNOWN}, for which the predicate is true; "
        f"attention-like classes in the model: {', '.join(names) if names else 'none'}"
    )


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Let the module be of that class, within what torch has put around its own."""

    def around(given: type) -> type:
        if given is plain_class(given):
            return kind
        members = {k: v for k, v in vars(given).items() if k not in ("__dict__", "__weakref__")}
        return type(given.__name__, (*given.__bases__[:-1], around(given.__bases__[-1])), members)

    module.__class__ = around(type(module))


def _build_for_torch(theirs: Any, mixer: str, options: dict[str, Any]) -> HeadAttention:
    if getattr(theirs, "bias_k", None) is not None or getattr(theirs, "add_zero_attn", False):
        raise ValueError(ADDED_KEYS)
    return _build(theirs, theirs.dropout, mixer, options)


def _build_for_timm(theirs: Any, mixer: str, options: dict[str, Any]) -> HeadAttention:
    return _build(theirs, getattr(theirs.attn_drop, "p", 0.0), mixer, options)


def _build(
    theirs: Any, weight_dropout: float, mixer: str, options: dict[str, Any]
) -> HeadAttention:
    options = dict(options)
    if mixer == "softmax":
        options.setdefault("weight_dropout", weight_dropout)
    sizes = Sizes(
        dim=theirs.num_heads * theirs.head_dim,
        num_heads=theirs.num_heads,
        num_kv_heads=theirs.num_heads,
        head_dim=theirs.head_dim,
        max_length=options.pop("max_length", None),
    )
    return build_attention(mixer, sizes, **options)


def _exchange_in_torch(theirs: Any, attention: HeadAttention, role: Role) -> None:
    if not isinstance(theirs, MultiheadAttention):
        _become(theirs, MultiheadAttention)
    theirs.attend_with(attention, role)


class TimmAttention(nn.Module):
    """timm's `Attention`, made into this by `replace_attention`: its parts around our attention."""

    num_heads: int
    head_dim: int
    qkv: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    norm: nn.Module
    gate: nn.Module | None
    proj: nn.Module
    proj_drop: nn.Module
    attention: HeadAttention

    def forward(
        self,
        x: Float[Tensor, "b t dim"],
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "b t out"]:
        """Mix the tokens; `attn_mask` must be None, for linear attentions have no pairs to mask."""
        if attn_mask is not None:
            raise ValueError("attn_mask must be None: this attention has no weight for each pair")
        self.attention.require("causal" if is_causal else "bidirectional")
        query, key, value = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(-3)
        call: dict[str, Any] = {"causal": True} if is_causal else {}
        out, _ = self.attention(self.q_norm(query), self.k_norm(key), value, **call)
        out = self.norm(out.flatten(2))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))


def _read_old_names(_module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Load dicts of when the layer held a mixer, with a projection for each of the three."""
    old = f"{prefix}mixer."
    for part in ("weight", "bias"):
        names = [f"{old}{each}_projection.{part}" for each in ("query", "key", "value")]
        if all(name in state_dict for name in names):
            state_dict[f"{prefix}qkv.{part}"] = torch.cat([state_dict.pop(each) for each in names])
    for then, now in (("out_projection.", "proj."), ("attention.", "attention.")):
        for name in [name for name in state_dict if name.startswith(old + then)]:
            state_dict[prefix + now + name.removeprefix(old + then)] = state_dict.pop(name)


def _exchange_in_timm(theirs: nn.Module, attention: HeadAttention, _role: Role) -> None:
    if not isinstance(theirs, TimmAttention):
        _become(theirs, TimmAttention)
        theirs.register_load_state_dict_pre_hook(_read_old_names)
    theirs.attention = attention


_TORCH = _Kind(_build_for_torch, _exchange_in_torch)
_TIMM = _Kind(_build_for_timm, _exchange_in_timm)
_TRANSFORMERS = _Kind(replace_transformers.build_child, replace_transformers.give_child)
_KNOWN = (
    "nn.MultiheadAttention, timm's Attention or, in transformers, "
    f"{', '.join(replace_transformers.SUPPORTED)}"
)


def _kind(module: nn.Module) -> _Kind | None:
    """Return how to exchange a module; None if it is no attention that is known here."""
    kind = plain_class(type(module))
    if kind in (nn.MultiheadAttention, MultiheadAttention):  # a subclass may compute otherwise
        return _TORCH
    theirs = kind.__module__ == "timm.layers.attention" and kind.__name__ == "Attention"
    if theirs or kind is TimmAttention:
        return _TIMM
    return _TRANSFORMERS if replace_transformers.supported(module) else None
