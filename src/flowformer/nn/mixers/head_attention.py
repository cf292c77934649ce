"""What an attention is to a layer, what it can do, and the table of the mixers made of them."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, TypedDict, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowformer.ops.inputs import resolve_masks

# The mixers by name, in the order in which `flowformer.nn.mixers` imports them, and the attentions
# of those that need no more than query, key and value: these also go into a layer with projections
# of its own, such as the stand-in for `nn.MultiheadAttention`.
MIXERS: dict[str, Any] = {}
ATTENTIONS: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What an attention can do, for users, models and the conformance suite; all else raises.

    Attributes:
        causal: it has a form in which no output depends on a later token.
        cross: the sources may be another sequence, of another length.
        state: a causal sequence may be given in pieces, with a state passed from call to call.
        growing_state: that state grows with the sequence; otherwise its size is constant.
        independent_sinks: in cross-attention each output depends on its own query and the context
            alone. Otherwise the other queries enter it too, later ones among them: as the
            cross-attention of a decoder it would leak the tokens that are to be predicted.
        variable_length: any length is accepted; otherwise `max_length` must be given and bounds it.
        bidirectional: it has a form in which all tokens see each other.
        exact_mask: a padded sequence gives what it gives alone; otherwise the attention's own text
            says what padding changes.
    """

    causal: bool
    cross: bool
    state: bool
    variable_length: bool = True
    bidirectional: bool = True
    exact_mask: bool = True
    growing_state: bool = False
    independent_sinks: bool = False

    def __str__(self) -> str:
        """Name what it can do, for error messages."""
        names = [field.name for field in fields(self) if getattr(self, field.name)]
        return ", ".join(names).replace("_", " ")


def enter(name: str, mixer: Any) -> None:
    """Give a class of mixers its name; `ProjectedMixer` calls it for its subclasses.

    Raises:
        ValueError: another class has that name. (A class that is defined again takes its own.)
    """
    before = MIXERS.get(name, mixer)
    if (before.__module__, before.__qualname__) != (mixer.__module__, mixer.__qualname__):
        raise ValueError(
            f"a mixer {name!r} is there already: {before.__module__}.{before.__name__}"
        )
    leave(name)
    MIXERS[name] = mixer
    if needs_heads_alone(mixer.kind):
        ATTENTIONS[name] = mixer.kind


def needs_heads_alone(kind: Any) -> bool:
    """Return whether an attention can be had with query, key and value and nothing else."""
    return set(kind.inputs) - set(kind.optional) == {"query", "key", "value"}


def leave(name: str) -> None:
    """Take a name out of the table, such as that of a mixer of one's own after a test."""
    MIXERS.pop(name, None)
    ATTENTIONS.pop(name, None)


def able(capability: str) -> list[str]:
    """Return the names of the mixers that have a capability, as they are by default."""
    return [name for name, mixer in MIXERS.items() if getattr(mixer.capabilities, capability)]


@runtime_checkable
class State(Protocol):
    """The state that a causal attention passes from call to call; the classes are NamedTuples."""

    def detach(self) -> "State": ...  # noqa: D102 - FlowState says it

    def to(self, device: torch.device | str) -> "State": ...  # noqa: D102

    def reorder(self, index: Tensor) -> "State": ...  # noqa: D102


class Sizes(TypedDict):
    """What a layer tells its attention; an attention's constructor names those that it needs.

    Attributes:
        dim: width of the hidden states.
        num_heads: number of query heads.
        num_kv_heads: number of key and value heads.
        head_dim: width of a head.
        max_length: longest sequence, if one was given.
    """

    dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_length: int | None


class Masks(TypedDict, total=False):
    """The keywords of an attention's function that has keys of another sequence too.

    Attributes:
        mask: real tokens (True) of queries and keys, in self-attention, [b, l].
        query_mask: real tokens of the queries, [b, l]; the output at the others is zero.
        key_mask: real tokens of the keys, [b, s]; a query with no real key gives zero.
    """

    mask: Tensor | None
    query_mask: Tensor | None
    key_mask: Tensor | None


