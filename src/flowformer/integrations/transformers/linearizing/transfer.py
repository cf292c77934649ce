"""Attention transfer: each new mixer learns to give what the old attention gave, by itself.

The model reads text as it ever did, for every exchanged module hands on what the old one gives. Its
own output for the same hidden states is compared with that, and its parameters go a step, before
the next layer is read: no gradient leaves a module, and one layer's activations are held at a time
(Zhang et al. 2024, "LoLCATs", which trains maps of features so; here all of the module).
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from flowformer.integrations.transformers.linearizing.schedule import Steps
from flowformer.nn.mixers.gated import GatedAttention
from flowformer.nn.replace.transformers import child_of
from flowformer.nn.replace.transformers_attention import AttentionMask
from flowformer.progress import working

Losses = dict[str, list[float]]


def copy_softmax(module: nn.Module) -> nn.Module:
    """Return a copy of an attention, which attends with softmax whatever becomes of its model."""
    old: Any = copy.deepcopy(module)
    old.config._attn_implementation = "sdpa"
    return old.eval().requires_grad_(False)


@torch.no_grad()
def begin(module: nn.Module) -> None:
    """Let a new attention start from the values as they are, and learn from there what to add."""
    attention = child_of(module)
    if isinstance(attention, GatedAttention):
        attention.pass_through()
        if attention.decay is not None and attention.options.decay is not None:
            attention.decay.start(attention.options.decay)  # not all of what came before


def transfer(
    model: Any,
    pairs: Mapping[str, tuple[nn.Module, nn.Module]],
    batches: Iterator[Int[Tensor, "b t"]],
    *,
    rate: float,
    steps: int,
) -> Losses:
    """Train the exchanged modules of a model on batches of text.

    Args:
        model: the model, with the new modules.
        pairs: each new module and the old one, by the name of its layer.
        batches: sequences of tokens.
        rate: the learning rate.
        steps: the number of batches.

    Returns:
        For each layer and step the squared error, relative to the old output.

    Raises:
        FloatingPointError: an error is no finite number any more.
    """
    losses: Losses = {name: [] for name in pairs}
    device = next(model.parameters()).device
    model.eval()
    with ExitStack() as stack, working("attention transfer", total=steps, unit="steps") as work:
        for name, (module, old) in pairs.items():
            own = Steps(module.parameters(), rate, steps, name="transfer_rate")
            stack.enter_context(_teaching(module, old, own, losses[name].append))
        for batch in batches:
            with torch.no_grad():
                # No logits: nothing is predicted here.
                model.base_model(input_ids=batch.to(device), use_cache=False)
            newest = sum(each[-1] for each in losses.values()) / len(losses)
            work.reach(work.done + 1, note=f"error {newest:.3f}")
    return losses


@contextmanager
def _teaching(
    module: Any, old: nn.Module, steps: Steps, told: Callable[[float], object]
) -> Iterator[None]:
    """Let a module learn from the old one at each call, and hand on what that one gives."""
    attend = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        named = {name: _of_pairs(value) for name, value in kwargs.items()}
        expected = old(*map(_of_pairs, args), **named)
        with torch.enable_grad():
            out = attend(*args, **kwargs)[0]
            scale = expected[0].float().square().mean().clamp(min=1e-12)
            loss = (out.float() - expected[0].float()).square().mean() / scale
            steps.step(loss)
        told(loss.item())
        return expected

    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _of_pairs(value: Any) -> Any:
    """Return a mask of ours as torch's softmax attention takes it; all else as it is."""
    if not isinstance(value, AttentionMask):
        return value
    return None if value.pairs is None else value.pairs()
