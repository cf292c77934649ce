# %% [markdown]
# # A decision model
#
# Offline reinforcement learning as sequence modelling: a model reads episodes that somebody has
# played, good and bad ones, each step with the return that was still to come. Asked for a return,
# it acts as those did who got it.
#
# The task is CartPole: a pole on a cart is to be kept upright, and each step that it stands is
# worth 1, up to 500. It needs `pip install 'flowformer[rl]'`. (What stands behind `# quick:` are
# the values of a test of this file.)

# %%
from dataclasses import replace
from pathlib import Path

import gymnasium
import matplotlib.pyplot as plt
import numpy as np

from flowformer.data.trajectories.records import Space, Trajectories
from flowformer.recipes import build_recipe
from flowformer.report.trajectories import returns_figure
from flowformer.rollouts.scores import evaluate_returns
from flowformer.train.run import load_run, train
from flowformer.train.trajectories.data import rollout_settings

# %% [markdown]
# Players of all qualities: each pushes the cart to where the pole falls, but for a part of its
# steps it pushes at random.

# %%
episodes = 300  # quick: 12
rng = np.random.default_rng(0)
env = gymnasium.make("CartPole-v1")
steps, starts, fallen = [], [], []
for number in range(episodes):
    luck = rng.uniform(0.1, 1.0)
    observation, _ = env.reset(seed=number)
    starts.append(len(steps))
    ended = cut = False
    while not (ended or cut):
        falls_right = observation[2] + 0.5 * observation[3] > 0
        action = int(rng.integers(2) if rng.random() < luck else falls_right)
        steps.append((observation, action))
        observation, _, ended, cut, _ = env.step(action)
    fallen.append(ended)

data = Trajectories(
    name="cartpole-mixed",
    source="played by policies of all qualities",
    env="CartPole-v1",
    observations=np.array([seen for seen, _ in steps], np.float32),
    actions=np.array([action for _, action in steps], np.int64),
    rewards=np.ones(len(steps), np.float32),
    starts=np.array(starts, np.int64),
    terminated=np.array(fallen),
    action_space=Space(shape=(), n=2),
    references=(22.0, 500.0),  # of a random policy, and the best that there is
)
data.save(Path("cartpole"))
print(f"{len(data)} episodes, returns {data.returns.min():.0f} to {data.returns.max():.0f}")

figure, panel = plt.subplots(figsize=(5, 2.2), layout="constrained")
panel.hist(data.returns, bins=40)
panel.set(xlabel="return of an episode", ylabel="episodes")
figure

# %% [markdown]
# The recipe reads windows of 20 steps: return still to come, observation, action, and so on.

# %%
training_steps = 600  # quick: 2
played = 10  # quick: 1
targets = (450.0, 300.0, 150.0, 50.0)
recipe = build_recipe("decision-small")
config = replace(
    recipe,
    data=replace(recipe.data, path=Path("cartpole"), return_scale=100.0),
    training=replace(recipe.training, steps=training_steps, evaluate_every=training_steps // 2),
    evaluation=replace(recipe.evaluation, targets=targets, episodes=played, validation_episodes=1),
)
train(config, "runs/cartpole")

# %% [markdown]
# Asked for different returns, it plays differently.

# %%
run = load_run("runs/cartpole")
outcomes = evaluate_returns(
    run.model,
    lambda: gymnasium.make("CartPole-v1"),
    targets=targets,
    seeds=[7],
    episodes=played,
    settings=rollout_settings(run.record.config, run.preprocessing),
)
for one in outcomes:
    print(f"asked for {one.target_return:.0f}: {one.returns.mean():.0f} ± {one.returns.std():.0f}")

points = [
    {"target": one.target_return, "mean": one.returns.mean(), "std": one.returns.std()}
    for one in outcomes
]
worst, mean, best = data.returns.min(), data.returns.mean(), data.returns.max()
figure = returns_figure({"flow": points}, behaviour=(worst, mean, best))
figure.savefig("decision-model.png", dpi=110)
figure
