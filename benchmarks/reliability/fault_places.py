"""Disks, users and networks for `faults.py`; for root, on Linux."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.parallel.hosts import CABLE, NAMES, NETWORK, enter
from flowformer.train.loop.task import RecordedTask

ROOT = os.name == "posix" and os.geteuid() == 0
NOBODY = 65534


def join_host(number: int) -> None:
    """Move this process to the host of its number."""
    enter(f"{NAMES}{number}")
    os.environ["MASTER_ADDR"] = f"{NETWORK}.1"
    os.environ["GLOO_SOCKET_IFNAME"] = CABLE


def unplug(number: int) -> None:
    """Take the cable from the second host at its fifth batch."""
    calls, original = [], RecordedTask.on_train_batch_start

    def counting(*arguments: Any) -> None:
        calls.append(number)
        if len(calls) == 5 and number == 1:
            subprocess.run(["ip", "link", "set", CABLE, "down"], check=True)
        original(*arguments)

    RecordedTask.on_train_batch_start = counting  # pyright: ignore[reportAttributeAccessIssue]


def plug() -> None:
    """Put it in again."""
    subprocess.run(["ip", "-n", f"{NAMES}1", "link", "set", CABLE, "up"], check=True)
    time.sleep(2.0)  # until the link is there


def be_nobody(_: int) -> None:
    """Go on as a user who owns nothing."""
    os.setgid(NOBODY)
    os.setuid(NOBODY)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a small file system in memory."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def mount_again(folder: Path, options: str) -> None:
    """Change what `mounted` mounted."""
    subprocess.run(["mount", "-o", options, folder], check=True)
