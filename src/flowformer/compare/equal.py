"""Models of equal size: wider or narrower feed-forward layers make up for what a mixer adds."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from flowformer.compare.methods import TRAIN
from flowformer.compare.plan import Plan, PlannedRun, RunRequest
from flowformer.train.kinds import Experiment, kind_of

WITHIN = 0.02  # of the parameters of the first method
RATIO = "feedforward_ratio"
FIELDS = ("feedforward", RATIO)  # of a model's configuration: it has the one or the other


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a method has on a data set once it is as large as the first.

    Attributes:
        dataset: the name of the data.
        method: a mixer, or an encoder.
        field: of the model's configuration that was changed; None where no width changes its
            parameters.
        before: its value in the recipe.
        value: its value now.
        parameters: of the model with it.
    """

    dataset: str
    method: str
    field: str | None
    before: int | float
    value: int | float
    parameters: int

    def __str__(self) -> str:
        changed = f"{self.field} {self.value:.6g}"
        if self.field is None:
            changed = "as it is, without feed-forward layers"
        elif self.value != self.before:
            changed += f" in place of {self.before:.6g}"
        return f"{self.dataset} {self.method}: {changed}, {self.parameters:,} parameters"


def equal_parameters(plan: Plan) -> tuple[Plan, list[Size]]:
    """Give the models of all methods the number of parameters of the first method's, within 2 %.

    The width of the feed-forward layers is what changes. Methods that train no model of ours, or
    one without such layers, stay as they are. The data are read, as a model has parameters for its
    vocabulary or channels.

    Args:
        plan: of the recipe's own sizes.

    Returns:
        The plan with the changed widths, and one size for each data set and model.

    Raises:
        ValueError: the first method has no such model, or no width makes another's as large.
    """
    sizes: dict[tuple[str, str], Size] = {}
    for dataset in plan.datasets:
        requests = {
            run.request.method: run.request
            for run in plan.runs
            if run.dataset == dataset and run.request.function == TRAIN
        }
        if plan.baseline not in requests:
            raise ValueError(f"equal parameters need a mixer as the first, got {plan.baseline}")
        sizes |= {(dataset, size.method): size for size in _sizes(dataset, requests, plan.baseline)}
    runs = tuple(_resized(run, sizes.get((run.dataset, run.request.method))) for run in plan.runs)
    return replace(plan, runs=runs), list(sizes.values())


def _resized(run: PlannedRun, size: Size | None) -> PlannedRun:
    if size is None or size.field is None:
        return run
    config = _changed(run.request.config, size.field, size.value)
    return replace(run, request=replace(run.request, config=config))


def _sizes(dataset: str, requests: Mapping[str, RunRequest], first: str) -> Iterator[Size]:
    config = requests[first].config
    study = kind_of(config).study(config)  # reads the data, once for all
    model: Any = config.model
    field = next(name for name in FIELDS if hasattr(model, name))
    before = getattr(model, field) or 4 * model.dim  # as of models of trajectories
    wanted = study.count_parameters(config)
    for method, request in requests.items():
        count = partial(_count, study, request.config, field)
        value, has = before, count(before)
        slope = (count(2 * before) - has) / before
        if method != first and slope:
            value += (wanted - has) / slope
            value = value if field == RATIO else round(value)
            has = count(value) if value > 0 else has
        if slope and abs(has - wanted) > WITHIN * wanted:
            raise ValueError(
                f"{dataset}: no {field} gives {method} the {wanted:,} parameters of {first}: it "
                f"has {has:,} at {before}; give the model more layers or a larger {field}"
            )
        yield Size(
            dataset=dataset,
            method=method,
            field=field if slope else None,
            before=before,
            value=value,
            parameters=has,
        )


def _count(study: Any, config: Experiment, field: str, value: int | float) -> int:
    return study.count_parameters(_changed(config, field, value))


def _changed(config: Experiment, field: str, value: int | float) -> Experiment:
    """Return an experiment with another value in its model."""
    model: Any = replace(config.model, **{field: value})
    return replace(config, model=model)
