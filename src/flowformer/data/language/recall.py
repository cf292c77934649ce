"""Tasks that ask for what stood earlier in a sequence: what each holds, and leaves to chance.

No NumPy here: recipes and the command line start at once. `recall_samples.py` draws them.
"""

from dataclasses import dataclass

from flowformer.names import choose, require_positive

BLANK = 0  # the token that means nothing; induction has none


@dataclass(frozen=True, kw_only=True)
class RecallTask:
    """A task that is generated at any size.

    Attributes:
        name: the `corpus` of a run that learns it.
        description: one line.
        source: the paper that asks it.
        pairs: what is to be found again, where nobody says how much.
        vocab_size: tokens, where nobody says how many.
        places: of each pair in a sequence, and what they are.
        tokens: of each pair in the vocabulary, those beside them, and what they are.
    """

    name: str
    description: str
    source: str
    pairs: int
    vocab_size: int
    places: tuple[int, str]
    tokens: tuple[int, int, str]


RECALL: dict[str, RecallTask] = {
    task.name: task
    for task in (
        RecallTask(
            name="recall",
            description="multi-query associative recall: keys with values, then the keys again",
            source="Zoology (Arora et al. 2023)",
            pairs=8,
            vocab_size=256,
            places=(3, "a key, its value, and the key again for each"),
            tokens=(2, 2, "a blank and keys in the lower half, values in the upper"),
        ),
        RecallTask(
            name="copy",
            description="selective copying: tokens among blanks, then all of them in their order",
            source="Mamba (Gu & Dao 2023)",
            pairs=8,
            vocab_size=16,
            places=(2, "a token, and the mark that asks for it, for each"),
            tokens=(0, 4, "a blank, two that can be copied, and the mark"),
        ),
        RecallTask(
            name="induction",
            description="induction: the token that followed the mark where it stood before",
            source="Mamba (Gu & Dao 2023), after induction heads (Olsson et al. 2022)",
            pairs=1,
            vocab_size=16,
            places=(3, "the mark, what follows it, and the mark again"),
            tokens=(0, 3, "two that can follow the mark, and the mark"),
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class RecallSizes:
    """A task at one size.

    Attributes:
        task: in `RECALL`.
        length: tokens of a sequence, questions included.
        pairs: what is to be found again: pairs of key and value, tokens to copy; of induction 1.
            There are as many questions.
        vocab_size: tokens, blank and mark included.

    Examples:
        >>> from flowformer.data.language.recall import RecallSizes
        >>> sizes = RecallSizes.of("recall", length=64, pairs=4)
        >>> sizes.vocab_size, sizes.chance
        (256, 0.25)
    """

    task: RecallTask
    length: int
    pairs: int
    vocab_size: int

    def __post_init__(self) -> None:
        """Check that the pairs fit.

        Raises:
            ValueError: one of them is below 1, the sequence or the vocabulary is too small for the
                pairs, or induction has more than one; the message says what fits.
        """
        task, pairs = self.task, self.pairs
        require_positive(length=self.length, pairs=pairs)
        if task.name == "induction" and pairs != 1:
            raise ValueError(f"induction asks once: pairs must be 1, got {pairs}")
        (places, of_places), (tokens, beside, of_tokens) = task.places, task.tokens
        sizes = {
            "length": (self.length, places * pairs, of_places),
            "vocab_size": (self.vocab_size, tokens * pairs + beside, of_tokens),
        }
        for name, (given, least, why) in sizes.items():
            if given < least:
                raise ValueError(
                    f"{task.name} of pairs={pairs} needs a {name} of at least {least}, got "
                    f"{given}: {why}"
                )

    @classmethod
    def of(
        cls, task: str, *, length: int, pairs: int | None = None, vocab_size: int | None = None
    ) -> "RecallSizes":
        """Find a task by its name; None is what the task has by default.

        Args:
            task: its name.
            length: see the attributes.
            pairs: see the attributes.
            vocab_size: see the attributes.

        Raises:
            ValueError: there is no such task, or the pairs do not fit.
        """
        found = choose(task, RECALL, "task")
        return cls(
            task=found,
            length=length,
            pairs=found.pairs if pairs is None else pairs,
            vocab_size=found.vocab_size if vocab_size is None else vocab_size,
        )

    @property
    def chance(self) -> float:
        """The part of the answers that a guess gets right, drawn from what may be the answer."""
        if self.task.name == "induction":  # any token but the mark
            return 1 / (self.vocab_size - 1)
        # One of the values, or of the tokens to copy, that stand there.
        guessed = 1 / self.pairs
        if self.task.name == "copy":  # another one may be the same token
            guessed += (1 - guessed) / (self.vocab_size - 2)
        return guessed
