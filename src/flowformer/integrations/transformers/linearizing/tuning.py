"""Fine-tuning of the whole model, or by adapters of low rank (Hu et al. 2022) on its attentions."""

from collections.abc import Iterator, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from flowformer.integrations.transformers.linearizing.schedule import Steps
from flowformer.nn.replace.transformers import CHILD
from flowformer.progress import working

_NO_TARGET = -100  # of transformers


def tune(
    model: Any,
    layers: Sequence[str],
    batches: Iterator[Int[Tensor, "b t"]],
    *,
    rate: float,
    steps: int,
    lora: int | None = None,
    begun: bool = False,
) -> tuple[Any, list[float]]:
    """Train a model to predict the tokens of text.

    Args:
        model: the model.
        layers: the names of the exchanged attentions, on whose projections adapters come.
        batches: sequences of tokens.
        rate: the learning rate.
        steps: the number of batches.
        lora: the rank of the adapters; None trains all parameters.
        begun: before each sequence stands a token that begins a text, whose prediction is no
            target: most sequences begin amid a text.

    Returns:
        The model, its adapters merged into the projections, and the loss of each step in nats.

    Raises:
        ImportError: adapters are asked for and peft is not installed.
        FloatingPointError: the loss is no finite number any more.
    """
    trained = model if lora is None else with_adapters(model, layers, lora)
    device = next(model.parameters()).device
    own = Steps(trained.parameters(), rate, steps, name="tune_rate")
    losses: list[float] = []
    trained.train()
    with working("fine-tuning", total=steps, unit="steps") as work:
        for batch in batches:
            ids = batch.to(device)
            labels = ids.clone()
            if begun:
                labels[:, :2] = _NO_TARGET
            loss = trained(input_ids=ids, labels=labels, use_cache=False).loss
            own.step(loss)
            losses.append(loss.item())
            work.reach(work.done + 1, note=f"loss {losses[-1]:.3f}")
    if lora is not None:
        model = trained.merge_and_unload().requires_grad_(True)
    return model.eval(), losses


def with_adapters(model: Any, layers: Sequence[str], rank: int) -> Any:
    """Return the model with adapters on the projections of some attentions, as peft makes it.

    What the new attentions have beside the projections is trained as it is.

    Raises:
        ImportError: peft is not installed.
    """
    peft = import_peft()
    attentions = [model.get_submodule(name) for name in layers]
    targets = [
        f"{layer}.{name}"
        for layer, attention in zip(layers, attentions, strict=True)
        for name, child in attention.named_children()
        if name != CHILD and getattr(child, "weight", None) is not None and _is_linear(child)
    ]
    transposed = {type(model.get_submodule(each)).__name__ == "Conv1D" for each in targets}
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=targets, fan_in_fan_out=transposed == {True}
    )
    adapted = peft.get_peft_model(model, config)
    for attention in attentions:
        attention.get_submodule(CHILD).requires_grad_(True)
    return adapted


def import_peft() -> Any:
    """Return peft.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            "peft is needed for adapters of low rank: pip install 'flowformer[linearize]'"
        ) from error
    return peft


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
