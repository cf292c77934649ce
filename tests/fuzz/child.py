"""Fuzzes readers within limits of memory and time, and writes down what they did.

    python -m tests.fuzz.child REPORT --engine hypothesis --seconds 20 ts hdf5

What the readers need is imported once; each then has a process of its own, forked from this one,
which may crash: it is started again while there is time, and the damaged file is kept.
"""

import argparse
import faulthandler
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
from hypothesis.errors import Flaky

from tests.fuzz.mutations import damaged
from tests.fuzz.runs import EscapedError
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

MEMORY = 2 * 2**30  # more than what is mapped once the reader has read a valid file
SECONDS = 10  # of the processor, for one file; the valid ones take milliseconds
_MOST_CRASHES = 20
_AT_ONCE = 500  # examples that hypothesis keeps in mind, so as to draw none twice
_HANG = 120  # of the clock: where it waits, or no signal interrupts it


# Of hypothesis, about what is slow or large: here it may be.
_CHECKS = [
    hypothesis.HealthCheck.too_slow,
    hypothesis.HealthCheck.data_too_large,
    hypothesis.HealthCheck.large_base_example,
]


class HangError(BaseException):
    """A file took longer than it may; no reader catches this."""


class Fuzzer:
    """One reader, how often it was called, and what it did that it may not."""

    def __init__(self, name: str, report: Path) -> None:
        """Makes the valid files and reads them once."""
        self.target: Target = TARGETS[name]
        self.folder = report.parent / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.contents = self.target.contents(self.folder)
        self.report = report
        self.executions = self.read = 0
        self.slowest = self.last_saved = 0.0
        self.findings: dict[str, dict[str, str]] = {}
        for content in self.contents:
            (self.folder / self.target.file).write_bytes(content)
            self.target.read(self.folder)
        self.started = time.process_time()
        self.save()

    def try_(self, content: bytes) -> str | None:
        """Reads damaged content; returns the signature of what it found, if it found anything."""
        (self.folder / self.target.file).write_bytes(content)
        self.executions += 1
        started = time.process_time()
        faulthandler.dump_traceback_later(_HANG, exit=True)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        problem = None
        try:
            self.target.read(self.folder)
            self.read += 1
        except self.target.errors as error:
            if str(self.folder) not in str(error):
                problem = error
        except (Exception, HangError) as error:  # noqa: BLE001 - whatever it is, it is a finding
            problem = error
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()
        self.slowest = max(self.slowest, time.process_time() - started)
        known = len(self.findings)
        signature = None if problem is None else self._note(problem, content)
        if len(self.findings) > known or time.monotonic() - self.last_saved > 1:
            self.save()
        return signature

    def _note(self, problem: BaseException, content: bytes) -> str:
        frames = traceback.extract_tb(problem.__traceback__)
        ours = [frame for frame in frames if "/flowformer/" in frame.filename] or list(frames)
        place = f"{Path(ours[-1].filename).name}:{ours[-1].name}"
        kind = type(problem).__name__
        if isinstance(problem, self.target.errors) and not isinstance(problem, EscapedError):
            kind = f"{kind} that names no file"
        signature = f"{kind} in {place}"
        # The smallest: hypothesis makes it so, atheris finds it now and then.
        before = self.findings.get(signature)
        if before is None or 2 * len(content) < len(before["content"]):
            self.findings[signature] = {
                "message": str(problem)[:300],
                "content": content.hex(),
                "trace": "".join(traceback.format_exception(problem)[-6:])[-3000:],
            }
        return signature

    def save(self) -> None:
        """Writes the report."""
        self.last_saved = time.monotonic()
        unfinished = self.report.with_suffix(".unfinished")
        unfinished.write_text(
            json.dumps(
                {
                    "executions": self.executions,
                    "read": self.read,
                    "slowest": self.slowest,
                    "seconds": time.process_time() - self.started,
                    "findings": self.findings,
                }
            )
        )
        unfinished.replace(self.report)


