"""The functions that compiled backends share: they name a call, and hand it to an operator.

Packed sequences need no padding here. Where no past is given a state is not needed either: None
stands for it, and no memory is set to zero for it.
"""

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowformer.ops.backends.arguments import (
    LINEAR_OPTIONS,
    BidirectionalArguments,
    BidirectionalInputs,
    BidirectionalResults,
    CausalArguments,
    CausalInputs,
    CausalResults,
    StateFields,
    flat,
    numbers,
    reader,
)
from flowformer.ops.backends.operators import Kernels, Operators, is_kept
from flowformer.ops.inputs import is_plain
from flowformer.ops.options import FlowOptions
from flowformer.ops.state import FlowState, LinearState

_read_bidirectional = reader(BidirectionalResults)
_read_causal = reader(CausalResults)


class CompiledBackend:
    """The functions of a backend that two operators compute.

    Args:
        operators: those of the backend.
        direct: its kernels, if they may be called without the operators where no gradient, graph or
            mode has to see them. What torch does around an operator written in Python takes as long
            as the kernel does in a decoding step, which is where this matters.
    """

    def __init__(self, operators: Operators, direct: Kernels | None = None) -> None:
        self._operators, self._direct = operators, direct

    def bidirectional(
        self,
        query: Float[Tensor, "b l h d"],
        key: Float[Tensor, "b s h d"],
        value: Float[Tensor, "b s h m"],
        *,
        options: FlowOptions,
        query_mask: Bool[Tensor, "b l"] | None,
        key_mask: Bool[Tensor, "b s"] | None,
        cu_seqlens: Int[Tensor, " n"] | None = None,
        cu_seqlens_k: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "b l h m"]:
        """Flow-Attention."""
        keep = is_kept(query, key, value)
        inputs = BidirectionalInputs(
            query, key, value, query_mask, key_mask, cu_seqlens, cu_seqlens_k
        )
        arguments = BidirectionalArguments(inputs, numbers(options), keep)
        if self._direct is not None and not keep and is_plain(*inputs):
            return self._direct.bidirectional(arguments).out
        return _read_bidirectional(self._operators.bidirectional(*flat(arguments))).out

    def causal(
        self,
        query: Float[Tensor, "b t h d"],
        key: Float[Tensor, "b t h d"],
        value: Float[Tensor, "b t h m"],
        *,
        options: FlowOptions,
        mask: Bool[Tensor, "b t"] | None,
        state: FlowState | None,
        return_state: bool = True,
        cu_seqlens: Int[Tensor, " n"] | None = None,
    ) -> tuple[Float[Tensor, "b t h m"], FlowState | None]:
        """Causal Flow-Attention."""
        past = StateFields() if state is None else StateFields(*state)
        inputs = CausalInputs(query, key, value, mask, cu_seqlens, past=past)
        keep = is_kept(query, key, value, *past)
        results = self._causal(CausalArguments(inputs, numbers(options), keep, return_state))
        if not return_state:
            return results.out, None
        fields: Any = results.state
        after = FlowState(*fields)
        if options.competition is None and state is not None:  # it passes by
            after = after._replace(competition=state.competition)
        return results.out, after

    def step(
        self, query: Tensor, key: Tensor, value: Tensor, *, options: FlowOptions, state: Any
    ) -> tuple[Tensor, FlowState]:
        """One token of causal Flow-Attention."""
        out, after = self.causal(query, key, value, options=options, mask=None, state=state)
        assert after is not None
        return out, after

    def linear_causal(
        self,
        q: Float[Tensor, "b t h d"],
        k: Float[Tensor, "b t h d"],
        v: Float[Tensor, "b t h m"],
        *,
        row_scale: Float[Tensor, "b t h"] | None,
        state: LinearState | None,
        return_state: bool = True,
        cu_seqlens: Int[Tensor, " n"] | None = None,
    ) -> tuple[Float[Tensor, "b t h m"], LinearState | None]:
        """out_t = row_scale_t · q_t Σ_{s≤t} k_sᵀ v_s, in the dtype of the features."""
        key_value = None if state is None else state.key_value
        past = StateFields(key_value=key_value)
        inputs = CausalInputs(q, k, v, None, cu_seqlens, row_scale, past)
        keep = is_kept(q, k, v, row_scale, key_value)
        results = self._causal(CausalArguments(inputs, LINEAR_OPTIONS, keep, return_state))
        after: Any = results.state.key_value
        return results.out, LinearState(after) if return_state else None

    def _causal(self, arguments: CausalArguments) -> CausalResults:
        inputs = arguments.inputs
        if self._direct is not None and not arguments.keep and is_plain(*inputs[:-1], *inputs.past):
            return self._direct.causal(arguments)
        return _read_causal(self._operators.causal(*flat(arguments)))
