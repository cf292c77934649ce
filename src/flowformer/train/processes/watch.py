"""What several processes know of each other: who is there, who has ended, and who is silent.

Each writes a beat into the store of the group again and again and reads those of the others, in a
thread of its own: it goes on while the process computes or waits, and stops with it. A process
that waits for one which is gone would wait for ever, or say no more than that a connection closed.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

BEATS_OF_SILENCE = 4  # after an error of the network: a process that has missed so many is the one
GRACE_SECONDS = 5.0  # that this process has, when another has failed, for an error of its own
KEY = "beat"


@dataclass
class _Other:
    """What was last read of another process."""

    beat: dict[str, Any]
    changed: float

    @property
    def place(self) -> str:
        return f"pid {self.beat['pid']} on {self.beat['host']}"


class Watch:
    """Beats of this process, and what has become of the others.

    Args:
        store: of the group, for this alone: its threads may not wait for each other.
        process: number of this one.
        processes: how many there are.
        timeout: seconds of silence after which a process counts as lost.
        on_lost: is told which and why, from another thread; it ends this process.
    """

    def __init__(
        self,
        store: Any,
        *,
        process: int,
        processes: int,
        timeout: float,
        on_lost: Callable[[str], None],
    ) -> None:
        """Say that it is there; `begin` waits for the others."""
        self._store = store
        self._process = process
        self._processes = processes
        self._timeout = timeout
        self._on_lost = on_lost
        self._interval = min(1.0, timeout / 10)
        self._own = {"host": socket.gethostname(), "pid": os.getpid(), "ended": None}
        self._number = 0
        self._others: dict[int, _Other] = {}
        self._answered = self._awake = time.monotonic()
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._beat()

    def begin(self) -> None:
        """Wait until all are there, and start to watch them.

        Raises:
            RuntimeError: one has not come in time; it is named.
        """
        for other in range(self._processes):
            try:
                self._store.wait([f"{KEY}/{other}"], timedelta(seconds=self._timeout))
            except RuntimeError as error:
                raise RuntimeError(
                    f"process {other} of {self._processes} has not come within {self._timeout:g} s"
                ) from error
        for target in (self._go_on, self._guard):
            threading.Thread(target=target, daemon=True).start()

    def end(self, error: str | None = None) -> None:
        """Tell the others that this process ends, and stop.

        Args:
            error: what ended it; None where all is well.
        """
        self._stopped.set()
        self._own["ended"] = error or ""
        # A store whose process is stopped may not answer at all.
        last = threading.Thread(target=self._last_beat, daemon=True)
        last.start()
        last.join(BEATS_OF_SILENCE * self._interval)

    def _last_beat(self) -> None:
        try:
            self._beat()
        except RuntimeError:  # the store is gone: so is whoever had it
            return

    def find_lost(self) -> str | None:
        """Return who is missing, after an error of the network; wait some beats for evidence."""
        deadline = time.monotonic() + 2 * BEATS_OF_SILENCE * self._interval
        while time.monotonic() < deadline:
            if (found := self._look(BEATS_OF_SILENCE * self._interval)) is not None:
                return found
            time.sleep(self._interval / 4)
        silence = time.monotonic() - self._answered
        return self._unanswered(silence) if silence > BEATS_OF_SILENCE * self._interval else None

    def _beat(self) -> None:
        self._number += 1
        value = json.dumps({**self._own, "number": self._number})
        self._store.set(f"{KEY}/{self._process}", value)

    def _go_on(self) -> None:
        while not self._stopped.wait(self._interval):
            try:
                self._beat()
                self._read()
            except RuntimeError as error:
                # The first process has the store, or the machine that it runs on.
                if not self._stopped.is_set():
                    self._on_lost(f"process 0 of {self._processes} does not answer: {error}")
                return
            self._answered = time.monotonic()
            found = self._look(self._timeout, grace=GRACE_SECONDS)
            if found is not None and not self._stopped.is_set():
                self._on_lost(found)

    def _guard(self) -> None:
        # A store behind a network that is gone does not answer, and says nothing of it.
        while not self._stopped.wait(self._interval):
            if self._was_stopped():
                self._begin_anew()
            self._awake = time.monotonic()
            silence = self._awake - self._answered
            if silence > self._timeout + self._interval:
                self._on_lost(self._unanswered(silence))

    def _unanswered(self, silence: float) -> str:
        return (
            f"process 0 of {self._processes} has not answered process {self._process} for "
            f"{silence:.0f} s: it hangs, or the network between them is gone, or its machine"
        )

    def _was_stopped(self) -> bool:
        """Whether this process has not run for a while, by a thread that does nothing but wait."""
        return time.monotonic() - self._awake > BEATS_OF_SILENCE * self._interval

    def _begin_anew(self) -> None:
        """Give all others their time again: a job may be stopped and continued as a whole."""
        with self._lock:
            self._answered = time.monotonic()
            for other in self._others.values():
                other.changed = self._answered

    def _read(self) -> None:
        for other in range(self._processes):
            if other == self._process:
                continue
            beat, now = json.loads(self._store.get(f"{KEY}/{other}")), time.monotonic()
            with self._lock:
                known = self._others.get(other)
                if known is None or known.beat != beat:
                    self._others[other] = _Other(beat, now)

    def _look(self, silence: float, *, grace: float = 0.0) -> str | None:
        with self._lock:
            others = dict(self._others)
        for number, other in others.items():
            who = f"process {number} of {self._processes} ({other.place})"
            quiet = time.monotonic() - other.changed
            if other.beat["ended"] and quiet >= grace:
                return f"{who} ended: {other.beat['ended']}"
            # Not where this process itself was stopped for a while: then nobody was heard of.
            silent = quiet > silence and not self._was_stopped()
            if other.beat["ended"] is None and silent:
                return (
                    f"{who} has not been heard of for {quiet:.0f} s: it died, hangs, or its "
                    "network is gone"
                )
        return None
