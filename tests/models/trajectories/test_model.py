"""The decision models: causal, streamed exactly, and unchanged by padding."""

from typing import Any

import pytest
import torch
from torch import Tensor

from flowformer.models.trajectories.config import BehaviourCloningConfig, DecisionModelConfig
from flowformer.models.trajectories.model import BehaviourCloning, DecisionState
from flowformer.nn import MIXERS
from tests.conformance.cases import CASES, Case
from tests.models.trajectories.cases import (
    ACTION_DIM,
    NUM_ACTIONS,
    OBSERVATION_DIM,
    Steps,
    build,
    episode,
)

CAUSAL = [name for name, kind in MIXERS.items() if kind.capabilities.causal]
STATEFUL = [name for name in CAUSAL if MIXERS[name].capabilities.state]
STATELESS = [name for name in CAUSAL if name not in STATEFUL]
COMPARED = ["flow", "softmax", "linear"]
LENGTHS = (1, 4, 7)


def build_with(mixer: str, **changes: Any):
    options = dict(CASES.get(mixer, Case()).options)
    return build(mixer=mixer, mixer_options=options or None, **changes)


def build_cloning(*, discrete: bool = False, bounded: bool = True) -> BehaviourCloning:
    torch.manual_seed(1)
    model = BehaviourCloning(
        BehaviourCloningConfig(dim=16, num_layers=2),
        observation_dim=OBSERVATION_DIM,
        action_dim=None if discrete else ACTION_DIM,
        num_actions=NUM_ACTIONS if discrete else None,
        bounded=bounded,
    )
    return model.double().eval()


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def part(steps: Steps, places: Any) -> Steps:
    return {name: value[:, places] for name, value in steps.items()}


def padded(side: str, *, discrete: bool = False, length: int = 9) -> tuple[Steps, Tensor]:
    """Episodes of LENGTHS among NaN, and numbers that are no action and no time step."""
    batch = episode(length, rows=len(LENGTHS), discrete=discrete)
    mask = torch.zeros(len(LENGTHS), length, dtype=torch.bool)
    for value in batch.values():
        value.fill_(float("nan") if value.is_floating_point() else -7)
    for row, count in enumerate(LENGTHS):
        place = slice(0, count) if side == "right" else slice(length - count, None)
        mask[row, place] = True
        for name, value in alone(row, discrete=discrete).items():
            batch[name][row, place] = value[0]
    return batch, mask


def alone(row: int, *, discrete: bool) -> Steps:
    return episode(LENGTHS[row], rows=1, discrete=discrete, seed=row)


def stream(model: Any, steps: Steps, start: int = 0, states: DecisionState | None = None) -> Tensor:
    """The actions of single steps from `start` on, side by side."""
    out, actions = [], None
    for place in range(start, steps["timesteps"].shape[1]):
        now = {name: value[:, place] for name, value in steps.items()}
        action, states = model.step(
            now["returns_to_go"], now["observations"], actions, now["timesteps"], states
        )
        out.append(action)
        actions = now["actions"]
    return torch.stack(out, 1)


@pytest.mark.parametrize("mixer", CAUSAL)
def test_an_action_depends_on_its_observation_and_on_nothing_later(mixer: str) -> None:
    model, steps = build_with(mixer), episode(9)
    before = model(**steps).actions
    for start in (0, 4, 8):
        changed = {name: value.clone() for name, value in steps.items()}
        changed["actions"][:, start] += 0.5
        after = model(**changed).actions
        close(after[:, : start + 1], before[:, : start + 1], 1e-12)
        changed["observations"][:, start] += 1
        after = model(**changed).actions
        close(after[:, :start], before[:, :start], 1e-12)
        assert not after[:, start].allclose(before[:, start])


@pytest.mark.parametrize("name", ["returns_to_go", "observations", "actions", "timesteps"])
@pytest.mark.parametrize("mixer", COMPARED)
def test_an_action_depends_on_all_that_an_earlier_step_has(mixer: str, name: str) -> None:
    model, steps = build(mixer=mixer), episode(9)
    changed = {key: value.clone() for key, value in steps.items()}
    changed[name][:, 2] += 1
    assert not model(**changed).actions[:, -1].allclose(model(**steps).actions[:, -1])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("discrete", [False, True], ids=["box", "discrete"])
