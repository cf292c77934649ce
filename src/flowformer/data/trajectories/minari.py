"""Minari's data sets, read and written through its library; and one door to every kind of set."""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from flowformer.data.cache import data_cache, find_cache, find_home
from flowformer.data.trajectories.d4rl import read_d4rl, require_own
from flowformer.data.trajectories.environments import (
    feature_count,
    make_environment,
    options_of,
    references_of,
    space_of,
)
from flowformer.data.trajectories.records import EnvironmentOptions, Space, Trajectories, put_inside
from flowformer.files import parse_json
from flowformer.machine import library

if TYPE_CHECKING:
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

_ROOT = "MINARI_DATASETS_PATH"
_METADATA = "metadata.json"
_DATA = "main_data.hdf5"
_RECORD = "flowformer"  # what is ours in it


def is_d4rl(name: str | Path) -> bool:
    """Return whether a name is taken for a file of D4RL's."""
    path = Path(name)
    return path.is_file() or path.suffix in (".hdf5", ".h5")


def open_trajectories(
    name: str | Path,
    *,
    download: bool = False,
    time_limit: int | None = None,
    num_actions: int | None = None,
    action_bounds: tuple[float, float] | None = None,
) -> Trajectories:
    """Open a set by what it is: D4RL's file, a folder of `Trajectories.save`, or Minari's.

    Args:
        name: a path, or the name of a Minari data set.
        download: whether a Minari data set that is not here is fetched.
        time_limit: time limit of D4RL's file; see `read_d4rl`.
        num_actions: likewise.
        action_bounds: likewise.

    Raises:
        FileNotFoundError: there is no such set.
        ImportError: the library that reads it is not installed.
        NotImplementedError: its observations or actions are of another kind.
        ValueError: it is damaged, or holds what it must not; or it says itself what is given here.
    """
    path = Path(name)
    if is_d4rl(name):
        return read_d4rl(
            path, time_limit=time_limit, num_actions=num_actions, action_bounds=action_bounds
        )
    if (time_limit, num_actions, action_bounds) != (None, None, None):
        raise ValueError(
            "a time limit, a number of actions and their bounds are given for files of D4RL's "
            f"alone, and {name} is none: it says itself what they are"
        )
    if (path / "description.json").is_file():
        return Trajectories.load(path)
    return load_minari(name, download=download)


