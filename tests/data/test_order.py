"""Every process sees its share of a batch."""

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from flowformer.data.order import EpochSampler, SharedBatches, StepBatches, share_out, shares_of


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("items", [1, 15, 63])
def test_the_shares_together_are_the_batch_with_none_twice_and_none_lost(items, processes):
    whole = list(BatchSampler(EpochSampler(items, seed=0), 4, drop_last=False))
    shares = []
    for process in range(processes):
        batches = BatchSampler(EpochSampler(items, seed=0), 4, drop_last=False)
        shared = SharedBatches(batches, process=process, processes=processes)
        assert len(shared) == len(whole)
        shares.append(
            [[] if shared.is_repeated(n) else share for n, share in enumerate(list(shared))]
        )
    for number, batch in enumerate(whole):
        assert sorted(i for share in shares for i in share[number]) == sorted(batch)


def test_no_share_is_empty_since_all_take_every_step():
    batches = [[4, 5, 6], [7]]
    shared = SharedBatches(batches, process=2, processes=3)
    assert list(shared) == [[6], [7]]
    assert [shared.is_repeated(number) for number in range(2)] == [False, True]


def test_the_next_pass_forgets_what_was_repeated_in_the_last():
    batches = [[7]]
    shared = SharedBatches(batches, process=1, processes=2)
    list(shared)
    batches[0] = [7, 8]
    list(shared)
    assert not shared.is_repeated(0)


def test_a_loader_of_shares_goes_by_the_round_that_lightning_sets():
    data = TensorDataset(torch.arange(10))
    batches = StepBatches(10, batch_size=4, steps_per_round=3, seed=0)
    seen = []
    for process in range(2):
        loader = share_out(DataLoader(data, batch_sampler=batches), process=process, processes=2)
        shares_of(loader).sampler.set_epoch(5)
        seen += [value for (share,) in loader for value in share.tolist()]
    assert sorted(seen) == sorted(value for batch in batches for value in batch)


def test_a_process_beyond_the_last_is_refused():
    with pytest.raises(ValueError, match=r"process must be in \[0, 2\), got 2"):
        SharedBatches([], process=2, processes=2)
