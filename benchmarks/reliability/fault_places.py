"""Disks, users and networks for `faults.py`; for root, on Linux."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.parallel.hosts import enter
from flowformer.train.loop.recording import RecordedTask

ROOT = os.name == "posix" and os.geteuid() == 0
NETWORK = "10.77.0"  # of the two hosts, in namespaces of their own
NOBODY = 65534


@contextmanager
def two_hosts() -> Iterator[None]:
    """Make two network namespaces with a cable between them."""
    commands = [
        *(f"ip netns add faults{host}" for host in (0, 1)),
        "ip link add cable0 netns faults0 type veth peer name cable1 netns faults1",
        *(
            f"ip -n faults{host} addr add {NETWORK}.{host + 1}/24 dev cable{host}"
            for host in (0, 1)
        ),
        *(
            f"ip -n faults{host} link set {dev} up"
            for host in (0, 1)
            for dev in ("lo", f"cable{host}")
        ),
    ]
    try:
        for command in commands:
            subprocess.run(command.split(), check=True)
        yield
    finally:
        for host in (0, 1):
            subprocess.run(["ip", "netns", "delete", f"faults{host}"], check=False)


def join_host(number: int) -> None:
    """Move this process to the host of its number."""
    enter(f"faults{number}")
    os.environ["MASTER_ADDR"] = f"{NETWORK}.1"
    os.environ["GLOO_SOCKET_IFNAME"] = f"cable{number}"


def unplug(number: int) -> None:
    """Take the cable from the second host at its fifth batch."""
    calls, original = [], RecordedTask.on_train_batch_start

    def counting(*arguments: Any) -> None:
        calls.append(number)
        if len(calls) == 5 and number == 1:
            subprocess.run(["ip", "link", "set", "cable1", "down"], check=True)
        original(*arguments)

    RecordedTask.on_train_batch_start = counting  # pyright: ignore[reportAttributeAccessIssue]


def plug() -> None:
    """Put it in again."""
    subprocess.run(["ip", "-n", "faults1", "link", "set", "cable1", "up"], check=True)
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
