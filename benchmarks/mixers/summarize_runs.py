"""What did finished runs reach? Prints a Markdown table, and keeps their figures.

    python -m benchmarks summarize_runs NAME RUN [RUN …]

Reads RUN/result.json; writes results/NAME.json. A figure of the protocol "published" is the best
test accuracy over the epochs: it leaks the test set and is for comparison with the paper alone.
"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from benchmarks.runner import RESULTS, save

COLUMNS = ("recipe", "protocol", "seed", "best_epoch", "epochs", "test_accuracy", "paper_accuracy")


def percent(share: float | None, digits: int) -> str:
    """Return a share in per cent, or a dash where there is none (no test set, no paper)."""
    return "–" if share is None else f"{100 * share:.{digits}f}"


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("name")
    parser.add_argument("runs", nargs="+", type=Path)


def execute(arguments: Namespace) -> None:
    """Read, print and save."""
    results = [json.loads((run / "result.json").read_text()) for run in arguments.runs]
    results.sort(key=lambda result: (result["recipe"], result["protocol"], result["seed"]))
    print("| recipe | protocol | seed | best epoch | test accuracy, % | paper, % | minutes |")
    print("|---|---|---|---|---|---|---|")
    for result in results:
        recipe, protocol, seed, best, epochs, accuracy, paper = (result[name] for name in COLUMNS)
        print(
            f"| `{recipe}` | {protocol} | {seed} | {best} of {epochs} | {percent(accuracy, 2)} | "
            f"{percent(paper, 1)} | {result['seconds'] / 60:.1f} |"
        )
    print()
    save(RESULTS / f"{arguments.name}.json", {"runs": results})
