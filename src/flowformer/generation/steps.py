"""The common ground of greedy decoding, sampling and beam search: prompts, steps, results."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flowformer.ops import states_in_place

UseCache = bool | Literal["auto"]


@runtime_checkable
class CausalModel(Protocol):
    """The interface of a language model: an `nn.Module` with these properties and this call.

    `model(input_ids, attention_mask, targets=, past_states=, use_cache=, last_logits_only=,
    return_logits=)` returns `logits`, `loss` and `states`, as
    `flowformer.models.language.model.LanguageModel` says. States are tuples of tensors and tuples,
    with the batch as the first dimension of each tensor.
    """

    training: bool

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""
        ...

    @property
    def has_state(self) -> bool:
        """Whether it can continue from a state."""
        ...

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that it reads; None for any."""
        ...

    def __call__(self, input_ids: Tensor, *args: Any, **options: Any) -> Any: ...  # noqa: D102

    def eval(self) -> Any: ...  # noqa: D102

    def train(self, mode: bool = True) -> Any: ...  # noqa: D102

    def parameters(self) -> Iterator[nn.Parameter]: ...  # noqa: D102


class GenerationOutput(NamedTuple):
    """The generated tokens, on the model's device.

    Attributes:
        sequences: the prompts, each with its continuation; `pad_id` fills a row that has ended.
        log_probs: log p(token | what is before it) of each new token under the model itself, before
            any penalty, temperature, top-k or top-p; 0 where a row has ended.
        lengths: the number of new tokens of each row, its stop token included.
        finished: whether the row ended with a stop token.
    """

    sequences: Int[Tensor, "b t"]
    log_probs: Float[Tensor, "b new"]
    lengths: Int[Tensor, " b"]
    finished: Bool[Tensor, " b"]


class Prompt(NamedTuple):
    """A batch of prompts, with padding on the left.

    Attributes:
        input_ids: the tokens.
        mask: real tokens (True); None when all are.
    """

    input_ids: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"] | None

    def repeat(self, times: int) -> "Prompt":
        """Return each row that many times, one after the other."""
        mask = None if self.mask is None else self.mask.repeat_interleave(times, 0)
        return Prompt(self.input_ids.repeat_interleave(times, 0), mask)

    def seen(self, vocabulary: int) -> Bool[Tensor, "b v"]:
        """Return which tokens occur in each row."""
        seen = self.input_ids.new_zeros(len(self.input_ids), vocabulary, dtype=torch.bool)
        real = torch.ones_like(self.input_ids, dtype=torch.bool) if self.mask is None else self.mask
        row, _ = real.nonzero(as_tuple=True)
        seen[row, self.input_ids[real]] = True
        return seen


def check_prompt(
    model: CausalModel,
    input_ids: Int[Tensor, "b t"],
    attention_mask: Bool[Tensor, "b t"] | Int[Tensor, "b t"] | None,
    max_new_tokens: int,
) -> Prompt:
    """Return the prompts on the model's device, without a mask that masks nothing.

    Raises:
        ValueError: there is no token, a row has none, the padding is not on the left, an id is
            outside the vocabulary, or prompt and new tokens are more than the model can read.
    """
    if input_ids.numel() == 0:
        raise ValueError(
            f"expected a prompt of at least one token, got input_ids of {list(input_ids.shape)}"
        )
    length = input_ids.shape[1]
    # The last new token is not read.
    if model.max_positions is not None and length + max_new_tokens - 1 > model.max_positions:
        raise ValueError(
            f"the model reads at most {model.max_positions} tokens (learned positions or a mixer "
            f"of a fixed length end there), got a prompt of {length} and {max_new_tokens=}"
        )
    device = device_of(model)
    mask = None if attention_mask is None else attention_mask.to(torch.bool)
    if mask is not None:
        _check_padding(mask)
        input_ids = input_ids.masked_fill(~mask, 0)
        mask = None if mask.all() else mask.to(device)
    lowest, highest = int(input_ids.min()), int(input_ids.max())
    if lowest < 0 or highest >= model.vocab_size:
        raise ValueError(
            f"token {lowest if lowest < 0 else highest} of the prompt is outside the vocabulary: "
            f"expected 0 to {model.vocab_size - 1}"
        )
    return Prompt(input_ids.to(device, torch.int64), mask)


