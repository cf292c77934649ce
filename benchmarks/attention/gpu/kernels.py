"""Do the GPU kernels fit on the cards? Compiles all without one: registers, spills, shared memory.

    python -m benchmarks gpu_kernels                   # all of it, a quarter of an hour
    python -m benchmarks gpu_kernels --widths 64 --dtypes bfloat16 --capabilities 90

The passes of a forward and backward are run on CPU tensors with Triton's compiler in the place
of its launcher: each launch is compiled as on a card, for the compute capability asked for, by
the ptxas that Triton brings. What was compiled before is taken from the file: stopped, it goes on.
"""

import json
import re
import subprocess
import tempfile
from argparse import ArgumentParser, Namespace
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from benchmarks.attention.gpu.traffic import Call, both_passes
from benchmarks.pages import Tables
from benchmarks.runner import Result, share
from flowformer.files import write_atomically
from flowformer.ops.backends.arguments import (
    LINEAR,
    BidirectionalArguments,
    BidirectionalBackwardArguments,
    BidirectionalInputs,
    BidirectionalSaved,
    CausalArguments,
    CausalBackwardArguments,
    CausalInputs,
    CausalSaved,
    ConvolutionArguments,
    ConvolutionBackwardArguments,
    ConvolutionInputs,
    StateGradients,
    numbers,
)
from flowformer.ops.backends.triton import bidirectional_passes, causal_passes, convolution
from flowformer.ops.options import FlowOptions
from flowformer.ops.state import FlowState
from flowformer.report.words import to_markdown

WIDTHS = (16, 32, 64, 128, 256)
DTYPES = ("bfloat16", "float16", "float32")
CAPABILITIES = (80, 90)
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}  # of a program, by NVIDIA's tables
PASSES = ("bidirectional", "causal", "linear", "decay", "step", "convolution")
DETAIL = "sm_90 bfloat16 d128"  # of which each kernel stands on the page
CALL = {"batch": 16, "length": 4096, "heads": 16, "width": 128, "dtype": torch.bfloat16}