def load_minari(name: str | Path, *, download: bool = False) -> Trajectories:
    """Read a Minari data set.

    Args:
        name: name of a set below `$MINARI_DATASETS_PATH` (by default Minari's own folder), or any
            folder in Minari's format.
        download: whether a set that is not here is fetched.

    Returns:
        Its episodes, with the set's own reference returns, else D4RL's where they are known.

    Raises:
        FileNotFoundError: there is no such set; the message lists those that are here.
        ImportError: minari is not installed.
        NotImplementedError: observations are no box, or actions neither a box nor discrete.
        ValueError: the set is damaged, an episode is empty, or a value is not finite.
    """
    minari = library("minari", "for its data sets", extra="rl")
    folder = minari_folder(name)
    if folder is None:
        if not download:
            raise FileNotFoundError(
                f"expected a Minari data set, and {name} is neither a folder of one nor among "
                f"{', '.join(local_minari()) or 'those'}, which are in "
                f"{find_minari_root() or 'no folder'}: flowformer data collect ENV makes some"
            )
        minari.load_dataset(str(name), download=True)
        folder = minari_folder(name)
        assert folder is not None
    try:
        _require_own(folder / "data" / _DATA)
        data = _open(folder)
        metadata: Mapping[str, Any] = data.storage.metadata
        env, options = _environment(metadata)
        space = space_of(data.action_space)
        feature_count(data.observation_space)
        arrays = _join(data.iterate_episodes(), space)
        if space.n is None:
            arrays["actions"] = put_inside(arrays["actions"], space, data.id)
        references = (metadata.get("ref_min_score"), metadata.get("ref_max_score"))
        return Trajectories(
            name=data.id,
            source=metadata.get("description") or f"Minari's data set {data.id}",
            env=env,
            env_options=options,
            action_space=space,
            references=references_of(env, data.id) if None in references else references,  # pyright: ignore[reportArgumentType] - None is excluded
            **arrays,
        )
    except NotImplementedError as error:
        raise NotImplementedError(f"{folder}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    except Exception as error:  # of damage h5py, minari and gymnasium raise OSError, KeyError, …
        raise ValueError(
            f"{folder}: expected a whole Minari data set, got a damaged one ({error})"
        ) from error


def _open(folder: Path) -> Any:
    """Open a set by Minari, if it need not make the environment that the set names.

    It would run whatever code a set without spaces names.
    """
    minari = library("minari", "for its data sets", extra="rl")
    path = folder / "data" / _METADATA
    metadata = parse_json(path.read_text()) if path.is_file() else {}
    for name in ("observation_space", "action_space"):
        if name not in metadata:
            raise ValueError(f"expected {name} in {_METADATA}, found none")
    return minari.MinariDataset(folder / "data")


def _environment(metadata: Mapping[str, Any]) -> tuple[str | None, EnvironmentOptions]:
    """Return the environment to evaluate in: that for it, else that of the collection."""
    text = metadata.get("eval_env_spec") or metadata.get("env_spec")
    spec = {} if text is None else json.loads(text)
    env = metadata.get(_RECORD, {}).get("env")  # ours, with the module that knows it
    if not spec:
        return env, EnvironmentOptions()
    known = {} if env is None else {"id": env}
    return env or spec["id"], options_of(spec | known)


def _require_own(path: Path) -> None:
    """Refuse an HDF5 file that names others; Minari's other format has no such file."""
    if not path.is_file():
        return
    import h5py

    with h5py.File(path, "r") as file:
        require_own(file)


def minari_folder(name: str | Path) -> Path | None:
    """Return where a set is: a folder itself, or one below Minari's root; None where it is not."""
    root = find_minari_root()
    for folder in (Path(name), *(() if root is None else (root / name,))):
        if (folder / "data" / _METADATA).is_file():
            return folder
    return None


def minari_root() -> Path:
    """Return the folder of local Minari data sets: `$MINARI_DATASETS_PATH`, else as Minari has it.

    Without a home directory it is `minari` in `data_cache()`.

    Raises:
        FileNotFoundError: there is none, and none can be made.
    """
    return find_minari_root() or data_cache() / "minari"


def find_minari_root() -> Path | None:
    """Return the folder of local Minari data sets, to look into; None where there can be none."""
    if (given := os.environ.get(_ROOT)) is not None:
        return Path(given)
    cache = find_cache()
    return find_home("~/.minari/datasets") or (None if cache is None else cache / "minari")


def local_minari() -> list[str]:
    """Return names of the sets below `minari_root`."""
    root = find_minari_root()
    if root is None or not root.is_dir():
        return []
    found = root.rglob(f"data/{_METADATA}")
    names = (path.parents[1].relative_to(root) for path in found)
    return sorted(str(name) for name in names if not str(name).startswith("."))


def write_minari(
    trajectories: Trajectories,
    *,
    last_observations: Float32[np.ndarray, "episodes features"],
    algorithm: str,
    folder: Path | None = None,
    record: Mapping[str, Any] | None = None,
) -> Path:
    """Write a Minari data set; a kill leaves none.

    Args:
        trajectories: the set; its name is the data set's, and ends in a version such as -v0.
        last_observations: last observations of each episode, after its last action: Minari keeps
            them too.
        algorithm: what acted, in words.
        folder: the new folder; by default the set's name below `minari_root`.
        record: more to keep in its metadata, under "flowformer".

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder is there.
        ImportError: minari is not installed.
        ValueError: Minari takes no such name.
    """
    minari = library("minari", "for its data sets", extra="rl")
    target = minari_root() / trajectories.name if folder is None else folder
    if target.exists():
        raise FileExistsError(f"expected a new folder, and {target} is there")
    target.parent.mkdir(parents=True, exist_ok=True)
    observed = last_observations.shape[1:]
    with (
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch,
        _root_at(Path(scratch)),
        warnings.catch_warnings(),
    ):
        # Whom to write to about it, and where its code is: nobody has said.
        warnings.filterwarnings("ignore", "`.*` is set to None", UserWarning)
        environment = None
        if trajectories.env is None:
            warnings.filterwarnings("ignore", "env_spec is None", UserWarning)
        else:
            environment = make_environment(trajectories.env, options=trajectories.env_options)
        made = minari.create_dataset_from_buffers(
            trajectories.name,
            list(_buffers(trajectories, last_observations)),
            env=environment,
            observation_space=_box(Space(shape=observed)),
            action_space=_box(trajectories.action_space),
            algorithm_name=algorithm,
            description=trajectories.source,
        )
        # Minari keeps the name without the module that knows it: module:Name-v0.
        more: dict[str, Any] = {_RECORD: {**(record or {}), "env": trajectories.env}}
        if trajectories.references is not None:
            more["ref_min_score"], more["ref_max_score"] = trajectories.references
        made.storage.update_metadata(more)
        shutil.move(Path(scratch) / trajectories.name, target)
    return target


def minari_record(folder: Path) -> Mapping[str, Any]:
    """Return what `write_minari` was told to keep; empty for a set of somebody else's."""
    return _open(folder).storage.metadata.get(_RECORD, {})


@contextmanager
def _root_at(folder: Path) -> Iterator[None]:
    """Let Minari write below a folder: it takes no path, only a variable of the environment."""
    before = os.environ.get(_ROOT)
    os.environ[_ROOT] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ROOT]
        else:
            os.environ[_ROOT] = before