class CausalCall(Masks, total=False):
    """The keywords of a function that has a causal form, with a state, beside them.

    Attributes:
        causal: let query i see the keys j ≤ i only; needs l == s.
        initial_state: the state after the tokens before these (causal only).
        return_state: also return the state after these tokens (causal only).
    """

    causal: bool
    initial_state: Any
    return_state: bool


def call_masks(query: Tensor, key: Tensor, **call: Any) -> tuple[Tensor | None, Tensor | None]:
    """Return the masks of the queries and of the keys, of the keywords of a `CausalCall`."""
    masks = {name: x for name, x in call.items() if name not in ("initial_state", "return_state")}
    return resolve_masks(query, key, **masks)


class HeadAttention(nn.Module):
    """An attention without projections: options, parameters of its own, and a call over heads.

    A call takes the tensors of `inputs`, each [b, t, heads, head_dim], and the keywords of what it
    can do, no others: `mask` (of both sides, in self-attention); `query_mask` and `key_mask` if
    `capabilities.cross`; `causal` if `.causal`; `state` and `return_state` if `.state`. It returns
    (out [b, l, h, m], state or None). Who calls it asks `require` first.

    An attention names the `function` that computes it, and gives its options to `super().__init__`;
    one that needs more, such as parameters, overrides `arguments`, or `forward` itself.

    Args:
        options: keywords that `function` gets at every call; they become attributes.

    Attributes:
        capabilities: what it can do. Of an instance, with its options; the record of the class is
            that of its defaults.
        inputs: the tensors that it is given, in this order, of "query", "key", "value" and
            "hidden", the hidden states [b, l, dim] themselves (for gates, or synthetic weights).
        optional: those of them without which it can do: a layer with projections of its own gives
            query, key and value alone.
        linear_in_values: whether its output is a matrix times the values, which the values do not
            enter; `implied_weights` is that matrix.
        weighted: of one that is not, but for steps before the sum and after it that are each
            value's and each output's own, the call without these: `implied_row` reads it.
        value_layers: names of the submodules, if any, that make further values of the hidden
            states, [b, s, heads · m].
        function: what computes it: a function of the tensors, of `arguments`, and of the keywords
            of a call, but that `state` is called `initial_state`. It returns the output, or a pair
            of it and the state.
    """

    capabilities: ClassVar[Capabilities]
    inputs: ClassVar[tuple[str, ...]] = ("query", "key", "value")
    optional: ClassVar[tuple[str, ...]] = ()
    linear_in_values: ClassVar[bool] = True
    weighted: Callable[..., tuple[Tensor, Any]] | None = None
    value_layers: ClassVar[tuple[str, ...]] = ()
    function: ClassVar[Callable[..., Any]]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.keywords = tuple(options)
        for name, value in options.items():
            setattr(self, name, value)

    def arguments(self) -> dict[str, Any]:
        """Return what `function` gets at every call: the options, and what a subclass adds."""
        return {name: getattr(self, name) for name in self.keywords}

    def forward(self, *tensors: Any, **call: Any) -> tuple[Tensor, Any]:
        """Return the output and, if asked for, the state after these tokens."""
        if "state" in call:
            call["initial_state"] = call.pop("state")
        result = self.function(*tensors, **self.arguments(), **call)
        return result if isinstance(result, tuple) else (result, None)

    def extra_repr(self) -> str:
        """Return the options, for print(model)."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.keywords)

    def require(self, capability: str) -> None:
        """Refuse what it cannot do.

        Raises:
            NotImplementedError: it cannot; the message says what it can, and which mixers can.
        """
        if getattr(self.capabilities, capability):
            return
        names = able(capability)
        lacks = f"has no {capability} form"
        if capability == "independent_sinks":
            names.insert(0, "flow with independent_sinks=True")
            lacks = (
                "lets every output of cross-attention depend on all queries, in a decoder on those "
                "of the tokens to come"
            )
        raise NotImplementedError(
            f"{type(self).__name__} {lacks}; it can do: {self.capabilities}. "
            f"Mixers that can: {', '.join(names)}"
        )


def option_names(kind: type[HeadAttention]) -> set[str]:
    """Return the keywords of its constructor that a user sets: all but the sizes."""
    return set(option_defaults(kind))


def option_defaults(kind: type[HeadAttention]) -> dict[str, Any]:
    """Return those keywords and their defaults."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(kind).parameters.items()
        if name not in Sizes.__annotations__
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def make_attention(
    kind: type[HeadAttention], sizes: Sizes, options: dict[str, Any]
) -> HeadAttention:
    """Return an attention of that class, with those of the sizes that its constructor names.

    Raises:
        ValueError: it is of a fixed length and max_length is not given.
    """
    named = inspect.signature(kind).parameters
    if sizes["max_length"] is None and not kind.capabilities.variable_length:
        raise ValueError(f"{kind.__name__} is of a fixed length, got none: give max_length")
    return kind(**{name: size for name, size in sizes.items() if name in named}, **options)


