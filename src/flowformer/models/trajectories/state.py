"""The state and the output of decision models, and the checks of their inputs."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowformer.nn.mixers.attention import State


class DecisionState(NamedTuple):
    """The state that the model carries from one call to the next.

    Attributes:
        layers: the state of each block's mixer; of constant size for flow and its linear kin.
        pending: time steps of the steps whose action is still to be read, shape ``[b]``; None
            where all actions have been read.
    """

    layers: tuple[State, ...]
    pending: Int[Tensor, " b"] | None

    def to(self, device: torch.device | str) -> "DecisionState":
        """Return the state on another device."""
        pending = None if self.pending is None else self.pending.to(device)
        return DecisionState(tuple(layer.to(device) for layer in self.layers), pending)

    def detach(self) -> "DecisionState":
        """Return the state without its history of gradients."""
        return DecisionState(tuple(layer.detach() for layer in self.layers), self.pending)

    def reorder(self, index: Int[Tensor, " n"]) -> "DecisionState":
        """Return the rows `index` of the batch: episodes that have ended are left out."""
        pending = None if self.pending is None else self.pending.index_select(0, index)
        return DecisionState(tuple(layer.reorder(index) for layer in self.layers), pending)


# A state that torch.save wrote is loaded by torch.load, which otherwise takes no classes.
torch.serialization.add_safe_globals([DecisionState])


class DecisionOutput(NamedTuple):
    """The output of a decision model.

    Attributes:
        actions: the action predicted at each step, in (-1, 1) where actions are bounded; for
            discrete actions their logits. Zero at padded steps.
        states: the states that continue the episodes; None if they were not asked for.
    """

    actions: Float[Tensor, "b t a"]
    states: DecisionState | None


def action_width(*, observation_dim: int, action_dim: int | None, num_actions: int | None) -> int:
    """Return how many numbers are predicted for an action.

    Raises:
        ValueError: neither or both of action_dim and num_actions, or a size below 1.
    """
    if (action_dim is None) == (num_actions is None):
        raise ValueError(
            "expected action_dim (a box) or num_actions (discrete), one of them, got "
            f"{action_dim=} and {num_actions=}"
        )
    sizes = {"observation_dim": observation_dim} | (
        {"num_actions": num_actions} if action_dim is None else {"action_dim": action_dim}
    )
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    return action_dim or num_actions or 0


def check_shape(name: str, given: Tensor, expected: tuple[int, ...], *, floating: bool) -> None:
    """Refuse a tensor of another shape, or integers for numbers and the other way round.

    Raises:
        ValueError: the message names both.
    """
    if tuple(given.shape) != expected or given.is_floating_point() != floating:
        raise ValueError(
            f"expected {name} {list(expected)}, {'floating-point' if floating else 'integers'}, "
            f"got {list(given.shape)} of {given.dtype}"
        )


def real_steps(given: Tensor, mask: Bool[Tensor, "b t"] | None) -> Tensor:
    """Return the tensor [b, t, ...] with zeros at padded steps."""
    if mask is None:
        return given
    return given.masked_fill(~mask.reshape(*mask.shape, *[1] * (given.ndim - 2)), 0)
