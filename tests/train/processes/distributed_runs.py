"""Run by test_distributed.py: runs of one process and of several, in one process that forks them.

    python distributed_runs.py FOLDER

leaves in FOLDER the folder of each run, and said.json: of each its exit codes and what it said.
"""

import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import sklearn.model_selection  # noqa: F401 - what a run imports late, imported once here
import torch

from benchmarks.reliability.fault_runs import Run, at_step, at_write, small_run, with_training
from flowformer.models.sequences.config import SequenceModelConfig
from flowformer.models.series.config import TimeSeriesModelConfig
from flowformer.train.config import EpochsConfig
from flowformer.train.kinds import Experiment
from flowformer.train.sequences.config import SequencesConfig, SequencesTrainingConfig
from flowformer.train.series.config import SeriesConfig, SeriesDataConfig
from tests.train.small_images import plain, tiny_vision, write_images
from tests.train.small_sequences import LISTOPS
from tests.train.small_trajectories import random_trajectories, tiny_decisions

CPU: dict[str, Any] = {"accelerator": "cpu", "threads": 1, "progress": "none"}
SAID: dict[str, list[dict[str, Any]]] = {}


def main(base: Path) -> None:
    for kind, config in experiments(base).items():
        run(base, f"{kind}-alone", config)
        run(base, f"{kind}-ddp", with_training(config, devices=2))
        if kind in ("language", "sequences"):
            run(base, f"{kind}-fsdp", with_training(config, devices=2, strategy="fsdp"))
    language = experiments(base)["language"]
    faults(base, language)
    (base / "said.json").write_text(json.dumps(SAID))


def experiments(base: Path) -> dict[str, Experiment]:
    language = small_run(base / "language", steps=4, evaluate_every=2)
    images = plain(tiny_vision(base / "images"))
    return {
        # Each batch has six series, the last one of an epoch a single one.
        "series": SeriesConfig(
            name="tiny",
            data=SeriesDataConfig(
                train_file=base / "TRAIN.ts", test_file=base / "TEST.ts", batch_size=6
            ),
            model=TimeSeriesModelConfig(
                dim=16, num_heads=2, num_layers=1, feedforward=32, dropout=0.0
            ),
            training=EpochsConfig(epochs=2, **CPU),
        ),
        # Of documents in a block, some tokens have no target: shares have different numbers.
        "language": replace(
            language,
            data=replace(language.data, packing="documents", batch_size=5),
            model=replace(language.model, dropout=0.0),
            training=replace(language.training, accumulate=2),
        ),
        "sequences": SequencesConfig(
            name="tiny",
            data=replace(LISTOPS, cache=base / "prepared"),
            model=SequenceModelConfig(dim=16, num_heads=2, feedforward=32, dropout=0.0),
            training=SequencesTrainingConfig(steps=4, evaluate_every=2, **CPU),
        ),
        "images": replace(images, model=replace(images.model, drop_path=0.0)),
        "trajectories": tiny_decisions(
            base / "data", evaluation={"targets": (-60.0,)}, dropout=0.0
        ),
    }


def faults(base: Path, config: Experiment) -> None:
    """Of two processes the second dies in a step, in the writing of its shards, or stops."""
    two = with_training(config, devices=2, timeout=3.0)
    shared = with_training(two, strategy="fsdp")
    run(base, "killed", two, moment=at_step(3, of=1))
    run(base, "killed", two, resume=True)
    run(base, "shards-killed", shared, moment=at_write("shard-", 2, of=1))
    run(base, "shards-killed", shared, resume=True)
    run(base, "stopped", two, moment=at_step(3, of=1, what=signal.SIGSTOP))
    run(base, "stopped", with_training(two, devices=1), resume=True)
    run(base, "nan", with_training(two, skip_nan=1), moment=spoil_second)
    run(base, "nan-ends", two, moment=spoil_second)


def spoil_second(number: int) -> None:
    """Makes the third loss of the second process NaN."""
    from flowformer.models.language.model import LanguageModel

    calls, original = [], LanguageModel.forward

    def counting(*arguments: Any, **options: Any) -> Any:
        output = original(*arguments, **options)
        calls.append(number)
        if number == 1 and len(calls) == 3 and output.loss is not None:
            return output._replace(loss=output.loss * torch.nan)
        return output

    LanguageModel.forward = counting  # pyright: ignore[reportAttributeAccessIssue]


def run(base: Path, name: str, config: Experiment, **options: Any) -> None:
    keep(name, Run(config, base / name, **options))


def keep(name: str, started: Run) -> None:
    for ended in started.wait():
        told = {"code": ended.code, "said": ended.said, "seconds": ended.seconds}
        SAID.setdefault(name, []).append(told)


def write_waves(path: Path, count: int) -> None:
    """Writes sines of two frequencies as a `.ts` file."""
    draw = np.random.default_rng(count)
    lines = ["@problemName waves", "@univariate true", "@classLabel true slow fast", "@data"]
    for number in range(count):
        name, pace = (("slow", 0.4), ("fast", 1.3))[number % 2]
        wave = np.sin(np.arange(draw.integers(5, 10)) * pace) + draw.normal(0, 0.2)
        lines.append(",".join(f"{value:.6f}" for value in wave) + f":{name}")
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    write_waves(folder / "TRAIN.ts", 24)
    write_waves(folder / "TEST.ts", 13)
    write_images(folder / "images", {"train": 7, "val": 3})
    random_trajectories().save(folder / "data")
    main(folder)