class _Driver:
    """As much of a driver as compiling asks for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:  # noqa: ARG002 - the protocol's
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def compiling(capability: int) -> Iterator[dict[str, Any]]:
    """Compile instead of launching; yields what was compiled, by kernel and variant.

    A variant is a kernel with other compile-time constants: its first pass and its second.
    """
    found: dict[str, Any] = {}
    original = JITFunction.__getitem__

    def compile_only(kernel: JITFunction, grid: Any) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            compiled = kernel.warmup(*arguments, grid=grid, **options)
            flags = sorted(
                name for name, value in options.items() if value is True and name != "EMULATE"
            )
            found.setdefault(" ".join([kernel.fn.__name__, *flags]), compiled)

        return launch

    driver: Any = triton.runtime.driver  # its own drivers need a card to be made
    before = driver._active
    driver.set_active(_Driver(capability))
    JITFunction.__getitem__ = compile_only  # type: ignore[method-assign]
    try:
        yield found
    finally:
        JITFunction.__getitem__ = original  # type: ignore[method-assign]
        driver._active = before


def run_pass(name: str, width: int, dtype: torch.dtype) -> None:
    """Call what launches the kernels of a pass, forward and backward, on 300 tokens."""
    query, key, value, grad = (torch.randn(1, 300, 2, width).to(dtype) for _ in range(4))
    options = numbers(FlowOptions())
    if name == "bidirectional":
        inputs = BidirectionalInputs(query, key, value)
        results = bidirectional_passes.forward(BidirectionalArguments(inputs, options, keep=True))
        saved = BidirectionalSaved(results.out, inputs, results.kept)
        bidirectional_passes.backward(BidirectionalBackwardArguments(grad, saved, options))
        return
    if name == "convolution":
        of_heads = torch.randn(2, width, 4), torch.randn(2, width)
        recent = torch.randn(1, 3, 2, width, dtype=torch.float64)
        padded = torch.ones(1, 300, dtype=torch.bool), None
        for where in (padded, (None, torch.tensor([0, 300]))):
            inputs = ConvolutionInputs(query, *of_heads, *where, recent)
            convolution.forward(ConvolutionArguments(inputs, True, 0, keep=True))
            convolution.backward(ConvolutionBackwardArguments(grad, inputs, True, 0, True))
        return
    if name == "step":
        state = FlowState.initial(1, 2, width, width, query.device)
        one = (x[:, :1] for x in (query, key, value))
        torch.ops.flowformer.triton_step(*one, *state, *options)
        return
    inputs = CausalInputs(query, key, value)
    if name in ("linear", "decay"):
        options = options._replace(feature_map=LINEAR)
        inputs = inputs._replace(row_scale=torch.rand(1, 300, 2))
    if name == "decay":
        inputs = inputs._replace(log_decay=-torch.rand(1, 300, 2))
    results = causal_passes.forward(CausalArguments(inputs, options, keep=True, return_state=True))
    saved = CausalSaved(results.out, inputs, results.kept)
    causal_passes.backward(
        CausalBackwardArguments(grad, StateGradients(), saved, options, state_gradient=True)
    )


def resources(compiled: Any, capability: int) -> dict[str, int]:
    """Return what ptxas says of a kernel."""
    ptxas = knobs.nvidia.ptxas.path
    suffix = "a" if capability >= 90 else ""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(compiled.asm["ptx"])
        command = [
            ptxas,
            "-v",
            f"--gpu-name=sm_{capability}{suffix}",
            str(source),
            "-o",
            "/dev/null",
        ]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    stored, loaded = re.findall(r"(\d+) bytes spill (?:stores|loads)", log)[-2:]
    registers = re.findall(r"Used (\d+) registers", log)[-1]
    return {
        "registers": int(registers),
        "spilled_bytes": int(stored) + int(loaded),
        "shared_bytes": compiled.metadata.shared,
        "warps": compiled.metadata.num_warps,
    }


def measure(name: str, width: int, dtype: str, capability: int) -> dict[str, dict[str, int]]:
    """Return what each kernel of a pass takes."""
    with compiling(capability) as found:
        run_pass(name, width, getattr(torch, dtype))
    return {kernel: resources(compiled, capability) for kernel, compiled in found.items()}


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, "gpu_kernels")
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS)
    parser.add_argument("--dtypes", nargs="*", default=DTYPES, choices=DTYPES)
    parser.add_argument("--capabilities", type=int, nargs="*", default=CAPABILITIES)
    parser.add_argument("--passes", nargs="*", default=PASSES, choices=PASSES)


def execute(asked: Namespace) -> None:
    """Compile what is asked for and not in the file yet."""
    kept: Result = json.loads(asked.output.read_text()) if asked.output.exists() else {}
    for cell in product(asked.capabilities, asked.widths, asked.dtypes, asked.passes):
        capability, width, dtype, name = cell
        row = f"sm_{capability} {dtype} d{width} {name}"
        if row not in kept:
            kept[row] = measure(name, width, dtype, capability)
            write_atomically(asked.output, json.dumps(kept, indent=1) + "\n")
        spilled = sum(one["spilled_bytes"] > 0 for one in kept[row].values())
        shared = max(one["shared_bytes"] for one in kept[row].values())
        print(f"{row}: {len(kept[row])} kernels, {spilled} spill, {shared:,} B shared")


def gpu_kernels(kept: Result) -> str:
    """Return the worst of all kernels, for each card, dtype and width."""
    groups = defaultdict(list)
    for row, kernels in kept.items():
        card, dtype, width, _ = row.split()
        groups[card, dtype, width].extend(kernels.values())
    header = ["card", "dtype", "width", "kernels", "registers, at most", "spilled bytes"]
    header += ["shared memory, at most", "limit"]
    order = sorted(groups, key=lambda key: (key[0], key[1], int(key[2][1:])))
    rows = [
        [
            card,
            dtype,
            width[1:],
            str(len(group)),
            str(max(each["registers"] for each in group)),
            str(sum(each["spilled_bytes"] for each in group)),
            f"{max(each['shared_bytes'] for each in group) / 1024:.1f} KiB",
            f"{SHARED_LIMIT[int(card[3:])] // 1024} KiB",
        ]
        for (card, dtype, width), group in ((key, groups[key]) for key in order)
    ]
    return to_markdown(header, rows).rstrip()


def gpu_kernels_detail(kept: Result) -> str:
    """Return each kernel of one card, dtype and width, with its arithmetic intensity."""
    rows = []
    for causal in (False, True):
        name = "causal" if causal else "bidirectional"
        moved, flop = defaultdict(int), defaultdict(int)
        for each in both_passes(Call(causal=causal, **CALL)):
            moved[each.name] += each.moved
            flop[each.name] += each.flop
        for kernel, figures in kept[f"{DETAIL} {name}"].items():
            short, *flags = kernel.split()
            variant = ", ".join(flag.lower() for flag in flags if not flag.startswith("HAS"))
            rows.append(
                [
                    name,
                    f"`{short}`" + (f" ({variant})" if variant else ""),
                    str(figures["registers"]),
                    str(figures["spilled_bytes"]),
                    f"{figures['shared_bytes'] / 1024:.1f} KiB",
                    str(32 * figures["warps"]),
                    f"{flop[short] / moved[short]:.0f}" if flop[short] else "—",
                ]
            )
    header = ["form", "kernel", "registers", "spilled bytes", "shared memory", "threads"]
    return to_markdown([*header, "operations a byte"], rows).rstrip()


TABLES: Tables = {"gpu_kernels": gpu_kernels, "gpu_kernels_detail": gpu_kernels_detail}
