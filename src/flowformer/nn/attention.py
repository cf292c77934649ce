"""The attentions as modules of projected heads: a mixer without its projections.

Each takes query [b, l, h, d], key and value [b, s, g, d] (g divides h), holds its own options and
parameters, and returns (out [b, l, h, m], state or None). Mixers and the `nn.MultiheadAttention`
stand-in both receive one. All are linear in the values, which is what `implied_weights` rests on.
"""

import inspect
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flowformer.nn.capabilities import Capabilities
from flowformer.ops import FlowState, LinearState, flow_attention, mobile_attention
from flowformer.ops.baselines import (
    KVState,
    elu_attention,
    linformer_attention,
    softmax_attention,
)
from flowformer.ops.features import Competition, FeatureMap, FlowOptions, check_options

State = FlowState | LinearState | KVState


class HeadAttention(nn.Module):
    """What a mixer asks for: a record of capabilities, and the call of the classes below."""

    capabilities: ClassVar[Capabilities]


class FlowAttention(HeadAttention):
    """Flow-Attention (Wu et al. 2022, section 3): `flowformer.ops.flow_attention` as a module.

    Args:
        feature_map: "sigmoid", or "relu" for relu(x) + 1e-6.
        clamp: bound of the conserved source before the softmax; None for none.
        eps: the ε of the flows.
        competition: the softmax runs over "sources" or (bidirectional only) "heads"; None for none.
        allocation: scale each sink by the sigmoid of its conserved flow.
        backend: name of a backend of `flow_attention`; None chooses.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=True, cross=True, state=True, variable_length=True
    )

    def __init__(
        self,
        *,
        feature_map: FeatureMap = "sigmoid",
        clamp: float | None = 1.0,
        eps: float = 1e-6,
        competition: Competition | None = "sources",
        allocation: bool = True,
        backend: str | None = None,
    ) -> None:
        """Hold the options; a wrong one raises here."""
        super().__init__()
        self.options = FlowOptions(
            feature_map=feature_map,
            clamp=clamp,
            eps=eps,
            competition=competition,
            allocation=allocation,
        )
        check_options(self.options)
        self.backend = backend

    def forward(  # noqa: PLR0913 - the keywords that every attention here takes
        self,
        query: Float[Tensor, "b l h d"],
        key: Float[Tensor, "b s g d"],
        value: Float[Tensor, "b s g m"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b l"] | None = None,
        query_mask: Bool[Tensor, "b l"] | None = None,
        key_mask: Bool[Tensor, "b s"] | None = None,
        state: FlowState | None = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "b l h m"], FlowState | None]:
        """Return the output and, if asked for, the state after these tokens."""
        result = flow_attention(
            query,
            key,
            value,
            causal=causal,
            mask=mask,
            query_mask=query_mask,
            key_mask=key_mask,
            initial_state=state,
            return_state=return_state,
            backend=self.backend,
            **self.options._asdict(),
        )
        return result if isinstance(result, tuple) else (result, None)

    def extra_repr(self) -> str:
        """The options, for print(model)."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options._asdict().items())


class SoftmaxAttention(HeadAttention):
    """Softmax attention (Vaswani et al. 2017); its state holds all keys and values and grows.

    Args:
        weight_dropout: probability with which an attention weight is dropped in training.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=True, cross=True, state=True, variable_length=True
    )

    def __init__(self, *, weight_dropout: float = 0.0) -> None:
        """Hold the option."""
        super().__init__()
        if not 0 <= weight_dropout < 1:
            raise ValueError(f"weight_dropout must be in [0, 1), got {weight_dropout}")
        self.weight_dropout = weight_dropout

    def forward(  # noqa: PLR0913 - the keywords that every attention here takes
        self,
        query: Float[Tensor, "b l h d"],
        key: Float[Tensor, "b s g d"],
        value: Float[Tensor, "b s g m"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b l"] | None = None,
        query_mask: Bool[Tensor, "b l"] | None = None,
        key_mask: Bool[Tensor, "b s"] | None = None,
        state: KVState | None = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "b l h m"], KVState | None]:
        """Return the output and, if asked for, the keys and values so far."""
        result = softmax_attention(
            query,
            key,
            value,
            causal=causal,
            mask=mask,
            query_mask=query_mask,
            key_mask=key_mask,
            dropout=self.weight_dropout if self.training else 0.0,
            initial_state=state,
            return_state=return_state,
        )
        return (result[0], result[1]) if isinstance(result, tuple) else (result, None)


class LinearAttention(HeadAttention):
    """Linear attention with elu + 1 features (Katharopoulos et al. 2020, equation 5).

    Args:
        eps: added to the denominator.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=True, cross=True, state=True, variable_length=True
    )

    def __init__(self, *, eps: float = 1e-6) -> None:
        """Hold the option."""
        super().__init__()
        self.eps = eps

    def forward(  # noqa: PLR0913 - the keywords that every attention here takes
        self,
        query: Float[Tensor, "b l h d"],
        key: Float[Tensor, "b s g d"],
        value: Float[Tensor, "b s g m"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b l"] | None = None,
        query_mask: Bool[Tensor, "b l"] | None = None,
        key_mask: Bool[Tensor, "b s"] | None = None,
        state: LinearState | None = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "b l h m"], LinearState | None]:
        """Return the output and, if asked for, the state after these tokens."""
        result = elu_attention(
            query,
            key,
            value,
            causal=causal,
            eps=self.eps,
            mask=mask,
            query_mask=query_mask,
            key_mask=key_mask,
            initial_state=state,
            return_state=return_state,
        )
        return (result[0], result[1]) if isinstance(result, tuple) else (result, None)


