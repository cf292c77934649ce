"""D4RL's HDF5 files, as read and as written: flat arrays, with marks where episodes end."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int64

from flowformer.data.options import D4RL_ENVIRONMENTS, NOT_D4RL
from flowformer.data.trajectories.environments import (
    options_of,
    references_of,
    task_of,
)
from flowformer.data.trajectories.records import (
    ROUNDING,
    Space,
    Trajectories,
    described,
    put_inside,
    refuse_pictures,
)
from flowformer.files import atomic_file, parse_json
from flowformer.machine import library

if TYPE_CHECKING:
    import h5py

MAX_BYTES = 16 * 2**30  # of an array; the largest of D4RL's, of pictures, have a sixth of it
_MOST_OF_A_BYTE = 1_032  # values' bytes that deflate makes of one
_KINDS = "biuf"  # of dtypes: booleans and numbers


def read_numbers(file: "h5py.File", name: str) -> np.ndarray:
    """Read an array of booleans or numbers.

    Raises:
        ValueError: there is none of that name in this file itself, its values are no numbers, or
            they are more than the file can hold.
    """
    import h5py

    data = _own(file, name)
    if not isinstance(data, h5py.Dataset) or data.shape is None:
        raise ValueError(f"expected an array {name}, got {data!r}")
    if data.dtype.kind not in _KINDS:
        raise ValueError(f"expected numbers in {name}, got {data.dtype}")
    _require_held(data)
    return np.asarray(data)


def read_words(file: "h5py.File", name: str) -> bytes:
    """Read a single text of fixed length.

    Raises:
        ValueError: there is none of that name in this file itself.
    """
    import h5py

    data = _own(file, name)
    if not isinstance(data, h5py.Dataset) or data.shape != () or data.dtype.kind not in "SO":
        raise ValueError(f"expected a text {name}, got {data!r}")
    _require_held(data)
    return bytes(data[()])


def require_own(group: "h5py.Group") -> None:
    """Refuse a file with links, values in others or of variable length, or more than it can hold.

    Raises:
        ValueError: it is one.
    """
    import h5py

    for name in map(str, group):
        item = _own(group, name)
        if isinstance(item, h5py.Group):
            require_own(item)
        elif isinstance(item, h5py.Dataset):
            _require_held(item)


def _require_held(data: "h5py.Dataset") -> None:
    if data.external or data.is_virtual:
        raise ValueError(f"expected the values of {data.name} in this file, got other files' names")
    if data.dtype.kind == "O":
        raise ValueError(
            f"expected values of fixed length in {data.name}, got {data.dtype}: where a file is "
            "damaged, HDF5 may look for others for ever"
        )
    size, stored = data.size * data.dtype.itemsize, data.id.get_storage_size()
    if size > min(MAX_BYTES, _MOST_OF_A_BYTE * stored + 2**20):
        raise ValueError(
            f"expected in {data.name} what the file can hold, got {size:,} bytes from {stored:,}"
        )


def _own(group: "h5py.Group", name: str) -> object:
    import h5py

    place = group
    for part in name.split("/"):
        if not isinstance(place, h5py.Group) or part not in place:
            raise ValueError(f"expected {name} in the file, found none")
        if not isinstance(place.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"expected {name} in this file, got a link to it")
        place = place[part]
    return place


_NEEDED = ("observations", "actions", "rewards", "terminals")
_DESCRIPTION = "metadata/flowformer"  # of files that `write_d4rl` wrote


def read_d4rl(
    path: Path,
    *,
    env: str | None = None,
    action_space: Space | None = None,
    time_limit: int | None = None,
    num_actions: int | None = None,
    action_bounds: tuple[float, float] | None = None,
) -> Trajectories:
    """Read a file with observations, actions, rewards, terminals and mostly timeouts.

    An episode ends at a terminal or a timeout; what follows the last one is an episode that was
    cut off. Arrays beside these (next_observations, infos, metadata) are not read. Actions that
    rounding has put outside their box are clipped, with a warning.

    Args:
        path: the file; its name without the ending is the set's.
        env: gymnasium's name of the environment; by default version 5 of the one that the file is
            named after, if it is hopper, halfcheetah or walker2d.
        action_space: by default as the values say: discrete for whole numbers, else a box.
        time_limit: steps after which an episode ends, for a file without timeouts.
        num_actions: number of discrete actions; by default one more than the highest of the file.
        action_bounds: least and greatest action of a box; by default -1 and 1, as in D4RL's own.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: h5py is not installed.
        NotImplementedError: the observations are pictures.
        ValueError: the file is truncated, lacks an array, has arrays of several lengths, values
            that are not finite, or actions outside their space, or it says itself what is given;
            the message names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a file of D4RL's, found none: {path}")
    h5py = library("h5py", "for D4RL's files", extra="rl")
    try:
        with h5py.File(path, "r") as file:
            arrays, described_by = _read_arrays(file)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except Exception as error:  # of damage h5py raises OSError, KeyError, RuntimeError and others
        raise ValueError(
            f"{path}: expected a whole HDF5 file, got a damaged or truncated one ({error})"
        ) from error
    known: dict[str, Any] = {
        "name": path.stem,
        "source": f"D4RL's file {path.name}",
        "env": env,
        "action_space": action_space,
        "references": references_of(env, path.stem),
    }
    if described_by is not None:
        known = _description(path, described_by)
    elif env is None and (task := task_of(None, path.stem)) is not None:
        known |= {"env": D4RL_ENVIRONMENTS[task], "source": f"{known['source']}; {NOT_D4RL}"}
    try:
        space, actions = _actions(
            arrays["actions"], known["action_space"], num_actions, action_bounds, path.stem
        )
        known["action_space"] = space
        starts, terminated = _episodes(arrays, time_limit)
        if time_limit is not None:
            limit = {"id": known["env"], "max_episode_steps": time_limit}
            known["env_options"] = options_of(limit)
        return Trajectories(
            **known,
            observations=_flat(arrays["observations"]),
            actions=actions,
            rewards=arrays["rewards"].astype(np.float32),
            starts=starts,
            terminated=terminated,
        )
    except NotImplementedError as error:
        raise NotImplementedError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def write_d4rl(trajectories: Trajectories, path: Path) -> None:
    """Write a file that `read_d4rl`, and D4RL's own readers, read.

    An episode that the environment did not end is marked with a timeout, and so is the last one.
    What D4RL's files do not hold (name, source, environment, spaces) stands beside the arrays.

    Raises:
        ImportError: h5py is not installed.
    """
    ends = trajectories.starts + trajectories.lengths - 1
    terminals = np.zeros(trajectories.steps, bool)
    timeouts = np.zeros(trajectories.steps, bool)
    terminals[ends] = trajectories.terminated
    timeouts[ends] = ~trajectories.terminated
    # By its name: HDF5 reads while it writes, and the open file is for writing alone.
    with (
        atomic_file(path) as target,
        library("h5py", "for D4RL's files", extra="rl").File(target.name, "w") as file,
    ):
        file["observations"] = trajectories.observations
        file["actions"] = trajectories.actions
        file["rewards"] = trajectories.rewards
        file["terminals"] = terminals
        file["timeouts"] = timeouts
        file[_DESCRIPTION] = np.bytes_(json.dumps(trajectories.description()))


