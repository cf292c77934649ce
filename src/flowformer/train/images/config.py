"""What a run on images is told: one frozen dataclass per part; no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from flowformer.data.options import ImageSetName
from flowformer.models.images.config import VisionModelConfig
from flowformer.scores.measures import ACCURACY, Measure
from flowformer.serialization import check_types
from flowformer.train.config import PROTOCOL_NOTES, TrainingConfig, require
from flowformer.train.schedule import Schedule, ScheduledOptimizerConfig


@dataclass(frozen=True, kw_only=True)
class ImageDataConfig:
    """Which images to train on, and how they become batches.

    Attributes:
        dataset: folder for image files (PATH/train/CLASS/IMAGE, and val or test likewise), or
            fashion-mnist.
        path: the folder; of fashion-mnist one with its idx files, by default they are fetched.
        image_size: pixels on each side of what the model reads.
        validation_fraction: part of the training images that chooses the epoch under the clean
            protocol, where the folder has not both val and test.
        batch_size: images in one forward and backward pass.
        workers: processes that read images; they change nothing but the time.
    """

    dataset: ImageSetName = "folder"
    path: Path | None = None
    image_size: int = 224
    validation_fraction: float = 0.1
    batch_size: int = 128
    workers: int = 0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        check_types(self)
        for name in ("image_size", "batch_size"):
            require(name, getattr(self, name), "at least 1", lambda v: v >= 1)
        require("workers", self.workers, "at least 0", lambda v: v >= 0)
        require("validation_fraction", self.validation_fraction, "in (0, 1)", lambda v: 0 < v < 1)


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """What chance does to the images and labels that are trained on.

    Attributes:
        crop: resized takes a random part and resizes it, for photographs; shift moves the image
            over black, for small images; none leaves it. The first two flip it too.
        shift: pixels by which crop shift moves it at most.
        rand_augment: of photographs, in timm's words: rand-m9-mstd0.5-inc1; None for none.
        color_jitter: strength of changes of brightness, contrast and saturation, where
            `rand_augment` is None.
        random_erasing: probability of a rectangle of noise in a photograph.
        mixup: parameter of the Beta distribution of mixup; 0 for none.
        cutmix: that of CutMix; with both, each has half of the batches.
        label_smoothing: probability that is spread over all classes.
    """

    crop: Literal["resized", "shift", "none"] = "resized"
    shift: int = 2
    rand_augment: str | None = None
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is of the wrong type or out of range, or one of photographs beside
                another crop.
        """
        check_types(self)
        for name in ("shift", "color_jitter", "mixup", "cutmix"):
            require(name, getattr(self, name), "at least 0", lambda v: v >= 0)
        for name in ("random_erasing", "label_smoothing"):
            require(name, getattr(self, name), "in [0, 1)", lambda v: 0 <= v < 1)
        for name in ("rand_augment", "color_jitter", "random_erasing"):
            if self.crop != "resized" and getattr(self, name):
                raise ValueError(f"{name} needs crop resized beside it, got crop {self.crop}")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed by pairs."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True, kw_only=True)
class VisionOptimizerConfig:
    """How the parameters move.

    Attributes:
        name: adam, its weight decay added to the gradient; or adamw, decoupled from it.
        learning_rate: the highest of the schedule, for a step over `reference_batch` images: it is
            in proportion to them.
        reference_batch: the images; None for a rate that does not depend on them.
        schedule: constant; cosine falls to `floor`; inverse-sqrt falls with the square root of the
            step. Each rises linearly over the warm-up first.
        warmup_epochs: passes over the images until the rate is at its highest.
        warmup_from: rate of the first step.
        floor: what cosine falls to, as a part of the highest rate.
        betas: Adam's decay rates of the two moments.
        weight_decay: of the matrices; biases, norms, factors, positions and the class token have
            none.
        gradient_clip: largest norm of the whole gradient; None leaves it alone.
    """

    name: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 5e-4
    reference_batch: int | None = 512
    schedule: Schedule = "cosine"
    warmup_epochs: float = 5.0
    warmup_from: float = 1e-6
    floor: float = 0.01
    betas: tuple[float, ...] = (0.9, 0.999)
    weight_decay: float = 0.05
    gradient_clip: float | None = 1.0

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        check_types(self)
        require("warmup_epochs", self.warmup_epochs, "at least 0", lambda v: v >= 0)
        if self.reference_batch is not None:
            require("reference_batch", self.reference_batch, "at least 1", lambda v: v >= 1)
        self.by_steps(1, images=self.reference_batch or 1)

    def by_steps(self, steps_per_epoch: int, *, images: int) -> ScheduledOptimizerConfig:
        """Returns it for steps over a number of images.

        Args:
            steps_per_epoch: of the optimizer.
            images: of a step.
        """
        scale = 1.0 if self.reference_batch is None else images / self.reference_batch
        return ScheduledOptimizerConfig(
            name=self.name,
            learning_rate=scale * self.learning_rate,
            schedule=self.schedule,
            warmup=round(self.warmup_epochs * steps_per_epoch),
            warmup_from=self.warmup_from,
            floor=self.floor,
            betas=self.betas,
            weight_decay=self.weight_decay,
            gradient_clip=self.gradient_clip,
        )


