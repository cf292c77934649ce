"""Is a million tokens exact, and in what memory? Causal, against float64: `make long-context`.

One head of width 64, float32. The forward pass runs in a process of its own, whose peak resident
memory (inputs, output, Python and torch included) is reported. Its output is then compared with the
same in float64, and so is the sequence streamed token by token. Errors are of a token's output as a
vector, relative to its exact norm, at the worst of all tokens.
"""

import tempfile
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.runner import said_separately, save, share
from flowformer import FlowState, flow_attention, flow_attention_step
from flowformer.memory import peak_memory

WIDTH = 64
PART = 65_536  # tokens compared at once


def make_inputs(tokens: int) -> list[Tensor]:
    """Return query, key and value, [1, tokens, 1, 64]: the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(1, tokens, 1, WIDTH, generator=generator) for _ in range(3)]


def forward(tokens: int, path: str) -> None:
    """Run the forward pass, print its seconds and the peak memory in bytes, save the output."""
    torch.set_num_threads(1)
    inputs = make_inputs(tokens)
    with torch.no_grad():
        start = time.perf_counter()
        out = flow_attention(*inputs, causal=True)
        seconds = time.perf_counter() - start
    print(seconds, peak_memory())
    torch.save(out, path)


def worst(out: Tensor, exact: Tensor) -> float:
    """Return the largest error of a token's vector, relative to its exact norm."""
    return ((out.double() - exact).norm(dim=-1) / exact.norm(dim=-1)).max().item()


@torch.no_grad()
def compare(tokens: int, out: Tensor) -> tuple[float, float, float]:
    """Return the worst errors of ``out`` and of the streamed tokens, and seconds a token."""
    query, key, value = make_inputs(tokens)
    exact_state: FlowState | None = None
    state: FlowState | None = None
    worst_out = worst_stream = streaming = 0.0
    for start in range(0, tokens, PART):
        part = slice(start, start + PART)
        exact, exact_state = flow_attention(
            *(x[:, part].double() for x in (query, key, value)),
            causal=True,
            initial_state=exact_state,
            return_state=True,
        )
        began = time.perf_counter()
        streamed = []
        for t in range(start, min(start + PART, tokens)):
            token = slice(t, t + 1)
            step, state = flow_attention_step(
                query[:, token], key[:, token], value[:, token], state
            )
            streamed.append(step)
        streaming += time.perf_counter() - began
        worst_out = max(worst_out, worst(out[:, part], exact))
        worst_stream = max(worst_stream, worst(torch.cat(streamed, 1), exact))
        print(
            f"{start + PART:>9,} tokens: error {worst_out:.1e} in one call, "
            f"{worst_stream:.1e} token by token",
            flush=True,
        )
    return worst_out, worst_stream, streaming / tokens


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, "long_context")
    parser.add_argument("--tokens", type=int, default=2**20)


def execute(arguments: Namespace) -> None:
    """Measure, print and save."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "out.pt"
        printed = said_separately(forward, tokens=arguments.tokens, path=str(path))
        seconds, peak = map(float, printed.split())
        print(f"forward: {seconds:.1f} s, peak memory {peak / 2**30:.2f} GiB")
        out = torch.load(path, weights_only=True)
    error, streamed_error, step_seconds = compare(arguments.tokens, out)
    result = {
        "tokens": arguments.tokens,
        "forward_seconds": seconds,
        "peak_memory_gib": peak / 2**30,
        "worst_relative_error": error,
        "worst_relative_error_token_by_token": streamed_error,
        "seconds_per_step": step_seconds,
    }
    save(arguments.output, result)
