"""The published time-series classifier, written anew as a peer for timing.

The projections, transpositions and einsums of the code of Wu et al. (2022) in their order, with
padding that takes part in attention. Never used by the library.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PublishedAttention(nn.Module):
    """Projections and the bidirectional equations, without a clamp."""

    def __init__(self, dim: int, heads: int) -> None:
        """Make the four projections."""
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Attend: [b, t, dim] -> [b, t, dim]."""
        b, t, dim = x.shape
        q, k, v = (
            layer(x).view(b, t, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        q, k = torch.sigmoid(q), torch.sigmoid(k)
        row = 1.0 / torch.einsum("bhtd,bhd->bht", q + 1e-6, k.sum(2) + 1e-6)
        column = 1.0 / torch.einsum("bhtd,bhd->bht", k + 1e-6, q.sum(2) + 1e-6)
        sink = torch.einsum("bhtd,bhd->bht", q + 1e-6, (k * column[..., None]).sum(2) + 1e-6)
        source = torch.einsum("bhtd,bhd->bht", k + 1e-6, (q * row[..., None]).sum(2) + 1e-6)
        allocation, competition = torch.sigmoid(sink), torch.softmax(source, -1) * t
        key_value = k.transpose(-2, -1) @ (v * competition[..., None])
        out = (q @ key_value) * row[..., None] * allocation[..., None]
        return self.out(out.transpose(1, 2).contiguous().reshape(b, t, dim))


class PublishedLayer(nn.Module):
    """Post-norm, with the feed-forward part as 1 x 1 convolutions over transposed tokens."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float) -> None:
        """Make the parts."""
        super().__init__()
        self.attention = PublishedAttention(dim, heads)
        self.conv1, self.conv2 = nn.Conv1d(dim, feedforward, 1), nn.Conv1d(feedforward, dim, 1)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[b, t, dim] -> [b, t, dim]."""
        x = y = self.norm1(x + self.dropout(self.attention(x)))
        y = self.dropout(F.gelu(self.conv1(y.transpose(-1, 1))))
        return self.norm2(x + self.dropout(self.conv2(y).transpose(-1, 1)))


class PublishedClassifier(nn.Module):
    """Embedding, learned positions, two layers, flatten, one linear layer."""

    def __init__(self, channels: int, classes: int, max_length: int) -> None:
        """Make the model of the published settings."""
        super().__init__()
        dim, heads, feedforward, dropout = 512, 8, 2048, 0.1
        self.scale = dim**0.5
        self.embedding = nn.Linear(channels, dim)
        self.positions = nn.Parameter(torch.empty(max_length, 1, dim).uniform_(-0.02, 0.02))
        self.layers = nn.ModuleList(
            PublishedLayer(dim, heads, feedforward, dropout) for _ in range(2)
        )
        self.norm, self.dropout = nn.LayerNorm(dim), nn.Dropout(dropout)
        self.head = nn.Linear(dim * max_length, classes)

    def forward(self, inputs: Tensor, padding_mask: Tensor) -> Tensor:
        """[b, t, channels], [b, t] (True = real) -> [b, classes]."""
        x = self.embedding(inputs.permute(1, 0, 2)) * self.scale
        x = self.dropout(x + self.positions[: x.shape[0]]).permute(1, 0, 2)
        for layer in self.layers:
            x = layer(x)
        x = self.dropout(F.gelu(self.norm(x).permute(1, 0, 2)).permute(1, 0, 2))
        return self.head((x * padding_mask[..., None]).reshape(x.shape[0], -1))
