"""Mixers of one's own: a plain module in the place of an attention, and what it can do, by trying.

`register_mixer` gives any `nn.Module` over hidden states a name. It stands where an attention of
ours does, so that padding, packing, dropout and refusals are those of every mixer.
"""

import inspect
import logging
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowformer.names import REMEDY
from flowformer.nn.mixers.head_attention import (
    MIXERS,
    Capabilities,
    HeadAttention,
    Sizes,
    State,
    enter,
    make_attention,
)
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.nn.mixers.trial import Trial

logger = logging.getLogger("flowformer.nn")

# The keywords of a call, and what a module that names one gets where the caller says nothing.
_CALL: Mapping[str, Any] = {"causal": False, "mask": None, "state": None, "return_state": False}


class OwnState(NamedTuple):
    """The state of a plain module: a tensor, or tuples of them, the batch first in each.

    A state that has `to`, `detach` and `reorder`, as those of our attentions, is none of these.
    """

    value: Any

    def to(self, device: torch.device | str) -> "OwnState":
        """Return the state on another device."""
        return OwnState(_mapped(self.value, lambda part: part.to(device)))

    def detach(self) -> "OwnState":
        """Return the state without its history of gradients."""
        return OwnState(_mapped(self.value, torch.Tensor.detach))

    def reorder(self, index: Int[Tensor, " n"]) -> "OwnState":
        """Return the rows `index` of the batch."""
        return OwnState(_mapped(self.value, lambda part: part.index_select(0, index)))


torch.serialization.add_safe_globals([OwnState])


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if not isinstance(value, tuple):
        raise TypeError(
            "a state must be a tensor, or tuples of them, the batch first in each, got "
            f"{type(value).__name__}"
        )
    parts = [_mapped(part, change) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)


class OwnAttention(HeadAttention):
    """A plain module in the place of an attention: hidden states come in, hidden states go out.

    Each registered module has a subclass, whose signature is that of the module's constructor.

    Attributes:
        build: what makes the module: its class, or a function.
        first: what its constructor calls the width of the hidden states.
        defaults: the options that it was registered with.
        registered: its name in the table.
        module: the module.
        broken: the capabilities whose keyword its call names without keeping to it, and why.
        takes: the keywords of its call, of `causal`, `mask`, `state` and `return_state`.
        names: those of them that it names, where others go into its `**keywords`.
    """

    capabilities = Capabilities(causal=False, cross=False, state=False)  # until they are known
    inputs = ("hidden",)
    linear_in_values = False
    build: ClassVar[Callable[..., nn.Module]]
    first: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]]
    registered: ClassVar[str]
    broken: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        arguments = {**self.defaults, **arguments}
        arguments[self.first] = arguments.pop("dim")
        self.module = self.build(**arguments)
        if not isinstance(self.module, nn.Module):
            got = type(self.module).__name__
            raise TypeError(f"{self.build.__name__} must return an nn.Module, got {got}")
        named = inspect.signature(self.module.forward).parameters.values()
        every = any(each.kind is each.VAR_KEYWORD for each in named)
        self.names = tuple({each.name for each in named} & _CALL.keys())
        self.takes = tuple(_CALL) if every else self.names

    def forward(self, hidden: Float[Tensor, "b t dim"], **call: Any) -> tuple[Tensor, Any]:
        """Call the module with those of the keywords that it takes.

        Raises:
            ValueError: it returns something else than hidden states, or these and a state.
        """
        call = {**_CALL, **call}
        if isinstance(call["state"], OwnState):
            call["state"] = call["state"].value
        result = self.module(hidden, **{name: call[name] for name in self.takes})
        out, state = result if isinstance(result, tuple) else (result, None)
        if not isinstance(out, Tensor) or out.shape != hidden.shape:
            got = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(
                f"{self.build.__name__} must return hidden states of the shape that it is given, "
                f"{list(hidden.shape)}, or a pair of them and a state, got {got}"
            )
        if not call["return_state"]:
            return out, None
        if state is None:
            raise ValueError(f"{self.build.__name__} was asked for a state and returned none")
        return out, state if isinstance(state, State) else OwnState(state)

    def __reduce__(self) -> tuple[Any, ...]:
        """Name the class: a subclass that was made here stands in no module."""
        return _blank, (self.registered, "attention"), self.__dict__


