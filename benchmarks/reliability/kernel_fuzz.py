"""Do the compiled kernels compute the equations, in calls drawn at random? `make fuzz-kernels`.

    python -m benchmarks kernel_fuzz --minutes 5
    python -m benchmarks kernel_fuzz --isa avx2 --case 1234    # one call again; nothing is kept

Each instruction set that this machine has computes calls of its own (`kernel_cases.py`): forward
passes, forward and backward ones, and of causal calls the last tokens one by one after a state. The
exact result is `reference` in float64 on the same rounded inputs.

How far a tensor may be off is derived for each by itself:

- twice the rounding of its largest element to the dtype of the call; a gradient of keys or values
  that query heads share is added up of theirs, each of which is rounded;
- `FACTOR` times what the same equations lose in float32, or a unit in the last place of the largest
  element if that is more; in float64 as much less as its unit is smaller. It is measured in the
  call: of a gradient that all but cancels, few digits are left to anyone;
- a unit of float64 for the root of the tokens, which the exact result may be off by.

What is beyond its bound counts only if it still is when the equations have computed inputs moved by
a unit in the last place, eight times. Memory that nobody wrote holds large numbers. An error, or a
process that ends or hangs, ends the run of its instruction set, and is a finding too. The exit
status is 1 if there is any.
"""

import faulthandler
import json
import math
import random
import time
from argparse import ArgumentParser, Namespace
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor

from benchmarks.pages import Tables, machine_of
from benchmarks.reliability.kernel_cases import (
    ATTENTIONS,
    DTYPES,
    Case,
    Fields,
    Inputs,
    drawn,
    inputs_of,
)
from benchmarks.runner import Result, save, separately, share, some_of
from flowformer.ops import states_in_place
from flowformer.ops.backends.cpu.library import INSTRUCTION_SETS, instruction_set, why_unavailable
from flowformer.report.words import to_markdown

