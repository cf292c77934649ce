"""Which backends there are, why one is missing, and which one a call gets."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Literal

from torch import Tensor

from flowformer.ops.backends import chunked, cpu, reference, triton
from flowformer.ops.backends.cpu.library import why_unavailable
from flowformer.ops.inputs import (
    constant_in_graphs,
    is_for_any_length,
    is_transformed,
    refuse_growth,
)

logger = logging.getLogger("flowformer")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A module with the functions of ``reference.py``, and why it may not serve."""

    module: ModuleType
    unavailable: Callable[[], str | None]
    unsuitable: Callable[[Tensor], str | None] = lambda _: None  # for some queries


def _always() -> str | None:
    return None


BACKENDS: dict[str, Backend] = {
    "reference": Backend(module=reference, unavailable=_always),
    "chunked": Backend(module=chunked, unavailable=_always),
    "cpu": Backend(module=cpu, unavailable=why_unavailable),
    "triton": Backend(
        module=triton, unavailable=triton.why_unavailable, unsuitable=triton.why_not_for
    ),
}


_COMPILED = ("cpu", "triton")


def available_backends() -> dict[str, str | None]:
    """Return, for each backend, None where it can be used and otherwise the reason why not."""
    return {name: backend.unavailable() for name, backend in BACKENDS.items()}


def choose_backend(name: str | None, query: Tensor, *others: Tensor | None) -> ModuleType:
    """Return the backend's module: the one asked for, else the fastest (see :func:`fastest`).

    Under torch.func, in forward mode and in what is exported (torch.export, torch.jit.trace, ONNX)
    it is ``chunked``: compiled kernels take part in none of them. For a program that runs where
    this package is, such as by AOTInductor, they can be asked for by name. All tensors of the call
    are asked, masks and states too: a transform may be at work on one of them alone.

    Raises:
        ValueError: there is no backend of that name.
        RuntimeError: it is not available here, or not for these tensors; the message says why.
    """
    if name is None:
        portable = is_for_any_length() or is_transformed(query, *others)
        name = "chunked" if portable else fastest(query.device.type)
        if BACKENDS[name].unsuitable(query):
            name = "chunked"
    elif name in _COMPILED and is_transformed(query, *others):
        raise RuntimeError(
            f"the {name} backend has no forward-mode derivatives, which it would take for zero, "
            "and no torch.func transforms: pass backend='chunked' (backend=None does so by itself)"
        )
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    reason = _reason(name) or backend.unsuitable(query)
    if reason is not None:
        raise RuntimeError(f"{name} backend unavailable: {reason}")
    return backend.module


def that_decays(
    module: ModuleType, kind: Literal["flow", "linear"], log_decay: Tensor | None
) -> ModuleType:
    """Return the backend's module, or that of ``chunked`` if its kernels know no decay.

    Raises:
        ValueError: a decay is above zero, as far as it may be looked at.
    """
    knows = kind in module.DECAYS
    if log_decay is not None and not (knows and module is cpu):  # that looks at them by itself
        refuse_growth(log_decay)
    return module if knows else chunked


@constant_in_graphs
def _reason(name: str) -> str | None:
    return BACKENDS[name].unavailable()


@constant_in_graphs
def fastest(device: str) -> str:
    """Return the backend for tensors on a kind of device; it is logged once.

    The compiled kernels on a CPU: at more than 9 of 10 sizes that `python -m benchmarks
    backend_choice` draws, no other is 5 % faster; docs/attention/performance.md lists the rest.
    Those in Triton on a GPU. Elsewhere, and without them, ``chunked``.
    """
    return _fastest(device)


@cache  # traced by dynamo, a cache would be a warning: it sees the function above as a constant
def _fastest(device: str) -> str:
    wanted = {"cpu": "cpu", "cuda": "triton"}.get(device, "chunked")
    reason = BACKENDS[wanted].unavailable()
    name = wanted if reason is None else "chunked"
    because = "" if reason is None else f" ({wanted} backend unavailable: {reason})"
    logger.info("flow_attention uses the %s backend on %s tensors%s", name, device, because)
    return name
