"""Standard output and standard error as commands need them, whatever they were given."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def usable_streams() -> Iterator[None]:
    """Make both streams take all that is written to them, for the time of the block.

    Characters that a stream's encoding has not are replaced. Output that cannot be written (a full
    disk, a pipe whose reader has left, a stream that was closed) raises OSError once, with the
    stream's name, and what comes after it is lost; where the errors themselves cannot be written,
    nothing is raised.
    """
    before = sys.stdin, sys.stdout, sys.stderr
    with ExitStack() as stack:
        # In this order, each takes the lowest number that is free, which is its own: no file that
        # is opened later comes to stand where others write their output.
        sys.stdin = sys.stdin or _opened(stack, os.O_RDONLY, "r")
        out = sys.stdout or _opened(stack, os.O_RDONLY, "w")  # a closed one, too, refuses
        err = sys.stderr or _opened(stack, os.O_WRONLY, "w")
        sys.stdout = _replacing(stack, out, _Output, own=before[1] in (None, sys.__stdout__))
        sys.stderr = _replacing(stack, err, _Errors, own=before[2] in (None, sys.__stderr__))
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except (OSError, ValueError):  # the first time is over, or the stream
                    continue
            sys.stdin, sys.stdout, sys.stderr = before


def finish_output() -> None:
    """Make sure that all printed text is written.

    Raises:
        OSError: it cannot be, or could not and whoever printed it (argparse) said nothing.
    """
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Output) and raw.error is not None:
        raise raw.error


class _Output(io.FileIO):
    """A stream that raises once where it cannot be written, and loses all that comes later."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int | None:
        """Write bytes."""
        if self.error is not None:
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self.error = OSError(error.errno, error.strerror, "standard output")
            raise self.error from None


class _Errors(io.FileIO):
    """A stream that loses whatever cannot be written."""

    def write(self, data: Any, /) -> int | None:
        """Write bytes."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _opened(stack: ExitStack, flags: int, mode: str) -> Any:
    descriptor = os.open(os.devnull, flags)
    if descriptor > 2:  # the standard ones stay taken until the end
        stack.callback(os.close, descriptor)
    return io.TextIOWrapper(io.FileIO(descriptor, mode, closefd=False), encoding="utf-8")  # pyright: ignore[reportArgumentType] - unbuffered


def _replacing(stack: ExitStack, stream: Any, kind: type[io.FileIO], *, own: bool) -> Any:
    """Return a stream that replaces what its encoding lacks; the process's own by `kind`."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream  # somebody's own, as in a notebook
    if own and os.name == "posix":  # a console of Windows is no file
        stream.flush()
        raw = kind(stream.fileno(), "w", closefd=False)
        return io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors="replace",
            line_buffering=stream.line_buffering or stream.write_through,
        )
    errors = stream.errors
    stream.reconfigure(errors="replace")
    stack.callback(lambda: stream.reconfigure(errors=errors))
    return stream
