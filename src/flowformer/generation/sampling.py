"""The next token from logits: repetition penalty, temperature, top-k, top-p; greedy or drawn."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen; names and order of the steps are those of transformers.

    Attributes:
        do_sample: draw the token from its distribution; otherwise take the most probable one.
        temperature: logits are divided by it: below 1 sharper, above 1 flatter.
        top_k: draw from the k most probable tokens only (and those that tie with the last one).
        top_p: draw from the fewest tokens whose probabilities add up to p.
        repetition_penalty: of the logits of tokens that occurred, those above zero are divided by
            it and those below are multiplied (Keskar et al. 2019, CTRL, section 4.1).
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Refuse settings out of range.

        Raises:
            ValueError: a value is out of its range, or it only means something with do_sample.
        """
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be positive, got {self.temperature}; "
                "the most probable token is do_sample=False"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}; None for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(
                f"repetition_penalty must be positive, got {self.repetition_penalty}; 1 for none"
            )
        shaped = (self.temperature, self.top_k, self.top_p) != (1.0, None, None)
        if shaped and not self.do_sample:
            raise ValueError(
                "temperature, top_k and top_p change nothing about the most probable token: "
                f"give do_sample=True with {self}"
            )

    def process(
        self, logits: Float[Tensor, "b v"], seen: Bool[Tensor, "b v"] | None
    ) -> Float[Tensor, "b v"]:
        """Return the logits of the distribution that is drawn from, -inf for tokens that are out.

        Args:
            logits: the model's.
            seen: the tokens that occurred, prompt included; None when nothing is penalised.
        """
        if seen is not None:
            logits = penalize_repetition(logits, seen, self.repetition_penalty)
        if not self.do_sample:
            return logits
        logits = logits / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        return logits

    def choose(
        self,
        logits: Float[Tensor, "b v"],
        seen: Bool[Tensor, "b v"] | None,
        generator: torch.Generator | None,
    ) -> Int[Tensor, " b"]:
        """Return the next token of each row."""
        logits = self.process(logits, seen)
        if not self.do_sample:
            return logits.argmax(-1)
        return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)


def penalize_repetition(
    logits: Float[Tensor, "b v"], seen: Bool[Tensor, "b v"], penalty: float
) -> Float[Tensor, "b v"]:
    """Make the tokens that occurred less probable (penalty > 1) or more so (penalty < 1)."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: Float[Tensor, "b v"], k: int) -> Float[Tensor, "b v"]:
    """Set all but the k largest logits to -inf; ties with the smallest of them stay."""
    smallest = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Float[Tensor, "b v"], p: float) -> Float[Tensor, "b v"]:
    """Set all but the most probable tokens, which together reach the probability p, to -inf.

    A token stays while those more probable than it do not reach p: at least one always does.
    """
    ordered, order = logits.sort(descending=True)
    probability = ordered.softmax(-1)
    before = probability.cumsum(-1) - probability
    out = (before >= p).scatter(1, order, before >= p)
    return logits.masked_fill(out, -torch.inf)
