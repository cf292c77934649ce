"""Readers of arrays and pictures, and valid files for them."""

from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz import seeds
from tests.fuzz.target import put


def d4rl(folder: Path) -> object:
    from flowformer.data.trajectories.d4rl import read_d4rl

    return read_d4rl(folder / "hopper-x-v0.hdf5")


def some_trajectories(name: str = "some-medium-v0") -> Any:
    from flowformer.data.trajectories.records import Space, Trajectories

    random = np.random.default_rng(0)
    return Trajectories(
        name=name,
        source="a test",
        env=None,
        observations=random.normal(size=(6, 3)).astype(np.float32),
        actions=random.uniform(-1, 1, (6, 2)).astype(np.float32),
        rewards=np.arange(6, dtype=np.float32),
        starts=np.array([0, 2, 3]),
        terminated=np.array([True, False, True]),
        action_space=Space(shape=(2,), low=-1.0, high=1.0),
        references=(-2.0, 18.0),
    )


def make_d4rl(folder: Path) -> None:
    from flowformer.data.trajectories.d4rl import write_d4rl

    write_d4rl(some_trajectories(), folder / "hopper-x-v0.hdf5")


def more_d4rl(folder: Path) -> list[bytes]:
    """As D4RL's own are: compressed, chunked, a column of rewards, information beside."""
    import h5py

    path = folder / "more.hdf5"
    with h5py.File(path, "w") as file:
        for name, array in {
            "observations": np.ones((40, 3), np.float32),
            "actions": np.zeros((40, 2), np.float64),
            "rewards": np.ones((40, 1)),
            "terminals": np.zeros(40, bool),
            "timeouts": np.arange(40) % 10 == 9,
            "infos/qpos": np.ones((40, 2)),
        }.items():
            file.create_dataset(name, data=array, compression="gzip", chunks=True)
    content = path.read_bytes()
    path.unlink()
    return [content]


def minari(folder: Path) -> object:
    from flowformer.data.trajectories.minari import load_minari

    return load_minari(folder / "set")


def make_minari(folder: Path) -> None:
    from flowformer.data.trajectories.minari import write_minari

    last = np.zeros((3, 3), np.float32)
    target = folder / "set"
    if not target.exists():
        write_minari(some_trajectories(), last_observations=last, algorithm="a test", folder=target)


def trajectories(folder: Path) -> object:
    from flowformer.data.trajectories.records import Trajectories

    return Trajectories.load(folder)


def sequences(folder: Path) -> object:
    from flowformer.data.sequences.records import SequenceData

    return SequenceData.load(folder)


def make_sequences(folder: Path) -> None:
    from flowformer.data.sequences.texts import from_texts

    cases = [(0, b"some", b"more"), (1, b"text", b"here")]
    parts = {"train": cases, "test": cases}
    from_texts("some", "a test", ("a", "b"), parts, max_length=None).save(folder)


def part(folder: Path) -> object:
    from flowformer.data.standins.collect_episodes import _read_part

    return _read_part(folder / "000000000.npz")


def make_part(folder: Path) -> None:
    from flowformer.data.standins.collect_episodes import _write_part
    from flowformer.data.standins.episodes import Episode

    episode = Episode(
        observations=np.ones((4, 2), np.float32),
        actions=np.zeros((3, 1), np.float32),
        rewards=np.ones(3, np.float32),
        terminated=True,
    )
    _write_part(folder / "000000000.npz", [episode, episode])


def idx(name: str, folder: Path) -> object:
    from flowformer.data.images.fashion_mnist import read_idx

    return read_idx(folder / name)


def image(folder: Path) -> object:
    from flowformer.data.images.files import read_image

    return read_image(folder / "x.png")


def grey(folder: Path) -> object:
    from flowformer.data.sequences.pathfinder import read_grey

    return read_grey(folder / "x.png")


def pathfinder(folder: Path) -> object:
    from flowformer.data.sequences.pathfinder import read_pathfinder

    return read_pathfinder(folder)


def make_pathfinder(folder: Path) -> None:
    for number in range(3):
        put(f"imgs/0/sample_{number}.png", seeds.small_picture())(folder)
    lines = "".join(f"imgs/0 sample_{i}.png {i} {i % 2} 0.5 [1]\n" for i in range(3))
    put("metadata/0.npy", lines.encode())(folder)
