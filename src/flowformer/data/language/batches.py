"""From tokens to batches: blocks of one length, and their order over a whole training run."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowformer.data.language.tokens import TokenArray

IGNORED = -100  # the target that a loss leaves out, as torch's cross-entropy does


class ContiguousBlocks(Dataset[dict[str, Tensor]]):
    """A text cut into blocks of one length, across its documents, as is usual for WikiText.

    Item i has `input_ids`, the tokens [i·length, (i + 1)·length), and `targets`, those one place
    further: both int64 [length]. What is left at the end of the text is dropped.

    Attributes:
        dropped: targets that no block has.
    """

    def __init__(self, tokens: TokenArray, length: int) -> None:
        """Count the blocks.

        Args:
            tokens: the text.
            length: length of a block.

        Raises:
            ValueError: `length` is below 1, or the text does not fill a block and its last target.
        """
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if len(tokens) <= length:
            raise ValueError(
                f"expected more than {length} tokens for a block of that length and its last "
                f"target, got a text of {len(tokens)}: choose a shorter length"
            )
        self.tokens = tokens
        self.length = length
        self.dropped = (len(tokens) - 1) % length

    def __len__(self) -> int:
        """Return the number of whole blocks."""
        return (len(self.tokens) - 1) // self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return a block and its targets."""
        if not 0 <= index < len(self):
            raise IndexError(f"expected one of {len(self)} blocks, got {index}")
        start = index * self.length
        tokens = torch.from_numpy(self.tokens[start : start + self.length + 1].astype(np.int64))
        return {"input_ids": tokens[:-1], "targets": tokens[1:]}


class PackedDocuments(Dataset[dict[str, Tensor]]):
    """The same blocks, in which no document sees another one.

    An item has `segments` too: int64 [length], 0 for the first document in the block, 1 for the
    next. The last token of a document has no target (-100). A document that does not end in a block
    goes on in the next one, without what was before.
    """

    def __init__(self, tokens: TokenArray, length: int) -> None:
        """Count the blocks.

        Args:
            tokens: the text.
            length: length of a block.

        Raises:
            ValueError: what `ContiguousBlocks` raises.
        """
        self.blocks = ContiguousBlocks(tokens, length)
        self.ends = tokens.documents[1:]

    def __len__(self) -> int:
        """Return the number of whole blocks."""
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return a block, its targets and its documents."""
        item = self.blocks[index]
        start = index * self.blocks.length
        places = np.arange(start, start + self.blocks.length)
        # Of each token, and of its target: the number of documents that end at or before it.
        document = np.searchsorted(self.ends, places, side="right")
        crosses = np.searchsorted(self.ends, places + 1, side="right") != document
        item["targets"] = item["targets"].masked_fill(torch.from_numpy(crosses), IGNORED)
        item["segments"] = torch.from_numpy(document - document[0])
        return item


def collate_packed(batch: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Put packed blocks behind each other, as one row.

    Args:
        batch: items of `PackedDocuments`.

    Returns:
        `input_ids` and `targets` int64 [1, total], and `cu_seqlens` int32 [documents + 1]: where
        each document starts, and the total, as packed calls of this library take it.
    """
    segments = torch.stack([item["segments"] for item in batch])
    begins = torch.ones_like(segments, dtype=torch.bool)  # a block begins one in any case
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    total = torch.tensor([segments.numel()])
    return {
        "input_ids": torch.cat([item["input_ids"] for item in batch])[None],
        "targets": torch.cat([item["targets"] for item in batch])[None],
        "cu_seqlens": torch.cat([begins.flatten().nonzero().flatten(), total]).int(),
    }