class MobileAttention(HeadAttention):
    """Mobile-Attention (Yao et al. 2024): flows conserved over the heads of one token.

    As published, its output grows with the length. See `flowformer.ops.mobile_attention`.

    Args:
        feature_map: "sigmoid", or "relu" for relu(x) + 1e-6.
        clamp: bound of the conserved source before the softmax; None for none.
        eps: the ε of the flows.
        normalize: divide by the number of tokens (ours, not published).
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=False, cross=False, state=False, variable_length=True
    )

    def __init__(
        self,
        *,
        feature_map: FeatureMap = "sigmoid",
        clamp: float | None = 1.0,
        eps: float = 1e-6,
        normalize: bool = False,
    ) -> None:
        """Hold the options; a wrong one raises here."""
        super().__init__()
        self.feature_map: FeatureMap = feature_map
        self.clamp, self.eps, self.normalize = clamp, eps, normalize
        check_options(FlowOptions(feature_map, clamp, eps, competition="sources", allocation=True))

    def forward(
        self,
        query: Float[Tensor, "b t h d"],
        key: Float[Tensor, "b t g d"],
        value: Float[Tensor, "b t g m"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b t"] | None = None,
        state: None = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "b t h m"], None]:
        """Return the output; causal calls and states raise."""
        if causal or return_state or state is not None:
            raise NotImplementedError(
                "mobile has no causal form (its competition runs over all tokens, future included)"
            )
        out = mobile_attention(
            query,
            key,
            value,
            feature_map=self.feature_map,
            clamp=self.clamp,
            eps=self.eps,
            normalize=self.normalize,
            mask=mask,
        )
        return out, None

    def extra_repr(self) -> str:
        """The options, for print(model)."""
        return (
            f"feature_map={self.feature_map!r}, clamp={self.clamp}, eps={self.eps}, "
            f"normalize={self.normalize}"
        )


class LinformerAttention(HeadAttention):
    """Linformer (Wang et al. 2020, equation 7): learned matrices mix keys and values to `rank`.

    The two matrices are shared by the heads ("headwise sharing" in section 4 of the paper).

    Args:
        max_length: longest sequence of keys; the matrices have a row for each position.
        rank: number of mixed keys, called k in the paper.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=False, cross=True, state=False, variable_length=False
    )

    def __init__(self, *, max_length: int, rank: int = 256) -> None:
        """Create the mixing matrices."""
        super().__init__()
        if rank < 1 or max_length < 1:
            raise ValueError(f"rank and max_length must be positive, got {rank=} and {max_length=}")
        self.key_mixing = nn.Parameter(torch.empty(max_length, rank))
        self.value_mixing = nn.Parameter(torch.empty(max_length, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both from N(0, 1/rank), the variance in the paper's theorem 2."""
        for mixing in (self.key_mixing, self.value_mixing):
            nn.init.normal_(mixing, std=mixing.shape[1] ** -0.5)

    def forward(  # noqa: PLR0913 - the keywords that every attention here takes
        self,
        query: Float[Tensor, "b l h d"],
        key: Float[Tensor, "b s g d"],
        value: Float[Tensor, "b s g m"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b l"] | None = None,
        query_mask: Bool[Tensor, "b l"] | None = None,
        key_mask: Bool[Tensor, "b s"] | None = None,
        state: None = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "b l h m"], None]:
        """Return the output; causal calls and states raise."""
        if causal or return_state or state is not None:
            raise NotImplementedError(
                "linformer has no causal form (its matrices mix the whole length, future included)"
            )
        out = linformer_attention(
            query,
            key,
            value,
            key_mixing=self.key_mixing,
            value_mixing=self.value_mixing,
            mask=mask,
            query_mask=query_mask,
            key_mask=key_mask,
        )
        return out, None

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        return f"max_length={self.key_mixing.shape[0]}, rank={self.key_mixing.shape[1]}"


ATTENTIONS: dict[str, type[HeadAttention]] = {
    "flow": FlowAttention,
    "softmax": SoftmaxAttention,
    "linear": LinearAttention,
    "linformer": LinformerAttention,
    "mobile": MobileAttention,
}


def build_attention(name: str, *, max_length: int | None = None, **options: Any) -> HeadAttention:
    """The attention of that name in ATTENTIONS.

    Args:
        name: a key of ATTENTIONS.
        max_length: longest sequence; used by those of a fixed length, which need it.
        options: the keywords of that attention's constructor.

    Raises:
        ValueError: there is no such attention, it has no such option, or it needs max_length.
    """
    if name not in ATTENTIONS:
        raise ValueError(f"unknown attention {name!r}: expected one of {', '.join(ATTENTIONS)}")
    kind = ATTENTIONS[name]
    allowed = sorted(inspect.signature(kind).parameters.keys() - {"max_length"})
    if unknown := sorted(options.keys() - set(allowed)):
        raise ValueError(
            f"attention {name!r} has no option {', '.join(unknown)}; it takes {', '.join(allowed)}"
        )
    if kind.capabilities.variable_length:
        return kind(**options)
    if max_length is None:
        raise ValueError(f"{name} has parameters for each position: give max_length")
    return kind(max_length=max_length, **options)


def implied_weights(
    attention: HeadAttention,
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    **call: Any,
) -> Float[Tensor, "b h l s"]:
    """The matrix W for which out = W v, whatever the values v.

    An attention here is linear in its values, so W is its output for the identity matrix in their
    place. For Flow-Attention W_ij = a_i / I_i · (q_i · k_j) · c_j: rows need not sum to one.
    Quadratic in the length, in time and memory: for inspection, not for training.
    """
    sources = key.shape[1]
    identity = torch.eye(sources, dtype=query.dtype, device=query.device)
    value = identity[None, :, None, :].expand(key.shape[0], sources, key.shape[2], sources)
    weights, _ = attention(query, key, value, **call)
    return weights.transpose(1, 2)
