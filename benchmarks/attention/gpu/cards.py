"""What a card can do at most: datasheet numbers, for where nothing was measured."""

from dataclasses import dataclass

import torch

# Operations of a product in one of the dtype, in those of bfloat16: the kernels multiply float16,
# whose range is small, as TensorFloat-32, and float32 as three such products. See launch.py.
COST = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 6}


@dataclass(frozen=True, kw_only=True)
class Card:
    """Bytes a second of its memory, and dense bfloat16 operations a second."""

    bandwidth: float
    flop: float

    def seconds(self, moved: int, flop: int, dtype: torch.dtype) -> float:
        """Return the time that a pass takes at least."""
        return max(moved / self.bandwidth, COST[dtype] * flop / self.flop)


# By what the driver calls them. NVIDIA's datasheets, without sparsity.
CARDS = {
    "NVIDIA A100-SXM4-40GB": Card(bandwidth=1.555e12, flop=312e12),
    "NVIDIA A100-SXM4-80GB": Card(bandwidth=2.039e12, flop=312e12),
    "NVIDIA A100 80GB PCIe": Card(bandwidth=1.935e12, flop=312e12),
    "NVIDIA H100 80GB HBM3": Card(bandwidth=3.35e12, flop=989e12),
    "NVIDIA H100 PCIe": Card(bandwidth=2.0e12, flop=756e12),
    "NVIDIA H200": Card(bandwidth=4.8e12, flop=989e12),
    "NVIDIA L40S": Card(bandwidth=0.864e12, flop=362e12),
}
H100, A100 = CARDS["NVIDIA H100 80GB HBM3"], CARDS["NVIDIA A100-SXM4-80GB"]
