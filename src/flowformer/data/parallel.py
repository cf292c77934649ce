"""Work by several processes whose results come in the order of the jobs, and its randomness."""

import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from itertools import islice
from multiprocessing import current_process, get_context, parent_process
from types import TracebackType
from typing import TypeVar

import numpy as np

from flowformer.machine import safe_path

Job = TypeVar("Job")
Result = TypeVar("Result")

_AHEAD = 3  # jobs under way for each worker: enough to keep it busy while results are taken


def generator_of(seed: int, part: str, *numbers: int) -> np.random.Generator:
    """Return one job's randomness: a function of a seed, the name of a part, and numbers."""
    return np.random.default_rng([seed, zlib.crc32(part.encode()), *numbers])


class Workers:
    """A context in which functions are applied to jobs, by so many processes.

    With one, the work is done here. More are started afresh (a fork of a process that has torch's
    threads may hang), so a script that does this needs the usual `if __name__ == "__main__":`.
    """

    def __init__(self, number: int) -> None:
        """Start nothing yet.

        Raises:
            ValueError: fewer than one.
        """
        if number < 1:
            raise ValueError(f"expected at least 1 worker, got {number}")
        self._number = number
        self._pool: ProcessPoolExecutor | None = None
        self._entered = ExitStack()

    def __enter__(self) -> "Workers":
        """Return itself."""
        if self._number > 1:
            self._entered.enter_context(safe_path())
            self._pool = ProcessPoolExecutor(
                self._number, mp_context=get_context("spawn"), initializer=_end_with_parent
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes; what they have not begun is left undone."""
        with self._entered:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
        """Yield the result of each job, in their order.

        Args:
            function: function of a job; one that pickle can name, where processes do the work.
            jobs: taken only as they are needed, so they may have no end.
        """
        if self._pool is None:
            yield from map(function, jobs)
            return
        remaining = iter(jobs)
        under_way: deque[Future[Result]] = deque()
        try:
            while True:
                missing = islice(remaining, self._number * _AHEAD - len(under_way))
                under_way.extend(self._pool.submit(function, job) for job in missing)
                if not under_way:
                    return
                yield under_way.popleft().result()
        finally:  # whoever took the results may have enough of them
            for future in under_way:
                future.cancel()


def _end_with_parent() -> None:
    """End this worker when its parent was killed: it would wait for jobs for ever."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def require_main() -> None:
    """Refuse work in a process that is still being started: it runs a script without a guard.

    It would wait for its parent, who waits for it.

    Raises:
        RuntimeError: the process is being started.
    """
    # What Python itself looks at, before it starts a process from one that is being started.
    if getattr(current_process(), "_inheriting", False):
        raise RuntimeError(
            "a script whose work is done by several processes needs its calls under "
            "`if __name__ == '__main__':`; or ask for one process (workers=1)"
        )
