"""The published equations, written anew as peers: [b, h, t, d] in and out, without projections.

Facts of the code of Wu et al. (2022), `Flow_Attention` and `Flow_Attention_Causal`: an einsum for
each flow, running sums by cumsum, and in the causal form the outer product k vᵀ of every token,
[b, h, t, d, m], summed along the time. Never used by the library.
"""

import torch
from torch import Tensor

EPS = 1e-6


def bidirectional(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The form without order."""
    q, k = torch.sigmoid(query), torch.sigmoid(key)
    sinks, sources = q.shape[2], k.shape[2]
    row = 1.0 / torch.einsum("bhtd,bhd->bht", q + EPS, k.sum(2) + EPS)
    column = 1.0 / torch.einsum("bhtd,bhd->bht", k + EPS, q.sum(2) + EPS)
    sink = torch.einsum("bhtd,bhd->bht", q + EPS, (k * column[..., None]).sum(2) + EPS)
    source = torch.einsum("bhtd,bhd->bht", k + EPS, (q * row[..., None]).sum(2) + EPS)
    allocation = torch.sigmoid(sink * (sinks / sources))
    competition = torch.softmax(source.clamp(-1.0, 1.0), -1) * sources
    key_value = torch.einsum("bhtd,bhtm->bhdm", k, value * competition[..., None])
    out = torch.einsum("bhtd,bhdm->bhtm", q * row[..., None], key_value)
    return out * allocation[..., None]


def causal(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The causal form, with its [b, h, t, d, m] tensor."""
    q, k = torch.sigmoid(query), torch.sigmoid(key)
    n = torch.arange(1.0, q.shape[2] + 1.0, device=q.device)
    row = n / torch.einsum("bhtd,bhtd->bht", q + EPS, k.cumsum(2) + EPS)
    column = n / torch.einsum("bhtd,bhtd->bht", k + EPS, q.cumsum(2) + EPS)
    key_flow = (k * column[..., None]).cumsum(2) + EPS
    query_flow = (q * row[..., None]).cumsum(2) + EPS
    sink = torch.einsum("bhtd,bhtd->bht", q + EPS, key_flow) / n
    source = torch.einsum("bhtd,bhtd->bht", k + EPS, query_flow) / n
    weight = torch.exp(source.clamp(-1.0, 1.0))
    competition = weight / weight.cumsum(-1) * n
    key_value = torch.einsum("bhtd,bhtm->bhtdm", k, value * competition[..., None]).cumsum(2)
    out = torch.einsum("bhtd,bhtdm->bhtm", q * (row / n)[..., None], key_value)
    return out * torch.sigmoid(sink)[..., None]
