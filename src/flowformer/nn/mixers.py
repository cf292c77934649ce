"""Mixers: the one thing that varies between models. Each owns its projections and heads."""

import difflib
import inspect
from typing import Any, ClassVar, Protocol, TypedDict, Unpack, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor, nn

from flowformer.nn.attention import (
    FlowAttention,
    HeadAttention,
    LinearAttention,
    LinformerAttention,
    MobileAttention,
    SoftmaxAttention,
    State,
)
from flowformer.nn.capabilities import Capabilities
from flowformer.ops import FlowMap, flow_map
from flowformer.ops.features import Competition, FeatureMap


@runtime_checkable
class Mixer(Protocol):
    """What a block asks of the mixer that it is given."""

    capabilities: ClassVar[Capabilities]

    def __call__(  # noqa: D102 - the class says it
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        causal: bool = False,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        state: Any = None,
        return_state: bool = False,
    ) -> tuple[Tensor, Any]: ...


class ProjectionOptions(TypedDict, total=False):
    """The keywords that every mixer with projections takes.

    Attributes:
        dropout: dropout of the output, after its projection, as published. Default 0.
        bias: whether the four projections have one. Default True.
        head_dim: width of a head. Default dim / num_heads.
        num_kv_heads: number of key and value heads, each of which serves num_heads / num_kv_heads
            query heads. Default num_heads.
        context_dim: width of the context. Default dim.
        out_dim: width of the output. Default dim.
    """

    dropout: float
    bias: bool
    head_dim: int | None
    num_kv_heads: int | None
    context_dim: int | None
    out_dim: int | None


