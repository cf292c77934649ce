"""What the tests share: fixed randomness, golden values, shape checks that can be set aside."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

import hypothesis
import jaxtyping
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN_FOLDER = Path(__file__).parent / "golden"

# Without a GPU its kernels are interpreted. Triton reads this when it is first imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Tests run side by side, one process a core: more threads in each only slow one another down.
torch.set_num_threads(1)

# The same examples in every run, so that a green commit stays green; `--hypothesis-profile=default`
# explores new ones. No deadline: the first call of a shape pays for compilation and warm-up.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=15)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["no-entry", "root-folder", "of-another"])
def homeless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without an entry, or whose home cannot be written, and no variable in its place."""
    for name in ("FLOWFORMER_DATA", "XDG_CACHE_HOME", "AEON_DATA", "MINARI_DATASETS_PATH", "HOME"):
        monkeypatch.delenv(name, raising=False)
    if request.param == "no-entry":

        def no_entry(user: int) -> NoReturn:
            raise KeyError(user)

        monkeypatch.setattr("pwd.getpwuid", no_entry)
    else:
        monkeypatch.setenv("HOME", "/" if request.param == "root-folder" else "/nobody")
        monkeypatch.setattr(os, "access", lambda *_: False)  # as for who is not root


@pytest.fixture
def shape_checks_off() -> Iterator[None]:
    """Let jaxtyping's wrappers pass calls through: they read the switch at every call.

    `torch.compile(fullgraph=True)` and `torch.export` cannot trace the checks themselves.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def ctrl_c_heard() -> Iterator[None]:
    """Let Ctrl-C reach the test and its children, even where the tests run as a job without it.

    A shell starts its background jobs with the signal ignored, and children inherit that.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def told() -> Iterator[list[tuple[str, int, int | None]]]:
    """What work has told of its progress: what it is, how much is done, and of how much."""
    from flowformer.progress import showing  # here: jaxtyping's hook comes after this file

    seen: list[tuple[str, int, int | None]] = []

    def watch(work: Any) -> nullcontext[Callable[[], object]]:
        return nullcontext(lambda: seen.append((work.what, work.done, work.total)))

    with showing(watch):
        yield seen


@pytest.fixture(scope="session")
def golden() -> Callable[[str], dict[str, Tensor]]:
    """Load golden values by name: `golden("attention/causal-b2-l17-s17-h2-d8")["out"]`."""
    return lambda name: load_file(GOLDEN_FOLDER / f"{name}.safetensors")
