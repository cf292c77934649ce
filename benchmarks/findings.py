"""What was found: for each question, what do the results say, with figure and test?

    python -m benchmarks findings             # says it
    python -m benchmarks findings --report    # writes it where the page of the results begins

Nothing is measured here, and no figure is written by hand: the sentences are made of what stands in
results/. A difference counts where p is below 0.05 after Holm's correction for all comparisons of
its table; below that before the correction alone, the sentence says so. What has not been run says
that too.
"""

from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from statistics import mean
from typing import Any

from benchmarks.mixers import gating, language, recall, series_sets
from benchmarks.mixers.comparisons import COMPARISONS, compared_rows
from benchmarks.mixers.runs import Scores, scores_of, tests_of
from benchmarks.pages import Tables
from benchmarks.runner import Result, read
from flowformer.compare.significance import (
    LEVEL,
    PairedTest,
    Pairing,
    against,
    compare_over_datasets,
)
from flowformer.scores.measures import ACCURACY, Measure

RIGHT = 0.9  # of the answers, where pairs count as recalled
# The small tasks, each with its chance level: their classes are equally frequent.
ARENA = {"listops": 1 / 10, "text": 1 / 2, "image": 1 / 10, "retrieval": 1 / 2}
TESTED = 1000  # cases of the arena's small tasks