def _read_arrays(file: "h5py.File") -> tuple[dict[str, np.ndarray], bytes | None]:
    missing = [name for name in _NEEDED if name not in file]
    if missing:
        raise ValueError(
            f"expected the arrays {', '.join(_NEEDED)}, and {', '.join(missing)} is not among "
            f"{', '.join(file) or 'none'}"
        )
    names = [*_NEEDED, *(["timeouts"] if "timeouts" in file else [])]
    arrays = {name: read_numbers(file, name) for name in names}
    for name, array in arrays.items():
        if not array.ndim:
            raise ValueError(f"expected an array {name} with an axis of steps, got one value")
    steps = len(arrays["observations"])
    for name in names:
        if name not in ("observations", "actions"):  # old files have a column: (steps, 1)
            arrays[name] = arrays[name].reshape(-1)
        if len(arrays[name]) != steps:
            raise ValueError(
                f"expected arrays of one length, got {steps:,} observations and "
                f"{len(arrays[name]):,} {name}"
            )
    if not steps:
        raise ValueError("expected at least one step, got none")
    described_by = None
    if _DESCRIPTION in file:
        described_by = read_words(file, _DESCRIPTION)
    return arrays, described_by


def _description(path: Path, text: bytes) -> dict[str, Any]:
    try:
        return described(parse_json(text))
    except (ValueError, LookupError, TypeError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"{path}: damaged {_DESCRIPTION} ({error})") from error


