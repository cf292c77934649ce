"""`flowformer train NAME [overrides]`."""

import shlex
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowformer.cli.experiment_flags import parse_experiment
from flowformer.machine import is_out_of_memory
from flowformer.recipes import RECIPES, build_recipe
from flowformer.train.folder import RunFolder
from flowformer.train.kinds import Experiment, Kind, kind_of, kind_of_run
from flowformer.train.processes.group import (
    ShareDoneError,
    is_first,
    joined,
    sizes_outside,
    started_outside,
)
from flowformer.train.run_files import mixer_module

_RUNS = Path("runs")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a model. What is not given stands as the recipe has it.

    Attributes:
        run_dir: folder of the run; by default a new one, runs/NAME-PROTOCOL-seedN.
        resume: go on with the run in --run-dir after it was stopped; its settings are read from
            there.
    """

    run_dir: Path | None = None
    resume: bool = False


def main(arguments: list[str]) -> int:
    """Train, write the report, and print the result beside the paper's."""
    if not arguments or arguments[0] in ("-h", "--help"):
        (sys.stdout if arguments else sys.stderr).write(_usage())
        return 0 if arguments else 2
    name, *overrides = arguments
    prog = f"flowformer train {name}"
    options, config = parse_experiment(Options, overrides, prog=prog, config=build_recipe(name))
    folder = None if options.run_dir is None else RunFolder(options.run_dir)
    if options.resume:
        if folder is None:
            raise ValueError("--resume needs --run-dir, the folder of the run to go on with")
        if folder.config.exists():
            stored = _stored_config(folder, name)
            options, config = parse_experiment(Options, overrides, prog=prog, config=stored)
        elif is_first():
            sys.stderr.write(f"nothing to resume in {folder.root} yet: starting\n")
    if started_outside():
        devices, nodes = sizes_outside(asked=config.training.processes)
        training: Any = replace(config.training, devices=devices, nodes=nodes)
        config = replace(config, training=training)
        return _train(config, folder, resume=options.resume)
    config.check_early()  # not above: each of several processes would say the same
    if config.training.nodes == 1 < config.training.devices:
        from flowformer.train.processes.launch import launch

        given = ["train", *arguments, *shlex.split(_import_flag(config))]
        return launch(given, processes=config.training.devices)
    return _train(config, folder, resume=options.resume)


def _train(config: Experiment, chosen: RunFolder | None, *, resume: bool) -> int:
    training = config.training
    again = f"flowformer train {config.name} --run-dir {{}} --resume{_import_flag(config)}"
    if training.devices > 1:
        again += f" --training.devices {training.devices}"
    if training.nodes > 1:
        again = "the same command on every machine, with --run-dir {} --resume"
    folder, kind = chosen, kind_of(config)
    try:
        with joined(config.training, again=again.format(_named(folder))) as processes:
            root = processes.agree(lambda: str(_unused(config, chosen, resume=resume).root))
            folder = RunFolder(Path(root))
            result = _run(config, folder, resume=resume)
            if not processes.is_first:
                return 0
    except ShareDoneError:
        return 0
    except (KeyboardInterrupt, SystemExit) as stop:
        if is_first() and (folder is None or not folder.config.exists()):
            sys.stderr.write("\nstopped before there was anything to go on with\n")
        elif is_first():
            sys.stderr.write(f"\nstopped; go on with: {again.format(_named(folder))}\n")
        # The shell's convention: 128 and the signal, here SIGINT or, as `train` exits, SIGTERM.
        return 130 if isinstance(stop, KeyboardInterrupt) else int(stop.code or 0)
    finally:
        if chosen is None:
            _leave_none_empty(folder)
    assert folder is not None
    _tell(result, folder, kind)
    return 0


