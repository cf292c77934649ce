"""The experiments on trajectories as they were published, and the small ones."""

from flowformer.data.options import D4RL_ENVIRONMENTS
from flowformer.data.trajectories.environments import REFERENCES
from flowformer.models.trajectories.model import DecisionTransformer
from flowformer.recipes import RECIPES, trajectories
from flowformer.train.prediction import count_parameters


def test_there_is_a_recipe_for_each_of_the_nine_published_sets():
    names = {
        f"{env}-{quality}"
        for env in ("halfcheetah", "hopper", "walker2d")
        for quality in ("medium-expert", "medium", "medium-replay")
    }
    assert names <= set(RECIPES)
    for name in names:
        config = trajectories.RECIPES[name]()
        optimizer, model, own = config.optimizer, config.model, config.evaluation
        assert config.name == name
        assert (model.mixer, model.dim, model.num_layers, model.num_heads) == ("flow", 256, 3, 4)
        assert (model.context, model.activation, model.dropout) == (20, "relu", 0.1)
        assert (optimizer.name, optimizer.learning_rate, optimizer.warmup) == ("adamw", 1e-3, 10000)
        assert (optimizer.weight_decay, optimizer.gradient_clip) == (1e-4, 0.25)
        assert optimizer.rate_at(10_000, 100_000) == optimizer.rate_at(99_999, 100_000) == 1
        assert (config.training.steps, config.data.batch_size) == (100_000, 64)
        assert (own.form, own.episodes, own.env) == (
            "windowed",
            100,
            D4RL_ENVIRONMENTS[name.partition("-")[0]],
        )
    assert trajectories.RECIPES["hopper-medium"]().evaluation.targets == (3600.0, 1800.0)


def test_every_environment_of_d4rl_has_references_and_targets():
    assert set(REFERENCES) == set(D4RL_ENVIRONMENTS) == set(trajectories.TARGETS)


def test_every_recipe_of_trajectories_is_listed_under_its_name():
    assert {name: RECIPES[name]().name for name in trajectories.RECIPES} == {
        name: name for name in trajectories.RECIPES
    }


def test_the_form_that_streams_is_trained_on_more_steps_at_once():
    short, long = (
        trajectories.RECIPES[name]() for name in ("decision-small", "decision-small-long")
    )
    assert (short.evaluation.form, long.evaluation.form) == ("windowed", "streaming")
    assert long.model.context > short.model.context
    tokens = [config.model.context * config.data.batch_size for config in (short, long)]
    assert abs(tokens[0] - tokens[1]) <= 0.5 * tokens[0]  # a step of either sees about as much


def test_the_small_model_is_small():
    config = trajectories.decision_small()
    model = DecisionTransformer(config.model, observation_dim=11, action_dim=3)
    assert count_parameters(model) < 250_000