def _episodes(
    arrays: dict[str, np.ndarray], time_limit: int | None
) -> tuple[Int64[np.ndarray, " episodes"], Bool[np.ndarray, " episodes"]]:
    """Return where each episode begins, and whether the environment ended it."""
    for name in ("terminals", "timeouts"):
        if name in arrays and not np.isin(arrays[name], (0, 1)).all():
            raise ValueError(f"expected 0 and 1 in {name}, got other values")
    terminals = arrays["terminals"].astype(bool)
    if "timeouts" in arrays and time_limit is not None:
        raise ValueError(
            f"the array timeouts says where episodes end: expected no time limit, got {time_limit}"
        )
    if "timeouts" in arrays:
        ends = terminals | arrays["timeouts"].astype(bool)
    elif time_limit is not None:
        ends = _cut(terminals, time_limit)
    else:
        raise ValueError(
            "expected an array timeouts: without it, say after how many steps an episode ends, by "
            + _option("time-limit", "STEPS")
        )
    ends[-1] = True
    last = np.flatnonzero(ends)
    return np.concatenate([[0], last[:-1] + 1]), terminals[last]


def _cut(terminals: Bool[np.ndarray, " steps"], time_limit: int) -> Bool[np.ndarray, " steps"]:
    if time_limit < 1:
        raise ValueError(f"expected a time limit of at least 1 step, got {time_limit}")
    ends = terminals.copy()
    start = 0
    for end in [*np.flatnonzero(terminals).tolist(), len(terminals) - 1]:
        ends[start + time_limit - 1 : end : time_limit] = True
        start = end + 1
    return ends


def _actions(
    values: np.ndarray,
    space: Space | None,
    number: int | None,
    bounds: tuple[float, float] | None,
    name: str,
) -> tuple[Space, np.ndarray]:
    """Return the space of actions, and the actions as they are kept."""
    if sum(each is not None for each in (space, number, bounds)) > 1:
        raise ValueError(
            "expected one of an action space (which a file may have of its own), a number of "
            f"actions and bounds of actions, got {space}, {number} and {bounds}"
        )
    if space is None:
        space = _space_of(values, number, bounds)
    if space.n is None:
        actions = values.reshape(len(values), -1) if values.ndim == 1 else values
        return space, put_inside(actions.astype(np.float32), space, name)
    flat = values.reshape(-1) if values.shape == (len(values), 1) else values
    if not (np.floor(flat) == flat).all():
        raise ValueError("expected whole numbers as discrete actions, got others")
    return space, flat.astype(np.int64)


def _space_of(values: np.ndarray, number: int | None, bounds: tuple[float, float] | None) -> Space:
    if number is not None:
        return Space(shape=(), n=number)
    if bounds is not None:
        low, high = (None if np.isinf(bound) else bound for bound in bounds)
        return Space(shape=values.shape[1:] or (1,), low=low, high=high)
    if values.dtype.kind in "biu" and values.shape in ((len(values),), (len(values), 1)):
        if values.min() < 0:
            raise ValueError(
                f"expected discrete actions from 0 on, got {values.min()}; or give the bounds of "
                f"others: {_option('action-bounds', 'LOW HIGH')}"
            )
        return Space(shape=(), n=int(values.max()) + 1)
    if values.ndim != 2 or values.dtype.kind != "f":
        raise ValueError(
            "expected actions [steps, dims] of floating point, or whole numbers [steps], got "
            f"shape {values.shape} of {values.dtype}: say what they are by "
            f"{_option('action-bounds', 'LOW HIGH')} or {_option('num-actions', 'N')}"
        )
    low, high = np.nanmin(values, initial=0), np.nanmax(values, initial=0)
    if np.isfinite(low + high) and max(-low, high) > 1 + 2 * ROUNDING:
        raise ValueError(
            "expected actions between -1 and 1, as all of D4RL's are, got some from "
            f"{low:g} to {high:g}: give their bounds by {_option('action-bounds', 'LOW HIGH')}"
        )
    return Space(shape=values.shape[1:], low=-1.0, high=1.0)


def _option(name: str, value: str) -> str:
    """Return how something is said, on the command line and in Python."""
    return f"--data.{name} {value} ({name.replace('-', '_')} in Python)"


def _flat(observations: np.ndarray) -> np.ndarray:
    refuse_pictures(observations.shape[1:], observations.dtype)
    if observations.ndim == 1 and observations.dtype.kind != "f":
        raise NotImplementedError(
            "expected observations [steps, features], got a whole number for each step: discrete "
            "ones are not supported"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold is found as infinite
        return observations.reshape(len(observations), -1).astype(np.float32)
