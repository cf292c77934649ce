"""A mixer, the one thing that varies between models: projections and heads around an attention."""

from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flowformer.names import require_divided
from flowformer.nn.mixers.head_attention import (
    Capabilities,
    HeadAttention,
    Sizes,
    enter,
    implied_row,
    make_attention,
    needs_heads_alone,
)
from flowformer.nn.positions import Rotation, check_head_dim, rotate
from flowformer.ops.inputs import check_mask, require_tensor
from flowformer.ops.packing import Batch, attend_batch, check_batch, sequence_lengths


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


class ProjectedMixer(nn.Module):
    """Query, key and value projections, an attention over heads, and the output projection.

    The projections have the published names; one that the attention has no use for is not made.
    Outputs at padded places are zero.

    A subclass names its attention, and itself: `class OwnMixer(ProjectedMixer, name="own")` enters
    the table, so that `build_mixer` and the configurations of models know it.

    Attributes:
        kind: the class of its attention, which a subclass names.
        capabilities: those of its attention; the class has those of its attention's class.
    """

    kind: ClassVar[type[HeadAttention]]
    capabilities: ClassVar[Capabilities]
    origin: ClassVar[str]  # the module that gives it its name
    query_projection: nn.Linear
    key_projection: nn.Linear
    value_projection: nn.Linear

    def __init_subclass__(cls, *, name: str | None = None) -> None:
        """Copy the record of the attention, which users read from the mixer; enter the table."""
        super().__init_subclass__()
        cls.capabilities, cls.origin = cls.kind.capabilities, cls.__module__
        if name is not None:
            enter(name, cls)

    @classmethod
    def published_options(cls, model: str, dropout: float) -> dict[str, Any]:  # noqa: ARG003
        """Return the options with which it was published in models of a kind, beside its defaults.

        Args:
            model: the kind, see `mixer_options`.
            dropout: the dropout of the model.
        """
        return {}

    def __init__(  # noqa: PLR0913 - the keywords of every mixer
        self,
        dim: int,
        num_heads: int,
        *,
        max_length: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        head_dim: int | None = None,
        num_kv_heads: int | None = None,
        context_dim: int | None = None,
        out_dim: int | None = None,
        **options: Any,
    ) -> None:
        """Create the projections and the attention.

        Args:
            dim: width of the hidden states.
            num_heads: number of heads.
            max_length: longest sequence, for an attention of a fixed length.
            dropout: dropout of the output, after its projection, as published.
            bias: whether the projections have one.
            head_dim: width of a head; None for dim / num_heads.
            num_kv_heads: number of key and value heads, each of which serves num_heads /
                num_kv_heads query heads; None for num_heads.
            context_dim: width of the context; None for dim.
            out_dim: width of the output; None for dim.
            options: the keywords of the attention's constructor.

        Raises:
            ValueError: dim is not divisible by num_heads and head_dim is not given, num_heads is
                not divisible by num_kv_heads, one of them is not positive, or an option is wrong.
        """
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        if num_heads < 1 or num_kv_heads < 1:
            raise ValueError(f"heads must be positive, got {num_heads=} and {num_kv_heads=}")
        if head_dim is None:
            require_divided(dim, num_heads)
            head_dim = dim // num_heads
        if num_heads % num_kv_heads:
            raise ValueError(
                f"num_heads must be divisible by num_kv_heads, got {num_heads=} and {num_kv_heads=}"
            )
        context_dim = dim if context_dim is None else context_dim
        self.dim, self.context_dim, self.head_dim = dim, context_dim, head_dim
        inner, kv_inner = num_heads * head_dim, num_kv_heads * head_dim
        for name, width, heads in (
            ("query", dim, inner),
            ("key", context_dim, kv_inner),
            ("value", context_dim, kv_inner),
        ):
            if name in self.kind.inputs:
                self.add_module(f"{name}_projection", nn.Linear(width, heads, bias=bias))
        self.out_projection = nn.Linear(inner, out_dim or dim, bias=bias)
        sizes = Sizes(
            dim=dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            max_length=max_length,
        )
        self.attention = make_attention(self.kind, sizes, options)
        # Its options may change what it can do.
        self.capabilities = self.attention.capabilities  # pyright: ignore[reportAttributeAccessIssue]
        self.dropout = nn.Dropout(dropout)

    def forward(  # noqa: PLR0913 - what every mixer takes, and two that only these do
        self,
        x: Float[Tensor, "b l dim"],
        context: Float[Tensor, "b s context_dim"] | None = None,
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b l"] | None = None,
        context_mask: Bool[Tensor, "b s"] | None = None,
        state: Any = None,
        return_state: bool = False,
        turn: Rotation | None = None,
        cu_seqlens: Int[Tensor, " offsets"] | None = None,
    ) -> tuple[Float[Tensor, "b l out"], Any]:
        """Mix the tokens of x, or those of context into x.

        Args:
            x: the hidden states.
            context: another sequence to draw from (cross-attention); None for x itself.
            causal: no output depends on a later token.
            mask: real tokens of x (True); the output at the others is zero.
            context_mask: real tokens of context.
            state: what an earlier call returned: x continues that sequence.
            return_state: also return the state after x.
            turn: rotary positions, by which query and key are turned (self-attention only).
            cu_seqlens: where the sequences start that are packed in x, [1, total, dim], and total;
                none sees another. Without mask, context and state.

        Returns:
            The mixed hidden states, and the state (None unless asked for).

        Raises:
            NotImplementedError: this mixer cannot do it; the message says which mixers can.
            ValueError: the arguments contradict each other, or a shape does not fit.
            TypeError: a mask is not boolean.
        """
        _check_hidden("x", x, self.dim, mask)
        if context is not None:
            _check_hidden("context", context, self.context_dim, context_mask)
        stateful = return_state or state is not None
        self._check_call(context, context_mask, causal=causal, stateful=stateful)
        if cu_seqlens is not None and (context is not None or stateful):
            raise ValueError("packed sequences (cu_seqlens) have neither a context nor a state")
        call: dict[str, Any] = mask_arguments(mask, context, context_mask)
        if causal:
            call["causal"] = True
        if stateful:
            call.update(state=state, return_state=return_state)
        # Padding may hold NaN, which times a zero gradient is NaN in those of the projections.
        x = _real(x, mask)
        source = x if context is None else _real(context, context_mask)
        if turn is not None:
            self.require_rotary()
            if context is not None:
                raise ValueError("rotary positions are those of one sequence: leave out context")
        tensors = self._tensors(x, source, turn)
        if cu_seqlens is None:
            out, state = self.attention(*tensors, **call)
        else:
            out = attend_packed(self.attention, tensors, cu_seqlens, call)
        return _real(self.dropout(self.out_projection(out.flatten(2))), mask), state

    def implied_row(
        self,
        x: Float[Tensor, "b l dim"],
        sink: int,
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b l"] | None = None,
    ) -> Float[Tensor, "b h l"]:
        """Return what each head takes from every token for one: W_i of out_i = Σ_j W_ij v_j.

        v are the projected values, out is what the output projection reads. See `implied_row` of
        `flowformer.nn.mixers.head_attention`.

        Args:
            x: the hidden states.
            sink: place i of the token that receives.
            causal: as in the call.
            mask: as in the call.

        Raises:
            NotImplementedError: the attention is not linear in its values, or has no such form.
            IndexError: there is no such place.
        """
        self._check_call(None, None, causal=causal, stateful=False)
        x = _real(x, mask)
        call: dict[str, Any] = {"causal": True} if causal else {}
        return implied_row(self.attention, self._tensors(x, x), sink, mask=mask, **call)

    def require_rotary(self) -> None:
        """Refuse rotary positions where the attention sees more than query, key and value.

        Raises:
            ValueError: it has no query and key, gates and weights that would not turn, or heads
                of an odd width.
        """
        if not needs_heads_alone(self.kind):
            raise ValueError(
                f"rotary positions need an attention of query, key and value; "
                f"{self.kind.__name__} is one of {', '.join(self.kind.inputs)}"
            )
        check_head_dim(self.head_dim)

    def _tensors(
        self,
        x: Float[Tensor, "b l dim"],
        source: Float[Tensor, "b s context_dim"],
        turn: Rotation | None = None,
    ) -> list[Tensor]:
        """What the attention asks for: projected heads [b, t, h, d], or the hidden states."""
        tensors = []
        for name in self.kind.inputs:
            tensor = source if name in ("key", "value") else x
            if name != "hidden":
                projected = getattr(self, f"{name}_projection")(tensor)
                heads = projected.shape[-1] // self.head_dim
                tensor = projected.unflatten(-1, (heads, self.head_dim))
                if turn is not None and name != "value":
                    tensor = rotate(tensor, turn)
            tensors.append(tensor)
        return tensors

    def _check_call(
        self, context: Tensor | None, context_mask: Tensor | None, *, causal: bool, stateful: bool
    ) -> None:
        self.attention.require("causal" if causal else "bidirectional")
        if context is not None:
            self.attention.require("cross")
        if stateful:
            self.attention.require("state")
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


