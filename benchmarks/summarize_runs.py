"""Print finished runs as a Markdown table, and keep their figures.

    python -m benchmarks.summarize_runs NAME RUN [RUN …]

Reads RUN/result.json; writes results/NAME.json. A figure of the protocol "published" is the best
test accuracy over the epochs: it leaks the test set and is for comparison with the paper alone.
"""

import argparse
import json
from pathlib import Path

from benchmarks.runner import RESULTS

COLUMNS = ("recipe", "protocol", "seed", "best_epoch", "epochs", "test_accuracy", "paper_accuracy")


def main() -> None:
    """Read, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("runs", nargs="+", type=Path)
    arguments = parser.parse_args()
    results = [json.loads((run / "result.json").read_text()) for run in arguments.runs]
    results.sort(key=lambda result: (result["recipe"], result["protocol"], result["seed"]))
    print("| recipe | protocol | seed | best epoch | test accuracy, % | paper, % | minutes |")
    print("|---|---|---|---|---|---|---|")
    for result in results:
        recipe, protocol, seed, best, epochs, accuracy, paper = (result[name] for name in COLUMNS)
        print(
            f"| `{recipe}` | {protocol} | {seed} | {best} of {epochs} | {100 * accuracy:.2f} | "
            f"{100 * paper:.1f} | {result['seconds'] / 60:.1f} |"
        )
    path = RESULTS / f"{arguments.name}.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{path}")


if __name__ == "__main__":
    main()