NAME = "kernel_fuzz"
KERNELS, EQUATIONS = "cpu", "reference"
FORWARD, BACKWARD, STEPS = "forward", "backward", "token by token"
FACTOR = 8.0
EPS = {name: torch.finfo(getattr(torch, name)).eps for name in DTYPES}
MOVED = 8  # times that inputs are moved where something is beyond its bound
LONGEST = 60.0  # seconds of a case; after them it hangs
SHOWN = 20  # findings of an instruction set that are kept
# Of glibc: memory that nobody wrote holds numbers near the largest float32.
GARBAGE = {"MALLOC_PERTURB_": "128"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tensor that the kernels computed.

    Attributes:
        way: forward, backward or token by token.
        what: the tensor.
        error: its largest error, relative to its largest element.
        share: the error as a part of what it may be.
    """

    way: str
    what: str
    error: float
    share: float


def attend(case: Case, inputs: Inputs, backend: str) -> tuple[Tensor, Any]:
    """Return the output and the state after it, or None."""
    given: dict[str, Any] = {"backend": backend, "layout": "bthd", **case.options, **inputs.others}
    if case.attention != "mobile":
        given["causal"] = case.causal
    if inputs.state is not None:
        given["initial_state"] = inputs.state
    attention = ATTENTIONS[case.attention]
    if case.after:
        return attention(**inputs.tensors, **given, return_state=True)
    return attention(**inputs.tensors, **given), None


def named(out: Tensor, after: Any) -> Fields:
    """Return output and state by their names."""
    fields = {} if after is None else after._asdict()
    return {"output": out} | {f"state: {name}": x for name, x in fields.items()}


def compute(
    case: Case, inputs: Inputs, *, backend: str, gradients: bool, exact: Fields | None = None
) -> Fields:
    """Return the output, the state after it and the gradients that are asked for, by name.

    Gradients are given to what is exactly within the range of the dtype of the call: `exact` has
    it, or else the result itself.
    """

    def leaf(x: Tensor) -> Tensor:
        return x.detach().requires_grad_(gradients and x.is_floating_point())

    leaves, state = {name: leaf(x) for name, x in inputs.tensors.items()}, inputs.state
    inputs = inputs._replace(tensors=dict(leaves))
    if state is not None:
        state = type(state)(*map(leaf, state))
        inputs = inputs._replace(state=state)
        fields = state._asdict().items()
        leaves |= {f"state before: {name}": x for name, x in fields if x.requires_grad}
    found = named(*attend(case, inputs, backend))
    if gradients:
        weights = weights_of(case, {name: (exact or found)[name] for name in found})
        outputs = {name: x for name, x in found.items() if x.requires_grad}
        grads = torch.autograd.grad(
            list(outputs.values()),
            list(leaves.values()),
            [weights[name].to(x.dtype) for name, x in outputs.items()],
            materialize_grads=True,
        )
        found |= {f"gradient of {name}": x for name, x in zip(leaves, grads, strict=True)}
    return {name: x.detach() for name, x in found.items()}


def weights_of(case: Case, outputs: Fields) -> Fields:
    """Return the gradients of outputs, exact in the dtype of the call; those of a state are small.

    They are drawn, and zero for what is beyond the range.
    """
    dtype, weights = getattr(torch, case.dtype), {}
    for at, (name, x) in enumerate(outputs.items()):
        generator = torch.Generator().manual_seed(case.seed + at)
        weight = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        weight = (0.01 * weight if at else weight).to(dtype)
        weights[name] = torch.where(in_range(x, dtype), weight, 0)
    return weights


def in_range(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Return which elements are numbers that the dtype has; of integers, all."""
    return exact.double().abs() < 0.99 * torch.finfo(as_float(dtype)).max


def as_float(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype, or for integers one that holds them."""
    return dtype if dtype.is_floating_point else torch.float64


def token_by_token(case: Case, inputs: Inputs) -> Fields:
    """Return the output and the state after it of a causal call whose last tokens are steps."""
    dice, case = random.Random(case.seed), replace(case, after=True)
    first = max(0, case.queries - dice.randint(1, 4))
    parts = [slice(0, first)] * bool(first) + [slice(t, t + 1) for t in range(first, case.queries)]
    outs, state = [], inputs.state
    if state is not None:
        state = type(state)(*(x.clone() for x in state))
    with torch.no_grad(), states_in_place() if dice.random() < 0.5 else nullcontext():
        for part in parts:
            tensors = {name: x[:, part] for name, x in inputs.tensors.items()}
            others = {name: x[:, part] for name, x in inputs.others.items()}
            out, state = attend(case, Inputs(tensors, state, others, {}), KERNELS)
            outs.append(out)
    return named(torch.cat(outs, 1), state)


def ways_of(case: Case, inputs: Inputs, exact: Fields) -> list[tuple[str, str, Tensor]]:
    """Return all that the kernels make of a case: the way, the name, the tensor."""
    ways = {FORWARD: compute(case, inputs, backend=KERNELS, gradients=False)}
    if case.gradients:
        ways[BACKWARD] = compute(case, inputs, backend=KERNELS, gradients=True, exact=exact)
    if case.causal and not case.packed:
        steps = token_by_token(case, inputs)
        ways[STEPS] = {name: steps[name] for name in ways[FORWARD]}
    return [(way, name, x) for way, found in ways.items() for name, x in found.items()]


def apart(found: Tensor, exact: Tensor, terms: Tensor | None = None) -> float:
    """Return the largest error of what is in range; infinite where not the same is finite.

    Args:
        found: what was computed.
        exact: the same exactly.
        terms: the sum of the sizes of what is added up to it, if its dtype is to hold that.
    """
    if found.shape != exact.shape:
        return torch.inf
    inside = in_range(exact if terms is None else terms, found.dtype)
    finite = exact.isfinite()
    found, exact = found.double(), exact.double()
    if not torch.equal(found[~finite].nan_to_num(1, 2, 3), exact[~finite].nan_to_num(1, 2, 3)):
        return torch.inf
    error = (found[inside] - exact[inside]).abs()
    error = torch.where(error.isnan(), torch.inf, error)
    return error.max().item() if error.numel() else 0.0


def largest(terms: Tensor, dtype: torch.dtype) -> float:
    """Return the size of the largest element in range, or the smallest one with all its digits."""
    sizes = terms[in_range(terms, dtype)].double().abs()
    least = torch.finfo(as_float(dtype)).tiny
    return max(sizes.max().item() if sizes.numel() else 0.0, least)


def terms_of_heads(case: Case, inputs: Inputs, exact: Fields) -> Fields:
    """Return of the gradients of keys and values the sum of their query heads' sizes.

    Each head's is rounded to half precision before they are added up.
    """
    share = case.heads // case.groups
    if not case.gradients or share == 1 or EPS[case.dtype] <= EPS["float32"]:
        return {}
    tensors = {name: inputs.tensors[name].repeat_interleave(share, 2) for name in ("key", "value")}
    alone = inputs._replace(tensors=inputs.tensors | tensors).to(torch.float64)
    case = replace(case, groups=case.heads)
    found = compute(case, alone, backend=EQUATIONS, gradients=True, exact=exact)
    names = [f"gradient of {name}" for name in tensors]
    return {name: found[name].abs().unflatten(2, (-1, share)).sum(3) for name in names}


def bound(case: Case, size: float, lost: float) -> float:
    """Return how far a tensor may be off.

    Args:
        case: the call.
        size: of its largest element.
        lost: what the equations lose in float32.
    """
    unit, terms = EPS[case.dtype], case.queries + case.keys
    loss = max(lost, EPS["float32"] * size) * min(1.0, unit / EPS["float32"])
    return unit * size + FACTOR * loss + math.sqrt(terms) * EPS["float64"] * size


def measure(case: Case) -> list[Row]:
    """Compute a case in all ways, and compare every tensor with the exact one."""
    inputs = inputs_of(case)
    plainly = {"backend": EQUATIONS, "gradients": case.gradients}
    exact = compute(case, inputs.to(torch.float64), **plainly)
    torch.set_num_threads(case.threads)
    given = (inputs.spoiled() if case.spoiled else inputs).laid_out(case.strides)
    found = ways_of(case, given, exact)
    torch.set_num_threads(1)
    terms = exact | terms_of_heads(case, inputs, exact)
    lost, rows = dict.fromkeys(exact, 0.0), []
    for turn in range(1 + MOVED):
        moved = inputs.moved(turn) if turn else inputs.to(torch.float32)
        plain = compute(case, moved, **plainly, exact=exact)
        for name, x in plain.items():
            off = apart(x, exact[name])
            lost[name] = max(lost[name], off if off < torch.inf else 0.0)
        rows = []
        for way, name, x in found:
            size = largest(terms[name], x.dtype)
            error, most = apart(x, exact[name], terms[name]), bound(case, size, lost[name])
            rows.append(Row(way=way, what=name, error=error / size, share=error / most))
        if all(row.share <= 1 for row in rows):
            break
    return rows


def fuzz(isa: str, first: int, step: int, cases: int | None, seconds: float) -> None:
    """Print each seed before its case and at last the outcome, in a process of its own."""
    start = time.monotonic()
    worst: dict[str, dict[str, dict[str, float]]] = {}
    findings: list[dict[str, Any]] = []
    done = wrong = 0
    seeds = islice(count(first, step), cases) if instruction_set() == isa else ()
    for seed in seeds:
        if time.monotonic() - start > seconds:
            break
        print(seed, flush=True)
        case = drawn(seed)
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        rows = measure(case)
        faulthandler.cancel_dump_traceback_later()
        done += 1
        if said := beyond(rows):
            wrong += 1
            findings.append({"seed": seed, "said": f"{said}; {case}"})
        for row in rows:
            of_way = worst.setdefault(row.way, {})
            if case.dtype not in of_way or row.share > of_way[case.dtype]["share"]:
                of_way[case.dtype] = {"error": row.error, "share": row.share, "seed": seed}
    outcome = {"cases": done, "wrong": wrong, "seconds": time.monotonic() - start}
    print(json.dumps(outcome | {"worst": worst, "findings": findings[:SHOWN]}))


def beyond(rows: list[Row]) -> str:
    """Return which tensors are beyond their bounds, and by how much."""
    wrong = [row for row in rows if row.share > 1]
    return "; ".join(f"{row.way}, {row.what}: {row.share:.3g} × its bound" for row in wrong)


def fuzz_separately(isa: str, **how: Any) -> dict[str, Any]:
    """Return the outcome of `fuzz`; where its process ended, the seed at which it did."""
    done = separately(fuzz, environment={"FLOWFORMER_ISA": isa, **GARBAGE}, isa=isa, **how)
    lines = done.stdout.splitlines()
    if done.returncode == 0:
        return json.loads(lines[-1])
    said = done.stderr.strip().splitlines() or ["nothing"]
    ended = f"the process ended with {done.returncode}: {said[-1]}"
    finding = {"seed": int(lines[-1]) if lines else None, "said": ended}
    outcome = {"cases": len(lines), "wrong": 1, "seconds": 0.0}
    return outcome | {"worst": {}, "findings": [finding]}


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, NAME, quick=False)
    parser.add_argument("--minutes", type=float, default=5, help="of all instruction sets")
    parser.add_argument("--seed", type=int, default=0, help="the first")
    known = some_of("instruction set", INSTRUCTION_SETS)
    about = "with commas; by default all that are here"
    parser.add_argument("--isa", type=known, default=list(INSTRUCTION_SETS), help=about)
    parser.add_argument("--case", type=int, help="the seed of the only case; nothing is kept")


def execute(arguments: Namespace) -> int:
    """Fuzz, print what was found, and keep it."""
    if reason := why_unavailable():
        print(f"no kernels here: {reason}")
        return 1
    sets, alone = arguments.isa, arguments.case is not None
    seconds = 1.0 if arguments.quick else 60 * arguments.minutes / len(sets)
    outcomes: dict[str, dict[str, Any]] = {}
    for at, isa in enumerate(sets):
        first, step = (arguments.case, 1) if alone else (arguments.seed + at, len(sets))
        how = {"first": first, "step": step, "cases": 1 if alone else None, "seconds": seconds}
        outcome = fuzz_separately(isa, **how)
        if not outcome["cases"] and not outcome["wrong"]:
            print(f"{isa}: not on this machine")
            continue
        outcomes[isa] = outcome
        print(f"{isa}: {outcome['cases']:,} calls, {outcome['wrong']:,} beyond their bounds")
        for finding in outcome["findings"]:
            print(f"    seed {finding['seed']}: {finding['said']}")
            again = f"--isa {isa} --case {finding['seed']}"
            print(f"    python -m benchmarks {NAME} {again}", flush=True)
    result = {"first_seed": arguments.seed, "sets": outcomes}
    if outcomes:
        print(table(result))
    if not alone:
        save(arguments.output, result)
    return int(not outcomes or any(outcome["wrong"] for outcome in outcomes.values()))


def circumstances(result: Result) -> str:
    """Return how many calls there were and on what, in a sentence."""
    sets = result["sets"]
    calls = sum(outcome["cases"] for outcome in sets.values())
    minutes = sum(outcome["seconds"] for outcome in sets.values()) / 60
    beyond = sum(outcome["wrong"] for outcome in sets.values())
    return (
        f"{calls:,} calls in {minutes:.0f} minutes, {beyond or 'none'} of them beyond its bound. "
        f"{machine_of(result, cores=False)}."
    )


def table(result: Result) -> str:
    """Return of each way and dtype the error that is the largest part of its bound, and which."""
    sets = result["sets"]

    def cell(isa: str, way: str, dtype: str) -> str:
        worst = sets[isa]["worst"].get(way, {}).get(dtype)
        if worst is None:
            return "–"
        said = f"{worst['error']:.1e} ({worst['share']:.2f})"
        return f"**{said}**" if worst["share"] > 1 else said

    rows = [
        [way, dtype, *(cell(isa, way, dtype) for isa in sets)]
        for way in (FORWARD, BACKWARD, STEPS)
        for dtype in DTYPES
    ]
    calls = ["calls", "", *(f"{outcome['cases']:,}" for outcome in sets.values())]
    return to_markdown(["", "dtype", *sets], [*rows, calls]).rstrip()


TABLES: Tables = {NAME: table, f"{NAME}-run": circumstances}
