"""The published decision models: their parameters load and give what their equations give."""

import math
from pathlib import PurePosixPath

import pytest
import torch
from torch import Tensor

from flowformer.models.trajectories.config import DecisionModelConfig
from flowformer.models.trajectories.model import DecisionTransformer, load_published_decision_model
from tests.models.trajectories.cases import (
    ACTION_DIM,
    OBSERVATION_DIM,
    SMALL,
    build,
    episode,
    published_actions,
    published_shapes,
    with_gpt2_attention,
)

UNUSED = ("predict_state.", "predict_return.", "transformer.wte.")


def published_state() -> dict[str, Tensor]:
    shapes = published_shapes(
        dim=SMALL.dim,
        layers=SMALL.num_layers,
        observations=OBSERVATION_DIM,
        actions=ACTION_DIM,
        timesteps=SMALL.max_timestep,
    )
    return {name: torch.randn(shape).mul(0.4) for name, shape in shapes.items()}


def test_the_published_settings_have_the_published_parameters() -> None:
    model = DecisionTransformer(DecisionModelConfig(), observation_dim=11, action_dim=3)
    shapes = published_shapes(dim=256, layers=3, observations=11, actions=3, timesteps=1000)
    used = {name: shape for name, shape in shapes.items() if not name.startswith(UNUSED)}
    assert len(used) == len(list(model.parameters()))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == sum(math.prod(shape) for shape in used.values())


def test_the_first_values_are_the_published_ones() -> None:
    torch.manual_seed(0)
    model = DecisionTransformer(DecisionModelConfig(), observation_dim=11, action_dim=3)
    parameters = dict(model.named_parameters())
    assert parameters["timestep_embedding.weight"].std().item() == pytest.approx(1, rel=0.02)
    for name, parameter in model.blocks.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" not in name:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02), name


@pytest.mark.parametrize("mixer", ["flow", "softmax"])
def test_a_published_checkpoint_gives_what_the_published_equations_give(
    mixer: str, tmp_path
) -> None:
    state = published_state()
    if mixer == "softmax":
        state = with_gpt2_attention(state)
    torch.save(state, tmp_path / "model_10.pt")
    config = DecisionModelConfig(
        mixer=mixer, dim=24, num_layers=2, num_heads=3, context=9, max_timestep=40
    )
    model = load_published_decision_model(tmp_path / "model_10.pt", config).double().eval()
    wide = {name: value.double() for name, value in state.items()}
    steps = episode(9)
    expected = published_actions(wide, steps, heads=3)
    assert expected.std() > 0.1
    torch.testing.assert_close(model(**steps).actions, expected, rtol=0, atol=1e-9)


def test_every_problem_is_listed_and_nothing_is_loaded() -> None:
    state = published_state()
    del state["embed_ln.bias"]
    state["predict_reward.weight"] = torch.ones(1)
    state["embed_timestep.weight"] = torch.zeros(39, 24)
    model, untouched = build(), build()
    with pytest.raises(ValueError, match="not the parameters of a published decision") as caught:
        model.load_published_state_dict(state)
    for line in (
        "missing: embedding_norm.bias",
        "not known: predict_reward.weight",
        "embed_timestep.weight: expected (40, 24), got (39, 24)",
    ):
        assert line in str(caught.value)
    for name, value in untouched.state_dict().items():
        assert value.equal(model.state_dict()[name])


def test_parameters_of_another_attention_are_refused() -> None:
    message = "of a model with mixer='flow', got one with 'softmax'"
    with pytest.raises(ValueError, match=message):
        build(mixer="softmax").load_published_state_dict(published_state())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(1)}, r"no published decision model: no embed_state\.weight"),
        ({"epoch": 3}, "expected parameters and nothing else"),
        ({"model": {"weight": torch.zeros(1)}}, "expected parameters and nothing else"),
        (PurePosixPath("model"), "refused: it holds pathlib"),
    ],
    ids=["another", "no-parameters", "entry", "object"],
)
def test_another_file_is_refused(content: object, message: str, tmp_path) -> None:
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=message):
        load_published_decision_model(tmp_path / "other.pt")
