"""The choice of a command, and the handling of its errors."""

import logging
import os
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from flowformer import __version__
from flowformer.cli.streams import finish_output, usable_streams
from flowformer.names import choose
from flowformer.own_modules import import_own
from flowformer.progress import clear_bars, showing
from flowformer.train.kinds import KINDS

# The function of each command, imported when it is called: none pays for what another needs, and
# without the extras the command line can still say which one is missing.
COMMANDS: dict[str, tuple[str, str]] = {
    "recipes": ("flowformer.cli.info:recipes", "list the experiments that can be trained"),
    "info": (
        "flowformer.cli.info:info",
        "versions, device, backends, extras, and why any is missing",
    ),
    "data": (
        "flowformer.cli.data:main",
        "data to train on: list | prepare NAME | collect ENV | show NAME",
    ),
    "train": ("flowformer.cli.train:main", "train a recipe: flowformer train NAME [overrides]"),
    "compare": (
        "flowformer.cli.compare:main",
        "train the same recipe with several mixers and seeds: a table with costs and tests",
    ),
    "generate": ("flowformer.cli.runs:generate", "go on with a text by a trained language model"),
    "evaluate": ("flowformer.cli.runs:evaluate", "test a trained run again"),
    "rollout": (
        "flowformer.cli.runs:rollout",
        "let a trained decision model act: other targets, forms, episodes; a film",
    ),
    "predict": ("flowformer.cli.runs:predict", "classify what is in a file"),
    "visualize": ("flowformer.cli.runs:visualize", "write the report of a run"),
    "linearize": (
        "flowformer.cli.linearize:main",
        "from the softmax of a Llama or GPT-2 to a mixer with a state: linearize MODEL --text FILE",
    ),
    "check-mixer": (
        "flowformer.cli.check_mixer:main",
        "check a mixer of your own: padding, future, streaming, packing, dtypes, compile",
    ),
}
# Errors of the request, rather than of a run: a bad value, name, path, or missing extra.
# Not every OSError: a full disk is a failed run.
USAGE_ERRORS = (
    ValueError,
    ImportError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
    BlockingIOError,
    NotImplementedError,  # a mixer that cannot do what it was asked for
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or bool(os.environ.get("FLOWFORMER_DEBUG"))
    given = [argument for argument in given if argument != "--debug"]
    if not debug:  # of a lost connection torch's C++ writes a page, before our line
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    shown = warnings.formatwarning
    warnings.formatwarning = _shown if not debug else shown
    try:
        with usable_streams(), _told(), showing():
            code = _run(given, debug=debug)
    finally:
        warnings.formatwarning = shown
    sys.exit(code)


@contextmanager
def _told() -> Iterator[None]:
    """Show the messages of the package on standard error."""
    handler = _Messages(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    loggers = [logging.getLogger(f"flowformer.{name}") for name in ("train", "compare", "nn")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


class _Messages(logging.StreamHandler):
    """Lines on standard error, above the bars of what is under way."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        clear_bars()
        super().emit(record)


def _shown(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object
) -> str:
    """Return a warning of ours without its place in the code, which tells a user nothing."""
    clear_bars()
    place = (
        "" if category is UserWarning and "/flowformer/" in filename else f" ({filename}:{lineno})"
    )
    return f"warning: {message}{place}\n"


def _run(arguments: list[str], *, debug: bool) -> int:
    """Run a command and return its code, once what it has printed is written."""
    try:
        code = _call(*(_import_own(arguments) or ["--help"]))
        finish_output()
        return code
    except BrokenPipeError:  # the reader of our output (`| head`) has left
        return 141  # as that of who ends by SIGPIPE
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    except Exception as error:
        if debug:
            raise
        usage = isinstance(error, USAGE_ERRORS)
        sys.stderr.write(f"error: {describe_error(error)}\n")
        if not usage:
            sys.stderr.write("(--debug shows where)\n")
        return 2 if usage else 1


def _import_own(arguments: list[str]) -> list[str]:
    """Import the modules that a user names (--import MODULE), and return the other arguments."""
    rest, waiting = [], list(arguments)
    while waiting:
        argument = waiting.pop(0)
        flag, equals, reference = argument.partition("=")
        if flag != "--import":
            rest.append(argument)
            continue
        if not equals:
            if not waiting:
                raise ValueError("--import needs a module: a file, or a name as of python -m")
            reference = waiting.pop(0)
        import_own(reference)
    return rest


def _call(name: str, *rest: str) -> int:
    if name in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0
    if name == "--version":
        sys.stdout.write(f"flowformer {__version__}\n")
        return 0
    command, _ = choose(name, COMMANDS, "command")
    try:
        return pkgutil.resolve_name(command)(list(rest))
    except SystemExit as stop:  # of a parser: --help, or an unknown flag
        if isinstance(stop.code, str):
            sys.stderr.write(f"{stop.code}\n")
            return 1
        return stop.code or 0


def describe_error(error: Exception) -> str:
    """Say in a line what went wrong, with settings as they are given here."""
    if isinstance(error, OSError) and error.strerror:
        # The system's own words, without its number: NOPE.ts: no such file or directory.
        path = "" if error.filename is None else f"{error.filename}: "
        return path + error.strerror.lower()
    text = _name_flags(" ".join(str(error).split()))
    named = isinstance(error, (ValueError, ImportError, RuntimeError, OSError))
    return text if named and text else f"{type(error).__name__}: {text}"


def _name_flags(text: str) -> str:
    """Name settings as they are given here: data.max_length is --data.max-length."""
    from flowformer.cli.experiment_flags import part_settings

    settings = [
        rf"{part}\.{setting}"
        for kind in KINDS.values()
        for part, setting in part_settings(kind.config)
    ]
    # Inside a longer name it is a place in a file: RUN/config.json.config.data.max_length.
    pattern = rf"(?<![\w./-])(?:{'|'.join(settings)})\b"
    return re.sub(pattern, lambda match: "--" + match[0].replace("_", "-"), text)


def _usage() -> str:
    return usage_of(
        "COMMAND [ARGUMENTS] [--import MODULE] [--debug]",
        "Train and use Flow-Attention models.",
        COMMANDS,
        "flowformer COMMAND --help says more; --import MODULE imports a module of your own first,\n"
        "such as one with a mixer: its file, or its name as of python -m; --debug shows the\n"
        "traceback of an error.\n",
    )


def usage_of(arguments: str, about: str, table: Mapping[str, tuple[Any, str]], *more: str) -> str:
    """Return what is printed in place of a command; the table says what there is."""
    width = max(map(len, table))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in table.items()]
    return "\n".join([f"usage: flowformer {arguments}", "", about, "", *lines, "", *more])