@pytest.mark.parametrize("mixer", COMPARED)
def test_padding_changes_neither_actions_nor_gradients_nor_state(
    mixer: str, discrete: bool, side: str
) -> None:
    model = build(mixer=mixer, discrete=discrete)
    batch, mask = padded(side, discrete=discrete)
    output = model(**batch, mask=mask, use_cache=True)
    assert not output.actions[~mask].any()
    output.actions.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    following = episode(10, rows=1, discrete=discrete, seed=9)
    for row in range(len(LENGTHS)):
        one = model(**alone(row, discrete=discrete), use_cache=True)
        close(output.actions[row, mask[row]], one.actions[0])
        one.actions.square().sum().backward()
        states = output.states.reorder(torch.tensor([row])).detach()
        close(
            model(**following, past_states=states).actions,
            model(**following, past_states=one.states.detach()).actions,
        )
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        assert gradient is not None
        assert parameter.grad is not None
        close(gradient, parameter.grad)


class TestStreaming:
    @pytest.mark.parametrize("mixer", STATEFUL)
    def test_single_steps_give_what_the_whole_episode_gives(self, mixer: str) -> None:
        model, steps = build_with(mixer, context=40), episode(31)
        close(stream(model, steps), model(**steps).actions)

    @pytest.mark.parametrize("mixer", COMPARED)
    def test_single_steps_go_on_past_the_context_of_training(self, mixer: str) -> None:
        model, steps = build(mixer=mixer, context=5), episode(31)
        close(stream(model, steps), model(**steps).actions)

    @pytest.mark.parametrize("mixer", COMPARED)
    def test_discrete_actions_are_streamed(self, mixer: str) -> None:
        model, steps = build(mixer=mixer, discrete=True), episode(9, discrete=True)
        logits = stream(model, steps)
        assert logits.shape == (2, 9, NUM_ACTIONS)
        close(logits, model(**steps).actions)

    @pytest.mark.parametrize("mixer", COMPARED)
    def test_pieces_then_single_steps_go_on_from_a_state(self, mixer: str, tmp_path) -> None:
        model, steps = build(mixer=mixer), episode(9)
        whole = model(**steps).actions
        first = model(**part(steps, slice(0, 3)), use_cache=True)
        second = model(**part(steps, slice(3, 6)), past_states=first.states, use_cache=True)
        torch.save(second.states, tmp_path / "state.pt")
        states = torch.load(tmp_path / "state.pt").to("cpu")
        close(second.actions, whole[:, 3:6])
        close(stream(model, steps, 6, states), whole[:, 6:])

    @pytest.mark.parametrize("mixer", COMPARED)
    def test_rows_of_ended_episodes_are_left_out(self, mixer: str) -> None:
        model, steps = build(mixer=mixer), episode(2, rows=3)
        first = {name: value[:, 0] for name, value in steps.items()}
        _, states = model.step(
            first["returns_to_go"], first["observations"], None, first["timesteps"], None
        )
        kept = torch.tensor([2, 0])
        second = {name: value[kept, 1] for name, value in steps.items()}
        action, _ = model.step(
            second["returns_to_go"],
            second["observations"],
            steps["actions"][kept, 0],
            second["timesteps"],
            states.reorder(kept),
        )
        close(action, model(**steps).actions[kept, 1])

    @pytest.mark.parametrize("mixer", STATELESS)
    def test_a_mixer_without_a_state_says_so(self, mixer: str) -> None:
        model = build_with(mixer)
        assert not model.has_state
        with pytest.raises(NotImplementedError, match=r"no state form.*Mixers that can: flow"):
            stream(model, episode(1))

    def test_a_softmax_state_grows_and_that_of_flow_does_not(self) -> None:
        assert build(mixer="softmax").state_grows
        assert not build().state_grows

    def test_whole_steps_cannot_follow_a_step_without_its_action(self) -> None:
        model, steps = build(), episode(2)
        states = DecisionState((), steps["timesteps"][:, 0])
        with pytest.raises(ValueError, match="wait for the action of their last step"):
            model(**steps, past_states=states)

    @pytest.mark.parametrize("waits", [True, False])
    def test_an_action_is_given_where_the_state_waits_for_one(self, waits: bool) -> None:
        model, steps = build(), episode(1)
        now = {name: value[:, 0] for name, value in steps.items()}
        states = DecisionState((), now["timesteps"]) if waits else None
        actions = None if waits else now["actions"]
        with pytest.raises(ValueError, match=f"got {'none' if waits else 'some'}"):
            model.step(now["returns_to_go"], now["observations"], actions, now["timesteps"], states)

    def test_a_state_of_a_deeper_model_is_refused(self) -> None:
        steps = episode(2)
        states = build(num_layers=3)(**steps, use_cache=True).states
        with pytest.raises(ValueError, match="of 2 layers, got those of 3"):
            build()(**steps, past_states=states)


