"""Decoding steps, prepared once for all tensors of the same look.

Before a backend is called, a call is checked: shapes, dtypes and devices, which backend serves it,
whether a gradient is wanted, whether a graph is recorded or a mode is at work. In a step that takes
as long as all its arithmetic, and says the same for every token. So a backend may prepare a step,
and whatever looks like the tensors it was prepared for is handed to it unseen. What they look like
is asked of torch's own guards, by which compiled code knows its inputs: kind, dtype, device, sizes,
strides, whether a gradient is wanted, and all that torch's dispatcher is told.
"""

from collections.abc import Callable, Hashable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C._dynamo.guards import TensorGuards  # torch has no public name for it
from torch.autograd import forward_ad

from flowformer.ops.inputs import is_kept, is_plain, is_recorded

Inputs = tuple[Tensor, ...]  # query, key, value and, where one is given, log_decay; or others
Step = Callable[[Inputs, Any], tuple[Any, Any]]  # and the state: output, state after the token
Prepare = Callable[[Inputs, Any], Step | None]

_MOST = 256  # sizes and options of which steps are kept


def is_step(tensors: Inputs, state: Any, others: tuple) -> bool:
    """Return whether a causal call is a step: one token after a state, no gradient, no mask.

    Not where a graph is recorded, which would be another for this length than for the next.

    Args:
        tensors: query, key and value; or of one with a single side, twice that and the others.
        state: the state before the token, or None.
        others: all other tensors of the call but log_decay, or None for each.
    """
    return (
        state is not None
        and all(other is None for other in others)
        and not is_recorded()
        and tensors[0].shape[1:2] == tensors[1].shape[1:2] == (1,)
        and not is_kept(*tensors, *state)
    )


def preparation(module: ModuleType, options: Any) -> Prepare | None:
    """Return what prepares steps in a backend, with these options; None where nothing does."""
    prepare = getattr(module, "prepare_step", None)
    return None if prepare is None else partial(prepare, options=options)


class PreparedSteps:
    """The steps of one attention.

    Args:
        kind: the class of its states.
    """

    def __init__(self, kind: type[tuple]) -> None:
        self._kind = kind
        self._known: dict[Hashable, list[tuple[TensorGuards, Step]]] = {}

    def find(self, look: tuple, inputs: Inputs, state: Any) -> Step | None:
        """Return the step that was prepared for such tensors, or None.

        Args:
            look: all that the caller says beside the tensors.
            inputs: of any kind, as the state: nothing has been checked yet.
            state: the state before the token.
        """
        if torch.compiler.is_compiling() or type(state) is not self._kind:
            return None
        if forward_ad._current_level >= 0:  # no guard knows of a derivative beside a tensor
            return None
        try:
            for guard, step in self._known.get((look, len(inputs), inputs[0].shape), ()):
                if guard.check(*inputs, *state):
                    return step
        except (AttributeError, TypeError):  # no tensor, or an option that has no hash
            pass
        return None

    def keep(self, look: tuple, prepare: Prepare | None, inputs: Inputs, state: Any) -> None:
        """Keep the step that is prepared for tensors like these, if one is.

        Args:
            look: as for :meth:`find`.
            prepare: see :func:`preparation`.
            inputs: checked, as the state.
            state: the state before the token.
        """
        tensors = *inputs, *state
        if prepare is None or not is_plain(*tensors) or is_kept(*tensors):
            return
        step = prepare(inputs, state)
        if step is None:
            return
        if sum(map(len, self._known.values())) >= _MOST:
            self._known.clear()
        guard_of: Any = TensorGuards  # torch declares none of its parameters
        guard = guard_of(
            *tensors,
            dynamic_dims_sizes=[list(x.shape) for x in tensors],
            dynamic_dims_strides=[list(x.stride()) for x in tensors],
        )
        self._known.setdefault((look, len(inputs), inputs[0].shape), []).append((guard, step))