class ProjectedMixer(nn.Module):
    """Query, key and value projections, an attention over heads, and the output projection.

    The projections have the published names. Outputs at padded places are zero.
    """

    capabilities: ClassVar[Capabilities]

    def __init__(  # noqa: PLR0913 - see ProjectionOptions
        self,
        dim: int,
        num_heads: int,
        *,
        attention: HeadAttention,
        dropout: float = 0.0,
        bias: bool = True,
        head_dim: int | None = None,
        num_kv_heads: int | None = None,
        context_dim: int | None = None,
        out_dim: int | None = None,
    ) -> None:
        """Create the projections around `attention`; ProjectionOptions says what the others are.

        Raises:
            ValueError: dim is not divisible by num_heads and head_dim is not given, num_heads is
                not divisible by num_kv_heads, or one of them is not positive.
        """
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads < 1 or num_kv_heads < 1:
            raise ValueError(f"heads must be positive, got {num_heads=} and {num_kv_heads=}")
        if head_dim is None:
            if dim % num_heads:
                raise ValueError(
                    f"dim must be divisible by num_heads, got {dim=} and {num_heads=}; "
                    "or give head_dim"
                )
            head_dim = dim // num_heads
        if num_heads % num_kv_heads:
            raise ValueError(
                f"num_heads must be divisible by num_kv_heads, got {num_heads=} and {num_kv_heads=}"
            )
        context_dim = dim if context_dim is None else context_dim
        self.head_dim = head_dim
        self.query_projection = nn.Linear(dim, num_heads * head_dim, bias=bias)
        self.key_projection = nn.Linear(context_dim, num_kv_heads * head_dim, bias=bias)
        self.value_projection = nn.Linear(context_dim, num_kv_heads * head_dim, bias=bias)
        self.out_projection = nn.Linear(num_heads * head_dim, out_dim or dim, bias=bias)
        self.attention = attention
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "b l dim"],
        context: Float[Tensor, "b s context_dim"] | None = None,
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b l"] | None = None,
        context_mask: Bool[Tensor, "b s"] | None = None,
        state: State | None = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "b l out"], State | None]:
        """Mix the tokens of x, or those of context into x.

        Args:
            x: the hidden states.
            context: another sequence to draw from (cross-attention); None for x itself.
            causal: no output depends on a later token.
            mask: real tokens of x (True); the output at the others is zero.
            context_mask: real tokens of context.
            state: what an earlier call returned: x continues that sequence.
            return_state: also return the state after x.

        Returns:
            The mixed hidden states, and the state (None unless asked for).

        Raises:
            NotImplementedError: this mixer cannot do it; the message says which mixers can.
            ValueError: the arguments contradict each other.
        """
        stateful = return_state or state is not None
        self._check_call(context, context_mask, causal=causal, stateful=stateful)
        source = x if context is None else context
        masks = _masks(mask, context, context_mask)
        out, state = self.attention(
            self._heads(self.query_projection(x)),
            self._heads(self.key_projection(source)),
            self._heads(self.value_projection(source)),
            causal=causal,
            state=state,
            return_state=return_state,
            **masks,
        )
        y = self.dropout(self.out_projection(out.flatten(2)))
        if mask is not None:
            y = y.masked_fill(~mask.unsqueeze(-1), 0)
        return y, state

    def _heads(self, projected: Float[Tensor, "b t inner"]) -> Float[Tensor, "b t h d"]:
        return projected.unflatten(-1, (projected.shape[-1] // self.head_dim, self.head_dim))

    def _check_call(
        self, context: Tensor | None, context_mask: Tensor | None, *, causal: bool, stateful: bool
    ) -> None:
        if causal:
            self._require("causal")
        if context is not None:
            self._require("cross")
        if stateful:
            self._require("state")
        if causal and context is not None:
            raise ValueError(
                "causal=True orders the tokens of one sequence and cannot be asked with a context: "
                "leave out one of them"
            )
        if stateful and not causal:
            raise ValueError(
                "state and return_state need causal=True: only a causal form has a state"
            )
        if context is None and context_mask is not None:
            raise ValueError("context_mask was given without a context: give mask for x itself")

    def _require(self, capability: str) -> None:
        if not getattr(self.capabilities, capability):
            able = [name for name, kind in MIXERS.items() if getattr(kind.capabilities, capability)]
            raise NotImplementedError(
                f"{type(self).__name__} has no {capability} form; it can do: {self.capabilities}. "
                f"Mixers that can: {', '.join(able)}"
            )


def _masks(
    mask: Bool[Tensor, "b l"] | None, context: Tensor | None, context_mask: Tensor | None
) -> dict[str, Tensor | None]:
    """The mask arguments of an attention: one for both sides of self-attention, or one for each."""
    if context is None:
        return {"mask": mask}
    return {"query_mask": mask, "key_mask": context_mask}


class FlowMixer(ProjectedMixer):
    """Flow-Attention (Wu et al. 2022): linear, with competing sources and allocated sinks."""

    capabilities: ClassVar[Capabilities] = FlowAttention.capabilities
    attention: FlowAttention

    def __init__(  # noqa: PLR0913 - options explicit, as users set them in recipes
        self,
        dim: int,
        num_heads: int,
        *,
        max_length: int | None = None,  # noqa: ARG002 - any length will do
        feature_map: FeatureMap = "sigmoid",
        clamp: float | None = 1.0,
        eps: float = 1e-6,
        competition: Competition | None = "sources",
        allocation: bool = True,
        backend: str | None = None,
        **projections: Unpack[ProjectionOptions],
    ) -> None:
        """Create it; for the options see FlowAttention and ProjectionOptions."""
        attention = FlowAttention(
            feature_map=feature_map,
            clamp=clamp,
            eps=eps,
            competition=competition,
            allocation=allocation,
            backend=backend,
        )
        super().__init__(dim, num_heads, attention=attention, **projections)

    def flow_map(
        self,
        x: Float[Tensor, "b l dim"],
        context: Float[Tensor, "b s context_dim"] | None = None,
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b l"] | None = None,
        context_mask: Bool[Tensor, "b s"] | None = None,
    ) -> FlowMap:
        """Source competition [b, s, h] and sink allocation [b, l, h] for these hidden states."""
        self._check_call(context, context_mask, causal=causal, stateful=False)
        source = x if context is None else context
        masks = _masks(mask, context, context_mask)
        return flow_map(
            self._heads(self.query_projection(x)),
            self._heads(self.key_projection(source)),
            causal=causal,
            **masks,
            **self.attention.options._asdict(),
        )


class SoftmaxMixer(ProjectedMixer):
    """Softmax attention (Vaswani et al. 2017), the usual transformer's; quadratic in the length."""

    capabilities: ClassVar[Capabilities] = SoftmaxAttention.capabilities

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        max_length: int | None = None,  # noqa: ARG002 - any length will do
        weight_dropout: float = 0.0,
        **projections: Unpack[ProjectionOptions],
    ) -> None:
        """Create it; for the options see SoftmaxAttention and ProjectionOptions."""
        attention = SoftmaxAttention(weight_dropout=weight_dropout)
        super().__init__(dim, num_heads, attention=attention, **projections)


class LinearMixer(ProjectedMixer):
    """Linear attention with elu + 1 features (Katharopoulos et al. 2020)."""

    capabilities: ClassVar[Capabilities] = LinearAttention.capabilities

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        max_length: int | None = None,  # noqa: ARG002 - any length will do
        eps: float = 1e-6,
        **projections: Unpack[ProjectionOptions],
    ) -> None:
        """Create it; for the options see LinearAttention and ProjectionOptions."""
        super().__init__(dim, num_heads, attention=LinearAttention(eps=eps), **projections)