class OwnMixer(ProjectedMixer):
    """A plain module as a mixer, without projections beside its own."""

    kind: ClassVar[type[HeadAttention]] = OwnAttention
    registered: ClassVar[str]

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        max_length: int | None = None,
        dropout: float | None = None,
        bias: bool | None = None,
        head_dim: int | None = None,
        num_kv_heads: int | None = None,
        **options: Any,
    ) -> None:
        """Create the module.

        Args:
            dim: width of the hidden states.
            num_heads: number of heads, for a constructor that names it.
            max_length: longest sequence, for a constructor that names it.
            dropout: for a constructor that names it; else of the output.
            bias: for a constructor that names it.
            head_dim: for a constructor that names it; any other has no such option.
            num_kv_heads: the same.
            options: further keywords of the constructor.

        Raises:
            ValueError: an option that the constructor does not name.
        """
        nn.Module.__init__(self)
        named = inspect.signature(self.kind).parameters
        for name, size in (("head_dim", head_dim), ("num_kv_heads", num_kv_heads)):
            if size is not None and name not in named:
                raise ValueError(f"{self.registered!r} has no option {name}, got {size}")
        for name, value in (("dropout", dropout), ("bias", bias)):
            if name in named and value is not None:
                options[name] = value
        self.dim = self.context_dim = dim
        self.head_dim = head_dim or dim // num_heads
        sizes = Sizes(
            dim=dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads or num_heads,
            head_dim=self.head_dim,
            max_length=max_length,
        )
        self.attention = make_attention(self.kind, sizes, options)
        self.capabilities = self.attention.capabilities  # pyright: ignore[reportAttributeAccessIssue]
        self.add_module("out_projection", nn.Identity())
        self.dropout = nn.Dropout(0.0 if "dropout" in named else dropout or 0.0)

    def __reduce__(self) -> tuple[Any, ...]:
        """Name the class: a subclass that was made here stands in no module."""
        return _blank, (self.registered, "mixer"), self.__dict__


def _blank(name: str, part: str) -> nn.Module:
    """Return an empty mixer or attention of a registered name, as pickle fills it."""
    if name not in MIXERS:
        raise ValueError(f"the mixer {name!r} is not there: {REMEDY}")
    kind = MIXERS[name] if part == "mixer" else MIXERS[name].kind
    return kind.__new__(kind)


