"""How long a run will take, from its first steps: they are taken, timed, and thrown away."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from flowformer.data.loaders import as_it_is
from flowformer.train.config import HELD_OUT, StepsConfig
from flowformer.train.folder import RunFolder
from flowformer.train.kinds import Experiment, kind_of
from flowformer.train.loop.fit import fit, torch_settings
from flowformer.train.run_files import Rehearsed
from flowformer.train.study import Study

STEPS = 3  # of a round; the first round is done for the sake of the second
SECONDS = 2.0  # after which a round has steps enough, of each part
_ROUNDS = 2


@dataclass(eq=False)
class _First(IterableDataset[Any]):
    """The first batches of a loader, as many as a round has here.

    It has no length: the time of its batches decides it.

    Attributes:
        loader: the loader.
        most: how many at most.
        taken: of the last round.
        seconds: from the first of them until the last was asked for.
    """

    loader: DataLoader
    most: int
    taken: int = 0
    seconds: float = 0.0
    started: float = 0.0

    def __iter__(self) -> Iterator[Any]:
        self.started, self.taken = time.perf_counter(), 0
        for batch in self.loader:
            yield batch
            self.taken += 1
            self.seconds = time.perf_counter() - self.started
            if self.taken >= self.most or self.seconds > SECONDS:
                return


def rehearse(config: Experiment, run_dir: Path, *, resume: bool) -> Rehearsed:
    """Take the first steps of a run as `flowformer.train.run.train` does, and its first validation.

    Args:
        config: the experiment.
        run_dir: a folder of which nothing is needed later.
        resume: ignored; there is nothing to go on with.

    Returns:
        What they took, which is written as the folder's result.

    Raises:
        Exception: whatever the run itself would raise at its start.
    """
    del resume
    folder, training, begun = RunFolder(run_dir), config.training, time.perf_counter()
    study: Study = kind_of(config).study(config)
    study.check()
    batches, held_out = study.loaders()
    accumulate = getattr(training, "accumulate", 1)
    train, validation = _First(batches, STEPS * accumulate), _First(held_out, STEPS)
    with torch_settings(training.threads):
        torch.manual_seed(training.seed)
        model = study.build()
        prepared = time.perf_counter()
        recorder = fit(
            study.task(model),
            folder,
            _short(training),
            train=DataLoader(train, batch_size=None, collate_fn=as_it_is),
            validation=DataLoader(validation, batch_size=None, collate_fn=as_it_is),
            held_out=HELD_OUT[config.protocol],
            gradient_clip=config.optimizer.gradient_clip,
        )
        ended = time.perf_counter()
    row = recorder.rows[-1]
    step = row["train_seconds"] / train.taken
    one = validation.seconds / max(1, validation.taken - 1)  # the last is not waited for
    measured = row["seconds"] - row["train_seconds"]
    # Of a validation, what does not grow with the batches; of a round, the checkpoint.
    fixed = max(0.0, measured - validation.taken * one)
    rest = max(0.0, ended - train.started - row["seconds"])
    found = Rehearsed(
        prepare_seconds=prepared - begun,
        step_seconds=accumulate * step,
        steps=-(-len(batches) // accumulate),
        round_seconds=len(batches) * step + len(held_out) * one + fixed + rest,
        rounds=training.rounds,
    )
    found.write(folder)
    return found


def _short(training: Any) -> Any:
    """Return how a run is trained, with as many rounds as a rehearsal has, and logged nowhere."""
    quiet = replace(training, progress="none", logger=())
    if isinstance(training, StepsConfig):
        return replace(quiet, steps=_ROUNDS * training.evaluate_every)
    return replace(quiet, epochs=_ROUNDS)