def attend_packed(
    attention: HeadAttention,
    tensors: list[Tensor],
    cu_seqlens: Int[Tensor, " offsets"],
    call: dict[str, Any],
) -> Float[Tensor, "1 l *heads m"]:
    """Call an attention on batches of packed sequences of like lengths.

    One whose sequences are sharded knows packed ones itself: they cross the borders of ranks.
    """
    batch = Batch(call["mask"], None, cu_seqlens, None)
    check_batch(batch)
    if getattr(attention, "mesh", None) is not None:
        return attention(*tensors, **call, cu_seqlens=cu_seqlens)[0]
    if not attention.capabilities.exact_mask:  # each alone, for padding would change it
        lengths = sequence_lengths(cu_seqlens, tensors[0].shape[1], "cu_seqlens")
        pieces = zip(*(tensor.split(lengths, 1) for tensor in tensors), strict=True)
        return torch.cat([attention(*each, **call)[0] for each in pieces], 1)

    def attend(tensors, _keys, batch, _state):
        return attention(*tensors, **{**call, "mask": batch.query_mask})

    out, _ = attend_batch(attend, tuple(tensors), tuple(tensors[:1]), batch, None)
    return out


def _check_hidden(name: str, x: Tensor, dim: int, mask: Tensor | None) -> None:
    require_tensor(name, x)
    if x.ndim != 3 or x.shape[2] != dim:
        raise ValueError(f"{name} must be [batch, time, {dim}], got shape {list(x.shape)}")
    check_mask(name, mask, x)


def _real(x: Float[Tensor, "b t dim"], mask: Bool[Tensor, "b t"] | None) -> Tensor:
    """Return the hidden states with zeros at padded places."""
    return x if mask is None else x.masked_fill(~mask.unsqueeze(-1), 0)


def mask_arguments(
    mask: Bool[Tensor, "b l"] | None, context: Tensor | None, context_mask: Tensor | None
) -> dict[str, Tensor | None]:
    """The mask arguments of an attention: one for both sides of self-attention, or one for each."""
    if context is None:
        return {"mask": mask}
    return {"query_mask": mask, "key_mask": context_mask}
