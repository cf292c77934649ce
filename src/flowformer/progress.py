"""The progress of long work: what is done and what is left, in a line at the foot of a terminal.

Work says how far it is, wherever it is done. Whether that is shown is for its caller to say: the
command line and a training show it on a terminal; elsewhere, and in Python, there is silence. Who
asks for it without a terminal, in a file or a pipe, gets a line now and then: nothing is erased
there, and hundreds of bars would be left.

    with showing(), working("tokenising", total=len(documents), unit="documents") as work:
        for document in documents:
            ...
            work.advance()
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from threading import RLock
from time import monotonic
from typing import Any, TypeVar

T = TypeVar("T")

_LARGE = 100_000  # from here on a count is shown as 1.23M
_OF_TOTAL = (
    "{desc}: {percentage:3.0f} %|{bar:20}| {n_fmt} of {total_fmt} {unit}, {remaining} left{postfix}"
)
_WITHOUT = "{desc}: {n_fmt} {unit}, {elapsed}{postfix}"


def _silent() -> None:
    pass


@dataclass
class Work:
    """Something that takes long.

    Attributes:
        what: what is done, in a few words.
        total: how much there is to do; None where nobody knows.
        unit: what is counted.
        done: how much of it is done.
        note: what else there is to say, in a few words.
        line: what is shown in place of all that.
    """

    what: str
    total: int | None = None
    unit: str = ""
    done: int = 0
    note: str = ""
    line: str | None = None
    _show: Callable[[], object] = _silent

    def advance(self, count: int = 1) -> None:
        """Say that so much more is done."""
        self.reach(self.done + count)

    def reach(self, done: int, *, note: str | None = None) -> None:
        """Say how much is done, of all.

        Args:
            done: how much.
            note: takes the place of the last one; None lets it stand.
        """
        self.done = done
        self.note = self.note if note is None else note
        self._show()

    def tell(self, line: str) -> None:
        """Show a line of text in place of the count."""
        self.line = line
        self._show()


Watch = Callable[[Work], AbstractContextManager[Callable[[], object]]]

_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)
_open: list[Any] = []  # the bars that are on the terminal

_SECONDS, _SHARE = 10.0, 0.1  # from a line to the next: so long, and so much of what it took so far


def _erases() -> bool:
    """Return whether what is written after a carriage return takes the place of the line."""
    return sys.stderr is None or sys.stderr.isatty() or "ipykernel" in sys.modules


@contextmanager
def _lines(work: Work) -> Iterator[Callable[[], object]]:
    """Write a line now and then, and none of what is soon done."""
    began = last = monotonic()
    start = work.done

    def show() -> None:
        nonlocal last
        now = monotonic()
        if now - last < max(_SECONDS, _SHARE * (now - began)):
            return
        last = now
        try:
            text = _in_a_line(work, now - began, start)
        except ImportError:
            return
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    yield show


def _in_a_line(work: Work, seconds: float, start: int) -> str:
    figures = _figures(work)
    form = figures.pop("bar_format").replace("|{bar:20}|", ",")
    figures["prefix"] = figures.pop("desc")
    return (
        _kind()
        .format_meter(work.done, elapsed=seconds, initial=start, bar_format=form, **figures)
        .strip()
    )


@contextmanager
def showing(shown: bool | Watch | None = None) -> Iterator[None]:
    """Show the progress of all work that is done in the block.

    Args:
        shown: None shows it where standard error is a terminal, and elsewhere as it is around the
            block; True always, as a bar in a notebook too and as lines in a file; False never. A
            function is called with each work and returns a context manager for its time, with what
            is called at each step.

    Examples:
        >>> from contextlib import nullcontext
        >>> from flowformer.progress import counted, showing
        >>> def watch(work):
        ...     return nullcontext(lambda: print(work.what, work.done, "of", work.total))
        >>> with showing(watch):
        ...     letters = [letter.upper() for letter in counted("ab", "shouting")]
        shouting 1 of 2
        shouting 2 of 2
    """
    watch = _watch.get()
    if callable(shown):
        watch = shown
    elif shown is not None:
        watch = (_bar if _erases() else _lines) if shown else None
    elif sys.stderr is not None and sys.stderr.isatty():
        watch = _bar
    before = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(before)


def is_shown() -> bool:
    """Return whether the progress of work is shown here."""
    return _watch.get() is not None


@contextmanager
def working(
    what: str, *, total: int | None = None, unit: str = "", done: int = 0
) -> Iterator[Work]:
    """Give the progress of some work a name, and take it off the terminal at the end of the block.

    Args:
        what: what is done, in a few words: "tokenising the test part".
        total: how much there is to do; None where nobody knows.
        unit: what is counted, in the plural.
        done: how much was done before, and tells nothing of how fast it goes.
    """
    work, watch = Work(what, total, unit, done), _watch.get()
    if watch is None:
        yield work
        return
    with watch(work) as work._show:
        yield work


def counted(
    items: Iterable[T], what: str, *, total: int | None = None, unit: str = ""
) -> Iterator[T]:
    """Yield items, and count those that were worked on.

    Args:
        items: the items; their number is asked for where they have one.
        what: what is done with them, in a few words.
        total: their number, where they cannot be asked.
        unit: what they are, in the plural.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with working(what, total=total, unit=unit) as work:
        for item in items:
            yield item
            work.advance()


def clear_bars() -> None:
    """Take the bars off the terminal, for a line to be written; a step shows them again."""
    for bar in _open:
        bar.clear()


def say(line: str) -> None:
    """Write a line to standard error, above the bars."""
    clear_bars()
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


@contextmanager
def _bar(work: Work) -> Iterator[Callable[[], object]]:
    try:
        # Smoothing 0: the time left is told from all steps, and pauses between them count.
        bar = _kind()(
            **_figures(work),
            file=sys.stderr,
            initial=work.done,
            leave=False,
            dynamic_ncols=True,
            miniters=0,
            smoothing=0,
        )
    except ImportError:  # tqdm comes with the extras, as does nearly all that takes long
        yield _silent
        return

    def show() -> None:
        vars(bar).update(_figures(work))
        bar.update(work.done - bar.n)

    _open.append(bar)
    try:
        yield show
    finally:
        _open.remove(bar)
        bar.close()


@cache
def _kind() -> Any:
    """tqdm, without its thread and its lock between processes: forks come out of these."""
    from tqdm import tqdm

    return type("Bar", (tqdm,), {"monitor_interval": 0, "_lock": RLock()})


def _figures(work: Work) -> dict[str, Any]:
    form = _OF_TOTAL if work.total else _WITHOUT if work.unit else "{desc} …{postfix}"
    return {
        "desc": work.what if work.line is None else work.line,
        "total": work.total,
        "unit": work.unit,
        "unit_scale": max(work.total or 0, work.done) >= _LARGE,
        "postfix": work.note,
        "bar_format": form if work.line is None else "{desc}",
    }
