"""Flow-Attention as a layer: in full, without one of its parts, and as published elsewhere."""

from dataclasses import replace
from typing import Any, ClassVar, Unpack

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from flowformer.nn.mixers.head_attention import Capabilities, HeadAttention, option_names
from flowformer.nn.mixers.mixer import ProjectedMixer, mask_arguments
from flowformer.ops import FlowMap, flow_attention, flow_map
from flowformer.ops.options import (
    FlowKeywords,
    resolve_options,
    sinks_are_independent,
    spelled_out,
    spells_out,
)
from flowformer.ops.parallel import sequence_parallel_flow_attention
from flowformer.ops.parallel.collectives import resolve_group


class FlowAttention(HeadAttention):
    """Flow-Attention (Wu et al. 2022, section 3): `flowformer.ops.flow_attention` as a module.

    Args:
        backend: name of a backend of `flow_attention`; None chooses.
        options: those of `flowformer.ops.options.FlowOptions`, and independent_sinks; but not those
            that a variant fixes.

    Raises:
        ValueError: an option is none of its choices, or out of its range.
        TypeError: there is no such option, or the variant fixes it.

    Attributes:
        fixed: the options that a variant, a subclass, has of its own.
        mesh: the ranks that its sequences are sharded over; None for whole sequences. See
            `set_sequence_parallel`.
    """

    capabilities = Capabilities(causal=True, cross=True, state=True)
    fixed: ClassVar[FlowKeywords] = {}

    def __init_subclass__(cls) -> None:
        """Show which options are left to set: the tables of mixers read the signature."""
        super().__init_subclass__()
        cls.__signature__ = spelled_out(cls.__init__, without=("self", *cls.fixed))  # pyright: ignore[reportAttributeAccessIssue]

    @spells_out
    def __init__(self, *, backend: str | None = None, **options: Unpack[FlowKeywords]) -> None:
        super().__init__()
        if taken := self.fixed.keys() & options.keys():
            raise TypeError(f"{type(self).__name__} fixes {', '.join(sorted(taken))}: leave it out")
        given: dict[str, Any] = {**self.fixed, **options}
        self.options = resolve_options(**given)
        if sinks_are_independent(self.options):
            # Of this instance: the record of the class is that of its defaults.
            self.capabilities = replace(  # pyright: ignore[reportAttributeAccessIssue]
                self.capabilities, independent_sinks=True
            )
        self.backend = backend
        self.mesh: DeviceMesh | ProcessGroup | None = None

    def function(self, *tensors: Tensor, **call: Any) -> Any:
        """Call Flow-Attention, of whole sequences or of those that are sharded over ranks."""
        if self.mesh is None:
            return flow_attention(*tensors, **call)
        return sequence_parallel_flow_attention(*tensors, mesh=self.mesh, **call)

    def arguments(self) -> dict[str, Any]:
        """Return the options and the backend, and the layout of the tensors."""
        return {**self.options._asdict(), "backend": self.backend, "layout": "bthd"}

    def flow_map(
        self,
        query: Float[Tensor, "b l h d"],
        key: Float[Tensor, "b s g d"],
        _value: Tensor,
        **call: Any,
    ) -> FlowMap:
        """Return the competition and the allocation; see `flowformer.ops.flow_map`."""
        return flow_map(query, key, layout="bthd", **self.options._asdict(), **call)

    def extra_repr(self) -> str:
        """The options, for print(model)."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options._asdict().items())


class FlowNoCompetitionAttention(FlowAttention):
    """Flow-Attention without competition: every source counts alike, c_j = 1."""

    fixed: ClassVar[FlowKeywords] = {
        "competition": None,
        "clamp": None,  # it would bound nothing
        "allocation": True,
        "independent_sinks": False,
    }


class FlowNoAllocationAttention(FlowAttention):
    """Flow-Attention without allocation: every sink takes in alike, a_i = 1."""

    fixed: ClassVar[FlowKeywords] = {"allocation": False, "independent_sinks": False}


class FlowHeadsAttention(FlowAttention):
    """Flow-Attention as the published Long Range Arena code has it: bidirectional only.

    The heads of each source compete, c_jh = S · softmax_h(Ô_jh), and not the sources, so that the
    output grows with the length; features are relu(x) + 1e-6, and nothing is clamped.
    """

    capabilities = Capabilities(causal=False, cross=True, state=False)
    fixed: ClassVar[FlowKeywords] = {
        "feature_map": "relu",
        "clamp": None,
        "competition": "heads",
        "allocation": True,
        "independent_sinks": False,
    }


def set_sequence_parallel(module: nn.Module, mesh: DeviceMesh | ProcessGroup | None) -> None:
    """Let every attention inside take each rank's sequences as its part of longer ones.

    Args:
        module: a mixer, a block or a model. The models of this package have a method of that name
            instead, which sees to positions, pooling and loss too.
        mesh: the ranks that share sequences: one dimension of a mesh, or a group; None ends it.

    Raises:
        NotImplementedError: an attention that has no such form; Flow-Attention and gated attention
            have one.
        ValueError: no attention inside, or a mesh of more than one dimension.
        TypeError: mesh is neither a mesh nor a group that this process is in.
    """
    if mesh is not None:
        resolve_group(mesh)
    attentions: list[Any] = []
    for each in module.modules():
        if isinstance(each, HeadAttention) and hasattr(each, "mesh"):
            attentions.append(each)
        elif isinstance(each, HeadAttention):
            raise NotImplementedError(
                "only Flow-Attention and gated attention take sequences that are sharded over "
                "ranks, got "
                f"{type(each).__name__}"
            )
    if not attentions:
        raise ValueError(
            f"expected a module with Flow-Attention inside, got {type(module).__name__}"
        )
    for attention in attentions:
        attention.mesh = mesh


class FlowMixer(ProjectedMixer, name="flow"):
    """Flow-Attention (Wu et al. 2022): linear, with competing sources and allocated sinks."""

    kind: ClassVar[type[HeadAttention]] = FlowAttention
    attention: Any  # one that has flows

    @classmethod
    def published_options(cls, model: str, dropout: float) -> dict[str, Any]:  # noqa: ARG003
        """Return the clamp of the models of that kind, where the paper has no default one."""
        clamps = {"series": None, "sequences": None, "trajectories": 10.0}
        if model not in clamps or "clamp" not in option_names(cls.kind):
            return {}
        return {"clamp": clamps[model]}

    def flow_map(
        self,
        x: Float[Tensor, "b l dim"],
        context: Float[Tensor, "b s context_dim"] | None = None,
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b l"] | None = None,
        context_mask: Bool[Tensor, "b s"] | None = None,
    ) -> FlowMap:
        """Source competition [b, s, h] and sink allocation [b, l, h] for these hidden states.

        Raises:
            NotImplementedError: the sequences are sharded over ranks.
        """
        if getattr(self.attention, "mesh", None) is not None:
            raise NotImplementedError(
                "a flow map is of whole sequences: end their sharding first, with "
                "set_sequence_parallel(model, None)"
            )
        self._check_call(context, context_mask, causal=causal, stateful=False)
        tensors = self._tensors(x, x if context is None else context)
        return self.attention.flow_map(
            *tensors, causal=causal, **mask_arguments(mask, context, context_mask)
        )


class FlowNoCompetitionMixer(FlowMixer, name="flow-no-competition"):
    """Flow-Attention without competition (Wu et al. 2022, ablation)."""

    kind = FlowNoCompetitionAttention


class FlowNoAllocationMixer(FlowMixer, name="flow-no-allocation"):
    """Flow-Attention without allocation (Wu et al. 2022, ablation)."""

    kind = FlowNoAllocationAttention


class FlowHeadsMixer(FlowMixer, name="flow-heads"):
    """Flow-Attention with competing heads (the published Long Range Arena code)."""

    kind = FlowHeadsAttention
