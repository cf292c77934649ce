"""The configuration of a training run: what every kind of experiment has; no torch here."""

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal

from flowformer.config_json import check_types
from flowformer.models.known_mixers import check_mixer_of
from flowformer.names import Early, check_early
from flowformer.scores.measures import ACCURACY, Measure

Protocol = Literal["clean", "published"]
OptimizerName = Literal["radam", "adam", "adamw"]
Schedule = Literal["constant", "cosine", "inverse-sqrt", "rsqrt"]
Accelerator = Literal["auto", "cpu", "gpu", "mps"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
Progress = Literal["auto", "bar", "lines", "none"]
LoggerName = Literal["csv", "mlflow", "wandb"]
Strategy = Literal["ddp", "fsdp"]

# Whether work is shown, as `flowformer.progress.showing` takes it.
SHOWN: dict[Progress, bool | None] = {"auto": None, "bar": True, "lines": False, "none": False}

STRATIFIED = "a stratified part of the training set chose the epoch"
PROTOCOL_NOTES: dict[str, str] = {
    "clean": f"{STRATIFIED}; the test set was read once",
    "published": "best test accuracy over epochs: the test set chose the epoch, as in the paper",
}
NO_TEST_NOTE = f"{STRATIFIED}; there is no test set"
# What the validation columns of a run are measured on.
HELD_OUT: dict[str, str] = {"clean": "validation", "published": "test (chooses the weights)"}

Bound = tuple[str, Callable[[Any], bool]]  # what is expected, and whether a value holds
Bounds = Mapping[str, Bound]
ABOVE_0: Bound = ("above 0", lambda value: value > 0)
AT_LEAST_0: Bound = ("at least 0", lambda value: value >= 0)
AT_LEAST_1: Bound = ("at least 1", lambda value: value >= 1)
FRACTION: Bound = ("in (0, 1)", lambda value: 0 < value < 1)
SHARE: Bound = ("in [0, 1]", lambda value: 0 <= value <= 1)


def require(name: str, value: object, expected: str, holds: Callable[[Any], bool]) -> None:
    """Refuse a value out of range, with what was expected and what came.

    Raises:
        ValueError: the value does not hold.
    """
    if not holds(value):
        raise ValueError(f"{name} must be {expected}, got {value}")


def require_logger(name: LoggerName) -> None:
    """Refuse a logger whose library is not there.

    Raises:
        ImportError: the message says what to install.
    """
    # A folder that is called so, as wandb leaves one beside a user, is found too, without a file.
    if name != "csv" and ((found := find_spec(name)) is None or found.origin is None):
        raise ImportError(
            f"{name} is needed for training.logger {name}: pip install 'flowformer[{name}]'"
        )


class Checked:
    """A dataclass whose values are checked when it is built: their types, and their bounds.

    Attributes:
        bounds: the bound of each field that has one; None is in bounds where the type allows it. A
            subclass names the bounds of its own fields alone.
    """

    bounds: ClassVar[Bounds] = {}

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        check_types(self)
        for kind in type(self).__mro__:
            for name, (expected, holds) in vars(kind).get("bounds", {}).items():
                if (value := getattr(self, name)) is not None:
                    require(name, value, expected, holds)


class ExperimentConfig:
    """A whole experiment: its data, its model, and how that is trained.

    A kind of experiment is a frozen dataclass of this class. It declares these attributes as its
    fields, `name` first, with the types of its own parts; their order is that of config.json.

    Attributes:
        papers: the field of `data` by which the data of the paper's figure are known, if any.
        causal: whether mixers are asked for their causal form.
        name: name of the recipe that the experiment came from.
        data: which data, and how they are prepared.
        model: the configuration of the model.
        optimizer: how its parameters move.
        training: how long, on what, and by which rules.
        paper_dataset: data that a paper prints a figure for. With any other the figure has no
            place here: it becomes None, its source too.
        paper_accuracy: test accuracy that the paper prints, in [0, 1].
        paper_source: where the paper prints its figure.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    papers: ClassVar[str] = ""
    causal: ClassVar[bool] = False

    name: str
    data: Any
    model: Any
    optimizer: Any
    training: Any
    paper_dataset: str | None = None
    paper_accuracy: float | None = None
    paper_source: str | None = None

    def check_early(self) -> None:
        """Refuse what can be seen before the data are read and what trains is imported.

        Raises:
            ValueError: the data name nothing to train on, or there is no such mixer, or none with
                such an option or in the form that the model needs.
            OSError: a file or folder is not there.
            ImportError: a logger is missing.
        """
        for part in (self.data, self.model, self.optimizer, self.training):
            check_early(part)
        check_mixer_of(self.model, "causal" if self.causal else "bidirectional", self.name)

    def __post_init__(self) -> None:
        """Check the values, and drop the paper's figure when it is one for other data.

        Raises:
            ValueError: a value is of the wrong type or out of range, or two do not fit.
        """
        check_types(self.model, "model")
        # Here, so that no way to change the data (`replace`, the command line) can forget it.
        if self.papers and getattr(self.data, self.papers) != self.paper_dataset:
            figure = ("paper_dataset", "paper_accuracy", "paper_perplexity", "paper_source")
            for name in {field.name for field in fields(self)}.intersection(figure):
                object.__setattr__(self, name, None)
        if self.paper_accuracy is not None:
            require("paper_accuracy", self.paper_accuracy, *SHARE)

    @property
    @abstractmethod
    def dataset_name(self) -> str:
        """The name of the data."""

    @property
    def measure(self) -> Measure:
        """The figure that runs are ranked by."""
        return ACCURACY

    @property
    def paper_score(self) -> float | None:
        """The paper's figure, where comparisons measure the same."""
        return self.paper_accuracy

    @property
    def protocol(self) -> str:
        """What chooses the epoch or step whose parameters are kept."""
        return getattr(self.training, "protocol", "clean")

    @property
    def has_test(self) -> bool:
        """Whether there is something to test on."""
        return True

    @property
    def protocol_note(self) -> str:
        """The protocol in words, to stand beside every figure."""
        return PROTOCOL_NOTES[self.protocol]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Checked):
    """How the parameters move, at one learning rate.

    Attributes:
        name: the update rule: radam (rectified Adam), adam, or adamw (decoupled weight decay).
        learning_rate: constant over training.
        weight_decay: as the named optimizer of torch.optim takes it.
        gradient_clip: largest norm of the whole gradient; None leaves it alone.
    """

    bounds: ClassVar[Bounds] = {
        "learning_rate": ABOVE_0,
        "weight_decay": AT_LEAST_0,
        "gradient_clip": ABOVE_0,
    }

    name: OptimizerName = "radam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    gradient_clip: float | None = 4.0


