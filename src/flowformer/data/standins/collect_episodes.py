"""Data sets collected here, at D4RL's qualities, where D4RL's own are not to be had."""

import importlib.metadata
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64

from flowformer.data.arrays import read_arrays
from flowformer.data.files import digest, preparing
from flowformer.data.options import NOT_D4RL
from flowformer.data.parallel import Workers, generator_of, require_main
from flowformer.data.standins.episodes import Episode, LinearPolicy, Rollout, roll_out
from flowformer.data.standins.policy_search import (
    Search,
    SearchConfig,
    as_name,
    run_search,
    search_folder,
)
from flowformer.data.trajectories.environments import make_environment, space_of, task_of
from flowformer.data.trajectories.minari import (
    load_minari,
    minari_record,
    minari_root,
    write_minari,
)
from flowformer.data.trajectories.records import Trajectories
from flowformer.files import atomic_file, write_atomically
from flowformer.names import check_choices, check_sizes
from flowformer.progress import working

Quality = Literal["random", "medium", "replay", "expert"]

_REFERENCE_EPISODES = 50
_ERRORS = 2  # standard errors that the references are apart at least
_CANDIDATES = 3  # a policy that was best in a few episodes may have had luck
_PART = 20  # episodes kept at a time: what a kill loses
_SEEDS = 2**31


@dataclass(frozen=True, kw_only=True)
class Anchors:
    """What a search's policies are measured by.

    Attributes:
        best: the iteration whose policy is the expert.
        random: mean return of uniform actions.
        expert: mean return of the expert, without noise.
        noise: the standard error of the difference of the two.
    """

    best: int
    random: float
    expert: float
    noise: float

    @property
    def apart(self) -> bool:
        """Whether the two differ by more than chance makes them."""
        return self.expert - self.random > _ERRORS * self.noise


@dataclass(frozen=True, kw_only=True)
class CollectionOptions:
    """What is collected with the policies of a search.

    Attributes:
        quality: random: uniform actions; medium: the search's policy nearest to `medium` of the
            way from a random one to its best; replay: every policy up to that one; expert: the
            best.
        steps: at least so many; the last episode is whole.
        noise: noise of the actions: a standard deviation in units of half their range; of discrete
            actions the part that is drawn uniformly.
        medium: where the medium policy is, as part of the way; about a third in D4RL (Fu et al.,
            2020).
    """

    quality: Quality = "medium"
    steps: int = 100_000
    noise: float = 0.1
    medium: float = 0.4


@dataclass(frozen=True, kw_only=True)
class CollectionConfig(CollectionOptions):
    """A data set to be collected.

    Attributes:
        search: finds the policies.
    """

    search: SearchConfig

    def __post_init__(self) -> None:
        check_choices(self, "quality")
        check_sizes(self, "steps")
        if self.noise < 0:
            raise ValueError(f"noise must be at least 0, got {self.noise}")
        if not 0 < self.medium <= 1:
            raise ValueError(f"medium must be in (0, 1], got {self.medium}")

    @property
    def name(self) -> str:
        """Of the data set, as Minari takes it: "hopper-v5-medium-v0"."""
        return f"{as_name(self.search.env)}-{self.quality}-v0"


def collect(
    config: CollectionConfig,
    *,
    folder: Path | None = None,
    workers: int = 1,
    seconds: float | None = None,
) -> tuple[Trajectories, Path]:
    """Search for the policies, play the episodes and write a Minari data set.

    The search is kept, so that another quality takes the same; it and the episodes go on where a
    killed collection stopped, and end the same. Its references are the mean returns of uniform
    actions and of the best policy without noise.

    Args:
        config: config of the set.
        folder: folder of the set; by default its name below Minari's root.
        workers: processes that play; the set does not depend on them. More than one needs the
            usual `if __name__ == "__main__":` in a script.
        seconds: after which the search stops too.

    Returns:
        The set and its folder; one that is there already and was collected alike is read.

    Raises:
        FileExistsError: the folder holds another set.
        ImportError: gymnasium or minari is not installed.
        NotImplementedError: the environment's observations or actions are of an unsupported kind.
        ValueError: there is no such environment, or it has no time limit.
    """
    require_main()
    target = minari_root() / config.name if folder is None else folder
    kept = search_folder(config.search)
    with preparing(kept), Workers(workers) as pool:
        make_environment(config.search.env).close()  # what is wrong with it is said first
        search = run_search(config.search, folder=kept, workers=pool, seconds=seconds)
        record = {
            **json.loads(json.dumps(asdict(config))),
            "reached": search.iterations,
            "versions": {name: importlib.metadata.version(name) for name in ("gymnasium", "numpy")},
        }
        if target.exists():
            return _there(target, record), target
        anchors = _measure(config, search, kept, pool)
        _require_apart(config, search, anchors)
        episodes = _play(config, search, anchors, kept, pool)
        data = _write(config, search, anchors, list(episodes), target, record)
        shutil.rmtree(_parts(config, search, kept), ignore_errors=True)
    return data, target


