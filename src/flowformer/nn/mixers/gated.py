"""Gated linear attention and Flow-Attention: the same parts around a sum, and around the flows.

What they have in common with each other and with the gated mixers of others: a short convolution of
query, key and value, a gain that spreads the features, a decay by which a head forgets, gates of
what comes in and goes out, and a norm of each head. Every part is an option; without any of them
they are `linear` and `flow`.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional as F

from flowformer.nn.mixers.convolution import (
    ConvolvedState,
    Direction,
    Directions,
    FlowGatedState,
    border_tokens,
    directed_convolution,
    no_recent,
)
from flowformer.nn.mixers.flow import FlowMixer
from flowformer.nn.mixers.gated_options import (
    GatedKeywords,
    GatedOptions,
    check_options,
    flow_options,
)
from flowformer.nn.mixers.gating import (
    Decay,
    draw_convolution,
    gated_output,
    identity_convolution,
    map_features,
    normalised,
    repeated,
    with_gains,
    with_options,
)
from flowformer.nn.mixers.head_attention import Capabilities, HeadAttention
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.ops import (
    FlowMap,
    FlowState,
    LinearState,
    flow_attention,
    flow_map,
    linear_attention,
)
from flowformer.ops.convolution import short_convolutions
from flowformer.ops.features import masked
from flowformer.ops.inputs import starting_state
from flowformer.ops.parallel import sequence_parallel_flow_attention
from flowformer.ops.parallel.collectives import resolve_group
from flowformer.ops.state import empty_state

# Time constant, in tokens, of a head that does not forget: of one that goes on from a mixer without
# decay. From there a decay is learned as from anywhere else, for what is learned is its logarithm.
UNFORGETTING = 1e9

NOTHING = 1e-30  # an ε that is lost beside any feature

OPEN = 1.2784645427610738  # silu of it is one


class Heads(NamedTuple):
    """What the attention of some heads is made of; gates are those of a part, or None.

    Attributes:
        query: the queries; prepared, after the gain and as features.
        key: likewise.
        value: likewise; prepared, times the input gate.
        log_decay: of each token and head.
        write: the input gate's factors.
        passed: what the values add to the output by themselves; prepared.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor | None
    write: Tensor | None
    passed: Tensor | None = None


def _split(heads: Heads, sizes: list[int]) -> list[Heads]:
    """Return so many heads each; a function, for compilers take no methods of tuples."""
    parts: list[Any] = [[None] * len(sizes) if x is None else x.split(sizes, 2) for x in heads]
    return [Heads(*part) for part in zip(*parts, strict=True)]


def _sizes(heads: Heads) -> tuple[Any, ...]:
    """Return those that a state takes."""
    batch, _, count, width = heads.query.shape
    return batch, count, width, heads.value.shape[3], heads.query.device


def _empty_state(flows: bool, decays: bool, taps: int, *sizes: Any) -> Any:
    """Return the state before the first token."""
    recent = no_recent(taps, *sizes)
    if flows:
        return FlowGatedState(*recent, *empty_state(decays, *sizes))
    batch, heads, key_width, value_width, device = sizes
    sums = LinearState.initial(batch, heads, key_width, value_width + 1, device)
    return ConvolvedState(*recent, *sums)


# What attends with heads that are prepared, given the keywords of `flow_attention`.
Attend = Callable[..., tuple[Tensor, Any]]

# How heads of each direction attend.
CALLS: dict[Direction, dict[str, bool]] = {
    "both": {},
    "forwards": {"causal": True},
    "backwards": {"causal": True, "reverse": True},
}


