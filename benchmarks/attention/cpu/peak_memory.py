"""Peak memory of the forward and backward pass of one attention, in a process of its own.

    python -m benchmarks.attention.cpu.peak_memory NAME BACKEND LENGTH HEADS

prints the bytes that the process's resident memory rose by, from before the inputs were made to
its highest point while inputs, output and all gradients are held. What is resident counts every
allocator and every page, torch's or not. A fresh process, since memory that earlier work freed
and the allocator kept would be used again unseen; and the system's own high-water mark, set back
by /proc/self/clear_refs after a short call, since the highest point of a process is otherwise
that of importing torch, and sampling from a thread would miss what lives for a moment.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.attention.peers import WIDTH, forward_backward, make_inputs, peers
from benchmarks.runner import ROOT, pin

SHORT = 128  # tokens of the call that loads code and starts threads
PROC = Path("/proc/self")


def resident(field: str) -> int:
    """Return a field of the process's status in bytes."""
    lines = (PROC / "status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def floor(length: int, heads: int) -> int:
    """Return the bytes of inputs, output and their gradients in float32."""
    return 8 * 4 * length * heads * WIDTH


def available() -> int:
    """Return the bytes that a new process may take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def measure(name: str, backend: str, length: int, heads: int) -> int:
    """Return the rise of resident memory in a fresh process.

    Raises:
        RuntimeError: the process failed; the message is its last line.
    """
    command = [sys.executable, "-m", "benchmarks.attention.cpu.peak_memory", name, backend]
    command += [str(length), str(heads)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise RuntimeError(f"exit status {done.returncode}: {said[-1]}")
    return int(done.stdout.split()[-1])


def main() -> None:
    """Measure in this process and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("backend")
    parser.add_argument("length", type=int)
    parser.add_argument("heads", type=int)
    arguments = parser.parse_args()
    pin(1)
    peer = peers(causal=True, backend=arguments.backend)[arguments.name]
    attention = peer.make()
    forward_backward(attention, make_inputs(SHORT, arguments.heads, heads_first=peer.heads_first))
    (PROC / "clear_refs").write_text("5")
    before = resident("VmRSS")
    inputs = make_inputs(arguments.length, arguments.heads, heads_first=peer.heads_first)
    results = forward_backward(attention, inputs)
    print(resident("VmHWM") - before)
    assert torch.isfinite(results[0][0, -1]).all()  # holds what was made until here


if __name__ == "__main__":
    main()