def _there(target: Path, record: Mapping[str, Any]) -> Trajectories:
    try:
        found = minari_record(target)
    except ValueError:  # of Minari, on a folder that is none of its sets
        found = {}
    differences = [name for name in record if found.get(name) != record[name]]
    if differences:
        raise FileExistsError(
            f"{target} holds another set: expected one collected with the same "
            f"{', '.join(differences)}. Take another folder, or delete this one"
        )
    return load_minari(target)


def _measure(config: CollectionConfig, search: Search, kept: Path, pool: Workers) -> Anchors:
    """Play uniform actions and the search's best policies anew, once."""
    path = kept / f"references-{search.iterations}.json"
    if not path.is_file():
        candidates = search.ranked(_CANDIDATES)
        tried = {one: _returns(config, search.policy(one), pool) for one in candidates}
        best = max(candidates, key=lambda one: tried[one].mean())
        by_chance = _returns(config, None, pool)
        variances = [returns.var(ddof=1) for returns in (by_chance, tried[best])]
        found = Anchors(
            best=best,
            random=float(by_chance.mean()),
            expert=float(tried[best].mean()),
            noise=float(np.sqrt(sum(variances) / _REFERENCE_EPISODES)),
        )
        write_atomically(path, json.dumps(asdict(found)) + "\n")
    return Anchors(**json.loads(path.read_text()))


def _require_apart(config: CollectionConfig, search: Search, anchors: Anchors) -> None:
    """Refuse policies that are no better than chance; random actions need none, but for a score.

    Raises:
        ValueError: the search has found nothing better.
    """
    if anchors.apart:
        return
    found = (
        f"the search has found no policy better than a random one in {search.iterations:,} "
        f"iterations: it returns {anchors.expert:,.1f} against {anchors.random:,.1f}, and the "
        f"difference varies by {anchors.noise:,.1f}"
    )
    if config.quality != "random":
        raise ValueError(f"{found}. Give it more iterations (--iterations)")
    warnings.warn(
        f"{found}. The set has no reference returns, and a training on it needs "
        "evaluation.references; or give the search more iterations (--iterations)",
        stacklevel=3,
    )


def _returns(
    config: CollectionConfig, policy: LinearPolicy | None, pool: Workers
) -> Float64[np.ndarray, " n"]:
    seeds = generator_of(config.search.seed, "anchors").integers(_SEEDS, size=_REFERENCE_EPISODES)
    rollouts = [Rollout(env=config.search.env, policy=policy, seed=int(seed)) for seed in seeds]
    return np.array([episode.score for episode in pool.map(roll_out, rollouts)])


def _last_policy(config: CollectionConfig, search: Search, anchors: Anchors) -> int | None:
    """Return the iteration whose policy acts, or acts last; None for uniform actions."""
    if config.quality == "random":
        return None
    if config.quality == "expert":
        return anchors.best
    level = anchors.random + config.medium * (anchors.expert - anchors.random)
    return search.nearest(level)


def _rollouts(
    config: CollectionConfig, search: Search, anchors: Anchors, first: int
) -> Iterator[Rollout]:
    """Episodes without end; the policies of a replay take turns, in a new order every time."""
    last = _last_policy(config, search, anchors)
    policies: list[LinearPolicy | None] = [None if last is None else search.policy(last)]
    if last is not None and config.quality == "replay":
        policies = [search.policy(iteration) for iteration in range(last + 1)]
    seed = config.search.seed
    for number in range(first, _SEEDS):
        turn, place = divmod(number, len(policies))
        order = generator_of(seed, "turns", turn).permutation(len(policies))
        yield Rollout(
            env=config.search.env,
            policy=policies[order[place]],
            seed=int(generator_of(seed, config.quality, number).integers(_SEEDS)),
            noise=config.noise,
        )


