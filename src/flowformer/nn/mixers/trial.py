"""What a module can do, found out by calling it: small, on the CPU, in evaluation.

A trial tells what is there, and is no proof: `flowformer.nn.mixers.conformance` has those.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from flowformer.nn.mixers.head_attention import (
    Capabilities,
    HeadAttention,
    Sizes,
    make_attention,
)

DIM, HEADS, LENGTH, SEEN = 32, 4, 12, 7
# Of the largest output: what is exact rounds by less, and what depends on a token moves by more.
ROUNDING = 1e-4

# What a lack is called where a call fails.
_MEANS = {"exact_mask": "padding", "state": "state", "variable_length": "longer sequences"}

_ALL = Capabilities(causal=True, cross=False, state=True)


class Trial:
    """The calls of one small module.

    Args:
        kind: the class of its attention, without `capabilities`.
        options: those with which it was registered, for messages.

    Attributes:
        notes: why it cannot do what it might have, in words.
        broken: of these, each capability whose keyword its call names, and does not keep to.
    """

    def __init__(self, kind: type[HeadAttention], options: Mapping[str, Any]) -> None:
        self.kind, self.options = kind, options
        self.notes: list[str] = []
        self.broken: dict[str, str] = {}
        kind.capabilities = _ALL

    @torch.no_grad()
    def capabilities(self) -> Capabilities:
        """Build the module, call it in every form, and return what holds.

        Raises:
            ValueError: it cannot be built, or not called in any form.
        """
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(0)
            self.attention: Any = self._build()
            forms = self._forms()
            return Capabilities(
                causal=True in forms,
                bidirectional=False in forms,
                cross=False,
                exact_mask=all(self._masks(causal) for causal in forms),
                state=(stateful := self._streams(forms)),
                growing_state=stateful and self._grows(),
                variable_length=self._any_length(forms[0]),
            )

    def _build(self, max_length: int | None = None) -> HeadAttention:
        """Build it, its parameters moved: one that starts at zero shows nothing."""
        sizes = Sizes(
            dim=DIM,
            num_heads=HEADS,
            num_kv_heads=HEADS,
            head_dim=DIM // HEADS,
            max_length=max_length,
        )
        self.length_needed = False
        try:
            attention = make_attention(self.kind, sizes, {})
        except Exception as error:
            if max_length is None:  # it may need one
                attention = self._build(max_length=LENGTH)
                self.length_needed = True
                return attention
            given = {"dim": DIM, "num_heads": HEADS, "max_length": LENGTH, **self.options}
            raise ValueError(
                f"{self.kind.__name__} cannot be built, of {given} with those that it names: "
                f"{_words(error)}. Options without a default are given to register_mixer, and "
                "capabilities=Capabilities(…) where it cannot be tried"
            ) from error
        for parameter in attention.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return attention.eval()

    def _forms(self) -> list[bool]:
        """Return which forms it has, causal or not, the bidirectional first."""
        x = torch.randn(2, LENGTH, DIM)
        changed = x.clone()
        changed[:, SEEN:] = torch.randn(2, LENGTH - SEEN, DIM)
        forms, errors = [], {}
        for causal in (False, True) if "causal" in self.attention.takes else (None,):
            call = {} if causal is None else {"causal": causal}
            try:
                y, other = self.attention(x, **call)[0], self.attention(changed, **call)[0]
            except Exception as error:  # noqa: BLE001 - whatever it is, it has not this form
                errors[causal] = error
                continue
            leaks = _distance(other[:, :SEEN], y[:, :SEEN])
            if causal and leaks > ROUNDING:
                self._note(
                    "causal", f"its causal form sees the future (outputs move by {leaks:.1g})"
                )
            elif causal is not None and causal != (leaks <= ROUNDING):
                continue  # called without causal, it is causal all the same
            else:
                forms.append(leaks <= ROUNDING)
        if not forms:
            words = dict.fromkeys(map(_words, errors.values())) or self.notes
            raise ValueError(
                f"{self.kind.__name__} cannot be called with hidden states {list(x.shape)}: "
                + "; ".join(words)
            ) from next(iter(errors.values()), None)
        for causal, error in errors.items():
            form = "causal" if causal else "bidirectional"
            self._note(form, f"no {form} form: {_words(error)}", error)
        return forms

    def _masks(self, causal: bool) -> bool:
        """Return whether padding, before and after, changes nothing."""
        real = torch.randn(1, SEEN, DIM)
        alone = self.attention(real, causal=causal)[0][0]
        for place in (slice(0, SEEN), slice(LENGTH - SEEN, None)):
            x, mask = torch.zeros(2, LENGTH, DIM), torch.zeros(2, LENGTH, dtype=torch.bool)
            x[0, place], mask[0, place] = real[0], True
            x[1], mask[1] = torch.randn(LENGTH, DIM), True
            padded = self._told("exact_mask", self.attention, x, causal=causal, mask=mask)
            if padded is None:
                return False
            if (moved := _distance(padded[0][0, place], alone)) > ROUNDING:
                cause = "" if "mask" in self.attention.takes else ", for it takes no mask"
                self._note("exact_mask", f"padding changes the outputs (by {moved:.1g}){cause}")
                return False
        return True

    def _streams(self, forms: list[bool]) -> bool:
        """Return whether pieces give what the whole gives."""
        if "state" not in self.attention.takes:
            return False
        if True not in forms:
            if "causal" not in self.attention.names:  # else that says why
                self._note("state", "it takes a state, and has no causal form")
            return False
        x = torch.randn(2, LENGTH, DIM)
        pieces = self._told("state", self._in_pieces, x)
        if pieces is None:
            return False
        if (moved := _distance(pieces, self.attention(x, causal=True)[0])) > ROUNDING:
            self._note("state", f"pieces with a state give something else (by {moved:.1g})")
            return False
        return True

    def _in_pieces(self, x: Tensor) -> Tensor:
        state, parts = None, []
        for piece in x.split([SEEN, 1, LENGTH - SEEN - 1], 1):
            part, state = self.attention(piece, causal=True, state=state, return_state=True)
            parts.append(part)
        assert state is not None
        state.detach().to("cpu").reorder(torch.tensor([1, 0]))
        return torch.cat(parts, 1)

    def _grows(self) -> bool:
        x = torch.randn(1, LENGTH, DIM)
        few, many = (
            _count(self.attention(x[:, :n], causal=True, return_state=True)[1])
            for n in (SEEN, LENGTH)
        )
        return many > few

    def _any_length(self, causal: bool) -> bool:
        if self.length_needed:
            return False
        x = torch.randn(1, 4 * LENGTH + 1, DIM)
        return self._told("variable_length", self.attention, x, causal=causal) is not None

    def _told(
        self, capability: str, function: Callable[..., Any], *tensors: Tensor, **call: Any
    ) -> Any:
        """Return what a call returns; note why it fails, and return None."""
        try:
            return function(*tensors, **call)
        except Exception as error:  # noqa: BLE001 - whatever it is, it cannot do this
            self._note(capability, f"no {_MEANS[capability]}: {_words(error)}", error)
            return None

    def _note(self, capability: str, words: str, error: Exception | None = None) -> None:
        """Note a lack; it breaks a promise where the call names the keyword and does not refuse."""
        self.notes.append(words)
        keyword = {"exact_mask": "mask"}.get(capability, capability)
        if keyword in self.attention.names and not isinstance(error, NotImplementedError):
            self.broken[capability] = words


def _distance(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference, as a part of the largest value; infinite of NaN."""
    largest = expected.abs().max().clamp(min=1e-6)
    return float(((actual - expected).abs().max() / largest).nan_to_num(torch.inf))


def _count(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.numel()
    return sum(map(_count, state)) if isinstance(state, tuple) else 0


def _words(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