class GatedAttention(HeadAttention):
    """Linear attention, or Flow-Attention, with the parts that gated mixers have.

    out_t = silu(W_o x_t + b) ∘ norm(φ(q_t) Σ_s D_ts φ(k_s)ᵀ i_s v_s / φ(q_t)·Σ_s D_ts φ(k_s)
    + λ v_t) with D_ts = Π_{s<r≤t} α_r, where q, k, v have passed a short convolution, q and k a
    norm with a gain, α is the `Decay` of a head, i = 2 sigmoid(w·x) its input gate and λ its skip.
    With flows, competition and allocation stand in the sum as in Flow-Attention, all of whose sums
    decay.

    The bidirectional form has heads of three kinds, in this order: they read in both directions,
    without decay; forwards; backwards, in which each token sees those behind it.

    The weights of a mixer without these parts, `linear` or `flow`, load into this one. What can
    start as the identity then does: convolution, skip and gates change nothing, and nothing is
    forgotten.
    With neither gain nor norm, and `directions=0`, it computes the same.

    Args:
        dim: width of the hidden states, or of the values where a layer with projections of its own
            gives none: the gates are then functions of the values.
        num_heads: number of query heads.
        head_dim: width of a head.
        backend: who computes the attention; see `flow_attention`.
        options: those of `GatedOptions`.

    Raises:
        ValueError: an option is out of its range.
        TypeError: there is no such option.
    """

    capabilities = Capabilities(causal=True, cross=False, state=True)
    inputs = ("query", "key", "value", "hidden")
    optional = ("hidden",)
    linear_in_values = False  # its output is normalised
    defaults: ClassVar[GatedOptions] = GatedOptions()

    def __init_subclass__(cls) -> None:
        """Show the options, with their defaults: the tables of mixers read the signature."""
        super().__init_subclass__()
        cls.__signature__ = with_options(cls.__init__, cls.defaults._asdict())  # pyright: ignore[reportAttributeAccessIssue]

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        head_dim: int,
        backend: str | None = None,
        **options: Unpack[GatedKeywords],
    ) -> None:
        super().__init__()
        if unknown := options.keys() - set(GatedOptions._fields):
            raise TypeError(
                f"there is no option {', '.join(sorted(unknown))}: those of a gated attention are "
                f"{', '.join(GatedOptions._fields)}"
            )
        self.options = chosen = self.defaults._replace(**options)
        check_options(chosen)
        self.backend = backend
        self.mesh: DeviceMesh | ProcessGroup | None = None
        width, inner = chosen.convolution, num_heads * head_dim
        shape = (3, num_heads, head_dim, width)
        self.convolution = nn.Parameter(torch.empty(shape)) if width else None
        self.gain = None if chosen.gain is None else nn.Parameter(torch.empty(2, num_heads))
        self.decay = None if chosen.decay is None else Decay(dim, num_heads, chosen.decay)
        self.input_gate = nn.Linear(dim, num_heads) if chosen.input_gate else None
        self.skip = nn.Parameter(torch.empty(num_heads)) if chosen.skip else None
        self.norm = nn.RMSNorm(head_dim, eps=1e-6) if chosen.norm else None
        self.output_gate = nn.Linear(dim, inner) if chosen.output_gate else None
        # Whole pairs, so that both directions are alike.
        pairs = min(int(num_heads * chosen.directions / 2 + 0.5), num_heads // 2)
        heads = {"both": num_heads - 2 * pairs, "forwards": pairs, "backwards": pairs}
        self.directions: Directions = {each: heads[each] for each in CALLS if heads[each]}
        self.reset_parameters()
        self.register_load_state_dict_pre_hook(_go_on_from_a_plain_mixer)

    def reset_parameters(self) -> None:
        """Draw the convolutions and the gates, and spread gains and decays as the options say."""
        if self.convolution is not None:
            draw_convolution(self.convolution)
        if self.gain is not None and self.options.gain is not None:
            nn.init.constant_(self.gain, self.options.gain)
        if self.decay is not None and self.options.decay is not None:
            self.decay.projection.reset_parameters()
            self.decay.start(self.options.decay)
        if self.skip is not None:
            nn.init.zeros_(self.skip)
        for part in (self.input_gate, self.norm, self.output_gate):
            if part is not None:
                part.reset_parameters()

    @torch.no_grad()
    def pass_through(self) -> None:
        """Let convolution, decay, skip and gates change nothing, from where they learn."""
        if self.convolution is not None:
            self.convolution.copy_(identity_convolution(self.convolution))
        if self.decay is not None:
            nn.init.zeros_(self.decay.projection.weight)
            self.decay.start((UNFORGETTING, UNFORGETTING))
        if self.skip is not None:
            nn.init.zeros_(self.skip)
        for gate, bias in ((self.input_gate, 0.0), (self.output_gate, OPEN)):
            if gate is not None:
                nn.init.zeros_(gate.weight)
                nn.init.constant_(gate.bias, bias)

    def extra_repr(self) -> str:
        """Return the options, for print(model)."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options._asdict().items())

    def forward(
        self,
        query: Float[Tensor, "b t h d"],
        key: Float[Tensor, "b t g d"],
        value: Float[Tensor, "b t g m"],
        hidden: Float[Tensor, "b t dim"] | None = None,
        *,
        mask: Bool[Tensor, "b t"] | None = None,
        state: Any = None,
        return_state: bool = False,
        causal: bool = False,
        **packed: Any,
    ) -> tuple[Float[Tensor, "b t h m"], Any]:
        """Return the output and, if asked for, the state after these tokens.

        Raises:
            NotImplementedError: sequences that are sharded over ranks, packed or with elu.
        """
        if self.mesh is not None and (packed or self.options.feature_map == "elu"):
            raise NotImplementedError(
                "of gated attention, sequences that are sharded over ranks are one in each row, "
                "without feature_map='elu': end their sharding first, with "
                "set_sequence_parallel(model, None)"
            )
        if hidden is None:
            query, key, value = (masked(x, mask) for x in (query, key, value))
            hidden = value.flatten(2)
        heads = self._heads(query, key, value, hidden)
        if causal:
            given = (heads, self.convolution, mask, state)
            out, state = self._causal(*given, return_state=return_state)
        else:
            out, state = self._bidirectional(heads, self.convolution, mask), None
        out = gated_output(self.output_gate, hidden, normalised(self.norm, out.to(value.dtype)))
        return out, state

    def weighted(
        self,
        query: Float[Tensor, "b t h d"],
        key: Float[Tensor, "b t g d"],
        value: Float[Tensor, "b t g m"],
        hidden: Float[Tensor, "b t dim"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t h m"], None]:
        """Return what is linear in the values that have passed the convolution.

        What comes after it, norm and output gate, is each token's own.
        """
        heads, weights = self._heads(query, key, value, hidden), self.convolution
        if weights is not None:
            weights = torch.cat((weights[:2], identity_convolution(weights[2:])))
        if causal:
            return self._causal(heads, weights, mask)[0], None
        return self._bidirectional(heads, weights, mask), None

    def flow_map(
        self,
        query: Float[Tensor, "b t h d"],
        key: Float[Tensor, "b t g d"],
        value: Float[Tensor, "b t g m"],
        hidden: Float[Tensor, "b t dim"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> FlowMap:
        """Return the competition and the allocation of the flows; see `flowformer.ops.flow_map`."""
        given = (self._heads(query, key, value, hidden), self.convolution, mask)
        if causal:
            maps, _ = self._causal(*given, attend=self._map_flows)
        else:
            maps = self._bidirectional(*given, attend=self._map_flows)
        return FlowMap(*maps.unbind(-1))

    def _heads(self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor) -> Heads:
        key, value = repeated(query, key, value)
        log_decay = None if self.decay is None else self.decay(hidden)
        write = None if self.input_gate is None else 2 * self.input_gate(hidden).sigmoid()
        return Heads(query, key, value, log_decay, None if write is None else write[..., None])

    def _bidirectional(
        self,
        heads: Heads,
        weights: Tensor | None,
        mask: Tensor | None,
        *,
        attend: Attend | None = None,
    ) -> Float[Tensor, "b t h m"]:
        """Attend with the heads of each direction."""
        attend = attend or self._attend
        if weights is not None:
            heads, _ = self._directed(heads, weights, mask, self.directions)
        parts = _split(self._prepared(heads, mask), list(self.directions.values()))
        pairs = zip(self.directions, parts, strict=True)
        outputs = [attend(part, mask=mask, **CALLS[direction])[0] for direction, part in pairs]
        return torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]

    def _directed(
        self,
        heads: Heads,
        weights: Tensor,
        mask: Tensor | None,
        directions: Directions,
        recent: Any = None,
    ) -> tuple[Heads, Any]:
        """Convolve in these directions; return the last tokens of sequences over ranks, too.

        Those are convolved with the tokens of other ranks at the borders of this one's part.
        """
        tensors, before, whole = heads[:3], 0, None
        if self.mesh is not None and weights.shape[-1] > 1:
            before, group = weights.shape[-1] - 1, resolve_group(self.mesh)
            x = torch.cat(tensors, 2)
            recent = no_recent(before + 1, *_sizes(heads)) if recent is None else recent
            first, whole = border_tokens(x, mask, torch.cat(recent, 2), group)
            joined, behind = [first.to(x.dtype), x], 0
            if directions.keys() != {"forwards"}:
                nothing, behind = torch.zeros_like(joined[0]), before
                joined.append(border_tokens(x, mask, nothing, group, reverse=True)[0])
            mask = None if mask is None else F.pad(mask, (before, behind), value=True)
            tensors, whole = torch.cat(joined, 1).chunk(3, 2), whole.chunk(3, 2)
        own = slice(before, before + heads.query.shape[1])
        q, k, v = (
            directed_convolution(x, weight, mask, directions, self.backend)[:, own]
            for x, weight in zip(tensors, weights, strict=True)
        )
        return heads._replace(query=q, key=k, value=v), whole

    def _causal(
        self,
        heads: Heads,
        weights: Tensor | None,
        mask: Tensor | None,
        state: Any = None,
        *,
        return_state: bool = False,
        attend: Attend | None = None,
    ) -> tuple[Float[Tensor, "b t h m"], Any]:
        """Convolve and attend, all heads forwards."""
        attend = attend or self._attend
        recent, memory = self._parts_of_state(heads, state)
        if weights is not None and self.mesh is not None:
            directions: Directions = {"forwards": heads.query.shape[2]}
            heads, recent = self._directed(heads, weights, mask, directions, recent)
        elif weights is not None:
            call = {"mask": mask, "return_state": return_state, "backend": self.backend}
            (q, k, v), recent = short_convolutions(heads[:3], weights, recent, **call)
            heads = heads._replace(query=q, key=k, value=v)
        call = {"mask": mask, "initial_state": memory, "return_state": return_state}
        out, memory = attend(self._prepared(heads, mask), causal=True, **call)
        if not return_state:
            return out, None
        recent = no_recent(1, *_sizes(heads)) if recent is None else recent
        return out, (FlowGatedState if self.options.flows else ConvolvedState)(*recent, *memory)

    def _parts_of_state(self, heads: Heads, state: Any) -> tuple[Any, Any]:
        """Return the last tokens and the memory, checked, or None for each."""
        if state is None:
            return None, None
        flows, taps = self.options.flows, max(self.options.convolution, 1)
        look = flows, self.decay is not None, taps, *_sizes(heads)
        state = starting_state(state, _empty_state, *look)
        return state[:3], (FlowState if flows else LinearState)(*state[3:])

    def _prepared(self, heads: Heads, mask: Tensor | None) -> Heads:
        """Return the heads after gain and input gate: features, but where the flows map them."""
        query, key, value = heads[:3]
        if self.skip is not None:
            passed = masked(value, mask) * self.skip[:, None].to(value.dtype)
            heads = heads._replace(passed=passed)
        if self.gain is not None:
            query, key = with_gains((query, key), self.gain)
        if heads.write is not None:
            value = value * heads.write.to(value.dtype)
        if not self.options.flows and self.mesh is None:
            query, key = (map_features(x, mask, self.options.feature_map) for x in (query, key))
            value = value.to(query.dtype)
        return heads._replace(query=query, key=key, value=value)

    def _attend(self, heads: Heads, **call: Any) -> tuple[Tensor, Any]:
        """Attend with prepared heads; the keywords are those of `flow_attention`."""
        query, key, value, call = self._arguments(heads, backend=self.backend, **call)
        if self.mesh is not None:
            result = self._attend_sharded(query, key, value, call)
        elif self.options.flows:
            result = flow_attention(query, key, value, **flow_options(self.options), **call)
        else:
            result = linear_attention(query, key, value, normalize=True, **call)
        out, state = result if isinstance(result, tuple) else (result, None)
        return (out if heads.passed is None else out + heads.passed), state

    @staticmethod
    def _arguments(heads: Heads, **call: Any) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """Return the tensors, and the keywords with the decays of a causal call."""
        if heads.log_decay is not None and call.get("causal"):
            call["log_decay"] = heads.log_decay
        return *heads[:3], {"layout": "bthd", **call}

    def _attend_sharded(
        self, query: Tensor, key: Tensor, value: Tensor, call: dict[str, Any]
    ) -> Any:
        """Attend over ranks; linear attention is the flows without competition and allocation."""
        call.update(mesh=self.mesh, **flow_options(self.options))
        if self.options.flows:
            return sequence_parallel_flow_attention(query, key, value, **call)
        call.update(competition=None, allocation=False, clamp=None, eps=NOTHING)
        if (memory := call.get("initial_state")) is not None:
            sizes = query.shape[0], query.shape[2], query.shape[3], value.shape[3]
            empty = empty_state("log_decay" in call, *sizes, query.device)
            sums = memory.key_value
            call["initial_state"] = empty._replace(key_sum=sums[..., -1], key_value=sums[..., :-1])
        result = sequence_parallel_flow_attention(query, key, value, **call)
        if not isinstance(result, tuple):
            return result
        sums = result[1].key_value, result[1].key_sum[..., None]
        return result[0], LinearState(torch.cat(sums, -1))

    def _map_flows(
        self,
        heads: Heads,
        *,
        mask: Tensor | None,
        causal: bool = False,
        reverse: bool = False,
        **_rest: Any,
    ) -> tuple[Tensor, None]:
        """Return competition and allocation in place of the output, as its last axis."""
        query, key, _, call = self._arguments(heads, mask=mask, causal=causal)
        given: dict[str, Any] = {"query": query, "key": key, **flow_options(self.options), **call}
        if reverse:
            for name, each in given.items():
                given[name] = each.flip(1) if isinstance(each, Tensor) else each
        maps = torch.stack(flow_map(**given), -1)
        return (maps.flip(1) if reverse else maps), None


def _go_on_from_a_plain_mixer(
    attention: Any, state_dict: dict[str, Any], prefix: str, *_: Any
) -> None:
    """Let the parts change nothing where the dict is that of a mixer without them."""
    own, skip = attention.state_dict(prefix=prefix), f"{prefix}skip"
    if any(name in state_dict for name in own):
        if skip in own and skip not in state_dict:  # of before there was one
            state_dict[skip] = torch.zeros_like(own[skip])
        return
    attention.reset_parameters()
    attention.pass_through()
    state_dict.update(attention.state_dict(prefix=prefix))


_shown = with_options(GatedAttention.__init__, GatedAttention.defaults._asdict())
GatedAttention.__signature__ = _shown  # pyright: ignore[reportAttributeAccessIssue]


class FlowGatedAttention(GatedAttention):
    """Flow-Attention with the parts that gated mixers have: `GatedAttention` with flows."""

    defaults = GatedOptions(flows=True)


class GatedMixer(ProjectedMixer, name="gated"):
    """Linear attention with convolution, gain, decay, gates and a norm of each head."""

    kind = GatedAttention


class FlowGatedMixer(FlowMixer, name="flow-gated"):
    """Flow-Attention with convolution, gain, decay, gates and a norm of each head."""

    kind = FlowGatedAttention
