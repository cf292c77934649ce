"""How is the peer of ggml built? Installs the library of llama.cpp: `make bench-peers`.

Its recurrences with a decay go forward, token by token. The package `ggml-py` brings the library,
compiled for this processor in a minute, into build/peers, where nothing but the benchmarks look.
Its binding lacks these operators: they are called by ctypes. Each is made with its tensors in a
memory of its own, and runs on one thread.
"""

import ctypes
import site
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.attention.fast_transformers import FOLDER
from benchmarks.runner import ROOT

Side = Callable[[], object]
PACKAGE = "ggml-py==0.10.1"

# The shapes of the tensors of each operator, features first, for tokens, heads and a width.
SCANS: dict[str, Callable[[int, int, int], list[tuple[int, ...]]]] = {
    "gated_linear_attn": lambda t, h, d: [*[(d, h, t)] * 4, (d * d * h, 1)],
    "ssm_scan": lambda t, h, d: [
        *((d, d, h, 1), (d, h, t, 1), (h, t, 1), (1, h)),
        *[(d, h, t, 1)] * 2,
    ],
}


@cache
def load() -> tuple[Any, Any]:
    """Return the package, and the library with the operators.

    Raises:
        ImportError: it is not installed.
        OSError: its library does not load.
        AttributeError: its library lacks the operators.
    """
    site.addsitedir(str(FOLDER))  # behind all else
    package = import_module("ggml")
    folder = Path(str(package.__file__)).parent / "lib"
    library = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
    for name, count, numbers in (("gated_linear_attn", 6, [ctypes.c_float]), ("ssm_scan", 8, [])):
        operator = getattr(library, f"ggml_{name}")
        operator.restype = ctypes.c_void_p
        operator.argtypes = [*[ctypes.c_void_p] * count, *numbers]
    return package, library


def missing() -> str | None:
    """Return why the library cannot be loaded, or None."""
    try:
        load()
    except (ImportError, OSError, AttributeError) as error:
        return f"not installed: `make bench-peers` fetches and compiles it, in a minute ({error})"
    return None


def scan(name: str, tokens: int, heads: int, width: int) -> Side:
    """Return a call of an operator on random tensors, with decays of up to a tenth a token."""
    ggml, library = load()
    shapes = SCANS[name](tokens, heads, width)
    size = 2 * 4 * sum(int(np.prod(shape)) for shape in shapes) + (64 << 20)
    context = ggml.ggml_init(ggml.ggml_init_params(mem_size=size, mem_buffer=None, no_alloc=False))
    random = np.random.default_rng(0)

    def tensor(shape: tuple[int, ...], kind: int = ggml.GGML_TYPE_F32) -> Any:
        made = getattr(ggml, f"ggml_new_tensor_{len(shape)}d")(context, kind, *shape)
        data = ctypes.cast(ggml.ggml_get_data(made), ctypes.POINTER(ctypes.c_float))
        count = int(np.prod(shape))
        np.ctypeslib.as_array(data, (count,))[:] = 0.1 * random.random(count, np.float32)
        return made, np.ctypeslib.as_array(data, (count,))

    def pointer(value: Any) -> ctypes.c_void_p:
        return ctypes.cast(value, ctypes.c_void_p)

    made = [tensor(shape) for shape in shapes]
    if name == "gated_linear_attn":
        gates, past = made[3][1], made[4][1]
        gates[:] = 1 - gates
        past[:] = 0
        rest: list[Any] = [ctypes.c_float(1.0)]
    else:
        made[3][1][:] *= -1
        index, number = tensor((1,), ggml.GGML_TYPE_I32)
        number.view(np.int32)[0] = 0
        rest = [pointer(index)]
    given = [pointer(each) for each, _ in made]
    out = getattr(library, f"ggml_{name}")(pointer(context), *given, *rest)
    graph = ggml.ggml_new_graph(context)
    ggml.ggml_build_forward_expand(graph, ctypes.cast(out, ctypes.POINTER(ggml.ggml_tensor)))
    return lambda: ggml.ggml_graph_compute_with_ctx(context, graph, 1)


def execute(_: Namespace) -> None:
    """Fetch, compile and install, unless it is there."""
    if missing():
        where = ["--no-deps", "--upgrade", "--target", str(FOLDER)]
        command = [sys.executable, "-m", "pip", "install", *where, PACKAGE]
        subprocess.run(command, check=True)
    print(f"{PACKAGE}: the library is in {FOLDER.relative_to(ROOT)}")