@dataclass(frozen=True, kw_only=True)
class Results:
    """What has been measured; None where nothing has.

    Attributes:
        gating: scores of each seed, by task, in models of equal size.
        series_sets: runs on sets of time series.
        language: runs of language models, over the steps and over the context.
        recall: accuracies over pairs and widths.
        language_step: tokens a second over the context.
        compared: the rows of comparisons of few seeds, by their names.
    """

    gating: Result | None = None
    series_sets: Result | None = None
    language: Result | None = None
    recall: Result | None = None
    language_step: Result | None = None
    compared: Mapping[str, Sequence[Mapping[str, str]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What results say of one method against another.

    Attributes:
        where: on what they were compared, in words.
        command: what compares them.
        pairs: how many sets or seeds both have; 0 where it has not been run.
        noun: what the pairs are.
        test: of the method against the other; None where there are too few pairs for one.
        means: both means, in words, where there is no test.
    """

    where: str
    command: str
    pairs: int = 0
    noun: str = "seeds"
    test: PairedTest | None = None
    means: str = ""

    @property
    def verdict(self) -> str:
        """What may be said: a key of `SENTENCES`."""
        if not self.pairs:
            return "missing"
        if self.test is None or self.test.smallest > LEVEL:
            return "few"
        if self.test.p >= LEVEL:
            return "none"
        better = (self.test.difference > 0) == self.test.measure.higher_is_better
        before = "" if self.test.corrected < LEVEL else "before "
        return before + ("better" if better else "worse")

    def __str__(self) -> str:
        """Say where, how large the difference is, and its test."""
        count = f"{self.pairs} {self.noun}" if self.pairs > 1 else f"one {self.noun[:-1]}"
        if self.test is None:
            return f"{self.where} ({self.means}, {count})"
        p = f"p = {self.test.p:.2g}"
        if f"{self.test.corrected:.2g}" != f"{self.test.p:.2g}":
            p += f", corrected {self.test.corrected:.2g}"
        unit = "points" if self.test.measure.unit == "%" else self.test.measure.name
        return f"{self.where} ({self.test.shown_difference} {unit}, {p}, {count})"


Source = Callable[[Results, str, str], Evidence]  # of a method against another


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, and what answers it.

    Attributes:
        text: the question.
        better: what is said where the method is better, before the place.
        worse: what is said where it is worse.
        sources: what was compared where: the method, the other, and what reads their results.
    """

    text: str
    better: str
    worse: str
    sources: Sequence[tuple[str, str, Source]]


# What is said, the verdicts in their order; the first two are the question's own words.
SENTENCES = {
    "better": "{better} on {places}.",
    "worse": "{worse} on {places}.",
    "before better": "{better}, but only before the correction, on {places}.",
    "before worse": "{worse}, but only before the correction, on {places}.",
    "none": "No difference that these runs can tell on {places}.",
    "few": "Too few to say anything on {places}.",
    "missing": "Not run yet on {places}.",
}


def oriented(tests: Mapping[Pairing, PairedTest], method: str, other: str) -> PairedTest | None:
    """Return the test of a method against another, in whichever order it was made."""
    if test := tests.get((method, other)):
        return test
    if test := tests.get((other, method)):
        turned = {"difference": -test.difference, "effect": -test.effect}
        return replace(test, method=method, baseline=other, **turned)
    return None


def over_sets(results: Results, method: str, other: str) -> Evidence:
    """Compare over the sets of time series: a test of the family that the table of ranks has."""
    missing = Evidence(where="sets of time series", command="series_sets", noun="sets")
    if results.series_sets is None:
        return missing
    compared = series_sets.comparison(results.series_sets)
    found = series_sets.at(compared)
    sets = [
        name
        for name, cell in found.get(method, {}).items()
        if cell.mean is not None and name in found.get(other, {})
    ]
    family = against(compared.methods, series_sets.BASELINE)
    tests = {(t.method, t.baseline): t for t in compare_over_datasets(compared.cells, family)}
    return replace(missing, pairs=len(sets), test=oriented(tests, method, other))


def of_scores(
    missing: Evidence,
    scores: Scores,
    pair: Pairing,
    tests: Mapping[Pairing, PairedTest],
    measure: Measure,
) -> Evidence:
    """Return what the scores of every seed say, and their test."""
    pairs = min(len(scores.get(each, ())) for each in pair)
    if not pairs:
        return missing
    own, other = (mean(scores[each]) for each in pair)
    said = _against(own, other, measure)
    return replace(missing, pairs=pairs, test=oriented(tests, *pair), means=said)


def of_rows(
    missing: Evidence, rows: Sequence[Mapping[str, str]], pair: Pairing, measure: Measure
) -> Evidence:
    """Return what a comparison of few seeds says, of which only the means are kept."""
    both = {row["method"]: row for row in rows if row["mean"] and row["method"] in pair}
    if len(both) < 2:
        return missing
    own, other = (float(both[each]["mean"]) for each in pair)
    finished = min(int(row["finished"]) for row in both.values())
    return replace(missing, pairs=finished, means=_against(own, other, measure))


def _against(own: float, other: float, measure: Measure) -> str:
    unit = measure.unit or measure.name
    return f"{measure.show(own)} against {measure.show(other)} {unit}"


def on_task(results: Results, method: str, other: str, *, task: str, where: str = "") -> Evidence:
    """Compare on a task of `gating`, in models of equal size."""
    missing = Evidence(where=where or gating.TASKS[task], command=f"gating {task}")
    cell = (results.gating or {"tasks": {}})["tasks"].get(task)
    pair, measure = (method, other), gating.measure_of(task)
    if cell is None:
        return of_rows(missing, results.compared.get(task, ()), pair, measure)
    return of_scores(missing, cell["scores"], pair, gating.tests(task, cell), measure)


def in_language(results: Results, method: str, other: str, *, part: str) -> Evidence:
    """Compare language models of equal size after the longer budget."""
    where = {language.CHARACTERS: "characters", language.WIKI: "words of Wikipedia"}[part]
    longer = f"{language.STEPS[part]:,} steps of {where}"
    missing = Evidence(where=longer, command=f"language {part}")
    found = language.runs_of(results.language or {}, part)
    pair, measure = (method, other), language.MEASURES[part]
    if not found:  # the few seeds of the characters stand among the tasks of equal size
        rows = results.compared.get(part, ()) if part != language.CHARACTERS else ()
        few = of_rows(replace(missing, where=where), rows, pair, measure)
        return few if few.pairs else missing
    scores = scores_of(run for own in found.values() for run in own)
    tests = tests_of(scores, against(scores, language.BASELINE), measure)
    return of_scores(missing, scores, pair, tests, measure)


def in_recall(results: Results, method: str, other: str) -> Evidence:
    """Compare in what is recalled at one number of pairs and one width."""
    size = recall.Size(pairs=recall.PAIRS, width=recall.WIDTH)
    missing = Evidence(where=f"recall of {size.pairs} pairs", command="recall")
    found = recall.accuracies(results.recall or {"cells": []})
    scores = {mixer: of[size] for mixer, of in found.items() if size in of}
    tests = tests_of(scores, against(scores, "flow"), ACCURACY)
    return of_scores(missing, scores, (method, other), tests, ACCURACY)


FLOW_ABLATION = partial(on_task, task=gating.FLOW_ABLATION, where="characters")
GATED_ABLATION = partial(on_task, task=gating.ABLATION, where="characters in `flow-gated`")
EQUAL: tuple[Source, ...] = tuple(partial(on_task, task=task) for task in gating.TASKS)
ALL: tuple[Source, ...] = (
    over_sets,
    *EQUAL,
    *(partial(in_language, part=part) for part in language.RECIPES),
    in_recall,
)
HELPS = {"better": "It helps", "worse": "It hurts"}
IS = {"better": "It is better", "worse": "It is worse"}
SIGMOID = {"better": "The sigmoid is better", "worse": "Relu is better"}


def _part(name: str) -> list[tuple[str, str, Source]]:
    return [
        ("flow", f"flow-no-{name}", over_sets),
        ("flow", f"flow-no-{name}", FLOW_ABLATION),
        ("flow-gated", f"flow-gated-no-{name}", GATED_ABLATION),
    ]


def _everywhere(method: str, other: str, sources: Iterable[Source] = ALL) -> list[Any]:
    return [(method, other, source) for source in sources]


QUESTIONS = (
    Question(text="Does competition help?", **HELPS, sources=_part("competition")),
    Question(text="Does allocation help?", **HELPS, sources=_part("allocation")),
    Question(
        text="Does gating help Flow-Attention (`flow-gated` against `flow`)?",
        **HELPS,
        sources=_everywhere("flow-gated", "flow"),
    ),
    Question(
        text="Do flows help gated attention (`flow-gated` against `gated`)?",
        better="They help",
        worse="They hurt",
        sources=_everywhere("flow-gated", "gated", EQUAL),
    ),
    Question(
        text="Does the feature map matter (sigmoid against relu)?",
        **SIGMOID,
        sources=[("flow", "flow-relu", over_sets), ("flow", "flow-relu", FLOW_ABLATION)],
    ),
    Question(
        text="Does the clamp help?",
        **HELPS,
        sources=[("flow-clamp", "flow", over_sets), ("flow", "flow-no-clamp", FLOW_ABLATION)],
    ),
    Question(
        text="Is Flow-Attention better than softmax attention?",
        **IS,
        sources=_everywhere("flow", "softmax"),
    ),
    Question(
        text="Is Flow-Attention better than linear attention?",
        **IS,
        sources=_everywhere("flow", "linear"),
    ),
)


def answer(question: Question, results: Results) -> list[str]:
    """Return what the results say to a question, a sentence for each verdict."""
    by_verdict: dict[str, list[Evidence]] = {}
    for method, other, source in question.sources:
        found = source(results, method, other)
        by_verdict.setdefault(found.verdict, []).append(found)
    return [
        text.format(better=question.better, worse=question.worse, places=_places(verdict, of))
        for verdict, text in SENTENCES.items()
        if (of := by_verdict.get(verdict))
    ]


def _places(verdict: str, evidence: Sequence[Evidence]) -> str:
    if verdict != "missing":
        return listed([str(each) for each in evidence])
    by_name: dict[str, list[Evidence]] = {}
    for each in evidence:
        by_name.setdefault(each.command.split()[0], []).append(each)
    said = []
    for name, of in by_name.items():
        parts = dict.fromkeys(word for each in of for word in each.command.split()[1:])
        command = " ".join(["python -m benchmarks", name, *parts])
        said.append(f"{listed([each.where for each in of])} (`{command}`)")
    return "; ".join(said)


def listed(items: Sequence[str]) -> str:
    """Return items in words: a, b and c."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def recalled(results: Results) -> list[str]:
    """Return up to how many pairs each mixer recalls."""
    if results.recall is None:
        return ["Not run yet (`python -m benchmarks recall`)."]
    along, _ = recall.ordered(results.recall)
    most: dict[int, list[str]] = {}
    for mixer, of in recall.accuracies(results.recall).items():
        right = [size.pairs for size in along if size in of and mean(of[size]) >= RIGHT]
        most.setdefault(max(right, default=0), []).append(f"`{mixer}`")
    recalling = sorted((pairs for pairs in most if pairs), reverse=True)
    said = [f"{pairs} with {listed(most[pairs])}" for pairs in recalling]
    none = f"; no number that was tried with {listed(most[0])}" if 0 in most else ""
    return [
        f"In models {recall.WIDTH} wide, {100 * RIGHT:.0f} % of the answers are right up to this "
        f"many pairs: {'; '.join(said) or 'none'}{none}."
    ]


def cost_of_length(results: Results) -> list[str]:
    """Return how many times softmax's tokens a second flow trains on, over the context."""
    said = []
    if results.language_step is not None:
        contexts = results.language_step["contexts"]
        times = [(int(n), cell["over_softmax"]["flow"]) for n, cell in contexts.items()]
        said.append(f"In the model of `wiki-small`, {_times(times)}.")
    ratios = []
    for context in language.CONTEXTS:
        found = language.at_context(results.language or {}, context)
        flow, softmax = (language.speed_of(found, name) for name in ("flow", "softmax"))
        if flow and softmax:
            ratios.append((context, flow / softmax))
    said.append(
        f"In that of the characters, {_times(ratios)}."
        if ratios
        else "Not run yet in that of the characters (`python -m benchmarks language lengths`)."
    )
    return said


def _times(ratios: Sequence[tuple[int, float]]) -> str:
    (first, ratio), *more = ratios
    said = [f"{ratio:.2f} times as many tokens a second as `softmax` at {first:,} tokens"]
    said += [f"{ratio:.2f} times at {context:,}" for context, ratio in more]
    return f"`flow` trains on {listed(said)}"


def arena(results: Results) -> list[str]:
    """Return on which of the arena's small tasks mixers differ, and whether the rest is learned."""
    kept = (results.gating or {"tasks": {}})["tasks"]
    rows = results.compared
    said = [_differ(task, kept[task], rows.get(task, ())) for task in ARENA if task in kept]
    if missing := [task for task in ARENA if task not in kept]:
        names = listed([gating.TASKS[task] for task in missing])
        said.append(f"Not run yet: {names} (`python -m benchmarks gating {' '.join(missing)}`).")
    return [*said, _pathfinder(results.compared.get("pathfinder", []))]


def _differ(task: str, cell: Result, rows: Sequence[Mapping[str, str]]) -> str:
    tests = gating.tests(task, cell).values()
    means = {mixer: mean(own) for mixer, own in cell["scores"].items()}
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    measure = gating.measure_of(task)
    spans = (
        f"from {measure.show(means[low])} (`{low}`) to {measure.show(means[high])} (`{high}`) "
        f"{measure.unit}, with a chance level of {measure.show(ARENA[task])}"
    )
    for row in rows:
        if row["method"] == "bag-of-tokens" and row["mean"]:
            spans += f" and {measure.show(float(row['mean']))} without any order (`bag-of-tokens`)"
    smallest = min((test.corrected for test in tests), default=1.0)
    apart = [test for test in tests if test.corrected < LEVEL]
    seeds = min(map(len, cell["scores"].values()))
    title = f"On {gating.TASKS[task]}"
    if not apart:
        return (
            f"{title} no two of {len(means)} mixers differ by more than chance, {spans} (smallest "
            f"corrected p = {smallest:.2g}, {seeds} seeds)."
        )
    return (
        f"{title} {len(apart)} of {len(tests)} pairs of mixers differ, {spans} (smallest corrected "
        f"p = {smallest:.2g}, {seeds} seeds)."
    )


def _pathfinder(rows: Sequence[Mapping[str, str]] | None) -> str:
    if not rows:
        return "Not run yet: Pathfinder (`python -m benchmarks comparisons pathfinder`)."
    means = {row["method"]: float(row["mean"]) for row in rows if row["mean"]}
    chance = means.pop("chance")
    mixers = {name: each for name, each in means.items() if name != "bag-of-tokens"}
    best = max(mixers, key=mixers.__getitem__)
    runs = next(row["finished"] for row in rows if row["method"] == best)
    error = (chance * (1 - chance) / (TESTED * int(runs))) ** 0.5
    learned = mixers[best] - chance > 2 * error
    of = f"{len(mixers)} mixers"
    begins = f"learned: the best of {of}," if learned else f"learned by none of {of}: the best,"
    return (
        f"Pathfinder is {begins} `{best}`, has {ACCURACY.show(mixers[best])} %, and the most "
        f"frequent class {ACCURACY.show(chance)} % ({runs} runs)."
    )


OTHERS: dict[str, Callable[[Results], list[str]]] = {
    "How many pairs are recalled?": recalled,
    "What does a longer context cost?": cost_of_length,
    "Do mixers differ on the small tasks of Long Range Arena?": arena,
}


def results() -> Results:
    """Return what has been measured."""
    names = [each.name for each in fields(Results) if each.name != "compared"]
    return Results(
        **{name: read(name) for name in names},
        compared={name: compared_rows(name) for name in COMPARISONS},
    )


def findings(found: Results) -> str:
    """Return all questions with what is known."""
    answers = {question.text: answer(question, found) for question in QUESTIONS}
    answers |= {text: say(found) for text, say in OTHERS.items()}
    lines = []
    for text, said in answers.items():
        lines.append(f"- **{text}** {said[0] if len(said) == 1 else ''}".rstrip())
        lines += [f"    - {each}" for each in said if len(said) > 1]
    return "\n".join(lines)


def execute(_: Namespace) -> None:
    """Say it."""
    print(findings(results()))


TABLES: Tables = {"findings": findings}
