"""The settings of a linearization, of which the command line makes its flags; no torch here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flowformer.models.known_mixers import MixerName
from flowformer.names import check_sizes

# Options of mixers in place of their own defaults. Without the norm of each head: the rest of the
# model reads the size of what the old attention gave, which is that of the values.
DEFAULTS: dict[str, dict[str, Any]] = {"flow-gated": {"norm": False}, "gated": {"norm": False}}


@dataclass(frozen=True, kw_only=True)
class LinearizeSettings:
    """How a model with softmax attention becomes one with a state.

    Of a long text no more is read than the first tokens that the training takes (by the million
    characters).

    Attributes:
        mixer: Name of the new attention: causal, with a state.
        options: Options of that attention; None means its defaults, for flow-gated and gated
            without the norm of each head.
        layers: Layers to exchange, counted from 0, or text such as 0-11 or 0,2,4-7; None means all.
        keep: Layers among them that stay softmax, in the same way.
        length: Tokens of a sequence in training and in the evaluation.
        batch_size: Sequences of a step.
        transfer_tokens: Tokens of the attention transfer, at least those of a sequence; 0 leaves it
            out, None takes the text once.
        transfer_rate: Its learning rate.
        tune_tokens: Tokens of the fine-tuning, at least those of a sequence; 0 leaves it out, None
            takes the text once.
        tune_rate: Its learning rate.
        lora: Rank of the adapters by which the fine-tuning changes the projections of the exchanged
            layers, in place of all parameters; None for all. Needs peft.
        held_out: Share of the text, at its end, that is not trained on.
        held_out_tokens: The most tokens of it that are evaluated.
        contexts: Lengths of the context after which the cost of a token is measured; those beyond
            the model's positions are left out.
        seed: Of the drawn parameters and of the order of the sequences.

    Raises:
        ValueError: A number is out of its range.
    """

    mixer: MixerName = "flow-gated"
    options: dict[str, Any] | None = None
    layers: str | Sequence[int] | None = None
    keep: str | Sequence[int] | None = None
    length: int = 512
    batch_size: int = 8
    transfer_tokens: int | None = None
    transfer_rate: float = 1e-3
    tune_tokens: int | None = None
    tune_rate: float = 3e-4
    lora: int | None = None
    held_out: float = 0.1
    held_out_tokens: int = 100_000
    contexts: Sequence[int] = (256, 1024, 4096)
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges, and read the layers."""
        for name in ("layers", "keep"):
            if isinstance(given := getattr(self, name), str):
                object.__setattr__(self, name, layers_in(given))
        check_sizes(self, "length", "batch_size", "held_out_tokens")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be above 0 and below 1, got {self.held_out}")
        for name in ("transfer_tokens", "tune_tokens"):
            tokens = getattr(self, name)
            if tokens is not None and tokens != 0 and tokens < self.length:
                raise ValueError(
                    f"{name} must be 0, which leaves it out, or at least a sequence of "
                    f"length={self.length} tokens, got {tokens}"
                )
        for name in ("transfer_rate", "tune_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.lora is not None and self.lora < 1:
            raise ValueError(f"lora must be a rank, at least 1, or None, got {self.lora}")

    @property
    def mixer_options(self) -> dict[str, Any]:
        """Return the options of the new attention."""
        return dict(DEFAULTS.get(self.mixer, {}) if self.options is None else self.options)

    @property
    def most_tokens(self) -> int | None:
        """Return the tokens of the text that are enough to train on; None for all of them."""
        if self.transfer_tokens is None or self.tune_tokens is None:
            return None
        return max(self.length, self.transfer_tokens, self.tune_tokens)

    def chosen(self, count: int) -> list[int]:
        """Return the layers to exchange of a model that has so many.

        Raises:
            ValueError: there is no such layer, or none is left.
        """
        there = set(range(count))
        layers = there if self.layers is None else set(map(int, self.layers))
        keep = set(map(int, self.keep or ()))
        if wrong := sorted((layers | keep) - there):
            raise ValueError(
                f"the layers are 0 to {count - 1}, got {', '.join(map(str, wrong))} in layers or "
                "keep"
            )
        chosen = sorted(layers - keep)
        if not chosen:
            raise ValueError("no layer is left to exchange: all of them are in keep")
        return chosen


def layers_in(text: str) -> list[int]:
    """Return the layers that a list names: 0-2,5 is 0, 1, 2, 5.

    Raises:
        ValueError: it is no such list.
    """
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"expected layers such as 0-11 or 3,7, got {text!r}")
        found += range(int(first), int(last or first) + 1)
    return found