@dataclass(frozen=True, kw_only=True)
class VisionTrainingConfig(TrainingConfig):
    """How long, from where, and by which rules.

    Attributes:
        model_from: parameters to start from: the folder of a run, or a published checkpoint (of
            thuml/Flowformer or DeiT). Of images of another size the positions are interpolated; for
            other classes the head is a new one.
        average: decay of a moving average of the parameters, which is then what is measured and
            kept; it is less at the beginning. None for none.
        accumulate: passes whose gradients make one step.
        checkpoint_activations: compute each block again in the backward pass: less memory, more
            time.
    """

    model_from: Path | None = None
    average: float | None = None
    accumulate: int = 1
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is of the wrong type or out of range.
        """
        super().__post_init__()
        require("accumulate", self.accumulate, "at least 1", lambda v: v >= 1)
        if self.average is not None:
            require("average", self.average, "in (0, 1)", lambda v: 0 < v < 1)
            if self.strategy == "fsdp":
                raise ValueError("training.average is for one process and ddp, got strategy fsdp")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A whole experiment of image classification.

    Attributes:
        name: of the recipe it came from.
        data: which images, and how they become batches.
        augmentation: what chance does to those that are trained on.
        model: the classifier.
        optimizer: how its parameters move.
        training: how long, from where, and by which rules.
        paper_classes: number of classes of the data that a paper prints a figure for. Of a run on
            data with another, its result has no such figure.
        paper_accuracy: test accuracy that it prints, in [0, 1].
        paper_source: where it prints it.
    """

    name: str
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    model: VisionModelConfig = field(default_factory=VisionModelConfig)
    optimizer: VisionOptimizerConfig = field(default_factory=VisionOptimizerConfig)
    training: VisionTrainingConfig = field(default_factory=VisionTrainingConfig)
    paper_classes: int | None = None
    paper_accuracy: float | None = None
    paper_source: str | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: a value is of the wrong type or out of range, or two do not fit.
        """
        check_types(self.model, "model")
        if self.paper_accuracy is not None:
            require("paper_accuracy", self.paper_accuracy, "in [0, 1]", lambda v: 0 <= v <= 1)
        processes = self.training.processes
        if self.augmentation.mixes and self.data.batch_size % (2 * processes):
            share = "even" if processes == 1 else f"even for each of {processes} processes"
            raise ValueError(
                f"data.batch_size must be {share} where images are mixed by pairs, got "
                f"{self.data.batch_size}"
            )
        if self.data.dataset != "folder" and self.augmentation.crop == "resized":
            raise ValueError(
                f"{self.data.dataset} has small grey images: augmentation.crop must be shift or "
                "none, got resized"
            )

    @property
    def dataset_name(self) -> str:
        """What its data are called."""
        path = self.data.path
        return path.resolve().name if self.data.dataset == "folder" and path else self.data.dataset

    @property
    def measure(self) -> Measure:
        """What its runs are ranked by."""
        return ACCURACY

    @property
    def causal(self) -> bool:
        """Whether its mixers are asked for their causal form."""
        return False

    @property
    def paper_score(self) -> float | None:
        """The paper's figure, as comparisons measure it."""
        return self.paper_accuracy

    @property
    def protocol(self) -> str:
        """What chooses the epoch."""
        return self.training.protocol

    @property
    def has_test(self) -> bool:
        """Whether its data have a test part."""
        path = self.data.path
        if self.data.dataset != "folder" or path is None:
            return True
        return (path / "val").is_dir() or (path / "test").is_dir()

    @property
    def protocol_note(self) -> str:
        """The protocol in words, to stand beside every figure."""
        return PROTOCOL_NOTES[self.training.protocol]
