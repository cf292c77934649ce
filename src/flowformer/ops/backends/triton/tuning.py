"""The cut of the kernels: sizes of chunks and blocks, warps, splits."""

import json
import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as triton reads it, at its import
VECTORS = 4  # a chunk or sequence, and numbers a token, that a forward keeps for its backward

# Not Path.expanduser, which raises where there is no home directory: at the import of flowformer.
CACHE = Path(os.path.expanduser("~/.cache/flowformer/triton"))  # noqa: PTH111


class Settings(NamedTuple):
    """The settings of the kernels of one call.

    Attributes:
        size: tokens of a chunk.
        block: features of query and key at a time, where they alone are held.
        narrow_block: likewise, in a program that holds a triangle of q kᵀ too.
        y_block: features of the value at a time.
        warps: of a program.
        most_warps: of a program that holds a triangle and vectors of either side.
        stages: that loads of a loop run ahead.
        programs: wanted at least, in the pass whose programs walk over chunks: long sequences with
            few heads are split into as many.
    """

    size: int = 64
    block: int = 64
    narrow_block: int = 32
    y_block: int = 64
    warps: int = 4
    most_warps: int = 8
    stages: int = 2
    programs: int = 512


class Key(NamedTuple):
    """The sizes that settings depend on; not the exact length, which would tune for each."""

    width: int
    value_width: int
    dtype: str
    causal: bool
    length: int  # a power of four that is at least the length, 64 … 1M

    @property
    def name(self) -> str:
        """The key's name in the file."""
        form = "causal" if self.causal else "bidirectional"
        return f"{form} d{self.width} m{self.value_width} {self.dtype} L{self.length}"


def key_of(width: int, value_width: int, dtype: torch.dtype, causal: bool, length: int) -> Key:
    """Return the key of a call."""
    bucket = 64
    while bucket < length and bucket < 2**20:
        bucket *= 4
    return Key(padded(width), padded(value_width), str(dtype).rpartition(".")[2], causal, bucket)


def padded(width: int) -> int:
    """Return the power of two that holds a width, at least 16: what a product of matrices takes."""
    return max(16, 1 << (width - 1).bit_length())


def default_settings(key: Key) -> Settings:
    """Return what needs no tuning; `python -m benchmarks gpu_kernels` shows that nothing spills.

    float32 and float16 are multiplied as (three or one) TensorFloat-32: twice the registers.
    """
    most, warps = (64, 4) if key.dtype == "bfloat16" else (32, 8)
    return Settings(
        size=most,
        block=min(key.width, most),
        y_block=min(key.value_width, most),
        warps=warps,
    )


def settings_for(key: Key, device: torch.device) -> Settings:
    """Return the tuned settings of this device, or the default ones."""
    if device.type != "cuda":
        return default_settings(key)
    return _tuned(torch.cuda.get_device_name(device)).get(key.name) or default_settings(key)


def settings_of(query: Tensor, value: Tensor, *, causal: bool) -> Settings:
    """Return the settings of a call."""
    widths, device = (query.shape[3], value.shape[3]), query.device
    # Untuned settings are those of every length: a graph that is traced for any stays one for any.
    is_tuned = device.type == "cuda" and _tuned(torch.cuda.get_device_name(device))
    length = query.shape[1] if is_tuned else 0
    return settings_for(key_of(*widths, query.dtype, causal, length), device)


@cache
def _tuned(device: str) -> dict[str, Settings]:
    path = _file(device)
    if not path.is_file():
        return {}
    try:
        kept = json.loads(path.read_text())
        return {name: Settings(**values) for name, values in kept.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} must hold what python -m benchmarks tune_gpu of this version keeps, got "
            f"{error}: delete it, and tune again if you like"
        ) from error


def keep_settings(device: str, found: dict[Key, Settings]) -> Path:
    """Keep tuned settings for this and later processes; returns the file."""
    known = _tuned(device) | {key.name: settings for key, settings in found.items()}
    text = json.dumps({name: value._asdict() for name, value in known.items()}, indent=1)
    path = _file(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(text + "\n")
    unfinished.replace(path)  # a process that reads sees the old file or the new one
    _tuned.cache_clear()
    return path


def _file(device: str) -> Path:
    return CACHE / f"{device.replace(' ', '-').replace('/', '-')}.json"
