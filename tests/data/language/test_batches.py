"""Blocks, packed documents, and the order of a whole training run."""

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from flowformer.data.language.batches import ContiguousBlocks, PackedDocuments, collate_packed
from flowformer.data.language.preparation import prepare_text
from flowformer.data.language.tokens import TokenArray
from flowformer.data.order import StepBatches
from tests.data.language.texts import Texts, some_texts


@pytest.fixture
def tokens(tmp_path: Path) -> TokenArray:
    return prepare_text(some_texts(documents=20), tmp_path, shard_tokens=90).train


def packed(tmp_path: Path, *documents: str, length: int) -> PackedDocuments:
    corpus = Texts(train=list(documents), validation=["a\n"], test=["a\n"])
    return PackedDocuments(prepare_text(corpus, tmp_path, tokenizer="byte").train, length)


@pytest.mark.parametrize("length", [1, 7, 63])
def test_blocks_are_the_text_and_targets_the_text_one_further(
    tokens: TokenArray, length: int
) -> None:
    blocks = ContiguousBlocks(tokens, length)
    items = [blocks[index] for index in range(len(blocks))]
    inputs = torch.cat([item["input_ids"] for item in items]).tolist()
    targets = torch.cat([item["targets"] for item in items]).tolist()
    assert all(item["input_ids"].shape == (length,) for item in items)
    assert items[0]["input_ids"].dtype == items[0]["targets"].dtype == torch.int64
    count = len(blocks) * length
    assert inputs == tokens[:count].tolist()
    assert targets == tokens[1 : count + 1].tolist()
    assert count + blocks.dropped == len(tokens) - 1
    assert blocks.dropped < length


def test_a_text_that_fills_no_block_is_an_error(tokens: TokenArray) -> None:
    size = len(tokens)
    assert len(ContiguousBlocks(tokens, size - 1)) == 1
    for kind in (ContiguousBlocks, PackedDocuments):
        with pytest.raises(ValueError, match=f"expected more than {size} tokens .* got a text of"):
            kind(tokens, size)
        with pytest.raises(ValueError, match="length must be at least 1, got 0"):
            kind(tokens, 0)


def test_an_index_outside_is_an_error(tokens: TokenArray) -> None:
    blocks = ContiguousBlocks(tokens, 10)
    for index in (len(blocks), -1):
        with pytest.raises(IndexError, match=f"expected one of {len(blocks)} blocks, got {index}"):
            blocks[index]


def test_no_target_crosses_a_document(tmp_path: Path) -> None:
    #                            0123  456  7890123
    items = packed(tmp_path, "abc\n", "de\n", "fghijk\n", length=6)
    assert len(items) == 2
    text = b"abc\nde\nfghijk\n"
    first, second = items[0], items[1]
    assert bytes(first["input_ids"].tolist()) == text[:6]
    assert first["targets"].tolist() == [*b"bc\n", -100, *b"e\n"]
    assert first["segments"].tolist() == [0, 0, 0, 0, 1, 1]
    assert bytes(second["input_ids"].tolist()) == text[6:12]
    assert second["targets"].tolist() == [-100, *b"ghijk"]
    assert second["segments"].tolist() == [0, 1, 1, 1, 1, 1]


def test_packed_and_contiguous_blocks_differ_in_the_last_token_of_a_document_only(
    tokens: TokenArray,
) -> None:
    contiguous, separate = ContiguousBlocks(tokens, 31), PackedDocuments(tokens, 31)
    last = set((tokens.documents[1:] - 1).tolist())
    assert len(contiguous) == len(separate)
    for index in range(len(contiguous)):
        assert torch.equal(contiguous[index]["input_ids"], separate[index]["input_ids"])
        for place in range(31):
            expected = contiguous[index]["targets"][place]
            if index * 31 + place in last:
                expected = torch.tensor(-100)
            assert separate[index]["targets"][place] == expected


def test_packed_blocks_collate_to_one_row_with_the_documents_starts(tmp_path: Path) -> None:
    items = packed(tmp_path, "abc\n", "de\n", "fghijk\n", length=6)
    batch = collate_packed([items[0], items[1]])
    assert batch["input_ids"].shape == batch["targets"].shape == (1, 12)
    assert bytes(batch["input_ids"][0].tolist()) == b"abc\nde\nfghij"
    # "\n" of the second document begins a block: what was before is not seen there.
    assert batch["cu_seqlens"].tolist() == [0, 4, 6, 7, 12]
    assert batch["cu_seqlens"].dtype == torch.int32


def order(rounds: range, **options: int) -> list[list[int]]:
    sizes = {"num_items": 10, "batch_size": 4, "steps_per_round": 3, "seed": 5, **options}
    return [batch for number in rounds for batch in StepBatches(**sizes, round=number)]


def test_every_pass_has_each_item_once_in_another_order() -> None:
    stream = [item for batch in order(range(10)) for item in batch]
    assert len(stream) == 120
    passes = [stream[start : start + 10] for start in range(0, 120, 10)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len({tuple(one) for one in passes}) > 6


def test_a_round_has_the_batches_it_would_have_in_an_unbroken_run() -> None:
    whole = order(range(8))
    for first in range(8):
        assert order(range(first, 8)) == whole[3 * first :]


def test_the_order_is_that_of_the_steps_however_they_are_cut_into_rounds() -> None:
    assert order(range(8), steps_per_round=3) == order(range(3), steps_per_round=8)


def test_another_seed_is_another_order() -> None:
    assert order(range(3)) != order(range(3), seed=6)


def test_a_batch_larger_than_the_data_takes_several_passes() -> None:
    (batch,) = order(range(1), num_items=3, batch_size=8, steps_per_round=1)
    assert sorted(batch[:3]) == sorted(batch[3:6]) == [0, 1, 2]
    assert len(batch) == 8


def test_set_epoch_chooses_the_round_and_lightning_finds_it(tokens: TokenArray) -> None:
    from lightning.fabric.utilities.data import _set_sampler_epoch

    blocks = ContiguousBlocks(tokens, 5)
    batches = StepBatches(len(blocks), batch_size=3, steps_per_round=2, seed=0)
    loader = DataLoader(blocks, batch_sampler=batches)
    _set_sampler_epoch(loader, 4)
    expected = list(StepBatches(len(blocks), batch_size=3, steps_per_round=2, seed=0, round=4))
    assert list(batches) == expected
    seen = [batch["input_ids"] for batch in loader]
    assert len(seen) == len(loader) == 2
    assert torch.equal(seen[0], torch.stack([blocks[index]["input_ids"] for index in expected[0]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_items": 0}, "num_items must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"steps_per_round": 0}, "steps_per_round must be at least 1, got 0"),
    ],
)
def test_a_size_below_one_is_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        order(range(1), **options)


def test_a_round_below_zero_is_an_error() -> None:
    with pytest.raises(ValueError, match="round must be at least 0, got -1"):
        order(range(-1, 0))
