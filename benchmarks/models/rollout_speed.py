"""Does a step of a rollout cost the same at the start and after 1,000 others?

    python -m benchmarks rollout_speed --threads 1

The published Decision Flowformer (width 256, 3 layers, 4 heads; random parameters) and the same
model with softmax each act for one episode of 1,000 steps, once with a state carried on and once
with the last 20 steps read again at every step, as published. The sides take turns step by step, so
that a disturbance hits all. It is the model's time alone, with the scaling of what it reads:
observations and rewards are random, of Hopper's sizes, and no environment runs.
"""

import time
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from benchmarks.pages import Tables, machine_of
from benchmarks.runner import Result, ends, over_rounds, pin, save, share
from flowformer.data.trajectories.batches import DecisionPreprocessing
from flowformer.data.trajectories.records import Space
from flowformer.models.trajectories.config import DecisionModelConfig
from flowformer.models.trajectories.model import DecisionTransformer
from flowformer.report.words import to_markdown
from flowformer.rollouts.policy import Form, Policy, make_policy

FEATURES, ACTIONS = 11, 3  # Hopper's
SCALE = 1000.0
TARGET = 3600.0
AT_ENDS = 100  # steps over which the median at either end is taken
MIXERS = ("flow", "softmax")
FORMS: tuple[Form, ...] = ("streaming", "windowed")


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of what is compared."""

    mixer: str
    form: Form

    @property
    def name(self) -> str:
        """Its name in the results."""
        return f"{self.mixer} {self.form}"


SIDES = [Side(mixer=mixer, form=form) for mixer, form in product(MIXERS, FORMS)]


def numbers() -> DecisionPreprocessing:
    """Return a preprocessing of Hopper's sizes."""
    return DecisionPreprocessing(
        state_mean=np.zeros(FEATURES),
        state_std=np.ones(FEATURES),
        return_scale=SCALE,
        action_space=Space(shape=(ACTIONS,), low=-1.0, high=1.0),
    )


def policies(config: DecisionModelConfig, sides: list[Side]) -> dict[str, Policy]:
    """Return what acts on each side, at the beginning of its episodes; one model for a mixer."""
    models = {}
    for mixer in dict.fromkeys(side.mixer for side in sides):
        torch.manual_seed(0)
        settings = DecisionModelConfig(
            mixer=mixer,
            dim=config.dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            context=config.context,
            max_timestep=config.max_timestep,
        )
        model = DecisionTransformer(settings, observation_dim=FEATURES, action_dim=ACTIONS)
        models[mixer] = model.eval()
    return {
        side.name: make_policy(
            models[side.mixer],
            numbers(),
            form=side.form,
            context=config.context if side.form == "windowed" else None,
        )
        for side in sides
    }


def act(sides: dict[str, Policy], steps: int, batch: int) -> dict[str, list[float]]:
    """Return the seconds of each step, the sides taking turns at it."""
    random = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    left = np.full(batch, TARGET)
    for _ in range(steps):
        observations = random.standard_normal((batch, FEATURES))
        for name, policy in sides.items():
            start = time.perf_counter()
            policy.act(observations, left)
            seconds[name].append(time.perf_counter() - start)
        left = left - random.uniform(0, 4, batch)
    return seconds


def summarize(seconds: list[float], batch: int, at_ends: int) -> dict[str, float]:
    """Return the medians of the first and the last steps, their ratio, and steps per second."""
    return ends(seconds, at_ends) | {"steps_per_second": batch * len(seconds) / sum(seconds)}


def measure(
    config: DecisionModelConfig, *, steps: int, batch: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Time all sides for whole episodes; return the medians over the rounds."""
    at_ends = min(AT_ENDS, max(1, steps // 2))
    summaries: dict[str, list[dict[str, float]]] = {side.name: [] for side in SIDES}
    act(policies(config, SIDES), min(10, steps), batch)  # the first time only loads code
    for turn in range(rounds):
        for name, seconds in act(policies(config, SIDES), steps, batch).items():
            summary = summarize(seconds, batch, at_ends)
            summaries[name].append(summary)
            print(
                f"{batch} at a time, round {turn + 1}, {name}: {summary['first_ms']:.2f} ms a step "
                f"at first, {summary['last_ms']:.2f} at last ({summary['last_over_first']:.2f} "
                f"times), {summary['steps_per_second']:.0f} steps/s",
                flush=True,
            )
    return over_rounds(summaries)


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, "rollout_speed", rounds=3, threads=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="episodes at once")


def execute(arguments: Namespace) -> None:
    """Measure, print and save."""
    pin(arguments.threads)
    config = DecisionModelConfig(max_timestep=arguments.steps)
    result = {
        "model": {"dim": config.dim, "layers": config.num_layers, "heads": config.num_heads},
        "context": config.context,
        "steps": arguments.steps,
        "steps_at_each_end": min(AT_ENDS, arguments.steps // 2),
        "rounds": arguments.rounds,
        "batches": {
            str(batch): measure(config, steps=arguments.steps, batch=batch, rounds=arguments.rounds)
            for batch in arguments.batches
        },
    }
    save(arguments.output, result)


def table(result: Result) -> str:
    """Return the time of a step at either end of an episode, and steps per second."""
    forms = {
        "streaming": {"flow": "state carried on", "softmax": "cache carried on, which grows"},
        "windowed": dict.fromkeys(("flow", "softmax"), f"last {result['context']} steps again"),
    }
    ends = result["steps_at_each_end"]
    header = ["episodes at once", "mixer", "form", "steps/s", f"ms a step, first {ends}"]
    header += [f"last {ends}", "last / first"]
    rows = []
    for batch, sides in result["batches"].items():
        for name, figures in sides.items():
            mixer, form = name.split()
            rows.append(
                [
                    batch,
                    f"`{mixer}`",
                    f"{form}: {forms[form][mixer]}",
                    f"{figures['steps_per_second']:,.0f}",
                    *(f"{figures[figure]:.2f}" for figure in ("first_ms", "last_ms")),
                    f"{figures['last_over_first']:.2f}",
                ]
            )
    return to_markdown(header, rows).rstrip()


def circumstances(result: Result) -> str:
    """Return what it was measured on, in a sentence."""
    return f"{machine_of(result)}; medians of {result['rounds']} rounds."


TABLES: Tables = {"rollout_speed": table, "rollout_speed_machine": circumstances}
