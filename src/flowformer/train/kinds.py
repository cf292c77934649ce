"""The kinds of experiments: what trains, tests, shows and compares each. No torch here.

A function stands as "module:function" and is imported when it is called:

    train(config, run_dir, *, resume: bool) -> the kind's result, which is result.json too
    evaluate(run_dir, file: Path | None) -> what differs, describe() and to_dict() tell of
    report(run_dir) -> Path of a page
    predict(run_dir, file: Path) -> CSV; of images, any number of files
    digest(config) -> of what it reads, by its place
    load(run_dir) -> the model, and what is needed to use it
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flowformer.compare.methods import MethodResult
from flowformer.train.config import TimeSeriesConfig
from flowformer.train.folder import DEFAULT_TASK, RunFolder, RunRecord, RunResult, read_task
from flowformer.train.images.config import VisionConfig
from flowformer.train.images.folder import VisionRecord
from flowformer.train.language.config import LanguageConfig
from flowformer.train.language.folder import LanguageRecord, LanguageResult
from flowformer.train.sequences.config import SequenceConfig
from flowformer.train.sequences.folder import SequenceRecord
from flowformer.train.trajectories.config import DecisionConfig
from flowformer.train.trajectories.folder import DecisionRecord, DecisionResult

Experiment = TimeSeriesConfig | LanguageConfig | SequenceConfig | VisionConfig | DecisionConfig
Record = RunRecord | LanguageRecord | SequenceRecord | VisionRecord | DecisionRecord
Result = RunResult | LanguageResult | DecisionResult | MethodResult


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of experiment.

    Attributes:
        task: what its config.json calls it, in a phrase: a run on series.
        config: its configurations.
        record: what config.json holds.
        result: what result.json holds.
        train: trains a model.
        evaluate: tests a finished run again.
        report: writes the page of one.
        digest: reads the data of an experiment and tells other values apart.
        load: reads a finished run back.
        predict: classifies what is in a file; None where there is nothing to classify.
        reads: what `predict` is given, in a word or two.
        used_by: of runs that classify nothing, the command that uses them, after {run}.
        labelled: what `evaluate` is given in place of the run's own test set; None for nothing.
    """

    task: str
    config: type[Experiment]
    record: type[Record]
    result: type[RunResult | LanguageResult | DecisionResult]
    train: str
    evaluate: str
    report: str
    digest: str
    load: str
    predict: str | None = None
    reads: str = "FILE"
    used_by: str = ""
    labelled: str | None = None


SERIES = Kind(
    task=DEFAULT_TASK,
    config=TimeSeriesConfig,
    record=RunRecord,
    result=RunResult,
    train="flowformer.train.series.study:train",
    evaluate="flowformer.train.evaluation:evaluate_run",
    report="flowformer.train.series.flow_maps:write_run_report",
    digest="flowformer.train.digests:digest_series",
    load="flowformer.train.prediction:load_run",
    predict="flowformer.train.evaluation:predict_file",
    reads="FILE.ts",
    labelled="LABELLED.ts",
)
LANGUAGE = Kind(
    task="language",
    config=LanguageConfig,
    record=LanguageRecord,
    result=LanguageResult,
    train="flowformer.train.language.study:train",
    evaluate="flowformer.train.language.run:evaluate_language_run",
    report="flowformer.train.language.run:write_language_run_report",
    digest="flowformer.train.digests:digest_text",
    load="flowformer.train.language.run:load_language_run",
    used_by='generate {run} "PROMPT"',
)
SEQUENCES = Kind(
    task="sequences",
    config=SequenceConfig,
    record=SequenceRecord,
    result=RunResult,
    train="flowformer.train.sequences.study:train",
    evaluate="flowformer.train.sequences.run:evaluate_sequence_run",
    report="flowformer.train.sequences.run:write_sequence_run_report",
    digest="flowformer.train.digests:digest_sequences",
    load="flowformer.train.sequences.run:load_sequence_run",
    predict="flowformer.train.sequences.run:predict_sequences",
)
IMAGES = Kind(
    task="images",
    config=VisionConfig,
    record=VisionRecord,
    result=RunResult,
    train="flowformer.train.images.study:train",
    evaluate="flowformer.train.images.run:evaluate_vision_run",
    report="flowformer.train.images.run:write_vision_run_report",
    digest="flowformer.train.digests:digest_images",
    load="flowformer.train.images.run:load_vision_run",
    predict="flowformer.train.images.run:predict_images",
    reads="IMAGE",
    labelled="FOLDER",
)
TRAJECTORIES = Kind(
    task="trajectories",
    config=DecisionConfig,
    record=DecisionRecord,
    result=DecisionResult,
    train="flowformer.train.trajectories.study:train",
    evaluate="flowformer.train.trajectories.run:evaluate_decision_run",
    report="flowformer.train.trajectories.run:write_decision_run_report",
    digest="flowformer.train.digests:digest_trajectories",
    load="flowformer.train.trajectories.run:load_decision_run",
    used_by="rollout {run}",
)
KINDS: tuple[Kind, ...] = (SERIES, LANGUAGE, SEQUENCES, IMAGES, TRAJECTORIES)

# What a comparison can run beside the mixers, for each kind of experiment: the function that runs
# it, function(config, run_dir, *, resume, **options). One that is trained as a model bears the name
# of its encoder.
METHODS: Mapping[type[Experiment], Mapping[str, str]] = {
    TimeSeriesConfig: {
        "dtw": "flowformer.compare.methods:dtw",
        "rocket": "flowformer.compare.methods:rocket",
        "xgboost": "flowformer.compare.methods:xgboost",
        "lstm": SERIES.train,
        "dilated-conv": SERIES.train,
    },
    SequenceConfig: {
        "bag-of-tokens": "flowformer.train.sequences.baselines:bag_of_tokens",
        "chance": "flowformer.train.sequences.baselines:chance",
    },
    DecisionConfig: {"behaviour-cloning": TRAJECTORIES.train},
}


def kind_of(config: Experiment) -> Kind:
    """Returns the kind of an experiment."""
    return next(kind for kind in KINDS if kind.config is type(config))


def kind_of_run(folder: RunFolder) -> Kind:
    """Returns the kind of the run in a folder; of one without a run, that of series.

    Raises:
        ValueError: its config.json is not JSON, or of a kind that there is not.
    """
    task = read_task(folder) if folder.config.exists() else SERIES.task
    for kind in KINDS:
        if kind.task == task:
            return kind
    known = ", ".join(kind.task for kind in KINDS)
    raise ValueError(f"{folder.config}: task must be one of {known}, got {task!r}")


def methods_of(config: Experiment) -> Mapping[str, str]:
    """Returns the methods that a comparison can run beside the mixers, by name."""
    return METHODS.get(type(config), {})


def function_of(method: str, config: Experiment) -> str:
    """Returns what runs a method, or what trains a model if it is the name of none but a mixer.

    Raises:
        ValueError: it is a method for another kind of experiment.
    """
    if method in methods_of(config):
        return methods_of(config)[method]
    own = kind_of(config)
    for kind in KINDS:
        if method in METHODS.get(kind.config, {}):
            raise ValueError(f"{method} runs on {kind.task}, and {config.name} is on {own.task}")
    return own.train