@dataclass(frozen=True, kw_only=True)
class ScheduledOptimizerConfig(Checked):
    """How the parameters move, at a learning rate that follows a schedule by steps.

    Attributes:
        name: adam, its weight decay added to the gradient; or adamw, decoupled from it.
        learning_rate: the highest of the schedule; of rsqrt, what it is divided from.
        schedule: constant; cosine falls to `floor`; inverse-sqrt falls with the square root of the
            step. Each rises linearly over the warm-up first. rsqrt does too, and is the rate over
            the square root of the step, or of the warm-up while that lasts (Long Range Arena's).
        warmup: steps until the rate is at its highest.
        warmup_from: rate of the first step.
        floor: what cosine falls to, as a part of the highest rate.
        betas: Adam's decay rates of the two moments.
        epsilon: what Adam adds to the root of the second.
        weight_decay: of the matrices of a language or image model, whose biases, norms and
            embeddings have none; of all parameters of a classifier of sequences, as published.
        gradient_clip: largest norm of the whole gradient; None leaves it alone.
    """

    bounds: ClassVar[Bounds] = {
        "learning_rate": ABOVE_0,
        "epsilon": ("between 1.2e-38 and 1e+18", lambda value: 1.2e-38 <= value <= 1e18),
        "warmup": AT_LEAST_0,
        "warmup_from": AT_LEAST_0,
        "weight_decay": AT_LEAST_0,
        "floor": SHARE,
        "gradient_clip": ABOVE_0,
    }

    name: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 6e-4
    schedule: Schedule = "cosine"
    warmup: int = 0
    warmup_from: float = 1e-7
    floor: float = 0.1
    betas: tuple[float, ...] = (0.9, 0.95)
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    gradient_clip: float | None = 1.0

    def __post_init__(self) -> None:
        """Check the values, and that the decay rates are two."""
        super().__post_init__()
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas}")

    def rate_at(self, step: int, steps: int) -> float:
        """Return the learning rate of an optimizer step, as a part of `learning_rate`.

        Args:
            step: number of the step, counted from 0.
            steps: steps of the whole training.
        """
        warmup = max(self.warmup, 1)
        if self.schedule == "rsqrt":
            return min(1.0, step / warmup) / math.sqrt(max(step, warmup))
        if step < self.warmup:
            start = self.warmup_from / self.learning_rate
            return start + (1 - start) * step / self.warmup
        if self.schedule == "inverse-sqrt":
            return math.sqrt(warmup / max(step, 1))
        if self.schedule == "cosine":
            done = (step - self.warmup) / max(1, steps - self.warmup)
            fallen = (1 - math.cos(math.pi * min(1.0, done))) / 2
            return 1 - (1 - self.floor) * fallen
        return 1.0