def _check_padding(mask: Bool[Tensor, "b t"]) -> None:
    if not mask[:, -1].all():
        row = int(mask[:, -1].long().argmin())
        raise ValueError(
            "padding must be on the left, so that each row ends with a real token; the "
            f"attention_mask of row {row} ends with padding"
        )
    if (mask[:, :-1] & ~mask[:, 1:]).any():
        raise ValueError("padding must be on the left, got padding between real tokens")


def device_of(model: CausalModel) -> torch.device:
    """Return the device of the model's parameters."""
    return next(model.parameters()).device


@contextmanager
def evaluation_mode(model: CausalModel) -> Iterator[None]:
    """Without dropout inside, as before outside."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


class CarriedDecoder:
    """Carries the model's state: a step reads one token, whatever the length before it."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self._states: Any = None

    def start(self, prompt: Prompt) -> Float[Tensor, "b v"]:
        """Read the prompt."""
        return self._read(prompt.input_ids, prompt.mask)

    def step(self, token: Int[Tensor, " b"]) -> Float[Tensor, "b v"]:
        """Read one token more of each row."""
        with states_in_place():  # nobody else has this state
            return self._read(token[:, None], None)

    def reorder(self, index: Int[Tensor, " n"]) -> None:
        """Go on with these rows, in this order."""
        self._states = select_rows(self._states, index)

    def _read(
        self, input_ids: Int[Tensor, "b t"], mask: Bool[Tensor, "b t"] | None
    ) -> Float[Tensor, "b v"]:
        output = self._model(
            input_ids, mask, past_states=self._states, use_cache=True, last_logits_only=True
        )
        self._states = output.states
        return checked_logits(output.logits)


class RecomputingDecoder:
    """Reads the whole prefix again at each step: for models whose mixer has no state."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model
        self._prefix: Prompt

    def start(self, prompt: Prompt) -> Float[Tensor, "b v"]:
        """Read the prompt."""
        self._prefix = prompt
        return self._read()

    def step(self, token: Int[Tensor, " b"]) -> Float[Tensor, "b v"]:
        """Read everything, with one token more of each row."""
        ids, mask = self._prefix
        if mask is not None:
            mask = torch.cat((mask, mask.new_ones(len(mask), 1)), 1)
        self._prefix = Prompt(torch.cat((ids, token[:, None]), 1), mask)
        return self._read()

    def reorder(self, index: Int[Tensor, " n"]) -> None:
        """Go on with these rows, in this order."""
        self._prefix = select_rows(self._prefix, index)

    def _read(self) -> Float[Tensor, "b v"]:
        output = self._model(self._prefix.input_ids, self._prefix.mask, last_logits_only=True)
        return checked_logits(output.logits)


Decoder = CarriedDecoder | RecomputingDecoder


def make_decoder(model: CausalModel, use_cache: UseCache) -> Decoder:
    """Return the decoder that carries the state; without a state, the one that recomputes."""
    if use_cache == "auto":
        use_cache = model.has_state
    return CarriedDecoder(model) if use_cache else RecomputingDecoder(model)


def select_rows(states: Any, index: Int[Tensor, " n"]) -> Any:
    """Return the rows `index`, of the batch, of every tensor in a tree of tuples."""
    if states is None:
        return None
    if isinstance(states, Tensor):
        return states.index_select(0, index)
    parts = [select_rows(part, index) for part in states]
    return type(states)(*parts) if hasattr(states, "_fields") else tuple(parts)


def checked_logits(logits: Float[Tensor, "b t v"]) -> Float[Tensor, "b v"]:
    """Return the logits of the last token, in at least float32.

    Raises:
        ValueError: one is NaN: no token could be chosen.
    """
    last = logits[:, -1]
    last = last if last.dtype == torch.float64 else last.float()
    if last.isnan().any():
        raise ValueError(
            "the model's logits are NaN: its parameters, or its state, hold NaN or inf"
        )
    return last
