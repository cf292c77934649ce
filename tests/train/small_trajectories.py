"""Episodes of gymnasium's Pendulum or CartPole under chance, and an experiment on them."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from flowformer.data.trajectories.records import Space, Trajectories
from flowformer.models.trajectories.config import DecisionModelConfig
from flowformer.train.config import ScheduledOptimizerConfig, StepsConfig
from flowformer.train.trajectories.config import (
    DecisionDataConfig,
    TrajectoriesConfig,
    TrajectoriesEvaluationConfig,
)


def random_trajectories(
    env: str = "Pendulum-v1", *, episodes: int = 4, steps: int = 12, name: str = "tiny-v0"
) -> Trajectories:
    """Episodes of at most so many steps, of actions that are drawn."""
    made = gymnasium.make(env)
    box = isinstance(made.action_space, gymnasium.spaces.Box)
    made.action_space.seed(0)
    kept: dict[str, list[Any]] = {name: [] for name in ("observations", "actions", "rewards")}
    starts, ended = [], []
    for episode in range(episodes):
        starts.append(len(kept["rewards"]))
        observation, _ = made.reset(seed=episode)
        terminated = False
        for _ in range(steps):
            action = made.action_space.sample()
            kept["observations"].append(observation)
            kept["actions"].append(action)
            observation, reward, terminated, _, _ = made.step(action)
            kept["rewards"].append(reward)
            if terminated:
                break
        ended.append(terminated)
    made.close()
    space = Space(shape=(1,), low=-2.0, high=2.0) if box else Space(shape=(), n=2)
    arrays: dict[str, Any] = {
        "observations": np.array(kept["observations"], np.float32),
        "actions": np.array(kept["actions"], np.float32 if box else np.int64),
        "rewards": np.array(kept["rewards"], np.float32),
        "starts": np.array(starts),
        "terminated": np.array(ended),
    }
    return Trajectories(
        name=name,
        source="drawn",
        env=env,
        action_space=space,
        references=(-100.0, 0.0) if box else (0.0, 100.0),
        **arrays,
    )


def tiny_decisions(path: Path, *, evaluation: Any = None, **model: Any) -> TrajectoriesConfig:
    """`tiny_decisions(folder, mixer="softmax")`: fields of DecisionModelConfig by keyword."""
    sizes: dict[str, Any] = {"dim": 8, "num_layers": 1, "num_heads": 2, "context": 4}
    return TrajectoriesConfig(
        name="decision",
        data=DecisionDataConfig(path=path, batch_size=4, return_scale=10.0),
        model=DecisionModelConfig(**{**sizes, "max_timestep": 12, **model}),
        optimizer=ScheduledOptimizerConfig(learning_rate=1e-3, gradient_clip=0.25),
        training=StepsConfig(
            steps=4, evaluate_every=2, accelerator="cpu", threads=1, progress="none"
        ),
        evaluation=TrajectoriesEvaluationConfig(
            **{"episodes": 3, "validation_episodes": 1, **(evaluation or {})}
        ),
    )
