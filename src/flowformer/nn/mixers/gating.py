"""The parts that gated mixers share: decays, gains, gates, norms of heads, and the convolution's.

Each starts from the hidden states or the heads alone, so that a mixer is a list of those it takes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature, signature
from typing import Any, ClassVar, NamedTuple, TypedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.nn.mixers.convolution import ConvolvedState
from flowformer.nn.mixers.gated_options import Features, check_convolution
from flowformer.nn.mixers.recurrence import RecurrentAttention
from flowformer.ops import LinearState
from flowformer.ops.convolution import short_convolutions
from flowformer.ops.features import check_eps, compute_dtype, features, masked
from flowformer.ops.inputs import is_recorded, starting_state

# Between neighbours of the sequence that spreads time constants: any few heads that stand side by
# side have short and long ones.
GOLDEN = (math.sqrt(5) - 1) / 2
FIRST = (1 - GOLDEN) / 3  # so that of two heads one is short and one is long


class Decay(nn.Module):
    """log α_t = -softplus(W x_t + b) · exp(A) of each head, as in Mamba-2 (Dao & Gu 2024).

    At first A is zero, and 1 / softplus(b), the tokens after which 1/e is left, is spread over the
    heads, evenly in its logarithm.

    Args:
        dim: width of the hidden states.
        num_heads: number of heads.
        time_constants: the shortest and the longest, in tokens; None draws all as Mamba-2's code.
    """

    def __init__(
        self, dim: int, num_heads: int, time_constants: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, num_heads)
        self.log_scale = nn.Parameter(torch.zeros(num_heads))
        if time_constants is None:
            self.draw()
        else:
            self.start(time_constants)

    @torch.no_grad()
    def draw(self) -> None:
        """Draw softplus(b) from 0.001 to 0.1, evenly in its logarithm, and exp(A) from 1 to 16."""
        nn.init.uniform_(self.log_scale, 1, 16).log_()
        step = torch.empty_like(self.log_scale).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.projection.bias.copy_(torch.expm1(step).log())

    @torch.no_grad()
    def start(self, time_constants: Sequence[float]) -> None:
        """Spread b between those time constants, and let A be zero."""
        shortest, longest = time_constants
        heads = torch.arange(self.log_scale.numel(), dtype=torch.float64)
        tokens = shortest * (longest / shortest) ** ((FIRST + heads * GOLDEN) % 1)
        nn.init.zeros_(self.log_scale)
        self.projection.bias.copy_(torch.expm1(1 / tokens).log())

    def forward(self, hidden: Float[Tensor, "b t dim"]) -> Float[Tensor, "b t h"]:
        """Return log α ≤ 0, in the dtype of the arithmetic: a slow decay is none in half."""
        kept = self._kept(hidden)
        return kept * self.log_scale.to(kept.dtype).exp()

    def step(self, hidden: Float[Tensor, "b t dim"]) -> Float[Tensor, "b t h"]:
        """Return softplus(W x + b), by which Mamba-2 also multiplies what it adds."""
        return -self._kept(hidden)

    def _kept(self, hidden: Float[Tensor, "b t dim"]) -> Float[Tensor, "b t h"]:
        dtype = compute_dtype(hidden.dtype)
        x = F.linear(hidden, self.projection.weight).to(dtype)
        # Not F.softplus: compiled, torch has other strides for its gradient than when it runs.
        return F.logsigmoid(-(x + self.projection.bias.to(dtype)))

    def from_step(self, step: Float[Tensor, "b t h"]) -> Float[Tensor, "b t h"]:
        """Return log α of such a step."""
        return -step * self.log_scale.to(step.dtype).exp()


def with_gain(
    x: Float[Tensor, "b t h d"], gain: Float[Tensor, " h"], eps: float = 1e-6
) -> Float[Tensor, "b t h d"]:
    """Return every head with a root mean square of its gain."""
    exact = F.rms_norm(x.to(compute_dtype(x.dtype)), x.shape[-1:], eps=eps)
    return (exact * gain[:, None].to(exact.dtype)).to(x.dtype)


def with_gains(
    tensors: Sequence[Float[Tensor, "b t h d"]], gains: Float[Tensor, "n h"]
) -> tuple[Tensor, ...]:
    """Return each with its gains; of one token side by side, which takes fewer calls."""
    if is_recorded() or tensors[0].shape[1] > 1:
        return tuple(map(with_gain, tensors, gains))
    return with_gain(torch.cat(tuple(tensors), 2), gains.flatten()).chunk(len(tensors), 2)


def map_features(
    x: Float[Tensor, "b t h d"], mask: Bool[Tensor, "b t"] | None, feature_map: Features
) -> Float[Tensor, "b t h d"]:
    """Return φ(x) in the dtype of the arithmetic; padded tokens are masked before and after."""
    if feature_map != "elu":
        return features(x, mask, feature_map)
    return F.elu(masked(x, mask).to(compute_dtype(x.dtype))) + 1


def normalised(norm: nn.Module | None, out: Float[Tensor, "*b m"]) -> Float[Tensor, "*b m"]:
    """Return the output after a norm, which under autocast is more precise than it is."""
    if norm is None:
        return out
    weight = getattr(norm, "weight", None)
    return norm(out if weight is None else out.to(weight.dtype)).to(out.dtype)


def gated_output(
    gate: nn.Linear | None, hidden: Float[Tensor, "b t dim"], out: Float[Tensor, "b t h m"]
) -> Float[Tensor, "b t h m"]:
    """Return the output times silu of a linear function of the hidden states."""
    return out if gate is None else out * F.silu(gate(hidden)).unflatten(-1, out.shape[2:])


def draw_convolution(weight: Tensor) -> None:
    """Draw the weights of a short convolution as `nn.Conv1d` does those of a single channel."""
    bound = weight.shape[-1] ** -0.5
    nn.init.uniform_(weight, -bound, bound)


def identity_convolution(weight: Float[Tensor, "*n w"]) -> Float[Tensor, "*n w"]:
    """Return weights of that shape which leave every token as it is."""
    return F.pad(torch.ones_like(weight[..., :1]), (weight.shape[-1] - 1, 0))


def repeated(query: Tensor, *tensors: Float[Tensor, "b t g d"]) -> tuple[Tensor, ...]:
    """Return keys and values with as many heads as the queries."""
    heads = query.shape[2]
    if tensors[0].shape[2] == heads:
        return tensors
    return tuple(x.repeat_interleave(heads // x.shape[2], 2) for x in tensors)


def with_options(function: Callable[..., Any], defaults: Mapping[str, Any]) -> Signature:
    """Return a constructor's signature with these options in place of ``**options``."""
    given = signature(function)
    shown = [
        each
        for each in given.parameters.values()
        if each.kind != Parameter.VAR_KEYWORD and each.name != "self"
    ]
    shown += [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default)
        for name, default in defaults.items()
    ]
    return given.replace(parameters=shown)