def limit_memory() -> None:
    """Lets this process map no more than `MEMORY` beside what it has mapped already."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    bound = pages * resource.getpagesize() + MEMORY
    _, highest = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (bound, highest))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def by_hypothesis(fuzzer: Fuzzer, seconds: float, examples: int, seed: int) -> None:
    """Tries damage that hypothesis draws; each new finding is made small."""
    ends = time.monotonic() + seconds
    known: set[str] = set()
    found: set[str] = set()

    class FoundError(Exception):
        pass

    class OverError(BaseException):  # hypothesis lets it pass
        pass

    def one(content: bytes) -> None:
        if time.monotonic() > ends:
            raise OverError
        signature = fuzzer.try_(content)
        # One at a time: hypothesis would take another for this one made smaller.
        if signature is not None and signature not in known and found <= {*known, signature}:
            found.add(signature)
            raise FoundError(signature)

    damage = damaged(fuzzer.contents, fuzzer.target.tokens)
    for turn in count():
        settings = hypothesis.settings(
            max_examples=min(examples, _AT_ONCE),
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=_CHECKS,
            phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
            verbosity=hypothesis.Verbosity.quiet,
        )
        try:
            hypothesis.seed(seed + 1000 * turn)(settings(hypothesis.given(damage)(one)))()
        except OverError:
            return
        except (FoundError, Flaky):  # flaky: its time was over while it shrank
            known |= found
        if fuzzer.executions >= examples:
            return


def _atheris() -> Any:
    return importlib.import_module("atheris")  # it is no part of the environment


def by_atheris(fuzzer: Fuzzer, seconds: float, seed: int) -> None:
    """Tries damage that libFuzzer makes, which keeps what reaches new code; ends this process."""
    atheris = _atheris()
    corpus = fuzzer.folder.with_name(f"{fuzzer.folder.name}-corpus")
    corpus.mkdir(exist_ok=True)
    for number, content in enumerate(fuzzer.contents):
        (corpus / f"valid-{number}").write_bytes(content)
    words = corpus.with_suffix(".dict")
    escaped = ("".join(f"\\x{byte:02x}" for byte in token) for token in fuzzer.target.tokens)
    words.write_text("".join(f'"{token}"\n' for token in escaped))

    def one(content: bytes) -> None:
        fuzzer.try_(content)

    longest = 4 * max(map(len, fuzzer.contents))
    options = [f"-max_total_time={max(1, round(seconds))}", f"-seed={seed + 1}"]
    if fuzzer.target.tokens:  # an empty dictionary ends libFuzzer
        options.append(f"-dict={words}")
    # Limits of time and memory are ours: libFuzzer's would end the process.
    options += [f"-max_len={longest}", "-timeout=3600", "-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={corpus}-", str(corpus)], one)
    atheris.Fuzz()


def warm(names: list[str], folder: Path, *, instrumented: bool) -> None:
    """Imports what the readers import, by letting them read valid files.

    Args:
        names: of the readers.
        folder: for the files.
        instrumented: whether atheris watches, which then sees what code is reached.
    """
    watch: Any = nullcontext()
    if instrumented:
        watch = _atheris().instrument_imports(include=["flowformer"])
    with watch:
        for name in names:
            (folder / name).mkdir()
            TARGETS[name].contents(folder / name)
            TARGETS[name].read(folder / name)


def fuzz_forked(
    name: str, report: Path, engine: str, *, seconds: float, examples: int, seed: int
) -> None:
    """Fuzzes a reader in a forked process, and in another one after a crash or a hang."""
    ends = time.monotonic() + seconds
    for attempt in range(_MOST_CRASHES):
        part = report.with_name(f"{name}-{attempt}.json")
        errors = part.with_suffix(".stderr")
        child = os.fork()
        if not child:
            _fuzz_and_exit(
                name, part, errors, engine, ends - time.monotonic(), examples, seed + attempt
            )
        _, status = os.waitpid(child, 0)
        if status:
            _keep_crash(name, part, status, errors.read_text(errors="replace")[:3000])
        if not status or time.monotonic() > ends - 1:
            return


def _fuzz_and_exit(
    name: str, part: Path, errors: Path, engine: str, seconds: float, examples: int, seed: int
) -> None:
    status = 1
    with errors.open("w") as written:
        os.dup2(written.fileno(), 2)
        os.dup2(written.fileno(), 1)
        faulthandler.disable()  # else it leaves alone what a library put in its handlers' place
        faulthandler.enable(written)
        try:
            limit_memory()
            signal.signal(signal.SIGPROF, _hang)
            fuzzer = Fuzzer(name, part)
            if engine == "atheris":
                by_atheris(fuzzer, seconds, seed)
            else:
                by_hypothesis(fuzzer, seconds, examples, seed)
            fuzzer.save()
            status = 0
        except BaseException:  # noqa: BLE001 - the process ends, with the reason written down
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)


def _keep_crash(name: str, part: Path, status: int, said: str) -> None:
    figures = {"executions": 0, "read": 0, "slowest": 0.0, "seconds": 0.0, "findings": {}}
    if part.exists():
        figures = json.loads(part.read_text())
    path = part.parent / name / TARGETS[name].file
    how = "hang" if "Timeout (" in said else f"crash, {os.waitstatus_to_exitcode(status)}"
    figures["findings"][how] = {
        "message": said.strip().splitlines()[0] if said.strip() else "",
        "content": path.read_bytes().hex() if path.exists() else "",
        "trace": said,
    }
    part.write_text(json.dumps(figures))


def main() -> None:
    """Fuzzes the readers one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "report", type=Path, help="in whose folder NAME-0.json and so on are written"
    )
    parser.add_argument("names", nargs="+", choices=TARGETS)
    parser.add_argument("--engine", choices=("hypothesis", "atheris"), default="hypothesis")
    parser.add_argument("--seconds", type=float, default=1e9, help="of each reader")
    parser.add_argument("--examples", type=int, default=10**9, help="of each reader, at most")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # numpy's and Pillow's, of damaged files that read nevertheless
    with tempfile.TemporaryDirectory() as scratch:
        warm(arguments.names, Path(scratch), instrumented=arguments.engine == "atheris")
    for name in arguments.names:
        fuzz_forked(
            name,
            arguments.report,
            arguments.engine,
            seconds=arguments.seconds,
            examples=arguments.examples,
            seed=arguments.seed,
        )


def _hang(_signal: int, _frame: FrameType | None) -> None:
    raise HangError(f"more than {SECONDS} seconds")


if __name__ == "__main__":
    main()