def _tell(result: Any, folder: RunFolder, kind: Kind) -> None:
    """Print what a run has come to; then write its report, for which there may be no room."""
    study, run, record = kind.study, shlex.quote(str(folder.root)), kind.record.read(folder)
    for name, text in result.lines(record, str(folder.root)):
        sys.stdout.write(f"{name:<{result.width - 2}}  {text}".rstrip() + "\n")
    sys.stdout.flush()
    from flowformer.train.run import write_report

    try:
        page = write_report(folder.root)
    except Exception as error:
        from flowformer.cli.main import describe_error

        raise RuntimeError(
            f"the report was not written ({describe_error(error)}): flowformer visualize "
            f"{_named(folder)} writes it, once that is mended"
        ) from error
    uses = study.uses(run, result)
    if record.mixer_module is not None:
        uses += f" (each with{record.mixer_module.flag})"
    for name, text in (("report", page), ("next", uses)):
        sys.stdout.write(f"{name:<{result.width}}{text}\n")


def _run(config: Experiment, folder: RunFolder, *, resume: bool) -> Any:
    from flowformer.train.run import train

    try:
        return train(config, folder.root, resume=resume)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        text = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RuntimeError(f"out of memory ({text}): {_to_lower(config)}") from error


def _to_lower(config: Experiment) -> str:
    """What takes less memory, of what this experiment has."""
    training = config.training
    remedies = []
    if getattr(training, "checkpoint_activations", True) is False:
        remedies.append("give training.checkpoint_activations")
    lower = f"lower data.batch_size ({config.data.batch_size})"
    accumulate = getattr(training, "accumulate", None)
    if accumulate is not None:
        lower += f" and raise training.accumulate ({accumulate}) as much"
    remedies.append(lower)
    remedies += [
        f"lower data.{name} ({value})"
        for name in ("length", "image_size", "max_length")
        if (value := getattr(config.data, name, None))
    ]
    return f"{', or '.join(remedies)}; a run goes on only as it began, so start another"


def _import_flag(config: Experiment) -> str:
    """Return the flag that imports the mixer's module, where that is one of a user's own."""
    if "flowformer.nn" not in sys.modules:  # nor has anything else that could name a mixer
        return ""
    module = mixer_module(config)
    return "" if module is None else module.flag


def _named(folder: RunFolder | None) -> str:
    return "RUN" if folder is None else shlex.quote(str(folder.root))


def _unused(config: Experiment, chosen: RunFolder | None, *, resume: bool) -> RunFolder:
    folder = _choose_folder(config) if chosen is None else chosen
    # Asked before anything slow: the data may take a minute to read.
    if not resume:
        folder.require_unused()
    return folder


def _choose_folder(config: Experiment) -> RunFolder:
    """Make a new folder: who starts at the same moment takes another."""
    stem = f"{config.name}-{config.protocol}-seed{config.training.seed}"
    number, folder = 1, RunFolder(_RUNS / stem)
    while True:
        try:
            folder.root.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
            folder = RunFolder(_RUNS / f"{stem}-{number}")


def _leave_none_empty(folder: RunFolder | None) -> None:
    """Remove the folder that was made for a run which then did not begin."""
    if folder is not None and is_first():
        with suppress(OSError):  # there is something in it
            folder.root.rmdir()
            _RUNS.rmdir()


def _stored_config(folder: RunFolder, name: str) -> Experiment:
    config = kind_of_run(folder).record.read(folder).config
    if config.name != name:
        raise ValueError(f"{folder.root} holds a run of {config.name}, not of {name}")
    return config


def _usage() -> str:
    return "\n".join(
        [
            "usage: flowformer train NAME [overrides]",
            "",
            "Train a recipe. flowformer train NAME --help lists its settings.",
            "",
            *(f"  {name:<29}{(build.__doc__ or '').strip()}" for name, build in RECIPES.items()),
            "",
            "Examples:",
            "  flowformer train japanese-vowels",
            "  flowformer train japanese-vowels --model.mixer softmax --training.epochs 30",
            "  flowformer train time-series --data.train-file TRAIN.ts --data.test-file TEST.ts",
            "  flowformer train time-series-small --data.train-file sensors.csv",
            "  flowformer train japanese-vowels --run-dir runs/vowels --resume",
            "  flowformer train image-folder --data.path FOLDER --training.model-from CHECKPOINT",
            "  flowformer train listops --data.folder LISTOPS --model.mixer performer",
            "  flowformer train hopper-medium --data.path hopper_medium-v2.hdf5",
            "  flowformer train japanese-vowels --model.mixer mine --import my_mixer",
            "",
        ]
    )
