"""Samples of the tasks of `recall.py`, each drawn from the seed, its part and its number alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64
from numpy.random import Generator
from torch import Tensor
from torch.utils.data import Dataset

from flowformer.data.language.recall import BLANK, RecallSizes
from flowformer.names import IGNORED, choose, require_positive

# Of each part the number that its samples are drawn with: no two parts share a random stream.
PARTS = {"train": 0, "validation": 1, "test": 2}

Tokens = Int64[np.ndarray, " t"]


class RecallSamples(Dataset[dict[str, Tensor]]):
    """Sequences that ask for what stood earlier in them.

    An item has `input_ids` and `targets`, int64 [length]: at a question the answer, and elsewhere
    -100. It follows from the seed, the part and its number alone, so that a run may have as many as
    it takes, and go on anywhere.

    **recall** (multi-query associative recall): keys are the tokens of the lower half, values those
    of the upper. First `pairs` different keys, each with a value behind it, all of them different;
    then every key once more, at a place drawn evenly from those that are left, with blanks (0)
    between. At such a key its value is asked for. Zoology's places are every second one, drawn by a
    power law; the law of power 1 is the even one, which is drawn here.

    **copy** (selective copying): `pairs` tokens between 1 and vocab_size - 2 at drawn places, with
    blanks between, and then as many marks (vocab_size - 1). At each mark one of them is asked for,
    in the order in which they stood. What was answered is not read.

    **induction**: tokens below vocab_size - 1, drawn evenly, and among them once the mark
    (vocab_size - 1), at a drawn place with a token behind it; the mark is the last token too, and
    asks for that token.

    Attributes:
        sizes: the task and its sizes.

    Examples:
        >>> from flowformer.data.language.recall import RecallSizes
        >>> from flowformer.data.language.recall_samples import RecallSamples
        >>> sizes = RecallSizes.of("recall", length=8, pairs=2, vocab_size=10)
        >>> item = RecallSamples(sizes, "test", count=3)[2]
        >>> item["input_ids"].tolist()
        [4, 6, 1, 5, 0, 1, 4, 0]
        >>> item["targets"].tolist()
        [-100, -100, -100, -100, -100, 5, 6, -100]
    """

    def __init__(
        self, sizes: RecallSizes, part: str = "train", *, count: int, seed: int = 0
    ) -> None:
        """Draw nothing yet.

        Args:
            sizes: the task and its sizes.
            part: train, validation or test.
            count: how many there are.
            seed: seed of all parts.

        Raises:
            ValueError: another part, or a count below 1.
        """
        require_positive(count=count)
        self.sizes = sizes
        self._count = count
        self._stream = [seed, choose(part, PARTS, "part")]
        self._draw = _DRAW[sizes.task.name]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Draw a sample.

        Raises:
            IndexError: there is none of that number.
        """
        if not 0 <= index < self._count:
            raise IndexError(f"expected one of {self._count} samples, got {index}")
        inputs, targets = self._draw(self.sizes, np.random.default_rng([*self._stream, index]))
        return {"input_ids": torch.from_numpy(inputs), "targets": torch.from_numpy(targets)}


def read_tokens(path: Path, *, vocab_size: int, max_length: int | None) -> list[Tensor]:
    """Read sequences of one's own: on each line the numbers of its tokens, with blanks between.

    Args:
        path: the text.
        vocab_size: tokens are below it.
        max_length: most tokens of a sequence; None for any number.

    Returns:
        The sequences, int64 [t].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: nothing is in it, or a line holds something else or too many; the message names
            file and line.
    """
    tokens = {str(token).encode(): token for token in range(vocab_size)}
    sequences = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path}, line {number}"
        words = line.split()
        for word in words:
            if word not in tokens:
                raise ValueError(
                    f"{where}: expected tokens from 0 to {vocab_size - 1}, got "
                    f"{word[:40].decode(errors='replace')!r}"
                )
        if not words or (max_length is not None and len(words) > max_length):
            most = "a token or more" if max_length is None else f"1 to {max_length} tokens"
            raise ValueError(f"{where}: expected {most}, got {len(words)}")
        sequences.append(torch.tensor([tokens[word] for word in words]))
    if not sequences:
        raise ValueError(f"{path}: expected at least one line, got none")
    return sequences


def _recall(sizes: RecallSizes, rng: Generator) -> tuple[Tokens, Tokens]:
    pairs, half = sizes.pairs, sizes.vocab_size // 2
    keys = 1 + rng.choice(half - 1, pairs, replace=False)
    values = half + rng.choice(sizes.vocab_size - half, pairs, replace=False)
    inputs, targets = _nothing(sizes)
    inputs[: 2 * pairs : 2] = keys
    inputs[1 : 2 * pairs : 2] = values
    # Not sorted: in the order of the pairs, counting the questions would answer them.
    places = 2 * pairs + rng.choice(sizes.length - 2 * pairs, pairs, replace=False)
    inputs[places] = keys
    targets[places] = values
    return inputs, targets


def _copy(sizes: RecallSizes, rng: Generator) -> tuple[Tokens, Tokens]:
    body, mark = sizes.length - sizes.pairs, sizes.vocab_size - 1
    tokens = rng.integers(1, mark, sizes.pairs)
    inputs, targets = _nothing(sizes)
    inputs[np.sort(rng.choice(body, sizes.pairs, replace=False))] = tokens
    inputs[body:] = mark
    targets[body:] = tokens
    return inputs, targets


def _induction(sizes: RecallSizes, rng: Generator) -> tuple[Tokens, Tokens]:
    mark = sizes.vocab_size - 1
    _, targets = _nothing(sizes)
    inputs = rng.integers(0, mark, sizes.length)
    place = rng.integers(sizes.length - 2)
    inputs[[place, -1]] = mark
    targets[-1] = inputs[place + 1]
    return inputs, targets


def _nothing(sizes: RecallSizes) -> tuple[Tokens, Tokens]:
    return np.full(sizes.length, BLANK, np.int64), np.full(sizes.length, IGNORED, np.int64)


_DRAW: dict[str, Callable[[RecallSizes, Generator], tuple[Tokens, Tokens]]] = {
    "recall": _recall,
    "copy": _copy,
    "induction": _induction,
}