def _buffers(
    trajectories: Trajectories, last_observations: np.ndarray
) -> Iterator["EpisodeBuffer"]:
    from minari.data_collector import EpisodeBuffer

    for episode, start in enumerate(trajectories.starts):
        part = slice(start, start + trajectories.lengths[episode])
        ends = np.arange(trajectories.lengths[episode]) == trajectories.lengths[episode] - 1
        yield EpisodeBuffer(
            id=episode,
            observations=np.concatenate(  # pyright: ignore[reportArgumentType] - an array is fine
                [trajectories.observations[part], last_observations[episode][None]]
            ),
            actions=trajectories.actions[part],  # pyright: ignore[reportArgumentType] - likewise
            rewards=trajectories.rewards[part],  # pyright: ignore[reportArgumentType] - likewise
            terminations=ends & trajectories.terminated[episode],
            truncations=ends & ~trajectories.terminated[episode],
        )


def _join(episodes: Any, space: Space) -> dict[str, Any]:
    parts: dict[str, list[np.ndarray]] = {"observations": [], "actions": [], "rewards": []}
    terminated = []
    for episode in episodes:
        steps = len(episode.rewards)
        if steps == 0:
            raise ValueError(f"expected at least one step in episode {episode.id}, got none")
        if len(episode.observations) != steps + 1 or len(episode.actions) != steps:
            raise ValueError(
                f"expected {steps} actions and {steps + 1} observations in episode {episode.id}, "
                f"got {len(episode.actions)} and {len(episode.observations)}"
            )
        parts["observations"].append(np.asarray(episode.observations[:-1]).reshape(steps, -1))
        parts["actions"].append(np.asarray(episode.actions))
        parts["rewards"].append(np.asarray(episode.rewards).reshape(-1))
        terminated.append(bool(episode.terminations[-1]))
    if not terminated:
        raise ValueError("expected at least one episode, got none")
    lengths = [len(rewards) for rewards in parts["rewards"]]
    kinds = {"actions": np.float32 if space.n is None else np.int64}
    joined = {
        name: np.concatenate(arrays).astype(kinds.get(name, np.float32))
        for name, arrays in parts.items()
    }
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return {**joined, "starts": starts, "terminated": np.array(terminated)}


def _box(space: Space) -> "spaces.Space":
    from gymnasium import spaces

    if space.n is not None:
        return spaces.Discrete(space.n)
    low, high = space.bounds
    return spaces.Box(low, high, dtype=np.float32)