def _parts(config: CollectionConfig, search: Search, kept: Path) -> Path:
    return kept / f"{config.quality}-{digest([asdict(config), search.iterations])}"


def _play(
    config: CollectionConfig,
    search: Search,
    anchors: Anchors,
    kept: Path,
    pool: Workers,
) -> Iterator[Episode]:
    """Yield episodes until there are steps enough; those of a killed collection are read."""
    folder = _parts(config, search, kept)
    number = steps = 0
    for path in sorted(folder.glob("[!.]*.npz")):
        for episode in _read_part(path):
            yield episode
            number, steps = number + 1, steps + len(episode.rewards)
    waiting: list[Episode] = []
    played = pool.map(roll_out, _rollouts(config, search, anchors, number))
    what = f"playing {config.quality} episodes"
    with working(what, total=config.steps, unit="steps", done=steps) as work:
        while steps < config.steps:
            episode = next(played)
            waiting.append(episode)
            number, steps = number + 1, steps + len(episode.rewards)
            if len(waiting) == _PART or steps >= config.steps:
                _write_part(folder / f"{number:09d}.npz", waiting)
                yield from waiting
                waiting = []
            work.reach(min(steps, config.steps))


def _write_part(path: Path, episodes: list[Episode]) -> None:
    with atomic_file(path) as file:
        np.savez(
            file,
            allow_pickle=False,
            lengths=[len(episode.rewards) for episode in episodes],
            terminated=[episode.terminated for episode in episodes],
            **{
                name: np.concatenate([getattr(episode, name) for episode in episodes])
                for name in ("observations", "actions", "rewards")
            },
        )


def _read_part(path: Path) -> list[Episode]:
    part = read_arrays(path)
    try:
        ends = np.cumsum(part["lengths"])[:-1]
        columns = zip(
            np.split(part["observations"], ends + np.arange(1, len(ends) + 1)),  # one more each
            np.split(part["actions"], ends),
            np.split(part["rewards"], ends),
            part["terminated"].tolist(),
            strict=True,
        )
        return [
            Episode(
                observations=observations, actions=actions, rewards=rewards, terminated=terminated
            )
            for observations, actions, rewards, terminated in columns
        ]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is damaged: delete it, to play it again ({error})") from error


def _write(
    config: CollectionConfig,
    search: Search,
    anchors: Anchors,
    episodes: list[Episode],
    target: Path,
    record: Mapping[str, Any],
) -> Trajectories:
    environment = make_environment(config.search.env)
    lengths = [len(episode.rewards) for episode in episodes]
    what = _policy_in_words(config, search, _last_policy(config, search, anchors))
    known = task_of(config.search.env, config.name) is not None
    trajectories = Trajectories(
        name=config.name,
        source=f"collected in {config.search.env} by {what}" + (f"; {NOT_D4RL}" if known else ""),
        env=config.search.env,
        observations=np.concatenate([episode.observations[:-1] for episode in episodes]),
        actions=np.concatenate([episode.actions for episode in episodes]),
        rewards=np.concatenate([episode.rewards for episode in episodes]),
        starts=np.concatenate([[0], np.cumsum(lengths)[:-1]]),
        terminated=np.array([episode.terminated for episode in episodes]),
        action_space=space_of(environment.action_space),
        references=(anchors.random, anchors.expert) if anchors.apart else None,
    )
    environment.close()
    write_minari(
        trajectories,
        last_observations=np.stack([episode.observations[-1] for episode in episodes]),
        algorithm=what,
        folder=target,
        record=record,
    )
    return trajectories


def _policy_in_words(config: CollectionConfig, search: Search, last: int | None) -> str:
    if last is None:
        return f"uniform actions (seed {config.search.seed})"
    which = f"the linear policy after iteration {last + 1:,}"
    if config.quality == "replay":
        which = f"the {last + 1:,} linear policies up to iteration {last + 1:,}"
    return (
        f"{which} of {search.iterations:,} of augmented random search (seed "
        f"{config.search.seed}), with noise {config.noise:g} on its actions"
    )
