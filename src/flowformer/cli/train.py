"""`flowformer train NAME [overrides]`."""

import itertools
import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from flowformer.cli.parsing import parse
from flowformer.models.config import TimeSeriesModelConfig
from flowformer.recipes import RECIPES, build_recipe
from flowformer.tasks.config import (
    OptimizerConfig,
    TimeSeriesConfig,
    TimeSeriesDataConfig,
    TrainingConfig,
)
from flowformer.tasks.folder import RunFolder, RunRecord, RunResult


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a classifier of time series. What is not given stands as the recipe has it.

    Attributes:
        data: which series, and how they are prepared.
        model: the classifier.
        optimizer: how its parameters move.
        training: how long, on what, and by which rules.
        run_dir: folder of the run; by default a new one, runs/NAME-PROTOCOL-seedN.
        resume: go on with the run in --run-dir after it was stopped; its settings are read from
            there.
    """

    data: TimeSeriesDataConfig
    model: TimeSeriesModelConfig
    optimizer: OptimizerConfig
    training: TrainingConfig
    run_dir: Path | None = None
    resume: bool = False

    @classmethod
    def of(cls, config: TimeSeriesConfig) -> "Options":
        """Returns the options that leave a configuration as it is."""
        return cls(
            data=config.data,
            model=config.model,
            optimizer=config.optimizer,
            training=config.training,
        )

    def apply(self, config: TimeSeriesConfig) -> TimeSeriesConfig:
        """Returns the configuration with these parts, its files found from any folder."""
        data = self.data
        for name in ("folder", "train_file", "test_file"):
            path = getattr(data, name)
            data = data if path is None else replace(data, **{name: path.resolve()})
        return replace(
            config,
            data=data,
            model=self.model,
            optimizer=self.optimizer,
            training=self.training,
        )


def main(arguments: list[str]) -> int:
    """Trains, writes the report, and prints the result beside the paper's."""
    if not arguments or arguments[0] in ("-h", "--help"):
        (sys.stdout if arguments else sys.stderr).write(_usage())
        return 0 if arguments else 2
    name, *overrides = arguments
    config = build_recipe(name)
    options = parse(Options, overrides, prog=f"flowformer train {name}", default=Options.of(config))
    folder = _choose_folder(name, options)
    if options.resume and folder.config.exists():
        config = _stored_config(folder, name)
        options = parse(
            Options, overrides, prog=f"flowformer train {name}", default=Options.of(config)
        )
    elif options.resume:
        sys.stderr.write(f"nothing to resume in {folder.root} yet: starting\n")
    return _train(options.apply(config), folder, resume=options.resume)


def _train(config: TimeSeriesConfig, folder: RunFolder, *, resume: bool) -> int:
    # Asked before anything slow: the data may take a minute to read.
    if not resume:
        folder.require_unused()
    from flowformer.tasks.report import write_run_report
    from flowformer.tasks.training import train

    again = f"flowformer train {config.name} --run-dir {shlex.quote(str(folder.root))} --resume"
    try:
        result = train(config, folder.root, resume=resume)
    except (KeyboardInterrupt, SystemExit) as stop:
        sys.stderr.write(f"\nstopped; go on with: {again}\n")
        # The shell's convention: 128 and the signal, here SIGINT or, as `train` exits, SIGTERM.
        return 130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)
    report = write_run_report(folder.root)
    sys.stdout.write(describe(result, folder, report))
    return 0


def _choose_folder(name: str, options: Options) -> RunFolder:
    if options.run_dir is not None:
        return RunFolder(options.run_dir)
    if options.resume:
        raise ValueError("--resume needs --run-dir, the folder of the run to go on with")
    stem = f"{name}-{options.training.protocol}-seed{options.training.seed}"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return RunFolder(next(path for path in (Path("runs", n) for n in names) if not path.exists()))


def _stored_config(folder: RunFolder, name: str) -> TimeSeriesConfig:
    config = RunRecord.read(folder).config
    if config.name != name:
        raise ValueError(f"{folder.root} holds a run of {config.name}, not of {name}")
    return config


def describe(result: RunResult, folder: RunFolder, report: Path) -> str:
    """Returns what to say at the end of a run: no figure without its protocol."""
    run = shlex.quote(os.fspath(folder.root))
    lines, file = [], ""
    if result.test_accuracy is not None:
        paper = (
            ""
            if result.paper_accuracy is None
            else f", the paper's {100 * result.paper_accuracy:.1f} (published protocol)"
        )
        lines.append(f"test accuracy  {100 * result.test_accuracy:.2f}{paper}")
    else:
        lines.append(f"validation accuracy  {100 * result.validation_accuracy:.2f} (no test set)")
        file = " --file LABELLED.ts"
    lines += [
        f"protocol       {result.protocol}: {result.protocol_note}",
        f"epoch          {result.best_epoch} of {result.epochs}, {result.seconds:.0f} s in all",
        f"run            {folder.root}",
        f"report         {report}",
        f"next           flowformer predict {run} FILE.ts, flowformer evaluate {run}{file}",
    ]
    return "\n".join(lines) + "\n"


def _usage() -> str:
    return "\n".join(
        [
            "usage: flowformer train NAME [overrides]",
            "",
            "Train a recipe. flowformer train NAME --help lists its settings.",
            "",
            *(f"  {name:<23}{(build.__doc__ or '').strip()}" for name, build in RECIPES.items()),
            "",
            "Examples:",
            "  flowformer train japanese-vowels",
            "  flowformer train japanese-vowels --model.mixer softmax --training.epochs 30",
            "  flowformer train time-series --data.train-file TRAIN.ts --data.test-file TEST.ts",
            "  flowformer train japanese-vowels --run-dir runs/vowels --resume",
            "",
        ]
    )