class LinformerMixer(ProjectedMixer):
    """Linformer (Wang et al. 2020): softmax over `rank` mixed keys; needs max_length."""

    capabilities: ClassVar[Capabilities] = LinformerAttention.capabilities

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        max_length: int | None = None,
        rank: int = 256,
        **projections: Unpack[ProjectionOptions],
    ) -> None:
        """Create it; for the options see LinformerAttention and ProjectionOptions."""
        if max_length is None:
            raise ValueError("linformer has parameters for each position: give max_length")
        attention = LinformerAttention(max_length=max_length, rank=rank)
        super().__init__(dim, num_heads, attention=attention, **projections)


class MobileMixer(ProjectedMixer):
    """Mobile-Attention (Yao et al. 2024): flows between the heads of a token."""

    capabilities: ClassVar[Capabilities] = MobileAttention.capabilities

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        max_length: int | None = None,  # noqa: ARG002 - any length will do
        feature_map: FeatureMap = "sigmoid",
        clamp: float | None = 1.0,
        eps: float = 1e-6,
        normalize: bool = False,
        **projections: Unpack[ProjectionOptions],
    ) -> None:
        """Create it; for the options see MobileAttention and ProjectionOptions."""
        attention = MobileAttention(
            feature_map=feature_map, clamp=clamp, eps=eps, normalize=normalize
        )
        super().__init__(dim, num_heads, attention=attention, **projections)


MIXERS: dict[str, type[ProjectedMixer]] = {
    "flow": FlowMixer,
    "softmax": SoftmaxMixer,
    "linear": LinearMixer,
    "linformer": LinformerMixer,
    "mobile": MobileMixer,
}


def build_mixer(name: str, dim: int, num_heads: int, **options: Any) -> ProjectedMixer:
    """The mixer of that name in MIXERS.

    Args:
        name: a key of MIXERS.
        dim: width of the hidden states.
        num_heads: number of heads.
        options: the keywords of that mixer's constructor.

    Raises:
        ValueError: there is no such mixer, or it has no such option; the message lists the choices.
    """
    if name not in MIXERS:
        near = difflib.get_close_matches(name.lower(), MIXERS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"unknown mixer {name!r}: {hint}expected one of {', '.join(MIXERS)}")
    allowed = _option_names(MIXERS[name])
    if unknown := sorted(options.keys() - allowed):
        raise ValueError(
            f"mixer {name!r} has no option {', '.join(unknown)}; it takes "
            f"{', '.join(sorted(allowed))}"
        )
    return MIXERS[name](dim, num_heads, **options)


def _option_names(kind: type[ProjectedMixer]) -> set[str]:
    parameters = inspect.signature(kind).parameters.values()
    own = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
    return own | ProjectionOptions.__annotations__.keys()
