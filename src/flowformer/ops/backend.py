"""Which backends there are, why one is missing, and which one a call gets."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch

from flowformer.ops import chunked, reference

logger = logging.getLogger("flowformer")


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A module with the functions of ``reference.py``, or the reason why it is missing."""

    module: ModuleType | None
    unavailable: Callable[[], str | None]


def _always() -> str | None:
    return None


def _not_built() -> str | None:
    return "this release of flowformer does not contain it"


BACKENDS: dict[str, Backend] = {
    "reference": Backend(module=reference, unavailable=_always),
    "chunked": Backend(module=chunked, unavailable=_always),
    "cpu": Backend(module=None, unavailable=_not_built),
    "triton": Backend(module=None, unavailable=_not_built),
}


def available_backends() -> dict[str, str | None]:
    """Return, for each backend, None where it can be used and otherwise the reason why not."""
    return {name: backend.unavailable() for name, backend in BACKENDS.items()}


def choose_backend(name: str | None, device: torch.device) -> ModuleType:
    """Return the backend's module. The rule: the one asked for, else ``chunked``.

    Raises:
        ValueError: there is no backend of that name.
        RuntimeError: it is not available here; the message says why.
    """
    if name is None:
        name = "chunked"
        if not torch.compiler.is_compiling():
            _log_choice(name, device.type)
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    reason = backend.unavailable()
    if reason is not None or backend.module is None:
        raise RuntimeError(f"{name} backend unavailable: {reason}")
    return backend.module


@cache
def _log_choice(name: str, device: str) -> None:
    logger.info("flow_attention uses the %s backend on %s tensors", name, device)