class Parts(NamedTuple):
    """What stands around a recurrence, and may be left out or added to see what it is worth.

    Attributes:
        convolution: number of tokens that the short convolution of query, key and value sees, after
            which they pass silu; 0 for neither.
        norm: whether the output of each head is normalised.
        output_gate: whether the output is multiplied by silu(W x + b).
    """

    convolution: int
    norm: bool
    output_gate: bool


class PartKeywords(TypedDict, total=False):
    """The keywords of `Parts`, for type checkers."""

    convolution: int
    norm: bool
    output_gate: bool


class RecurrenceInParts(RecurrentAttention, ABC):
    """A recurrence with a convolution before it, and a norm and a gate after it, as options.

    A subclass says what `update` is, and which parts it has as published.
    """

    linear_in_values = False  # its output is normalised
    published: ClassVar[Parts]

    def __init_subclass__(cls) -> None:
        """Show the parts, with their defaults: the tables of mixers read the signature."""
        super().__init_subclass__()
        cls.__signature__ = with_options(cls.__init__, cls.published._asdict())  # pyright: ignore[reportAttributeAccessIssue]

    def make_parts(
        self, dim: int, num_heads: int, head_dim: int, eps: float, parts: PartKeywords
    ) -> None:
        """Make the parts, those given in place of the published ones.

        Raises:
            ValueError: one is out of its range.
            TypeError: there is no such part.
        """
        chosen = self.published._replace(**parts)
        check_eps(eps)
        check_convolution(chosen.convolution, least=0)
        inner = num_heads * head_dim
        self.output_gate = nn.Linear(dim, inner) if chosen.output_gate else None
        self.norm = nn.RMSNorm(head_dim, eps=eps) if chosen.norm else None
        self.convolution = None
        if chosen.convolution:
            shape = (3, num_heads, head_dim, chosen.convolution)
            self.convolution = nn.Parameter(torch.empty(shape))
            draw_convolution(self.convolution)

    @abstractmethod
    def update(
        self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, mask: Any, memory: Any
    ) -> tuple[Tensor, LinearState]:
        """Return the output of the recurrence and its memory, of tensors after the convolution."""

    def recur(
        self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, mask: Any, state: Any
    ) -> tuple[Tensor, Any]:
        """Return the output and the state after these tokens."""
        if self.convolution is None:
            out, state = self.update(query, key, value, hidden, mask, state)
        else:
            key, value = repeated(query, key, value)
            recent, memory = None, None
            if state is not None:
                batch, _, heads, width = query.shape
                sizes = self.convolution.shape[-1], batch, heads, width, width, query.device
                state = starting_state(state, ConvolvedState.initial, *sizes)
                recent, memory = state[:3], LinearState(state.key_value)
            (query, key, value), last = short_convolutions(
                *((query, key, value), self.convolution, recent),
                activation="silu",
                mask=mask,
                return_state=True,
            )
            assert last is not None, "asked for"
            out, memory = self.update(query, key, value, hidden, mask, memory)
            state = ConvolvedState(last[0], last[1], last[2], memory.key_value)
        return gated_output(self.output_gate, hidden, normalised(self.norm, out)), state