def implied_weights(
    attention: HeadAttention,
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    **call: Any,
) -> Float[Tensor, "b h l s"]:
    """Return the matrix W for which out = W v, whatever the values v.

    An attention that is linear in its values has W as its output for the identity matrix in their
    place. For Flow-Attention W_ij = a_i / I_i · (q_i · k_j) · c_j: rows need not sum to one.
    Quadratic in the length, in time and memory: for inspection, not for training.

    Raises:
        NotImplementedError: the attention is not linear in its values.
    """
    if not attention.linear_in_values:
        raise NotImplementedError(
            f"{type(attention).__name__} is not linear in the values, so no matrix of weights "
            "gives its output: ask for none (need_weights=False)"
        )
    sources = key.shape[1]
    identity = torch.eye(sources, dtype=query.dtype, device=query.device)
    value = identity[None, :, None, :].expand(key.shape[0], sources, key.shape[2], sources)
    weights, _ = attention(query, key, value, **call)
    return weights.transpose(1, 2)


@torch.enable_grad()
def implied_row(
    attention: HeadAttention, tensors: Sequence[Tensor], sink: int, **call: Any
) -> Float[Tensor, "b h s"]:
    """Return the row W_i of `implied_weights` for one sink i, at the cost of about a training step.

    W_i is the gradient of out_i with respect to the values, whatever these are: of a linear
    attention it takes memory linear in the length. Where a token has several values (the global
    ones of Longformer), it is the sum of their weights.

    Args:
        attention: in evaluation, unless what it draws in training is wanted.
        tensors: those of `attention.inputs`; of the values only the shape matters.
        sink: place i of the token that receives.
        call: keywords of its call, such as `mask`.

    Raises:
        NotImplementedError: the attention is not linear in its values; the message names the mixer.
        IndexError: there is no such place.
    """
    attend = attention if attention.linear_in_values else attention.weighted
    if attend is None:
        names = [name for name, mixer in MIXERS.items() if mixer.kind is type(attention)]
        raise NotImplementedError(
            f"{type(attention).__name__} (mixer {', '.join(names)}) is not linear in the values: "
            "no weights that are the same for all values give its output"
        )
    at = attention.inputs.index("value")
    given = [tensor.detach() for tensor in tensors]
    given[at] = torch.zeros_like(given[at]).requires_grad_()
    values = [given[at]]

    def replace(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        values.append(torch.zeros_like(output).requires_grad_())
        return values[-1]

    handles = [
        layer.register_forward_hook(replace)
        for name, layer in attention.named_children()
        if name in attention.value_layers
    ]
    try:
        out, _ = attend(*given, **call)
    finally:
        for handle in handles:
            handle.remove()
    if not -out.shape[1] <= sink < out.shape[1]:
        raise IndexError(f"expected a sink among {out.shape[1]} tokens, got {sink}")
    width = given[at].shape[-1]
    return torch.stack([_rows(out[:, sink], value, width) for value in values]).sum(0)


def _rows(
    out: Float[Tensor, "b h m"], value: Float[Tensor, "b s ..."], width: int
) -> Float[Tensor, "b h s"]:
    """Return the gradients of each head's output with respect to its values of that width."""
    heads = out.shape[1]
    groups = heads * width // value[0, 0].numel()
    # One feature is enough: all have the same weights. Heads that share values take turns.
    rows = [
        torch.autograd.grad(
            out[:, turn::groups, 0].sum(), value, retain_graph=True, materialize_grads=True
        )[0].reshape(*value.shape[:2], heads // groups, width)[..., 0]
        for turn in range(groups)
    ]
    return torch.stack(rows, -1).flatten(2).transpose(1, 2)
