"""`flowformer data show` of the tasks of recall."""

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from flowformer.cli.parsing import Named, parse
from flowformer.data.language.recall import RecallSizes
from flowformer.names import check_sizes

_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class ShowFlags:
    """Show samples of recall, copy or induction, as a run draws them.

    Attributes:
        task: recall, copy or induction.
        length: tokens of a sample.
        pairs: of recall, pairs of key and value; of copy, tokens to copy. By default 8.
        vocab_size: tokens that there are; by default 256 of recall, 16 of the others.
        part: train, validation or test.
        count: samples shown, the first ones.
    """

    task: Named[str] = field()
    length: int = 64
    pairs: int | None = None
    vocab_size: int | None = None
    part: str = "test"
    count: int = 4

    def __post_init__(self) -> None:
        check_sizes(self, "count")


def show(arguments: Sequence[str]) -> int:
    """Write what a task is and some samples of it: a token that asks, an arrow, and its answer."""
    flags = parse(ShowFlags, arguments, prog="flowformer data show")
    sizes = RecallSizes.of(
        flags.task, length=flags.length, pairs=flags.pairs, vocab_size=flags.vocab_size
    )
    from flowformer.data.language.recall_samples import RecallSamples

    samples = RecallSamples(sizes, flags.part, count=flags.count)
    task = sizes.task
    sys.stdout.write(
        f"{task.name}: {task.description}\nafter {task.source}; {sizes.vocab_size} tokens, "
        f"a guess is right in {100 * sizes.chance:.1f} %\n"
    )
    for number in range(flags.count):
        item = samples[number]
        pairs = zip(item["input_ids"].tolist(), item["targets"].tolist(), strict=True)
        words = [str(token) if answer < 0 else f"{token}→{answer}" for token, answer in pairs]
        lines = textwrap.wrap(" ".join(words), _WIDTH)
        sys.stdout.write("\n".join(["", f"{flags.part} sample {number}", *lines, ""]))
    return 0
