"""Processes on hosts of their own: network namespaces of one machine, with a bridge between them.

What a host sends is what its network interface counted, every header and acknowledgement included.
Needs root, and Linux.
"""

import ctypes
import multiprocessing
import os
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

NAMES = "flowformer-host"
BRIDGE = "flowformer-br"
NETWORK = "10.213.0"
CABLE = "eth0"  # what joins a host to the bridge
PORT = 29_513
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET


@contextmanager
def hosts(count: int) -> Iterator[list[str]]:
    """Make so many hosts, and take them away again."""
    names = [f"{NAMES}{number}" for number in range(count)]
    try:
        _ip(f"link add {BRIDGE} type bridge", f"link set {BRIDGE} up")
        for number, name in enumerate(names):
            port = f"flowformer{number}"
            _ip(
                f"netns add {name}",
                f"link add {port} type veth peer name {CABLE} netns {name}",
                f"link set {port} master {BRIDGE} up",
                f"-n {name} address add {NETWORK}.{number + 1}/24 dev {CABLE}",
                f"-n {name} link set {CABLE} up",
                f"-n {name} link set lo up",
            )
        yield names
    finally:
        for name in names:
            if Path("/var/run/netns", name).exists():
                _ip(f"netns delete {name}")
        _ip(f"link delete {BRIDGE}")


def run(work: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
    """Run a function on as many hosts, which form the default group; return what each returns.

    Args:
        work: called with the arguments.
        count: the hosts.
        arguments: what it is called with.

    Raises:
        RuntimeError: a host failed; the message is its traceback.
    """
    # Forked: the imports, which cost more than the work, have been made.
    context = multiprocessing.get_context("fork")
    results: Any = context.SimpleQueue()
    with hosts(count) as names:
        started = [
            context.Process(target=_host, args=(name, rank, count, results, work, arguments))
            for rank, name in enumerate(names)
        ]
        for process in started:
            process.start()
        found: dict[int, Any] = {}
        while len(found) < count:
            rank, result, failure = results.get()
            if failure is not None:
                for process in started:
                    process.kill()
                raise RuntimeError(f"host {rank} failed:\n{failure}")
            found[rank] = result
        for process in started:
            process.join()
    return [found[rank] for rank in range(count)]


def enter(name: str) -> None:
    """Move this process into a network namespace.

    Raises:
        OSError: the system refuses it.
    """
    with Path("/var/run/netns", name).open() as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), f"cannot enter the network of {name}")


def sent() -> int:
    """Return the bytes that this host has sent."""
    line = next(
        line
        for line in Path("/proc/self/net/dev").read_text().splitlines()
        if line.strip().startswith(f"{CABLE}:")
    )
    return int(line.split(":")[1].split()[8])


def _host(
    name: str, rank: int, count: int, results: Any, work: Callable[..., Any], arguments: Any
) -> None:
    try:
        enter(name)
        os.environ["GLOO_SOCKET_IFNAME"] = CABLE
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo", init_method=f"tcp://{NETWORK}.1:{PORT}", rank=rank, world_size=count
        )
        results.put((rank, work(*arguments), None))
        dist.barrier()
        dist.destroy_process_group()
    except Exception:  # noqa: BLE001 - told to the parent, which raises
        results.put((rank, None, traceback.format_exc()))


def _ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True)
