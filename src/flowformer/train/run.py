"""A run of whatever kind: it is trained into a folder, read back, tested, used, and shown."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flowformer.names import check_early
from flowformer.progress import showing
from flowformer.train.config import HELD_OUT, SHOWN
from flowformer.train.folder import RunFolder, has_ended, holds_folder, open_folder
from flowformer.train.kinds import Experiment, kind_of, kind_of_run
from flowformer.train.prediction import choose_device, count_parameters
from flowformer.train.processes.group import current
from flowformer.train.run_files import mixer_module
from flowformer.train.study import Evaluation, Study

logger = logging.getLogger("flowformer.train")


@holds_folder
def train(
    config: Experiment,
    run_dir: str | Path,
    *,
    resume: bool = False,
    data: Any = None,
    loggers: Sequence[Any] = (),
) -> Any:
    """Train and test a model of whatever kind, and write the run folder.

    Killed at any moment, a run that is resumed ends bitwise as it would have without the kill (on
    the CPU, with as many threads): all randomness is a function of the seed, the epoch and the
    place of a sample, and every epoch ends with a checkpoint. In a training by steps an epoch is
    what lies between two measurements.

    Example:
        >>> from flowformer.recipes import build_recipe
        >>> result = train(build_recipe("japanese-vowels"), "runs/vowels")  # doctest: +SKIP
        >>> result.test_accuracy, load_run("runs/vowels").model  # doctest: +SKIP

    Args:
        config: the experiment.
        run_dir: folder of the run; made when missing.
        resume: go on with the run in `run_dir`; where there is none yet, start it.
        data: series, in place of those that `config.data` names. The run records that they were
            given in Python: nothing takes the named ones for those it was trained on.
        loggers: Lightning's, which the figures of each epoch go to, beside TensorBoard's and those
            that `config.training.logger` names.

    Returns:
        The figures of the kind, as in result.json.

    Raises:
        BlockingIOError: another process writes to `run_dir`.
        FileExistsError: `run_dir` holds something already, and `resume` was not asked for.
        FileNotFoundError: a file of the data is missing.
        ImportError: a library is missing; the message names the extra to install.
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM came; its code is 143.
        NonFiniteLossError: the loss became NaN or infinite; the batch is saved in the folder.
        NotImplementedError: the mixer has not the form that is asked for.
        ShareDoneError: in all processes but the first, once the training has ended.
        ValueError: the configuration does not fit the data, or not the run to be resumed, or a file
            of that run or of the data is damaged.
        TypeError: `data` for an experiment on something else than series.
    """
    shown = SHOWN[config.training.progress] if current().is_first else False
    with showing(shown):
        return _train(config, RunFolder(Path(run_dir)), loggers, resume=resume, data=data)


def _train(
    config: Experiment, folder: RunFolder, loggers: Sequence[Any], *, resume: bool, data: Any
) -> Any:
    from flowformer.train.loop.fit import fit, keep_best, torch_settings
    from flowformer.train.loop.loggers import log_result, run_loggers

    group, kind, training = current(), kind_of(config), config.training
    check_early(training)
    started = group.agree(lambda: folder.begin(resume=resume))
    device = choose_device(training.accelerator)
    given = {} if data is None else {"data": data}  # which no kind but series takes
    with group.first_alone():  # it fetches what there is to fetch
        study: Study = kind.study(config, begun=folder if started else None, **given)
    study.record = replace(study.record, mixer_module=mixer_module(config))
    digests = group.agree(study.digests)
    if started and has_ended(folder, study.record, digests):
        return kind.result.read(folder)
    group.agree(study.check)
    batches, held_out = study.loaders()
    with torch_settings(training.threads):
        torch.manual_seed(training.seed)
        model = study.build()
        if group.is_first:
            open_folder(folder, study.record, digests, started=started)
            study.write(folder)
        parameters = f"{count_parameters(model):,}"
        logger.info("%s, %s parameters, folder %s", study.describe(), parameters, folder.root)
        with run_loggers(training.logger, folder, loggers) as all_loggers:
            recorder = fit(
                study.task(model),
                folder,
                training,
                train=batches,
                validation=held_out,
                held_out=HELD_OUT[config.protocol],
                gradient_clip=config.optimizer.gradient_clip,
                loggers=all_loggers,
            )
            keep_best(model, folder, prefix=study.weights)
            result, files = study.test(model.to(device), recorder)
            log_result(all_loggers, result, step=int(recorder.rows[-1]["step"]))
        result.keep(folder, files)
        return result


def load_run(run_dir: str | Path) -> Any:
    """Read back what training left in a folder; no code in it runs.

    Returns:
        The model, in evaluation mode and on the CPU, the record of its training, and what else is
        needed to use it: see `Trained` and the study of the kind.

    Raises:
        FileNotFoundError: there is no run, or it has not ended.
        ValueError: a file is damaged.
    """
    return kind_of_run(RunFolder(Path(run_dir))).study.load(run_dir)


def evaluate(run_dir: str | Path, file: Path | None = None) -> Evaluation:
    """Test a finished run again, on its own test set.

    Args:
        run_dir: folder of the run.
        file: what to test on in place of the run's own test set: of a run on series a labelled
            `.ts` file, of one on images a folder of them, FOLDER/CLASS/IMAGE.

    Raises:
        FileNotFoundError: there is no finished run, or no such file.
        ImportError: a library is missing; the message names the extra to install.
        ValueError: there is nothing to test on, the data are others now, a file of the run is
            damaged, or `file` is not what the run can be tested on.
    """
    return kind_of_run(RunFolder(Path(run_dir))).study.evaluate(run_dir, file)


def predict(run_dir: str | Path, *files: Path) -> str:
    """Return predictions of a classifier as CSV: label, predicted, and each class's probability.

    Args:
        run_dir: folder of the run.
        files: of a run on series a `.ts` file, labelled or not; of one on sequences text with a
            case on each line (bytes, or an expression of ListOps; of pairs a tab between the two),
            or a picture; of one on images any number of images; of a task of recall text with the
            tokens of a sequence on each line, which is answered at every token.

    Raises:
        FileNotFoundError: there is no finished run, or no such file.
        ValueError: a file is malformed, or not such as the run was trained on; or the run
            classifies nothing, and the message names the command that uses it.
    """
    study = kind_of_run(RunFolder(Path(run_dir))).study
    study.require_classifier(run_dir, *files)
    return study.predict(run_dir, *files)


@holds_folder
def write_report(run_dir: str | Path, **options: Any) -> Path:
    """Write the report of a finished run: one HTML page that stands alone, and its pictures.

    Args:
        run_dir: folder of the run.
        options: of a run on series `num_series`, the test series of which to draw flow maps, and
            `data`, the series where they were given to `train`; of a language model `num_samples`,
            the texts that it writes.

    Returns:
        The HTML page.

    Raises:
        BlockingIOError: another process writes to the folder.
        FileNotFoundError: there is no finished run.
        ValueError: a file of the run is damaged, or its series were given in Python, and not here.
    """
    return kind_of_run(RunFolder(Path(run_dir))).study.report(run_dir, **options)
