"""`flowformer data collect ENV`, and what `flowformer data show` says of sets of trajectories."""

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from flowformer.cli.parsing import parse
from flowformer.data.options import NOT_D4RL
from flowformer.data.standins import CollectionConfig, CollectionOptions, collect, search_of
from flowformer.data.trajectories.environments import references_of
from flowformer.data.trajectories.minari import minari_folder, open_trajectories
from flowformer.data.trajectories.records import Space, Trajectories, normalized_score
from flowformer.machine import available_processors

_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class CollectFlags(CollectionOptions):
    """Collect a data set for offline reinforcement learning, in Minari's format.

    Augmented random search finds a linear policy, which is kept: the next quality takes the same,
    if env, seed, iterations and seconds are the same. What was stopped goes on. Random actions need
    the search too, for the reference returns that scores are relative to.

    Attributes:
        env: gymnasium's name of the environment: Hopper-v5.
        iterations: iterations of the search; by default what took minutes for known environments.
        seconds: after which the search stops too; how far it comes is a matter of the machine.
        seed: seed of the search and of the episodes.
        workers: processes that play; as many as cores by default. The set is the same with any.
        output: folder of the set; by default its name below Minari's folder.
    """

    env: str
    iterations: int | None = None
    seconds: float | None = None
    seed: int = 0
    workers: int | None = None
    output: Path | None = None


def main(arguments: Sequence[str]) -> int:
    """Collect a set and say what is in it."""
    options = parse(CollectFlags, arguments, prog="flowformer data collect")
    config = CollectionConfig(
        search=search_of(options.env, seed=options.seed, iterations=options.iterations),
        **{one.name: getattr(options, one.name) for one in fields(CollectionOptions)},
    )
    data, folder = collect(
        config,
        folder=options.output,
        workers=available_processors() if options.workers is None else options.workers,
        seconds=options.seconds,
    )
    name = data.name if options.output is None else folder
    sys.stdout.write(f"{describe(data, folder)}\nNext: flowformer data show {name}\n")
    return 0


def is_trajectories(name: str) -> bool:
    """Return whether a set of trajectories goes by that name or lies there."""
    path = Path(name)
    if path.suffix in (".hdf5", ".h5"):
        return True
    return (path / "terminated.npy").is_file() or minari_folder(name) is not None


def show(name: str, **options: Any) -> int:
    """Say what is in a set; options are those of `open_trajectories`."""
    data = open_trajectories(name, **options)
    sys.stdout.write(describe(data, minari_folder(name) or Path(name)))
    return 0


def describe(data: Trajectories, folder: Path) -> str:
    """Return a table of episodes and returns, beside D4RL's where the environment is theirs."""
    returns, lengths = data.returns, data.lengths
    rows = [
        ("environment", data.env_options.in_words(data.env or "unknown")),
        ("observations", f"{data.observations.shape[1]} features"),
        ("actions", _in_words(data.action_space)),
        ("steps", f"{data.steps:,}"),
        ("episodes", f"{len(data):,}"),
        ("ended by the environment", f"{data.terminated.mean():.1%}"),
        ("length", _spread(lengths)),
        ("return", _spread(returns)),
        ("mean return", f"{returns.mean():,.1f} ± {returns.std():,.1f}"),
    ]
    if data.references is not None:
        rows += [
            ("references", f"random {data.references[0]:,.1f}, expert {data.references[1]:,.1f}"),
            ("mean score", f"{data.normalized(float(returns.mean())):.1f}"),
        ]
    theirs = references_of(data.env, data.name)
    if theirs is not None and theirs != data.references:
        score = normalized_score(float(returns.mean()), theirs)
        rows += [
            ("D4RL's references", f"random {theirs[0]:,.1f}, expert {theirs[1]:,.1f}"),
            ("mean score by D4RL's", f"{score:.1f}"),
        ]
    lines = [f"{name:<26}{text}" for name, text in rows]
    if theirs is not None and NOT_D4RL not in data.source:
        lines += ["", NOT_D4RL]
    source = textwrap.wrap(data.source, _WIDTH)
    return "\n".join([f"{data.name}, in {folder}", *source, "", *lines, ""])


def _in_words(space: Space) -> str:
    if space.n is not None:
        return f"{space.n} discrete"
    return f"{space.shape[0]} between {space.low} and {space.high}"


def _spread(values: np.ndarray) -> str:
    return (
        f"{values.min():,.0f} to {values.max():,.0f}, median {np.median(values):,.0f}, mean "
        f"{values.mean():,.0f}"
    )
