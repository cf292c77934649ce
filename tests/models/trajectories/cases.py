"""Small decision models and episodes for the tests, and the published equations written out."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flowformer.models.trajectories.config import DecisionModelConfig
from flowformer.models.trajectories.model import DecisionTransformer

SMALL = DecisionModelConfig(dim=24, num_layers=2, num_heads=3, context=9, max_timestep=40)
OBSERVATION_DIM, ACTION_DIM, NUM_ACTIONS = 5, 3, 4

Steps = dict[str, Tensor]


def build(*, discrete: bool = False, bounded: bool = True, **changes: Any) -> DecisionTransformer:
    """A model with parameters large enough to tell its parts apart."""
    torch.manual_seed(1)
    model = DecisionTransformer(
        replace(SMALL, **changes),
        observation_dim=OBSERVATION_DIM,
        action_dim=None if discrete else ACTION_DIM,
        num_actions=NUM_ACTIONS if discrete else None,
        bounded=bounded,
    )
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.mul_(8)
    return model.double().eval()


def episode(steps: int, *, rows: int = 2, discrete: bool = False, seed: int = 0) -> Steps:
    """The arguments of `forward` for whole episodes."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    indices = torch.randint(NUM_ACTIONS, (rows, steps), generator=generator)
    return {
        "returns_to_go": numbers(rows, steps),
        "observations": numbers(rows, steps, OBSERVATION_DIM),
        "actions": indices if discrete else numbers(rows, steps, ACTION_DIM).tanh(),
        "timesteps": torch.arange(steps).repeat(rows, 1),
    }


def published_shapes(
    *, dim: int, layers: int, observations: int, actions: int, timesteps: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what the published training saves."""
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (1, dim),
        "embed_timestep.weight": (timesteps, dim),
    }
    linear = {
        "embed_return": (dim, 1),
        "embed_state": (dim, observations),
        "embed_action": (dim, actions),
        "predict_state": (observations, dim),
        "predict_action.0": (actions, dim),
        "predict_return": (1, dim),
    }
    norms = ["embed_ln", "transformer.ln_f"]
    for layer in range(layers):
        block = f"transformer.h.{layer}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        for part in ("query", "key", "value", "out"):
            linear[f"{block}.attn.att.{part}_projection"] = (dim, dim)
        # GPT-2 stores its matrices as [inputs, outputs].
        shapes[f"{block}.mlp.c_fc.weight"] = (dim, 4 * dim)
        shapes[f"{block}.mlp.c_fc.bias"] = (4 * dim,)
        shapes[f"{block}.mlp.c_proj.weight"] = (4 * dim, dim)
        shapes[f"{block}.mlp.c_proj.bias"] = (dim,)
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}
    return shapes


def with_gpt2_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of a Decision Transformer that has these projections."""
    renamed = {name: value for name, value in state.items() if ".attn.att." not in name}
    for name, value in state.items():
        block, found, part = name.partition(".attn.att.query_projection.")
        if found:
            thirds = [state[f"{block}.attn.att.{n}_projection.{part}"] for n in ("key", "value")]
            renamed[f"{block}.attn.c_attn.{part}"] = torch.cat((value, *thirds)).t()
            out = state[f"{block}.attn.att.out_projection.{part}"]
            renamed[f"{block}.attn.c_proj.{part}"] = out.t()
            renamed[f"{block}.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8).tril()
            renamed[f"{block}.attn.masked_bias"] = torch.tensor(-1e4)
    return renamed


def published_actions(state: Mapping[str, Tensor], steps: Steps, *, heads: int) -> Tensor:
    """What the published module predicts, its equations written out; Flow-Attention or softmax."""
    place = state["embed_timestep.weight"][steps["timesteps"]]
    given = {
        "embed_return": steps["returns_to_go"][..., None],
        "embed_state": steps["observations"],
        "embed_action": steps["actions"],
    }
    tokens = [_linear(state, name, value) + place for name, value in given.items()]
    x = _norm(state, "embed_ln", torch.stack(tokens, 2).flatten(1, 2))
    layer = 0
    while f"transformer.h.{layer}.ln_1.weight" in state:
        block = f"transformer.h.{layer}"
        x = x + _attention(state, f"{block}.attn", _norm(state, f"{block}.ln_1", x), heads)
        hidden = _conv1d(state, f"{block}.mlp.c_fc", _norm(state, f"{block}.ln_2", x)).relu()
        x = x + _conv1d(state, f"{block}.mlp.c_proj", hidden)
        layer += 1
    x = _norm(state, "transformer.ln_f", x)
    return _linear(state, "predict_action.0", x[:, 1::3]).tanh()


def _attention(state: Mapping[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    if f"{name}.c_attn.weight" in state:
        parts = _conv1d(state, f"{name}.c_attn", x).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        out = scores.masked_fill(future, -1e4).softmax(-1) @ v
        return _conv1d(state, f"{name}.c_proj", out.transpose(1, 2).flatten(2))
    q, k, v = (
        _linear(state, f"{name}.att.{part}_projection", x)
        .unflatten(-1, (heads, -1))
        .transpose(1, 2)
        for part in ("query", "key", "value")
    )
    out = _causal_flow(q.sigmoid(), k.sigmoid(), v).transpose(1, 2).flatten(2)
    return _linear(state, f"{name}.att.out_projection", out)


def _causal_flow(q: Tensor, k: Tensor, v: Tensor, eps: float = 1e-6, clamp: float = 10) -> Tensor:
    seen = torch.arange(1, q.shape[2] + 1, dtype=q.dtype)
    incoming = seen / ((q + eps) * (k.cumsum(2) + eps)).sum(-1)
    outgoing = seen / ((k + eps) * (q.cumsum(2) + eps)).sum(-1)
    sink = ((q + eps) * ((k * outgoing[..., None]).cumsum(2) + eps)).sum(-1) / seen
    source = ((k + eps) * ((q * incoming[..., None]).cumsum(2) + eps)).sum(-1) / seen
    weight = source.clamp(-clamp, clamp).exp()
    competition = weight / weight.cumsum(-1) * seen
    memory = torch.einsum("bhtd,bhtm->bhtdm", k, v * competition[..., None]).cumsum(2)
    out = torch.einsum("bhtd,bhtdm->bhtm", q * (incoming / seen)[..., None], memory)
    return out * sink.sigmoid()[..., None]


def _linear(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _conv1d(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"] + state[f"{name}.bias"]


def _norm(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])
