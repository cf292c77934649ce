"""What makes a table of the pages again: `make reproduce-NAME`.

Each name stands for benchmarks, with their arguments, that are run one after the other; then the
tables and pictures of the pages are written anew, and what was found. Those that train go on where
they were stopped.
"""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NamedTuple


class Steps(NamedTuple):
    """How a table is made, and how long that takes on one free core like that of the results."""

    time: str
    commands: tuple[str, ...]


TABLES = {
    "mixers": Steps(
        "5 h", ("comparisons scp1 characters", "mixer_cost --threads 1 --time-limit 30")
    ),
    "gating": Steps("16 h", ("gating",)),
    "gating_trials": Steps("90 min", ("gating_trials",)),
    "gating_options": Steps("90 min", ("gating_options",)),
    "language": Steps("40 h", ("language --again",)),
    "series_sets": Steps("3 h", ("series_sets --again",)),
    "series_paper": Steps("2 days", ("series_paper --again",)),
    "scp1": Steps("2 h", ("comparisons scp1",)),
    "characters": Steps("90 min", ("comparisons characters",)),
    "mixer_cost": Steps("40 min", ("mixer_cost --threads 1 --time-limit 30",)),
    "arena": Steps("2 h", ("comparisons listops text retrieval image pathfinder",)),
    "arena_long": Steps("1 h", ("arena_long",)),
    "arena_cost": Steps("30 min", ("arena_cost --threads 1 --time-limit 30",)),
    "wiki": Steps("2 h", ("comparisons wiki",)),
    "language_step": Steps("20 min", ("language_step",)),
    "generation": Steps("15 min", ("generation --threads 2",)),
    "recall": Steps("8 h", ("recall --again",)),
    "images": Steps("75 min", ("comparisons fashion",)),
    "trajectories": Steps("75 min", ("comparisons hopper hopper-replay cheetah",)),
    "findings": Steps("5 s", ("findings",)),
}


def listing() -> str:
    """Return a line for each table."""
    rows = [
        f"make reproduce-{name:<16}{steps.time:<9}{'; '.join(steps.commands)}"
        for name, steps in TABLES.items()
    ]
    return "\n".join(rows)


def main(words: Sequence[str]) -> int:
    """Make the table that is asked for; return the exit status."""
    from benchmarks.__main__ import main as run

    if len(words) != 1 or words[0] not in TABLES:
        asked = " ".join(words)
        near = get_close_matches(asked, TABLES, n=1)
        hint = f": did you mean {near[0]}?" if near else ""
        said = f"unknown table {asked!r}{hint}\n" if asked else ""
        print(f"{said}{listing()}", file=sys.stderr)
        return 2
    steps = TABLES[words[0]]
    print(f"==> {words[0]}: about {steps.time} on a free core", flush=True)
    for command in steps.commands:
        benchmark, *arguments = command.split()
        print(f"==> python -m benchmarks {command}", flush=True)
        if status := run([benchmark, *arguments]):
            return status
        run([benchmark, "--report"])
    run(["findings", "--report"])
    return 0
