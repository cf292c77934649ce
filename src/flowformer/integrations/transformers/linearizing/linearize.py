"""`linearize`: a language model of transformers, its softmax exchanged for a mixer with a state."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel

from flowformer.integrations.linearize_settings import LinearizeSettings
from flowformer.integrations.transformers.attention import ATTENTIONS
from flowformer.integrations.transformers.linearizing.measures import (
    Cost,
    Stage,
    bits_per_character,
    costs,
    cross_entropy,
)
from flowformer.integrations.transformers.linearizing.texts import (
    Text,
    begun,
    check_length,
    sequences,
    split,
    tokenise,
)
from flowformer.integrations.transformers.linearizing.transfer import (
    Losses,
    begin,
    copy_softmax,
    transfer,
)
from flowformer.integrations.transformers.linearizing.tuning import import_peft, tune
from flowformer.nn.mixers.building import mixer_class
from flowformer.nn.mixers.softmax import SoftmaxAttention
from flowformer.nn.replace import replace_attention
from flowformer.nn.replace.transformers import (
    build_child,
    child_of,
    is_decoders_cross,
    supported,
)


@dataclass(frozen=True, kw_only=True)
class Linearized:
    """A model after its linearization, and what it came to.

    Attributes:
        model: the model, in evaluation mode: `generate` costs the same for each token, but for what
            stays softmax.
        settings: how it was made.
        exchanged: the layers whose attention has a state.
        kept: the layers that are softmax.
        stages: the model before, with its attention exchanged and nothing trained, after the
            attention transfer and after the fine-tuning, as far as there was one.
        cost_before: the cost of a token over the context, before.
        cost_after: the same, after.
        transfer_losses: for each exchanged layer and step the squared error of its output, relative
            to what the old attention gave.
        tune_losses: the loss of each step of the fine-tuning, in nats.
        parameters: the number of the model's parameters, before and after.
    """

    model: Any
    settings: LinearizeSettings
    exchanged: list[int]
    kept: list[int]
    stages: list[Stage]
    cost_before: list[Cost]
    cost_after: list[Cost]
    transfer_losses: Losses
    tune_losses: list[float]
    parameters: tuple[int, int]

    @property
    def more_bits(self) -> float:
        """Share of bits that a token takes more than before."""
        return self.stages[-1].nats / self.stages[0].nats - 1


def linearize(
    model: Any, tokenizer: Any, texts: str | Sequence[str], **settings: Any
) -> Linearized:
    """Exchange the softmax attention of a language model for a mixer with a state, in place.

    Three steps: (a) attention transfer, in which each layer's new attention, with the projections
    around it, learns to give what the old one gave for the same hidden states; (b) fine-tuning of
    all parameters, or of adapters; (c) what is held out of the text is predicted before, after the
    exchange, after (a) and after (b), and a token's time and memory are measured over the context.

    Args:
        model: a language model of transformers whose attention is one of
            `flowformer.nn.replace.transformers.SUPPORTED`. In float32, or float64: in half
            precision the steps of a training are lost in rounding.
        tokenizer: its tokenizer.
        texts: the text to learn from and, at its end, to be judged by.
        settings: those of `LinearizeSettings`: mixer, options, layers, keep, length, batch_size,
            transfer_tokens, tune_tokens, lora, …

    Returns:
        The model and its figures. `save_pretrained` keeps it; with
        `flowformer.integrations.transformers` imported, `from_pretrained` gives it back.

    Raises:
        TypeError: there is no such setting, or the model is none of transformers.
        ValueError: a setting is out of its range, the text is too short, the model has no attention
            that is known, it was exchanged already, it is of half precision, or it has not
            so many positions.
        NotImplementedError: the mixer has no causal form, or no state.
        ImportError: adapters are asked for and peft is not installed.
        FloatingPointError: a loss is no finite number any more: the rate was too high.

    Examples:
        >>> import torch
        >>> from transformers import AutoModelForCausalLM, AutoTokenizer
        >>> from flowformer.integrations.transformers import linearize
        >>> def to_linear(name, text, folder):
        ...     model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        ...     tokenizer = AutoTokenizer.from_pretrained(name)
        ...     result = linearize(model, tokenizer, text, keep=[0], lora=8)
        ...     result.model.save_pretrained(folder)
        ...     return result.more_bits
    """
    chosen = checked_settings(**settings)
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"expected a model of transformers, got {type(model).__name__}")
    parts = split([texts] if isinstance(texts, str) else texts, chosen.held_out)
    train = tokenise(tokenizer, parts[0], most=chosen.most_tokens)
    held_out = tokenise(tokenizer, parts[1], most=chosen.held_out_tokens + 1)
    check_length(train, held_out, chosen.length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chosen.seed)
        return _Work(model, chosen, train, held_out).run()


def checked_settings(**settings: Any) -> LinearizeSettings:
    """Return the settings of a linearization, checked as far as is possible without a model.

    Raises:
        TypeError: there is no such setting.
        ValueError: one is out of its range, or there is no such mixer.
        NotImplementedError: the mixer has no causal form, or no state.
        ImportError: adapters are asked for and peft is not installed.
    """
    chosen = LinearizeSettings(**settings)
    _check_mixer(chosen.mixer)
    if chosen.lora is not None:
        import_peft()
    return chosen


def _check_mixer(name: str) -> None:
    """Refuse a mixer that cannot generate at constant cost.

    Raises:
        NotImplementedError: it has no causal form, or no state.
    """
    able = mixer_class(name).capabilities
    if not (able.causal and able.state) or able.growing_state:
        raise NotImplementedError(
            f"a model is linearized by a causal mixer with a state of constant size; {name!r} can "
            f"do: {able}"
        )


_TRAINED_IN = (torch.float32, torch.float64)


class _Work:
    """One linearization."""

    def __init__(
        self, model: Any, settings: LinearizeSettings, train: Text, held_out: Text
    ) -> None:
        self.model, self.settings = model, settings
        self.train, self.held_out = train, held_out
        self.layers = attention_layers(model)
        self.exchanged = settings.chosen(len(self.layers))
        self.names = [self.layers[at] for at in self.exchanged]
        self.check_places()
        self.check_precision()
        with torch.random.fork_rng(devices=[]):  # a mistake in the options is told at once
            first = model.get_submodule(self.names[0])
            build_child(first, settings.mixer, settings.mixer_options)
        self.stages: list[Stage] = []
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.seen, self.begun = 0, time.perf_counter()

    def run(self) -> Linearized:
        """Do all of it."""
        settings, model = self.settings, self.model
        before = sum(each.numel() for each in model.parameters())
        self.judge("before")
        cost_before = costs(model, self.held_out.tokens, settings.contexts)
        old = {name: copy_softmax(model.get_submodule(name)) for name in self.names}
        replace_attention(
            model,
            settings.mixer,
            options=settings.mixer_options,
            predicate=lambda name, _: name in self.names,
        )
        for name in self.names:
            begin(model.get_submodule(name))
        self.begun = time.perf_counter()
        self.judge("exchanged")
        losses: Losses = {}
        self.begun = time.perf_counter()
        if steps := self.steps(settings.transfer_tokens):
            pairs = {name: (model.get_submodule(name), old[name]) for name in self.names}
            batches = self.batches(settings.transfer_tokens)
            losses = transfer(model, pairs, batches, rate=settings.transfer_rate, steps=steps)
            self.judge("transfer")
        del old
        tune_losses: list[float] = []
        self.begun = time.perf_counter()
        if steps := self.steps(settings.tune_tokens):
            self.model, tune_losses = tune(
                model,
                self.names,
                self.batches(settings.tune_tokens),
                rate=settings.tune_rate,
                steps=steps,
                lora=settings.lora,
                begun=self.train.first is not None,
            )
            self.judge("tuning")
        return Linearized(
            model=self.model.eval(),
            settings=settings,
            exchanged=self.exchanged,
            kept=[at for at in range(len(self.layers)) if at not in self.exchanged],
            stages=self.stages,
            cost_before=cost_before,
            cost_after=costs(self.model, self.held_out.tokens, settings.contexts),
            transfer_losses=losses,
            tune_losses=tune_losses,
            parameters=(before, sum(each.numel() for each in self.model.parameters())),
        )

    def check_places(self) -> None:
        """Refuse sequences that are longer than the model has positions.

        Raises:
            ValueError: they are.
        """
        places = getattr(self.model.config, "max_position_embeddings", None)
        more = self.train.first is not None
        if places is not None and self.settings.length + more > places:
            token = ", of which the token that begins a text takes one" if more else ""
            raise ValueError(
                f"length must be at most {places - more}: the model has {places} positions "
                f"(max_position_embeddings){token}; got {self.settings.length}"
            )

    def check_precision(self) -> None:
        """Refuse parameters that a step of the size of the rates would not change.

        Raises:
            ValueError: one that is to be trained is of half precision.
        """
        whole = self.settings.lora is None and self.settings.tune_tokens != 0
        for name in [""] if whole else self.names:
            for each, parameter in self.model.get_submodule(name).named_parameters(name):
                if parameter.is_floating_point() and parameter.dtype not in _TRAINED_IN:
                    raise ValueError(
                        f"expected parameters in float32 or float64 to train, got {each} in "
                        f"{parameter.dtype}: load the model with dtype=torch.float32"
                    )

    def wanted(self, tokens: int | None) -> int:
        """Return the tokens to train on: those of the text where no number is given."""
        length = self.settings.length
        tokens = self.train.tokens.numel() if tokens is None else tokens
        return tokens // length * length

    def steps(self, tokens: int | None) -> int:
        """Return the number of batches that hold so many tokens."""
        rows = self.wanted(tokens) // self.settings.length
        return -(-rows // self.settings.batch_size)

    def batches(self, tokens: int | None) -> Iterator[Int[Tensor, "b t"]]:
        """Yield batches of so many tokens, and count them."""
        chosen = self.settings
        wanted = self.wanted(tokens)
        for batch in sequences(
            self.train.tokens, chosen.length, chosen.batch_size, wanted, self.generator
        ):
            self.seen += batch.numel()
            yield begun(batch, self.train.first)

    def judge(self, name: str) -> None:
        """Predict the held-out text."""
        chosen, seconds = self.settings, time.perf_counter() - self.begun
        nats = cross_entropy(
            self.model,
            self.held_out,
            length=chosen.length,
            batch_size=chosen.batch_size,
            most=chosen.held_out_tokens,
        )
        stage = Stage(
            name=name,
            tokens=self.seen,
            nats=nats,
            bits_per_character=bits_per_character(nats, self.held_out),
            seconds=seconds,
        )
        self.stages.append(stage)


def attention_layers(model: nn.Module) -> list[str]:
    """Return the names of the self-attentions of a decoder, in the order of its layers.

    Raises:
        ValueError: it has none that is known, or they are no softmax any more.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if supported(module)
        and getattr(module, "is_causal", False)
        and not is_decoders_cross(module)
    ]
    if not found:
        replace_attention(model, "softmax", predicate=lambda *_: False)  # says what there is
    for name, module in found:
        config: Any = module.config
        child, chosen = child_of(module), config._attn_implementation
        if (child is None and chosen not in ATTENTIONS) or isinstance(child, SoftmaxAttention):
            continue
        what = repr(chosen) if child is None else type(child).__name__
        raise ValueError(f"{name} is {what} already: give a model with softmax")
    places: dict[str, Any] = {name: module.layer_idx for name, module in found}
    return sorted(places, key=lambda name: places[name])