@dataclass(frozen=True, kw_only=True)
class ComputeConfig(Checked):
    """What every training has: a seed, a place to compute, and what is shown.

    Attributes:
        seed: of all that is random: the initial weights, the order of the samples, dropout, and a
            split if there is one.
        accelerator: where to compute; auto takes a GPU when there is one.
        precision: of the training step, in Lightning's words.
        threads: CPU threads; the default is torch's own. Results are bitwise equal only for equal
            numbers.
        progress: lines (one for each row of metrics.csv), bar (of how far it is, and lines), none,
            or auto (a bar on a terminal, lines elsewhere).
        logger: where the figures of each epoch go too, beside metrics.csv and TensorBoard: csv,
            mlflow or wandb (Weights & Biases), any number of them.
        skip_nan: batches of the run that may be left out because their loss is NaN or infinite;
            the next one ends it, as the first does by default.
        devices: processes on each machine, with a device each; a batch is shared out to all.
        nodes: machines.
        strategy: of more than one process: ddp, each with the whole model, or fsdp, each with a
            part of every parameter, its gradient and its moments (FSDP2).
        timeout: seconds that a process waits for another before it ends the run and names it.
        round_name: what a row of metrics.csv is called.
    """

    bounds: ClassVar[Bounds] = {
        # That of NumPy's and scikit-learn's seeds, met at the split.
        "seed": ("in [0, 2**32)", lambda value: 0 <= value < 2**32),
        "threads": AT_LEAST_1,
        "skip_nan": AT_LEAST_0,
        "devices": AT_LEAST_1,
        "nodes": AT_LEAST_1,
        "timeout": AT_LEAST_1,
    }
    round_name: ClassVar[str] = "epoch"

    seed: int = 0
    accelerator: Accelerator = "auto"
    precision: Precision = "32-true"
    threads: int | None = None
    progress: Progress = "auto"
    logger: tuple[Annotated[LoggerName, Early(require_logger)], ...] = ()
    skip_nan: int = 0
    devices: int = 1
    nodes: int = 1
    strategy: Strategy = "ddp"
    timeout: float = 300.0

    def __post_init__(self) -> None:
        """Check the values, and that batches can be left out under the strategy."""
        super().__post_init__()
        if self.skip_nan and self.strategy == "fsdp":
            raise ValueError("training.skip_nan is for one process and ddp, got strategy fsdp")

    @property
    def processes(self) -> int:
        """Processes over all machines."""
        return self.devices * self.nodes

    @property
    @abstractmethod
    def rounds(self) -> int:
        """Rows of metrics.csv: what the loop repeats."""


@dataclass(frozen=True, kw_only=True)
class EpochsConfig(ComputeConfig):
    """How long a training by epochs is, on what it is measured, and by which rules.

    Attributes:
        epochs: passes over the training set.
        protocol: what chooses the epoch. clean: a part of the training set, the test set is read
            once at the end. published: the test set itself, as in the paper; leaks, for comparison
            with its figures only.
    """

    bounds: ClassVar[Bounds] = {"epochs": AT_LEAST_1}

    epochs: int = 100
    protocol: Protocol = "clean"

    @property
    def rounds(self) -> int:
        """The epochs."""
        return self.epochs


@dataclass(frozen=True, kw_only=True)
class StepsConfig(ComputeConfig):
    """How long a training by steps is.

    Attributes:
        steps: of the optimizer.
        evaluate_every: steps between two measurements on the validation part, each with a
            checkpoint; it divides `steps`.
    """

    bounds: ClassVar[Bounds] = {"steps": AT_LEAST_1, "evaluate_every": AT_LEAST_1}
    round_name: ClassVar[str] = "measurement"

    steps: int = 5000
    evaluate_every: int = 250

    def __post_init__(self) -> None:
        """Check the values, and that the measurements divide the steps."""
        super().__post_init__()
        if self.steps % self.evaluate_every:
            raise ValueError(
                f"evaluate_every must divide steps, got {self.evaluate_every} and {self.steps}"
            )

    @property
    def rounds(self) -> int:
        """The measurements."""
        return self.steps // self.evaluate_every
