"""Every benchmark by its name: `python -m benchmarks NAME [options]`.

Without a name all are listed, each with its question. `--report` measures nothing: it writes the
tables and pictures of the pages from the results that are there; without a name, those of all.
`reproduce TABLE` makes a table of the pages again: `reproduce` lists them.
"""

import argparse
import ast
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import ModuleType

# Where each stands below this folder. A module has a docstring, whose first line is its question;
# `execute(arguments)`, which measures and returns an exit status or None; and, where it needs them,
# `options(parser)`, which adds its options, and `TABLES`, `PICTURES` and `results`: see pages.py.
BENCHMARKS = {
    "attention_cpu": "attention.cpu.attention",
    "attention_sizes": "attention.cpu.sizes",
    "backend_choice": "attention.cpu.backend_choice",
    "long_context": "attention.cpu.long_context",
    "fast_transformers": "attention.fast_transformers",
    "ggml": "attention.ggml",
    "attention_gpu": "attention.gpu.attention",
    "gpu_roofline": "attention.gpu.roofline",
    "gpu_kernels": "attention.gpu.kernels",
    "tune_gpu": "attention.gpu.tune",
    "training_step": "models.training_step",
    "end_to_end": "models.end_to_end",
    "language_step": "models.language_step",
    "generation": "models.generation",
    "linearize": "models.linearize",
    "rollout_speed": "models.rollout_speed",
    "vision_cost": "models.vision_cost",
    "vision_speed": "models.vision_speed",
    "vision_latency": "models.vision_latency",
    "mixer_cost": "mixers.cost.mixer_cost",
    "arena_cost": "mixers.cost.arena_cost",
    "arena_long": "mixers.cost.arena_long",
    "recall": "mixers.recall",
    "gating": "mixers.gating",
    "gating_trials": "mixers.gating_trials",
    "gating_options": "mixers.gating_options",
    "language": "mixers.language",
    "series_sets": "mixers.series_sets",
    "series_paper": "mixers.series_paper",
    "comparisons": "mixers.comparisons",
    "compare_start": "mixers.compare_start",
    "findings": "findings",
    "summarize_runs": "mixers.summarize_runs",
    "photographs": "mixers.photographs",
    "sequence_parallel": "parallel.sequence_parallel",
    "numerics": "reliability.numerics",
    "faults": "reliability.faults",
    "fuzz": "reliability.fuzz",
    "kernel_fuzz": "reliability.kernel_fuzz",
}


def load(name: str) -> ModuleType:
    """Return the module of a benchmark."""
    return import_module(f"benchmarks.{BENCHMARKS[name]}")


def question(name: str) -> str:
    """Return the first line of a benchmark's docstring, without an import."""
    path = Path(__file__).parent.joinpath(*BENCHMARKS[name].split(".")).with_suffix(".py")
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def listing() -> str:
    """Return a line for each benchmark."""
    lines = ["python -m benchmarks NAME [--report] [options]; NAME --help has the options", ""]
    return "\n".join(lines + [f"  {name:<19}{question(name)}" for name in BENCHMARKS])


def parser_of(name: str, module: ModuleType) -> argparse.ArgumentParser:
    """Return the parser of a benchmark's options."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if hasattr(module, "TABLES"):
        about = "only write the tables of the pages from the result that is there"
        parser.add_argument("--report", action="store_true", help=about)
    if hasattr(module, "options"):
        module.options(parser)
    return parser


def report(name: str) -> None:
    """Write what the pages show of a benchmark."""
    from benchmarks import pages  # the list of names does not wait for torch

    for path in pages.write(name, load(name)):
        print(path)


def main(words: Sequence[str]) -> int:
    """Do what the command line says; return the exit status."""
    if not words or words[0] in ("-h", "--help"):
        print(listing())
        return 0
    if words[0] == "--report":
        for name in BENCHMARKS:
            if hasattr(load(name), "TABLES"):
                report(name)
        return 0
    name, *rest = words
    if name == "reproduce":
        from benchmarks import reproduce

        return reproduce.main(rest)
    if name not in BENCHMARKS:
        near = get_close_matches(name, BENCHMARKS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        known = ", ".join(BENCHMARKS)
        print(f"unknown benchmark {name!r}: {hint}choose from {known}", file=sys.stderr)
        return 2
    module = load(name)
    parser = parser_of(name, module)
    arguments = parser.parse_args(rest)
    if getattr(arguments, "quick", False) and arguments.output == parser.get_default("output"):
        # A quick run is not reported.
        arguments.output = arguments.output.with_stem(f"{arguments.output.stem}_quick")
    if getattr(arguments, "report", False):
        report(name)
        return 0
    return module.execute(arguments) or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
