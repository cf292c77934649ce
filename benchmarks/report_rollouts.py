"""Write the tables and the picture of rollouts into docs/kinds/trajectories.md.

    python -m benchmarks.report_rollouts

From results/rollout_speed.json (`python -m benchmarks.rollout_speed`) and results/returns_*.json
(`python -m benchmarks.comparisons hopper hopper-replay cheetah`). A test holds the page to them.
"""

import json
from collections import defaultdict
from collections.abc import Callable
from math import sqrt
from statistics import mean, pvariance
from typing import Any

from matplotlib.figure import Figure

from benchmarks.pages import write_pages
from benchmarks.runner import RESULTS, ROOT
from flowformer.compare.table import to_markdown
from flowformer.report.figures import png_bytes
from flowformer.report.trajectories import draw_returns

PICTURE = ROOT / "docs" / "assets" / "decision-returns.png"
METHODS = ["flow", "softmax", "linear", "behaviour-cloning"]
SETS = {
    "hopper": "Hopper, medium and expert",
    "hopper-replay": "Hopper, replay",
    "cheetah": "HalfCheetah, medium and expert",
}


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


def _returns(name: str) -> tuple[dict[str, Any], dict[str, list[dict[str, float]]]]:
    """Return a comparison's data, and of each method the outcomes over the seeds' episodes."""
    kept = json.loads((RESULTS / f"returns_{name}.json").read_text())
    seeds = defaultdict(list)
    for run, outcomes in kept["runs"].items():
        seeds[run.rpartition("-seed")[0]].append(outcomes)
    methods = {}
    for method in sorted(seeds, key=METHODS.index):
        methods[method] = [
            {
                "target": each[0]["target"],
                "mean": mean(one["mean"] for one in each),
                # Of all episodes: within the seeds, and between them.
                "std": sqrt(
                    mean(one["std"] ** 2 for one in each) + pvariance(one["mean"] for one in each)
                ),
            }
            for each in zip(*seeds[method], strict=True)
        ]
    return kept["data"], methods


def decision_returns() -> str:
    """Return what each method returned at each target, by data set."""
    rows = []
    for name, title in SETS.items():
        data, methods = _returns(name)
        held = f"{data['data_worst']:,.0f} to {data['data_best']:,.0f}, {data['data_mean']:,.0f}"
        asked = [f"**{each['target']:,.0f}**" for each in methods["flow"]]
        rows.append([f"{title} ({held})", "asked for", *asked])
        for method, outcomes in methods.items():
            came = [f"{each['mean']:,.0f} ± {each['std']:,.0f}" for each in outcomes]
            rows.append(["", f"`{method}`", *came])
    header = ["set (its returns, their mean)", "method", "target 1", "target 2", "target 3"]
    return to_markdown([*header, "target 4"], rows).rstrip()


def returns_picture() -> bytes:
    """Return the same as a picture."""
    figure = Figure(figsize=(10.5, 3.2), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(SETS)), SETS.items(), strict=True):
        data, methods = _returns(name)
        behaviour = data["data_worst"], data["data_mean"], data["data_best"]
        draw_returns(axes, methods, behaviour=behaviour)
        axes.set_title(title, fontsize=9)
    return png_bytes(figure)


TABLES: dict[str, Callable[[], str]] = {
    "rollout_speed": rollout_speed,
    "rollout_speed_machine": rollout_speed_machine,
    "decision_returns": decision_returns,
}
PAGES = {"docs/kinds/trajectories.md": tuple(TABLES)}


def main() -> None:
    """Write."""
    write_pages(PAGES, TABLES)
    PICTURE.write_bytes(returns_picture())
    print(PICTURE.relative_to(ROOT))


if __name__ == "__main__":
    main()
