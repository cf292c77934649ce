"""How are the GPU kernels cut best on this card? Kept for later processes.

    python -m benchmarks tune_gpu                               # bfloat16, widths 64 and 128
    python -m benchmarks tune_gpu --widths 256 --dtypes float32 --lengths 1024

From the default settings on, one of them is changed at a time, and what makes a forward and
backward faster is kept, until nothing does. What does not compile, or needs more shared memory
than there is, is passed over. Each key is kept when it is done (`keep_settings`) and left out of
the next run: stopped, the same command goes on. The kernels of one width and dtype are compiled
once, for minutes; other lengths find them in Triton's cache.
"""

import statistics
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from functools import partial

import torch
from triton.errors import TritonError

from benchmarks.attention.gpu.clock import BrokenContextError, CudaClock
from benchmarks.attention.gpu.peers import make_inputs
from benchmarks.attention.gpu.traffic import Call, fixed_settings
from benchmarks.attention.peers import forward_backward
from benchmarks.runner import share
from flowformer import flow_attention
from flowformer.ops.backends.triton import tuning
from flowformer.ops.backends.triton.tuning import (
    Key,
    Settings,
    default_settings,
    keep_settings,
    key_of,
)

WIDTHS = (16, 32, 64, 128, 256)
DTYPES = ("bfloat16", "float16", "float32")
LENGTHS = (64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576)  # the buckets of a Key
TOKENS, HEADS = 65_536, 16
ROUNDS = 5
MARGIN = 0.98  # of the best time: less is not told from noise, and what is kept should stay

# What each setting may be; blocks are no wider than the tensors.
CHOICES: dict[str, tuple[int, ...]] = {
    "size": (32, 64, 128),
    "block": (16, 32, 64, 128),
    "narrow_block": (16, 32, 64),
    "y_block": (16, 32, 64, 128),
    "warps": (2, 4, 8),
    "most_warps": (4, 8, 16),
    "stages": (1, 2, 3),
    "programs": (256, 512, 1024, 2048),
}

Timer = Callable[[Settings], float | None]  # seconds; None where the settings are none


def candidates(key: Key, settings: Settings) -> Iterator[Settings]:
    """Yield the settings that differ from the given ones in one of them."""
    widest = {"block": key.width, "narrow_block": key.width, "y_block": key.value_width}
    for name, choices in CHOICES.items():
        for choice in choices:
            if choice != getattr(settings, name) and choice <= widest.get(name, choice):
                yield settings._replace(**{name: choice})


def search(key: Key, timer: Timer) -> tuple[Settings, float | None, float | None]:
    """Return the best settings of a key, their seconds, and those of the default settings.

    Where none compile, the best are the default ones.
    """
    best = default = default_settings(key)
    times = {best: timer(best)}
    improved = True
    while improved:
        improved = False
        for settings in candidates(key, best):
            if settings not in times:
                times[settings] = timer(settings)
            if is_faster(times[settings], times[best]):
                best, improved = settings, True
                break
    return best, times[best], times[default]


def is_faster(seconds: float | None, best: float | None) -> bool:
    """Whether a time is better than the best, by more than noise."""
    if seconds is None or best is None:
        return seconds is not None
    return seconds < MARGIN * best


def seconds_of(clock: CudaClock, key: Key, settings: Settings) -> float | None:
    """Return the seconds of a forward and backward, None where they cannot be run."""
    call = Call(
        causal=key.causal,
        batch=max(1, TOKENS // key.length),
        length=key.length,
        heads=HEADS,
        width=key.width,
        dtype=getattr(torch, key.dtype),
    )
    inputs = make_inputs(call, clock.device)
    for tensor in inputs[:3]:
        tensor.requires_grad_()
    attention = partial(flow_attention, causal=key.causal, backend="triton")
    both = partial(forward_backward, attention, inputs)
    with fixed_settings(settings):
        try:
            both()  # compiles
            calls = max(1, int(0.02 / clock.seconds(both, 1)))
            return statistics.median(clock.seconds(both, calls) / calls for _ in range(ROUNDS))
        except (TritonError, torch.OutOfMemoryError) as error:
            print(f"    {settings}: {type(error).__name__}", flush=True)
            return None


def asked(arguments: Namespace) -> Iterator[Key]:
    """Yield the keys to tune; those that share kernels follow each other."""
    for dtype in arguments.dtypes:
        for width in arguments.widths:
            for causal in (True, False):
                for length in arguments.lengths:
                    yield key_of(width, width, getattr(torch, dtype), causal, length)


def tune(
    device: str,
    keys: Iterator[Key],
    timer: Callable[[Key, Settings], float | None],
    *,
    anew: bool = False,
    until: float = float("inf"),
) -> bool:
    """Tune what is not tuned yet, and keep it; return whether the keys came to an end in time.

    Args:
        device: the card's name.
        keys: what to tune.
        timer: returns the seconds of a key with settings.
        anew: whether to tune again what is tuned.
        until: when to stop, on the clock of time.monotonic.
    """
    for key in keys:
        if key.name in tuning._tuned(device) and not anew:
            continue
        if time.monotonic() > until:
            return False
        best, seconds, before = search(key, partial(timer, key))
        path = keep_settings(device, {key: best})
        said = "nothing compiles" if seconds is None else f"{1e3 * seconds:.3g} ms"
        if before is not None and seconds is not None:
            said += f", {before / seconds:.2f} times as fast as the default"
        print(f"{key.name}: {best}, {said}; kept in {path}", flush=True)
    return True


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, anew=False, stop_after=float("inf"))
    parser.add_argument("--widths", type=int, nargs="+", choices=WIDTHS, default=[128, 64])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["bfloat16"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 65_536])


def execute(arguments: Namespace) -> None:
    """Tune."""
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: there is nothing to time")
    clock = CudaClock()
    until = time.monotonic() + arguments.stop_after
    timer = partial(seconds_of, clock)
    try:
        complete = tune(clock.name, asked(arguments), timer, anew=arguments.anew, until=until)
    except BrokenContextError as error:
        sys.exit(f"{error}: this process cannot use the card any more; run it again")
    print("all are tuned" if complete else "out of time: the same command goes on")