@pytest.mark.parametrize("make", [build, build_cloning], ids=["transformer", "cloning"])
def test_actions_are_bounded_by_tanh_unless_they_have_no_bounds(make: Any) -> None:
    steps = episode(9)
    steps["observations"] *= 100
    bounded, free = make()(**steps).actions, make(bounded=False)(**steps).actions
    close(bounded, free.tanh())
    assert free.abs().max() > 1
    steps["actions"] = episode(9, discrete=True)["actions"]
    logits = make(discrete=True)(**steps).actions
    assert logits.shape == (2, 9, NUM_ACTIONS)
    assert logits.abs().max() > 1


class TestBehaviourCloning:
    def test_it_reads_the_observation_of_the_step_alone(self) -> None:
        model, steps, others = build_cloning(), episode(9), episode(9, seed=1)
        expected = model(**steps).actions
        close(model(**{**others, "observations": steps["observations"]}).actions, expected)
        close(stream(model, steps), expected)
        changed = steps["observations"].clone()
        changed[:, 4] += 1
        after = model(**{**steps, "observations": changed}).actions
        assert (after != expected).any(2).any(0).tolist() == [place == 4 for place in range(9)]

    def test_it_has_the_layers_of_the_decision_transformers_baseline(self) -> None:
        linear = [m for m in build_cloning().modules() if isinstance(m, torch.nn.Linear)]
        widths = [(layer.in_features, layer.out_features) for layer in linear]
        assert widths == [(OBSERVATION_DIM, 16), (16, 16), (16, ACTION_DIM)]

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding_changes_nothing(self, side: str) -> None:
        model = build_cloning()
        batch, mask = padded(side)
        actions = model(**batch, mask=mask).actions
        assert not actions[~mask].any()
        for row in range(len(LENGTHS)):
            close(actions[row, mask[row]], model(**alone(row, discrete=False)).actions[0])


@pytest.mark.usefixtures("shape_checks_off")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timesteps": torch.tensor([[0, 40]])}, "time step 40 is outside.*expected 0 to 39"),
        ({"timesteps": torch.tensor([[-1, 0]])}, "time step -1 is outside.*expected 0 to 39"),
        ({"timesteps": torch.zeros(1, 2)}, "expected timesteps.*integers, got .*float32"),
        ({"returns_to_go": torch.zeros(1, 3)}, r"returns_to_go \[1, 2\].*got \[1, 3\]"),
        ({"observations": torch.zeros(1, 2, 4)}, r"observations \[1, 2, 5\].*got \[1, 2, 4\]"),
        ({"actions": torch.zeros(1, 2, dtype=torch.long)}, r"actions \[1, 2, 3\], floating"),
        ({"mask": torch.ones(1, 2)}, r"a mask \[1, 2\] of bool.*got \[1, 2\] of torch.float32"),
        ({"mask": torch.ones(1, 3, dtype=torch.bool)}, r"a mask \[1, 2\] of bool.*got \[1, 3\]"),
    ],
    ids=["late", "early", "time", "returns", "observations", "actions", "numbers", "mask"],
)
def test_steps_that_mean_nothing_are_refused(changes: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()(**(episode(2, rows=1) | changes))


def test_an_action_outside_the_table_is_refused() -> None:
    steps = episode(2, rows=1, discrete=True)
    steps["actions"][0, 1] = 4
    with pytest.raises(ValueError, match="action 4 is outside the table: expected 0 to 3"):
        build(discrete=True)(**steps)


@pytest.mark.usefixtures("shape_checks_off")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"feedforward": 0}, "feedforward must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"context": 30, "max_timestep": 20}, "context must be at most max_timestep, got 30 and"),
        ({"activation": "tanh"}, "activation must be one of gelu, .*got 'tanh'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecisionModelConfig(**changes)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"observation_dim": 5}, "one of them, got action_dim=None and num_actions=None"),
        (
            {"observation_dim": 5, "action_dim": 3, "num_actions": 4},
            "one of them, got action_dim=3",
        ),
        ({"observation_dim": 0, "action_dim": 3}, "observation_dim must be at least 1, got 0"),
        ({"observation_dim": 5, "num_actions": 0}, "num_actions must be at least 1, got 0"),
    ],
    ids=["neither", "both", "no-observation", "no-action"],
)
def test_sizes_that_mean_nothing_are_refused(sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BehaviourCloning(BehaviourCloningConfig(), **sizes)


def test_a_mixer_without_a_causal_form_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="no causal form"):
        build(mixer="linformer")
