"""The order of the samples in each epoch."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """A shuffled order that depends on the seed and the epoch only.

    A run that goes on at the start of an epoch needs nothing but the number of that epoch.
    """

    def __init__(self, size: int, seed: int) -> None:
        """Start at the beginning of epoch 0.

        Args:
            size: Number of samples.
            seed: Of the order.
        """
        self.size = size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        """Samples in a whole epoch."""
        return self.size

    def __iter__(self) -> Iterator[int]:
        """The order of this epoch."""
        # numpy mixes the pair into one seed; a sum would give (1, 2) and (2, 1) the same order.
        rng = np.random.default_rng([self.seed, self.epoch])
        return iter(rng.permutation(self.size).tolist())

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch. Lightning calls this before each."""
        self.epoch = epoch
