"""Disks, users and networks for `benchmarks.reliability.faults`; for root, on Linux."""

import ctypes
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowformer.train.loop.recording import RecordedTask

ROOT = os.name == "posix" and os.geteuid() == 0
NETWORK = "10.77.0"  # of the two hosts, in namespaces of their own
CLONE_NEWNET = 0x40000000
NOBODY = 65534


@contextmanager
def two_hosts() -> Iterator[None]:
    """Two network namespaces with a cable between them."""
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
    """Moves this process to the host of its number."""
    with Path(f"/run/netns/faults{number}").open() as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    os.environ["MASTER_ADDR"] = f"{NETWORK}.1"
    os.environ["GLOO_SOCKET_IFNAME"] = f"cable{number}"


def unplug(number: int) -> None:
    """Takes the cable from the second host at its fifth batch."""
    calls, original = [], RecordedTask.on_train_batch_start

    def counting(*arguments: Any) -> None:
        calls.append(number)
        if len(calls) == 5 and number == 1:
            subprocess.run(["ip", "link", "set", "cable1", "down"], check=True)
        original(*arguments)

    RecordedTask.on_train_batch_start = counting  # pyright: ignore[reportAttributeAccessIssue]


def plug() -> None:
    """Puts it in again."""
    subprocess.run(["ip", "-n", "faults1", "link", "set", "cable1", "up"], check=True)
    time.sleep(2.0)  # until the link is there


def be_nobody(_: int) -> None:
    """Goes on as a user who owns nothing."""
    os.setgid(NOBODY)
    os.setuid(NOBODY)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A small file system in memory."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def mount_again(folder: Path, options: str) -> None:
    """Changes what `mounted` mounted."""
    subprocess.run(["mount", "-o", options, folder], check=True)
