"""Policies that data are collected with: linear ones, found by augmented random search."""

import json
import re
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float, Float64

from flowformer.data.files import data_cache, digest, require_same
from flowformer.data.parallel import Workers, generator_of
from flowformer.data.standins.episodes import (
    LinearPolicy,
    Rollout,
    environment_of,
    mean_score,
    roll_out,
)
from flowformer.data.trajectories.environments import feature_count
from flowformer.files import atomic_file, parse_json, remove_unfinished, write_atomically
from flowformer.names import check_sizes
from flowformer.progress import working

_SETTINGS = "search.json"
_STATE = "state.npz"
_SEEDS = 2**31
_PERFECT_TRIALS = 3
_SMALLEST_SCALE = 1e-6  # of a feature that never changes


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Augmented random search, version V2-t (Mania, Guy, Recht 2018, algorithm 2).

    Attributes:
        env: gymnasium's name of the environment.
        seed: seed of everything that is drawn.
        iterations: updates of the policy.
        directions: N, tried forwards and backwards in each iteration.
        top: b, the directions that an update is made of.
        step_size: α.
        noise: ν, the standard deviation of the weights that are tried.
        alive_bonus: taken off the reward of each step in the search: a policy that only stands
            still collects it, and is hard to leave.
        evaluate_every: iterations between policies that are tried without noise.
        evaluations: episodes of such a trial.
    """

    env: str
    seed: int = 0
    iterations: int = 300
    directions: int = 8
    top: int = 4
    step_size: float = 0.02
    noise: float = 0.03
    alive_bonus: float = 0.0
    evaluate_every: int = 5
    evaluations: int = 8

    def __post_init__(self) -> None:
        check_sizes(self, "iterations", "directions", "top", "evaluate_every", "evaluations")
        for name in ("step_size", "noise"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.top > self.directions:
            raise ValueError(
                f"top must be at most directions, got top={self.top} and "
                f"directions={self.directions}"
            )


# Found here, for some minutes on one core: fewer directions and larger steps than the paper's. The
# bonus for being alive is left out of Hopper, as there; Hopper is learned so fast that it is tried
# more often.
SEARCHES: dict[str, SearchConfig] = {
    "Hopper-v5": SearchConfig(
        env="Hopper-v5",
        iterations=60,
        step_size=0.05,
        noise=0.05,
        alive_bonus=1.0,
        evaluate_every=2,
    ),
    "HalfCheetah-v5": SearchConfig(env="HalfCheetah-v5", iterations=40),
    # Here the bonus stays: without it nothing better than a random policy was found.
    "Walker2d-v5": SearchConfig(
        env="Walker2d-v5", iterations=100, directions=20, top=10, step_size=0.03, noise=0.025
    ),
}


def search_of(env: str, *, seed: int = 0, iterations: int | None = None) -> SearchConfig:
    """Return the settings of an environment, by default those of `SearchConfig`."""
    config = replace(SEARCHES.get(env, SearchConfig(env=env)), seed=seed)
    return config if iterations is None else replace(config, iterations=iterations)


@dataclass(kw_only=True, eq=False)
class Search:
    """How far a search has come.

    Attributes:
        weights: weights of normalised observations, [a, o].
        seen: number of observations so far.
        mean: mean of them.
        squares: sums of their squared distances from the mean.
        gains: gains of the policy after each iteration.
        offsets: likewise.
        scores: scores of the policy after each iteration; NaN where it was not tried.
        seconds: that it took so far.
    """

    weights: Float64[np.ndarray, "a o"]
    seen: int
    mean: Float64[np.ndarray, " o"]
    squares: Float64[np.ndarray, " o"]
    gains: list[Float64[np.ndarray, "a o"]]
    offsets: list[Float64[np.ndarray, " a"]]
    scores: list[float]
    seconds: float = 0.0

    @property
    def iterations(self) -> int:
        """Done so far."""
        return len(self.scores)

    @property
    def best(self) -> int:
        """The iteration whose policy had the highest score."""
        return int(np.nanargmax(self.scores))

    def is_perfect(self, threshold: float | None) -> bool:
        """Return whether nothing is left to be found: the last trials all had the best return.

        Each trial has other episodes, so no start and no policy comes to another return any more.
        That everything fails alike is told by the threshold, or by no worse return before.

        Args:
            threshold: the return from which on the environment counts as solved, if known.
        """
        tried = [score for score in self.scores if not np.isnan(score)]
        last = tried[-_PERFECT_TRIALS:]
        if len(last) < _PERFECT_TRIALS or len({*last, max(tried)}) > 1:
            return False
        return last[0] > min(tried) if threshold is None else last[0] >= threshold

    def ranked(self, count: int) -> list[int]:
        """Return the iterations with the highest scores, the highest first."""
        tried = np.flatnonzero(np.isfinite(self.scores))
        order = np.argsort(-np.asarray(self.scores)[tried], kind="stable")
        return tried[order][:count].tolist()

    def nearest(self, score: float) -> int:
        """Return the iteration whose score is nearest to one, up to the first that reaches it."""
        scores = np.nan_to_num(self.scores, nan=-np.inf)
        reached = np.flatnonzero(scores >= score)
        last = int(reached[0]) if len(reached) else self.best
        return int(np.argmin(np.abs(scores[: last + 1] - score)))

    def policy(self, iteration: int) -> LinearPolicy:
        """As it was after an iteration."""
        return LinearPolicy(self.gains[iteration], self.offsets[iteration])


def search_folder(config: SearchConfig) -> Path:
    """Return where a search is kept by default; one with more iterations goes on with it."""
    return data_cache() / "behaviour" / f"{as_name(config.env)}-{digest(_identity(config))}"


def as_name(env: str) -> str:
    """Return an environment's name as part of a file's: "hopper-v5"."""
    return re.sub(r"\W+", "-", env.lower())


def run_search(
    config: SearchConfig,
    *,
    folder: Path,
    workers: Workers,
    seconds: float | None = None,
) -> Search:
    """Search for a policy, or go on where it stopped; a killed search ends the same.

    It stops early once every episode has the best return that there was (`Search.is_perfect`).

    Args:
        config: config of the search.
        folder: that keeps its state.
        workers: that play the episodes.
        seconds: after which it stops too, all attempts together; how far it comes is then a
            matter of the machine.

    Raises:
        ValueError: the folder holds another search, or what `roll_out` raises.
    """
    search = _load(config, folder)
    begun = time.monotonic() - search.seconds
    spec = environment_of(config.env)[0].spec
    threshold = None if spec is None else spec.reward_threshold
    with working(
        "searching for a policy",
        total=config.iterations,
        unit="iterations",
        done=search.iterations,
    ) as work:
        while search.iterations < config.iterations and not search.is_perfect(threshold):
            if seconds is not None and search.iterations and search.seconds >= seconds:
                break
            _iterate(config, search, workers)
            search.seconds = time.monotonic() - begun
            if not np.isnan(search.scores[-1]):
                _save(search, folder)
                last, best = search.scores[-1], np.nanmax(search.scores)
                work.note = f"return {last:,.0f}, best {best:,.0f}"
            work.advance()
    _save(search, folder)
    return search


def _iterate(config: SearchConfig, search: Search, workers: Workers) -> None:
    number = search.iterations
    shape = (config.directions, *search.weights.shape)
    directions = generator_of(config.seed, "directions", number).standard_normal(shape)
    seeds = generator_of(config.seed, "starts", number).integers(_SEEDS, size=config.directions)
    tried = [
        Rollout(
            env=config.env,
            policy=_normalised(search, search.weights + sign * config.noise * direction),
            seed=int(seed),  # the same start both ways
        )
        for direction, seed in zip(directions, seeds, strict=True)
        for sign in (1, -1)
    ]
    episodes = list(workers.map(roll_out, tried))
    scores = np.array([one.score - config.alive_bonus * len(one.rewards) for one in episodes])
    scores = scores.reshape(config.directions, 2)
    top = np.argsort(-scores.max(axis=1), kind="stable")[: config.top]
    spread = scores[top].std()
    if spread > 0:
        differences = scores[top, 0] - scores[top, 1]
        step = np.einsum("n,nao->ao", differences, directions[top])
        search.weights = search.weights + config.step_size / (config.top * spread) * step
    for episode in episodes:
        _see(search, episode.observations[:-1].astype(np.float64))
    policy = _normalised(search, search.weights)
    search.gains.append(policy.gain)
    search.offsets.append(policy.offset)
    search.scores.append(np.nan)
    if number % config.evaluate_every == 0:
        seeds = generator_of(config.seed, "trials", number).integers(
            _SEEDS, size=config.evaluations
        )
        trials = [Rollout(env=config.env, policy=policy, seed=int(seed)) for seed in seeds]
        search.scores[-1] = mean_score(workers.map(roll_out, trials))


def _normalised(search: Search, weights: np.ndarray) -> LinearPolicy:
    """Return the policy weights · (observation - mean) / deviation."""
    deviation = np.ones_like(search.mean)
    if search.seen > 1:
        deviation = np.sqrt(search.squares / search.seen)
        deviation[deviation < _SMALLEST_SCALE] = 1.0
    gain = weights / deviation
    return LinearPolicy(gain, -gain @ search.mean)


def _see(search: Search, observations: Float[np.ndarray, "n o"]) -> None:
    """Add observations to the mean and the squares (Chan, Golub, LeVeque 1983)."""
    count = len(observations)
    mean = observations.mean(axis=0)
    squares = np.square(observations - mean).sum(axis=0)
    total = search.seen + count
    apart = mean - search.mean
    search.squares = search.squares + squares + np.square(apart) * search.seen * count / total
    search.mean = search.mean + apart * count / total
    search.seen = total


def _identity(config: SearchConfig) -> dict[str, object]:
    return {name: value for name, value in asdict(config).items() if name != "iterations"}


def _load(config: SearchConfig, folder: Path) -> Search:
    settings = _identity(config)
    path = folder / _SETTINGS
    if path.is_file():
        require_same(folder, parse_json(path.read_text()), settings, what="settings of a search")
    if path.is_file() and (folder / _STATE).is_file():
        try:
            with (folder / _STATE).open("rb") as file, np.load(file) as state:
                return Search(
                    weights=state["weights"],
                    seen=int(state["seen"]),
                    mean=state["mean"],
                    squares=state["squares"],
                    gains=list(state["gains"]),
                    offsets=list(state["offsets"]),
                    scores=state["scores"].tolist(),
                    seconds=float(state["seconds"]),
                )
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ValueError(f"{folder} holds a damaged search: delete it ({error})") from error
    remove_unfinished(folder)
    write_atomically(path, json.dumps(settings, indent=1) + "\n")
    environment, space = environment_of(config.env)
    rows = space.shape[0] if space.n is None else space.n
    features = feature_count(environment.observation_space)
    return Search(
        weights=np.zeros((rows, features)),
        seen=0,
        mean=np.zeros(features),
        squares=np.zeros(features),
        gains=[],
        offsets=[],
        scores=[],
    )


def _save(search: Search, folder: Path) -> None:
    with atomic_file(folder / _STATE) as file:
        np.savez(
            file,
            allow_pickle=False,
            **{
                name: np.asarray(value)
                for name, value in vars(search).items()  # every attribute is a number or array
            },
        )
