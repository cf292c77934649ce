"""Torch's global generator: one training at a time may seed it and draw from it."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_turn = threading.RLock()


@contextmanager
def own_randomness() -> Iterator[None]:
    """Have torch's global generator for oneself, and give it back as it was.

    What a layer draws (parameters, dropout) comes from there: two trainings that seeded it in
    threads would draw each other's numbers. Threads take turns, each for the whole of its training.
    """
    with _turn, torch.random.fork_rng(devices=[]):
        yield


def _forget() -> None:
    global _turn
    _turn = threading.RLock()


# A process that was forked while another thread had its turn would wait for it for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
