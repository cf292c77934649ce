"""Write the table of rollout speed into docs/offline-rl.md.

    python -m benchmarks.report_rollouts

From results/rollout_speed.json (`python -m benchmarks.rollout_speed`). A test holds the page to it.
"""

import json
from collections.abc import Callable

from benchmarks.pages import with_tables
from benchmarks.runner import RESULTS, ROOT
from flowformer.evaluation.comparison import to_markdown


def rollout_speed() -> str:
    """Return the time of a step at either end of an episode, and steps per second."""
    result = json.loads((RESULTS / "rollout_speed.json").read_text())
    forms = {
        "streaming": {"flow": "state carried on", "softmax": "cache carried on, which grows"},
        "windowed": dict.fromkeys(("flow", "softmax"), f"last {result['context']} steps again"),
    }
    ends = result["steps_at_each_end"]
    header = ["episodes at once", "mixer", "form", "steps/s", f"ms a step, first {ends}"]
    header += [f"last {ends}", "last / first"]
    rows = []
    for batch, sides in result["batches"].items():
        for name, figures in sides.items():
            mixer, form = name.split()
            rows.append(
                [
                    batch,
                    f"`{mixer}`",
                    f"{form}: {forms[form][mixer]}",
                    f"{figures['steps_per_second']:,.0f}",
                    *(f"{figures[figure]:.2f}" for figure in ("first_ms", "last_ms")),
                    f"{figures['last_over_first']:.2f}",
                ]
            )
    return to_markdown(header, rows).rstrip()


def rollout_speed_machine() -> str:
    """Return what it was measured on, in a sentence."""
    result = json.loads((RESULTS / "rollout_speed.json").read_text())
    machine = result["machine"]
    return (
        f"{machine['processor']} ({machine['vectors']}), {machine['threads']} of "
        f"{machine['cores']} cores, load {machine['load']} at the end; PyTorch {machine['torch']}; "
        f"medians of {result['rounds']} rounds."
    )


TABLES: dict[str, Callable[[], str]] = {
    "rollout_speed": rollout_speed,
    "rollout_speed_machine": rollout_speed_machine,
}
PAGES = {"docs/offline-rl.md": tuple(TABLES)}


def main() -> None:
    """Write."""
    for name, names in PAGES.items():
        path = ROOT / name
        path.write_text(with_tables(path.read_text(), {each: TABLES[each]() for each in names}))
        print(name)


if __name__ == "__main__":
    main()
