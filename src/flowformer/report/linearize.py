"""The report of a linearization: what the model predicts after each step, what a token costs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flowformer.report import page
from flowformer.report.figures import png_bytes
from flowformer.report.words import duration, memory

Row = Mapping[str, Any]

STAGES = {
    "before": "before, softmax",
    "exchanged": "exchanged, nothing trained",
    "transfer": "after (a), attention transfer",
    "tuning": "after (b), fine-tuning",
}


def write_linearize_report(folder: Path, result: Mapping[str, Any]) -> Path:
    """Write FOLDER/index.html, one file that stands alone.

    Args:
        folder: the report's folder.
        result: the content of linearize.json.

    Returns:
        The page.
    """
    stages, settings = result["stages"], result["settings"]
    costs = list(_pairs(result["cost_before"], result["cost_after"]))
    kept = ", ".join(map(str, result["kept"])) or "none"
    return page.save(
        folder,
        f"{result['model']}, linearized by {settings['mixer']}",
        [
            page.paragraph(
                f"Layers with a state: {', '.join(map(str, result['exchanged']))}; "
                f"that stay softmax: {kept}.",
                soft=True,
            ),
            page.headline(_cards(result, costs)),
            page.heading("Held-out text"),
            page.table(
                ("", "tokens of training", "perplexity", "bits a character", "more", "took"),
                [_stage(each, stages[0]) for each in stages],
            ),
            page.paragraph(
                "“Before” is the model as it came, untuned on the text: what fine-tuning learns "
                "of the text's domain enters the difference, beside what the new attention costs."
            ),
            *_cost_parts(costs),
            *_transfer_parts(result["transfer_losses"]),
            page.heading("Settings"),
            page.settings(settings),
        ],
        of=": linearization",
    )


def stage_lines(result: Mapping[str, Any]) -> list[str]:
    """Return the stages and the costs as lines of text, for the command line."""
    stages = result["stages"]
    lines = [
        f"{STAGES[each['name']]}: perplexity {each['perplexity']:.2f}, "
        f"{each['bits_per_character']:.3f} bits a character{_more(each, stages[0], ' ({})')}, "
        f"{each['tokens']:,} tokens, {duration(each['seconds'])}"
        for each in stages
    ]
    for before, after in _pairs(result["cost_before"], result["cost_after"]):
        was, now = (
            f"{each['milliseconds']:.1f} ms and {memory(each['bytes'])} of cache"
            for each in (before, after)
        )
        lines.append(f"a token after {before['context']:,} others: {was} -> {now}")
    return lines


def _pairs(before: Sequence[Row], after: Sequence[Row]) -> list[tuple[Row, Row]]:
    return list(zip(before, after, strict=True))


def _more(stage: Row, first: Row, form: str = "{}") -> str:
    if stage["name"] == "before":
        return ""
    return form.format(f"{100 * (stage['nats'] / first['nats'] - 1):+.1f} %")


def _stage(stage: Row, first: Row) -> tuple[str, ...]:
    return (
        STAGES[stage["name"]],
        f"{stage['tokens']:,}",
        f"{stage['perplexity']:.2f}",
        f"{stage['bits_per_character']:.3f}",
        _more(stage, first),
        duration(stage["seconds"]) if stage["name"] in ("transfer", "tuning") else "",
    )


def _cards(
    result: Mapping[str, Any], costs: Sequence[tuple[Row, Row]]
) -> list[tuple[str, str, str]]:
    last, first = result["stages"][-1], result["stages"][0]
    cards = [
        (
            "Bits of a character",
            f"{last['bits_per_character']:.3f}",
            f"{_more(last, first)} beside {first['bits_per_character']:.3f} with softmax",
        ),
        ("Tokens of training", f"{last['tokens']:,}", "of transfer and fine-tuning"),
    ]
    if costs:
        before, after = costs[-1]
        cards.append(
            (
                f"A token after {after['context']:,}",
                f"{after['milliseconds']:.1f} ms",
                f"beside {before['milliseconds']:.1f} ms; the cache holds "
                f"{memory(after['bytes'])}, "
                f"beside {memory(before['bytes'])}",
            )
        )
    return cards


def _cost_parts(costs: Sequence[tuple[Row, Row]]) -> list[str]:
    if not costs:
        return []
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    times, bytes_held = figure.subplots(1, 2)
    contexts = [before["context"] for before, _ in costs]
    for axes, key, unit in ((times, "milliseconds", 1.0), (bytes_held, "bytes", 1e-6)):
        for at, name in enumerate(("softmax", "linearized")):
            axes.plot(contexts, [pair[at][key] * unit for pair in costs], marker="o", label=name)
        axes.set(xlabel="tokens before", xscale="log", ylim=(0, None))
    times.set(title="ms a token")
    bytes_held.set(title="MB in the cache")
    times.legend(frameon=False)
    return [
        page.heading("What a token costs"),
        page.picture(png_bytes(figure), alt="Time and memory of a token over the context."),
        page.table(
            ("tokens before", "ms, softmax", "ms", "cache, softmax", "cache"),
            [
                (
                    f"{before['context']:,}",
                    f"{before['milliseconds']:.2f}",
                    f"{after['milliseconds']:.2f}",
                    memory(before["bytes"]),
                    memory(after["bytes"]),
                )
                for before, after in costs
            ],
            numbers_from=0,
        ),
    ]


def _transfer_parts(losses: Mapping[str, Sequence[float]]) -> list[str]:
    if not losses:
        return []
    rows = []
    for name, errors in losses.items():
        part = max(1, len(errors) // 20)
        rows.append((name, *(f"{np.mean(each):.3f}" for each in (errors[:part], errors[-part:]))))
    return [
        page.heading("Attention transfer"),
        page.paragraph(
            "The squared error of what a layer's new attention gives, relative to what the old one "
            "gave, over the first and the last twentieth of the steps."
        ),
        page.table(("layer", "at first", "at last"), rows),
    ]
