"""A stand-in for `nn.MultiheadAttention` with any attention inside."""

import warnings
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.nn.mixers.building import build_attention, require_independent_sinks
from flowformer.nn.mixers.head_attention import HeadAttention, Sizes, implied_weights
from flowformer.nn.mixers.softmax import SoftmaxAttention
from flowformer.ops.inputs import has_values, is_recorded, require_tensor

# What the queries are to the keys: one sequence, two, or two of which the queries are the targets
# of an autoregressive decoder. From the least to the most that it asks of an attention.
Role = Literal["self", "cross", "decoder-cross"]
ROLES: tuple[Role, ...] = get_args(Role)

ADDED_KEYS = (
    "add_bias_kv and add_zero_attn must be False: an added key would be one more source, competing "
    "with the real ones"
)


class MultiheadAttention(nn.Module):
    """`nn.MultiheadAttention` with Flow-Attention, or another attention, in place of the softmax.

    Constructor, call, initialisation and parameter names are torch's: code changes by one name, and
    torch's state dicts load. One saved here names its mixer, so that torch's module, which would
    compute something else with these weights, does not load it (but with "softmax", or with
    `strict=False`). What else differs, and why:

    - `attn_mask` must be None or the causal mask: linear attentions have no pair of tokens to mask.
    - `role` says what torch's call does not, whether query and key are one sequence. Where an
      output depends on the other queries (`capabilities.independent_sinks` of the attention says
      whether it does not), `key_padding_mask` excludes the padded queries of "self" from the flows
      too, and their outputs are zero. In "cross" torch has no word for padded queries: they count
      as real ones. So it is in a causal call, whose query and key are one sequence.
    - `dropout` is that of the weights with "softmax", as in torch; the others have no weights to
      drop, and it acts on the output, as in the published Flow-Attention.

    Args:
        embed_dim: width of queries and outputs.
        num_heads: number of heads.
        dropout: see above.
        bias: whether the projections have one.
        add_bias_kv: must be False.
        add_zero_attn: must be False.
        kdim: width of the keys. Default embed_dim.
        vdim: width of the values. Default embed_dim.
        batch_first: tensors are [b, t, e], not [t, b, e].
        device: where the parameters are created.
        dtype: dtype of the parameters.
        mixer: a key of `flowformer.nn.mixers.ATTENTIONS`.
        role: "self" (query and key are one sequence), "cross" (they are two) or "decoder-cross"
            (they are two, and no output may depend on another query, as in an autoregressive
            decoder).
        max_length: longest sequence, for an attention of fixed length.
        mixer_options: keywords of that attention's constructor.

    Examples:
        >>> import torch
        >>> from flowformer.nn import MultiheadAttention
        >>> attention = MultiheadAttention(64, num_heads=4, batch_first=True)
        >>> x = torch.randn(2, 100, 64)
        >>> out, _ = attention(x, x, x, need_weights=False)
        >>> out.shape
        torch.Size([2, 100, 64])
    """

    in_proj_weight: Tensor
    in_proj_bias: Tensor | None

    def __init__(  # noqa: PLR0913 - torch's arguments, in torch's order
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        mixer: str = "flow",
        role: Role = "self",
        max_length: int | None = None,
        mixer_options: dict[str, Any] | None = None,
    ) -> None:
        """Create and initialise the parameters as torch does.

        Raises:
            ValueError: embed_dim is not divisible by num_heads, an option is not to be had here, or
                the mixer would show a decoder its future.
        """
        super().__init__()
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"embed_dim must be divisible by num_heads, a positive number, got "
                f"{embed_dim=} and {num_heads=}"
            )
        if add_bias_kv or add_zero_attn:
            raise ValueError(ADDED_KEYS)
        factory = {"device": device, "dtype": dtype}
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.head_dim = embed_dim // num_heads
        self.batch_first = batch_first
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self._qkv_same_embed_dim = self.kdim == self.vdim == embed_dim
        if self._qkv_same_embed_dim:
            self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim, **factory))
        else:
            self.q_proj_weight = nn.Parameter(torch.empty(embed_dim, embed_dim, **factory))
            self.k_proj_weight = nn.Parameter(torch.empty(embed_dim, self.kdim, **factory))
            self.v_proj_weight = nn.Parameter(torch.empty(embed_dim, self.vdim, **factory))
            self.register_parameter("in_proj_weight", None)
        bias_tensor = nn.Parameter(torch.empty(3 * embed_dim, **factory)) if bias else None
        self.register_parameter("in_proj_bias", bias_tensor)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, **factory)
        options = dict(mixer_options or {})
        if mixer == "softmax":
            options.setdefault("weight_dropout", dropout)
        self.dropout = dropout
        sizes = Sizes(
            dim=embed_dim,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_dim=self.head_dim,
            max_length=max_length,
        )
        self.attend_with(build_attention(mixer, sizes, **options).to(**factory), role)
        self._reset_parameters()

    def attend_with(self, attention: HeadAttention, role: Role) -> None:
        """Take this attention, in place of that which is there.

        Raises:
            ValueError: there is no such role, or this attention would show a decoder its future.
        """
        if role not in ROLES:
            raise ValueError(f"role must be one of {', '.join(map(repr, ROLES))}, got {role!r}")
        if role == "decoder-cross":
            require_independent_sinks(attention)
        self.attention = attention
        self.role: Role = role
        # In evaluation nn.TransformerEncoderLayer reads the parameters and computes softmax
        # attention itself, without a call of this module, unless a module inside has a hook.
        if _keep_torch_from_bypassing not in self._forward_pre_hooks.values():
            self.register_forward_pre_hook(_keep_torch_from_bypassing)

    def _reset_parameters(self) -> None:
        for weight in self._input_weights():
            nn.init.xavier_uniform_(weight)
        if self.in_proj_bias is not None:
            nn.init.zeros_(self.in_proj_bias)
            nn.init.zeros_(self.out_proj.bias)

    def _input_weights(self) -> tuple[Tensor, ...]:
        if self._qkv_same_embed_dim:
            return (self.in_proj_weight,)
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; shapes as in torch: [l, b, e], or [b, l, e] with batch_first, or [l, e] alone.

        Args:
            query: the queries.
            key: the keys, [s, b, kdim].
            value: the values, [s, b, vdim].
            key_padding_mask: [b, s], True or -inf at padding (torch's convention).
            need_weights: return the implied weights too: out = W v before the output projection.
                Quadratic in the length; pass False for linear cost.
            attn_mask: None or the causal mask, as torch writes it.
            average_attn_weights: return the mean over heads.
            is_causal: attention is causal, with or without attn_mask. Recognising attn_mask reads
                its values, which torch.compile cannot: pass this there.

        Returns:
            The output, and the weights [b, l, s] ([b, h, l, s] if not averaged), or None.

        Raises:
            TypeError: query, key or value is no tensor.
            ValueError: another width, another attn_mask, a float key_padding_mask not of 0 and
                -inf, or a mask of keys that cannot be the queries' too, where the role says so.
            NotImplementedError: a causal call of an attention that has no causal form.
        """
        causal = is_causal or _is_causal(attn_mask)
        for name, given in (("query", query), ("key", key), ("value", value)):
            require_tensor(name, given)
        if query.is_nested:
            self._check_nested(key_padding_mask, need_weights=need_weights)
            return self._forward_nested(query, key, value, causal=causal), None
        self.attention.require("causal" if causal else "bidirectional")
        q, k, v = (self._heads(each) for each in self._project(query, key, value))
        call = self._masks(_real_keys(key_padding_mask, batched=query.ndim == 3), q, k, causal)
        if causal:
            call["causal"] = True
        out, _ = self.attention(q, k, v, **call)
        weights = None
        if need_weights:
            weights = implied_weights(self.attention, q, k, **call)
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights if query.ndim == 3 else weights.squeeze(0)
        out = self.out_proj(out.flatten(2))
        if not isinstance(self.attention, SoftmaxAttention):  # that drops weights
            out = F.dropout(out, self.dropout, self.training)
        if "mask" in call:
            out = out.masked_fill(~call["mask"].unsqueeze(-1), 0)
        if query.ndim == 2:
            return out.squeeze(0), weights
        return (out if self.batch_first else out.transpose(0, 1)), weights

    def _masks(
        self, real: Tensor | None, query: Tensor, key: Tensor, causal: bool
    ) -> dict[str, Any]:
        """Return the attention's mask argument: one for both sides where they are one sequence."""
        record = self.attention.capabilities
        if self.role != "self" and not causal:
            self.attention.require("cross")
        elif not (causal or record.independent_sinks):
            lengths = query.shape[1], key.shape[1]
            if lengths[0] != lengths[1]:
                _say_that_it_is_cross(self.attention, lengths, masked=real is not None)
            return {} if real is None else {"mask": real}
        if real is None:
            return {}
        return {"mask" if causal else "key_mask": real}

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        weights = self._input_weights()
        weights = weights[0].chunk(3) if self._qkv_same_embed_dim else weights
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        inputs = (query, key, value)
        widths = self.embed_dim, self.kdim, self.vdim
        for name, x, width in zip(("query", "key", "value"), inputs, widths, strict=True):
            if x.ndim not in (2, 3) or x.shape[-1] != width:
                axes = "batch, time" if self.batch_first else "time, batch"
                raise ValueError(
                    f"{name} must be [{axes}, {width}], or [time, {width}] without a batch, got "
                    f"shape {list(x.shape)}"
                )
        return tuple(F.linear(*each) for each in zip(inputs, weights, biases, strict=True))

    def _heads(self, projected: Tensor) -> Float[Tensor, "b t h d"]:
        if projected.ndim == 2:
            projected = projected.unsqueeze(0)
        elif not self.batch_first:
            projected = projected.transpose(0, 1)
        return projected.unflatten(-1, (self.num_heads, self.head_dim))

    def _check_nested(self, key_padding_mask: Tensor | None, *, need_weights: bool) -> None:
        if not (self.batch_first and self.role == "self"):
            raise ValueError(
                "nested tensors need batch_first=True and the role 'self', got "
                f"batch_first={self.batch_first} and role={self.role!r}"
            )
        if key_padding_mask is not None or need_weights:
            raise ValueError(
                "nested tensors need no key_padding_mask and have no weights: "
                "pass key_padding_mask=None and need_weights=False"
            )

    def _forward_nested(self, *inputs: Any, causal: bool) -> Tensor:
        """nn.TransformerEncoder nests its input in evaluation, in place of a padding mask."""
        lengths, *others = ([row.shape[0] for row in each.unbind()] for each in inputs)
        if any(each != lengths for each in others):
            raise ValueError(f"nested tensors need rows of equal lengths, got {lengths, *others}")
        query, key, value = (each.to_padded_tensor(0.0) for each in inputs)
        places = torch.arange(query.shape[1], device=query.device)
        padding = places >= torch.tensor(lengths, device=query.device)[:, None]
        out, _ = self.forward(query, key, value, padding, need_weights=False, is_causal=causal)
        rows = [row[:length] for row, length in zip(out, lengths, strict=True)]
        if inputs[0].layout is torch.jagged:  # of the same offsets, or they cannot be added
            return torch.nested.nested_tensor_from_jagged(torch.cat(rows), inputs[0].offsets())
        return torch.nested.as_nested_tensor(rows)


def _keep_torch_from_bypassing(_module: nn.Module, _arguments: tuple[Any, ...]) -> None:
    """Return a hook that does nothing: that there is one is what counts."""


def _say_that_it_is_cross(
    attention: HeadAttention, lengths: tuple[int, int], *, masked: bool
) -> None:
    """Query and key of other lengths are two sequences, which the role "self" denies.

    Without a mask that changes nothing but that it may be a decoder's.

    Raises:
        ValueError: the mask of the keys would have to be that of the queries.
    """
    said = (
        f"{lengths[0]} queries attend to {lengths[1]} keys, which is cross-attention, and the role "
        f"of this attention is 'self'. Say role='cross' where it is built or replaced, or, in an "
        "autoregressive decoder, role='decoder-cross', for each output of "
        f"{type(attention).__name__} depends on all queries"
    )
    if masked:
        raise ValueError(said)
    if not is_recorded():
        warnings.warn(said, stacklevel=4)


def _real_keys(key_padding_mask: Tensor | None, *, batched: bool) -> Tensor | None:
    """Return the mask of the keys, [b, s], True at real tokens."""
    if key_padding_mask is None:
        return None
    if key_padding_mask.dtype == torch.bool:
        real = ~key_padding_mask
    else:
        real = key_padding_mask == 0
        if has_values(key_padding_mask) and not (real | key_padding_mask.isneginf()).all():
            raise ValueError(
                "a float key_padding_mask must be 0 at real tokens and -inf at padding, got values "
                f"in [{key_padding_mask.min():g}, {key_padding_mask.max():g}]"
            )
    return real if batched else real.unsqueeze(0)


def _is_causal(attn_mask: Tensor | None) -> bool:
    """Return whether it is the causal mask; False for None and for a mask of nothing.

    Raises:
        ValueError: it is another mask.
    """
    if attn_mask is None:
        return False
    hidden = attn_mask if attn_mask.dtype == torch.bool else attn_mask.isneginf()
    future = torch.ones(attn_mask.shape[-2:], dtype=torch.bool, device=attn_mask.device).triu(1)
    added = attn_mask.dtype != torch.bool and bool((attn_mask.masked_fill(hidden, 0) != 0).any())
    if not added and not bool(hidden.any()):  # first: with one token it is the causal mask too
        return False
    if not added and bool((hidden == future).all()):
        return True
    raise ValueError(
        "attn_mask must be None or the causal mask: this attention has no weight for each pair of "
        "tokens that could be masked. Use key_padding_mask for padding, or nn.MultiheadAttention"
    )
