"""Torch's global generator among threads."""

import threading
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowformer.data.images.transforms import seeded
from flowformer.data.loaders import own_randomness
from flowformer.train.loop.fit import torch_settings


def draw(seed: int, paused: threading.Event | None = None) -> Tensor:
    torch.manual_seed(seed)
    first = torch.rand(2)
    if paused is not None:
        paused.wait(0.05)
    return torch.cat((first, torch.rand(2)))


def test_what_one_thread_draws_is_not_drawn_by_another_nor_seen_by_the_caller() -> None:
    expected, before = {seed: draw(seed) for seed in range(4)}, torch.get_rng_state()
    drawn: dict[int, Any] = {}

    def run(seed: int) -> None:
        with (own_randomness, partial(torch_settings, 1), partial(seeded, 7))[seed % 3]():
            drawn[seed] = draw(seed, threading.Event())

    threads = [threading.Thread(target=run, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(drawn[seed].equal(expected[seed]) for seed in expected)
    assert torch.get_rng_state().equal(before)
