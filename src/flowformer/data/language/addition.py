"""Addition of two numbers digit by digit: the published GPT module's adder project."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowformer.data.language.batches import IGNORED

VOCAB_SIZE = 10  # a token is a digit
_MAX_DIGITS = 3  # the problems are listed, all 10^(2·digits) of them
_HELD_OUT = 500


class AdditionProblems(Dataset[dict[str, Tensor]]):
    """a + b as one sequence of digits: those of a, of b, and of the sum from its last digit on.

    With two digits, 85 + 50 = 135 is 8 5 5 0 5 3 1; numbers are padded with zeros, so every
    sequence has 3·digits + 1 tokens. An item has `input_ids`, all tokens but the last, and
    `targets`, all but the first, in which only the digits of the sum are to be predicted (-100
    elsewhere): both int64 [3·digits].

    Every problem is in one part: 500 of them, or a fifth where there are fewer than 2,500, are for
    test, and are the published ones with the published seed.

    Attributes:
        digits: digits of a and of b.
        problems: int64 [n, 2], a and b.
    """

    def __init__(self, part: str = "train", *, digits: int = 2, seed: int = 1337) -> None:
        """Choose the problems of a part.

        Args:
            part: "train" or "test".
            digits: digits of a and of b, from 1 to 3.
            seed: seed of the split; the published one by default.

        Raises:
            ValueError: another part, or another number of digits.
        """
        if part not in ("train", "test"):
            raise ValueError(f"part must be train or test, got {part!r}")
        if not 1 <= digits <= _MAX_DIGITS:
            raise ValueError(f"digits must be from 1 to {_MAX_DIGITS}, got {digits}")
        total = 10 ** (2 * digits)
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        held_out = min(total // 5, _HELD_OUT)
        chosen = order[:held_out] if part == "test" else order[held_out:]
        self.digits = digits
        self.problems = torch.stack([chosen // 10**digits, chosen % 10**digits], dim=1)

    def __len__(self) -> int:
        """Return the number of problems."""
        return len(self.problems)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return a problem as tokens, and what is to be predicted."""
        a, b = self.problems[index].tolist()
        width = self.digits
        tokens = torch.tensor(
            [int(one) for one in f"{a:0{width}}{b:0{width}}"]
            + [int(one) for one in reversed(f"{a + b:0{width + 1}}")]
        )
        targets = tokens[1:].clone()
        targets[: 2 * width - 1] = IGNORED
        return {"input_ids": tokens[:-1], "targets": targets}

    def prompts(self) -> Tensor:
        """Return the digits of a and b of every problem, int64 [n, 2·digits]."""
        powers = 10 ** torch.arange(self.digits - 1, -1, -1)
        return (self.problems[:, :, None] // powers % 10).flatten(1)


class ExactSums(NamedTuple):
    """How many sums are right to the last digit.

    Attributes:
        correct: their number.
        total: number of problems.
        mistakes: the first few wrong ones, as "17 + 25 = 52".
    """

    correct: int
    total: int
    mistakes: tuple[str, ...]

    @property
    def accuracy(self) -> float:
        """The part that is right."""
        return self.correct / self.total


def count_exact(
    generate: Callable[[Tensor, int], Tensor],
    problems: AdditionProblems,
    *,
    batch_size: int = 500,
    max_mistakes: int = 5,
) -> ExactSums:
    """Let a model add, and count the sums that are right.

    Args:
        generate: takes prompts int64 [b, 2·digits] and a number of tokens, and returns that many
            more, without the prompts: int [b, digits + 1], the sum from its last digit on.
        problems: the problems to solve.
        batch_size: problems at a time.
        max_mistakes: how many wrong ones to return.

    Raises:
        ValueError: what `generate` returns has another shape.
    """
    width = problems.digits + 1
    powers = 10 ** torch.arange(width)
    correct = 0
    mistakes: list[str] = []
    pairs = zip(
        problems.prompts().split(batch_size), problems.problems.split(batch_size), strict=True
    )
    for prompts, numbers in pairs:
        generated = generate(prompts, width)
        if generated.shape != (len(prompts), width):
            raise ValueError(
                f"expected {width} tokens for each of {len(prompts)} prompts, "
                f"got a tensor of shape {tuple(generated.shape)}"
            )
        sums = (generated.cpu() * powers).sum(1)
        right = sums == numbers.sum(1)
        correct += int(right.sum())
        wrong = zip(numbers[~right].tolist(), sums[~right].tolist(), strict=True)
        mistakes += [f"{a} + {b} = {found}" for (a, b), found in wrong]
    return ExactSums(correct, len(problems), tuple(mistakes[:max_mistakes]))
