"""Which command was asked for, and what becomes of its errors."""

import logging
import os
import sys
from collections.abc import Callable, Sequence

from flowformer.cli import info, recipes, runs, train

# Each command reads its own arguments, so that none pays for the options of another.
COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "recipes": (recipes.main, "list the experiments that can be trained"),
    "info": (info.main, "versions, device, backends and extras, and why any is missing"),
    "train": (train.main, "train a recipe: flowformer train NAME [overrides]"),
    "evaluate": (runs.evaluate, "test a trained run again: flowformer evaluate RUN"),
    "predict": (runs.predict, "classify the series of a .ts file: flowformer predict RUN FILE"),
    "visualize": (runs.visualize, "write the report of a run: flowformer visualize RUN"),
}
# What is wrong with the request, rather than with a run: a bad value, name, file, or missing extra.
USAGE_ERRORS = (ValueError, FileNotFoundError, FileExistsError, ImportError)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given or bool(os.environ.get("FLOWFORMER_DEBUG"))
    given = [argument for argument in given if argument != "--debug"]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("flowformer.tasks")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        sys.exit(_run(given, debug=debug))
    finally:
        logger.removeHandler(handler)


def _run(arguments: list[str], *, debug: bool) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0
    if name == "--version":
        return info.print_version()
    try:
        if name not in COMMANDS:
            raise ValueError(f"unknown command {name!r}: choose from {', '.join(COMMANDS)}")
        return COMMANDS[name][0](rest)
    except BrokenPipeError:
        # The reader of our output (`| head`) has left; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    except Exception as error:
        if debug:
            raise
        usage = isinstance(error, USAGE_ERRORS)
        sys.stderr.write(f"error: {_describe(error)}\n")
        if not usage:
            sys.stderr.write("(--debug shows where)\n")
        return 2 if usage else 1


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split())
    named = isinstance(error, (ValueError, ImportError, RuntimeError, OSError))
    return text if named and text else f"{type(error).__name__}: {text}"


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: flowformer COMMAND [ARGUMENTS] [--debug]",
            "",
            "Train and use Flow-Attention models.",
            "",
            *lines,
            "",
            "flowformer COMMAND --help says more; --debug shows the traceback of an error.",
            "",
        ]
    )
