"""A transformer layer around any mixer."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.nn.mixers.mixer import Mixer
from flowformer.nn.positions import Rotation
from flowformer.ops.features import check_eps

Norm = Literal["pre", "post"]
Normalization = Literal["layer", "rms"]
Activation = Literal["gelu", "gelu-tanh", "relu", "swiglu"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu-tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "swiglu": F.silu,
}


def build_norm(
    kind: Normalization, dim: int, *, bias: bool = True, eps: float | None = None
) -> nn.LayerNorm | nn.RMSNorm:
    """Return the normalisation of that name: layer norm, or RMS norm (which has no bias).

    Args:
        kind: "layer" or "rms".
        dim: width of the hidden states.
        bias: whether a layer norm has one.
        eps: what is added to the variance; None for 1e-5 (layer) or 1e-6 (rms).

    Raises:
        ValueError: there is no such normalisation, or eps is not positive or no float32.
    """
    if kind not in ("layer", "rms"):
        raise ValueError(f"normalization must be 'layer' or 'rms', got {kind!r}")
    if eps is not None:
        check_eps(eps)
    if kind == "layer":
        return nn.LayerNorm(dim, bias=bias, eps=1e-5 if eps is None else eps)
    return nn.RMSNorm(dim, eps=1e-6 if eps is None else eps)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, zero for some of the samples.

    What is left is divided by the probability of staying, so that the mean is the input.

    Args:
        probability: that a sample is dropped, in [0, 1).

    Raises:
        ValueError: it is not.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"drop_path must be in [0, 1), got {probability}")
        self.probability = probability

    def forward(self, x: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
        """Drop whole samples; nothing in evaluation."""
        if not self.training or self.probability == 0:
            return x
        staying = 1 - self.probability
        stays = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) < staying
        return x * (stays / staying).to(x.dtype)

    def extra_repr(self) -> str:
        """Return the probability, for print(model)."""
        return f"{self.probability:g}"


class TransformerBlock(nn.Module):
    """A mixer and a two-layer feed-forward, each with a residual connection and a norm.

    post: x = norm1(x + mixer(x)), x = norm2(x + feedforward(x)), as in the published time series
    model. pre: x = x + mixer(norm1(x)), x = x + feedforward(norm2(x)).

    feedforward(x) is W₂ act(W₁ x), and W₂ (silu(W_g x) · W₁ x) with "swiglu" (Shazeer 2020).

    Padded places take no part in the mixing; what stands there afterwards means nothing.

    Args:
        mixer: the mixer, which owns its projections.
        dim: width of the hidden states.
        feedforward: width between the two feed-forward layers.
        activation: "gelu", "gelu-tanh" (its approximation, as in GPT-2), "relu" or "swiglu".
        norm: "post" or "pre".
        normalization: "layer" or "rms".
        bias: whether the feed-forward layers and layer norms have one.
        dropout: probability after the mixer and after the feed-forward.
        inner_dropout: probability after the activation; None for that of `dropout`.
        layer_scale: first value of a learned factor of each feature that the feed-forward adds
            (Touvron et al. 2021, there of what the mixer adds too); None for no factor.
        drop_path: probability, in training, of leaving out what the mixer adds to a sample, and
            the same for the feed-forward.
        norm_eps: see `build_norm`.

    Examples:
        >>> import torch
        >>> from flowformer.nn import TransformerBlock, build_mixer
        >>> block = TransformerBlock(build_mixer("flow", 32, 4), 32, 64, norm="pre")
        >>> block(torch.randn(2, 10, 32), causal=True).shape
        torch.Size([2, 10, 32])
    """

    def __init__(  # noqa: PLR0913 - each keyword is one word of a recipe
        self,
        mixer: Mixer,
        dim: int,
        feedforward: int,
        *,
        activation: Activation = "gelu",
        norm: Norm = "post",
        normalization: Normalization = "layer",
        bias: bool = True,
        dropout: float = 0.0,
        inner_dropout: float | None = None,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
        norm_eps: float | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}"
            )
        if norm not in ("pre", "post"):
            raise ValueError(f"norm must be 'pre' or 'post', got {norm!r}")
        self.mixer = mixer
        self.norm1 = build_norm(normalization, dim, bias=bias, eps=norm_eps)
        self.norm2 = build_norm(normalization, dim, bias=bias, eps=norm_eps)
        self.linear1 = nn.Linear(dim, feedforward, bias=bias)
        self.linear2 = nn.Linear(feedforward, dim, bias=bias)
        self.gate = nn.Linear(dim, feedforward, bias=bias) if activation == "swiglu" else None
        self.dropout = nn.Dropout(dropout)
        self.inner_dropout = nn.Dropout(dropout if inner_dropout is None else inner_dropout)
        scale = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
        self.layer_scale = scale
        self.drop_path = DropPath(drop_path)
        self.activation = ACTIVATIONS[activation]
        self.norm = norm

    def forward(
        self,
        x: Float[Tensor, "b t dim"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b t"] | None = None,
        state: Any = None,
        return_state: bool = False,
        turn: Rotation | None = None,
        cu_seqlens: Int[Tensor, " offsets"] | None = None,
    ) -> Float[Tensor, "b t dim"] | tuple[Float[Tensor, "b t dim"], Any]:
        """Return the new hidden states; with `return_state`, a pair of them and the mixer's state.

        Args:
            x: the hidden states.
            causal: no output depends on a later token.
            mask: real tokens (True).
            state: what an earlier call returned: x continues that sequence.
            return_state: also return the state after x.
            turn: rotary positions of the tokens.
            cu_seqlens: where the sequences start that are packed in x, [1, total, dim], and total.
        """
        pre = self.norm == "pre"
        # Only what there is: a mixer of one's own need not know rotary positions and packing.
        given: dict[str, Any] = {
            name: value
            for name, value in (("turn", turn), ("cu_seqlens", cu_seqlens))
            if value is not None
        }
        mixed, state = self.mixer(
            self.norm1(x) if pre else x,
            causal=causal,
            mask=mask,
            state=state,
            return_state=return_state,
            **given,
        )
        x = x + self.drop_path(self.dropout(mixed))
        if pre:
            x = x + self._feedforward(self.norm2(x))
        else:
            x = self.norm1(x)
            x = self.norm2(x + self._feedforward(x))
        return (x, state) if return_state else x

    def linears(self) -> list[tuple[str, nn.Linear]]:
        """Return the linear layers of the block and of its mixer, with their names.

        Those inside the attention are left out: it draws its own parameters.
        """
        mixer = self.mixer.named_children() if isinstance(self.mixer, nn.Module) else ()
        children = (*self.named_children(), *mixer)
        return [(name, child) for name, child in children if isinstance(child, nn.Linear)]

    def _feedforward(self, x: Float[Tensor, "b t dim"]) -> Float[Tensor, "b t dim"]:
        hidden = self.linear1(x)
        if self.gate is None:
            hidden = self.activation(hidden)
        else:
            hidden = self.activation(self.gate(x)) * hidden
        out = self.dropout(self.linear2(self.inner_dropout(hidden)))
        return self.drop_path(out if self.layer_scale is None else self.layer_scale * out)
