"""The functions that compiled backends share: they name a call, and hand it to an operator.

Their tensors are those of ``reference.py``; masks, offsets and scales come by their names in the
records of ``arguments.py``.

Packed sequences need no padding here. Where no past is given a state is not needed either: None
stands for it, and no memory is set to zero for it.
"""

from typing import Any

from torch import Tensor

from flowformer.ops.backends.arguments import (
    LINEAR_OPTIONS,
    BidirectionalArguments,
    BidirectionalInputs,
    CausalArguments,
    CausalInputs,
    MobileArguments,
    MobileNumbers,
    Numbers,
    StateFields,
    numbers,
)
from flowformer.ops.backends.operators import Operators
from flowformer.ops.backends.order import in_order_of_reading, last_first
from flowformer.ops.inputs import is_kept
from flowformer.ops.options import FlowOptions
from flowformer.ops.state import FlowState, LinearState


class CompiledBackend:
    """The functions of a backend that two operators compute.

    Args:
        operators: those of the backend.
    """

    def __init__(self, operators: Operators) -> None:
        self._operators = operators

    def bidirectional(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        options: FlowOptions,
        **given: Tensor | None,
    ) -> Tensor:
        """Flow-Attention."""
        inputs = BidirectionalInputs(query, key, value, **given)
        return self._bidirectional(inputs, numbers(options))

    def linear_bidirectional(
        self, q: Tensor, k: Tensor, v: Tensor, **given: Tensor | None
    ) -> Tensor:
        """out_i = row_scale_i · q_i Σ_j k_jᵀ v_j, in the dtype of the features."""
        return self._bidirectional(BidirectionalInputs(q, k, v, **given), LINEAR_OPTIONS)

    def mobile(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        options: FlowOptions,
        normalize: bool,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Mobile-Attention."""
        inputs = BidirectionalInputs(query, key, value, mask, mask, cu_seqlens)
        return self._bidirectional(inputs, MobileNumbers(numbers(options), normalize))

    def _bidirectional(
        self, inputs: BidirectionalInputs, options: Numbers | MobileNumbers
    ) -> Tensor:
        keep = is_kept(*inputs[:3], inputs.row_scale)
        if isinstance(options, MobileNumbers):
            assert self._operators.mobile is not None, "only who has the operator calls this"
            return self._operators.mobile(MobileArguments(inputs, options, keep)).out
        return self._operators.bidirectional(BidirectionalArguments(inputs, options, keep)).out

    def causal(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        options: FlowOptions,
        state: FlowState | None,
        return_state: bool = True,
        reverse: bool = False,
        **given: Tensor | None,
    ) -> tuple[Tensor, FlowState | None]:
        """Causal Flow-Attention."""
        if reverse:
            given, state = in_order_of_reading(given, state)
        past = StateFields() if state is None else StateFields(*state)
        inputs = CausalInputs(query, key, value, **given, past=past)
        keep = is_kept(query, key, value, *past)
        results = self._operators.causal(
            CausalArguments(inputs, numbers(options), keep, return_state, reverse)
        )
        if not return_state:
            return results.out, None
        fields: Any = results.state
        after = FlowState(*fields)
        if options.competition is None and state is not None:  # it passes by
            after = after._replace(competition=state.competition)
        if reverse and inputs.cu_seqlens is not None:
            after = last_first(after)
        return results.out, after

    def step(
        self, query: Tensor, key: Tensor, value: Tensor, *, options: FlowOptions, state: Any
    ) -> tuple[Tensor, FlowState]:
        """One token of causal Flow-Attention."""
        out, after = self.causal(query, key, value, options=options, state=state)
        assert after is not None
        return out, after

    def linear_causal(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        state: LinearState | None,
        return_state: bool = True,
        reverse: bool = False,
        **given: Tensor | None,
    ) -> tuple[Tensor, LinearState | None]:
        """out_t = row_scale_t · q_t Σ_{s≤t} D_ts k_sᵀ v_s, in the dtype of the features."""
        if reverse:
            given, state = in_order_of_reading(given, state)
        key_value = None if state is None else state.key_value
        past = StateFields(key_value=key_value)
        inputs = CausalInputs(q, k, v, **given, past=past)
        keep = is_kept(q, k, v, inputs.row_scale, inputs.log_decay, key_value)
        results = self._operators.causal(
            CausalArguments(inputs, LINEAR_OPTIONS, keep, return_state, reverse)
        )
        if not return_state:
            return results.out, None
        field: Any = results.state.key_value
        after = LinearState(field)
        if reverse and inputs.cu_seqlens is not None:
            after = last_first(after)
        return results.out, after