def register_mixer(
    name: str,
    mixer: Callable[..., nn.Module],
    *,
    capabilities: Capabilities | None = None,
    **defaults: Any,
) -> Capabilities:
    """Give a mixer of one's own its name, by which models, recipes and comparisons know it.

    A module of whatever kind will do whose call takes hidden states [b, t, dim] and returns them
    mixed, with those of these keywords that it knows:

    - `mask`, [b, t], True = a real token. Hidden states are zero at the others when they come in,
      and made zero when they go out.
    - `causal`: let no output depend on a later token. A module without it has one form.
    - `state`, what it returned beside the hidden states for the tokens before, None for none, and
      `return_state`: a tensor, tuples of tensors, or a state of our attentions; the batch comes
      first in each. A module that names `state` alone always returns the pair.

    Its constructor gets `dim` (as its first argument, if it does not name it), `num_heads`,
    `head_dim`, `num_kv_heads`, `max_length`, `bias` and `dropout` where it names them. What else it
    names are the options of the mixer. What it can do is found out by building a small one on the
    CPU and calling it.

    Args:
        name: letters, digits, - and _.
        mixer: the class of the module, a function that returns one, or a `ProjectedMixer`.
        capabilities: what it can do, where that cannot be tried on the CPU.
        defaults: options that the constructor gets where a user gives no other.

    Returns:
        What it can do.

    Raises:
        ValueError: another mixer has the name, an option is not one of the constructor's, or it
            cannot be built or called; the message says how it was tried.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> from flowformer.nn import build_mixer, register_mixer
        >>> class RunningMean(nn.Module):
        ...     def __init__(self, dim):
        ...         super().__init__()
        ...         self.value = nn.Linear(dim, dim)
        ...
        ...     def forward(self, x):
        ...         count = torch.arange(1, x.shape[1] + 1, device=x.device)
        ...         return self.value(x).cumsum(1) / count[:, None]
        >>> print(register_mixer("running-mean", RunningMean))
        causal, variable length
        >>> out, _ = build_mixer("running-mean", 64, 4)(torch.randn(2, 9, 64), causal=True)
    """
    if re.fullmatch(r"[\w-]+", name) is None:
        raise ValueError(f"expected a name of letters, digits, - and _, got {name!r}")
    kind = own_mixer(name, mixer, capabilities=capabilities, **defaults)
    kind.origin = _caller() or kind.origin
    enter(name, kind)
    return kind.capabilities


def _caller() -> str | None:
    """Return the module that calls this package, past those that check shapes."""
    frame = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if name.partition(".")[0] not in ("flowformer", "jaxtyping", "beartype"):
            return name
        frame = frame.f_back
    return None


def own_mixer(
    name: str,
    mixer: Callable[..., nn.Module],
    *,
    capabilities: Capabilities | None = None,
    **defaults: Any,
) -> type[ProjectedMixer]:
    """Return the class of a mixer that `register_mixer` enters into the table."""
    if isinstance(mixer, type) and issubclass(mixer, ProjectedMixer):
        if capabilities is not None or defaults:
            raise ValueError(f"{mixer.__name__} says itself what it can do, and has its defaults")
        return mixer
    if isinstance(mixer, type) and not issubclass(mixer, nn.Module):
        raise ValueError(f"{mixer.__name__} must be an nn.Module, or a function that returns one")
    place = {"__module__": mixer.__module__, "__qualname__": mixer.__qualname__}
    attention = cast(Any, type(f"{mixer.__name__}", (OwnAttention,), dict(place)))
    attention.build, attention.registered = staticmethod(mixer), name
    attention.first, attention.__signature__ = _signature(mixer, defaults)
    attention.defaults = defaults
    if capabilities is None:
        trial = Trial(attention, defaults)
        capabilities = trial.capabilities()
        attention.broken = trial.broken
        logger.info("mixer %s: %s%s", name, capabilities, "".join(f"; {x}" for x in trial.notes))
    attention.capabilities = capabilities
    return cast(
        Any, type(mixer.__name__, (OwnMixer,), {**place, "kind": attention, "registered": name})
    )


def _signature(
    mixer: Callable[..., nn.Module], defaults: Mapping[str, Any]
) -> tuple[str, inspect.Signature]:
    """Return what a constructor calls the width, and its signature with `dim` for that."""
    parameters = dict(inspect.signature(mixer).parameters)
    plain = [
        name
        for name, each in parameters.items()
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    ]
    first = "dim" if "dim" in plain else next(iter(plain), None)
    if first is None:
        raise ValueError(f"{mixer.__name__} takes no arguments, and must take the width, dim")
    if unknown := sorted(defaults.keys() - set(plain)):
        raise ValueError(
            f"{mixer.__name__} has no option {', '.join(unknown)}; it takes {', '.join(plain)}"
        )
    changed = [
        inspect.Parameter(
            "dim" if name == first else name,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(name, parameters[name].default),
        )
        for name in plain
    ]
    return first, inspect.Signature(changed)
