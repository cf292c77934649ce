"""The configuration, record and result of a run on images; no torch here."""

from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

from flowformer.data.files import find_parts, subfolders
from flowformer.data.options import ImageSetName
from flowformer.models.images.config import VisionModelConfig
from flowformer.names import ExistingPath
from flowformer.train.config import (
    AT_LEAST_0,
    AT_LEAST_1,
    FRACTION,
    Bound,
    Bounds,
    Checked,
    EpochsConfig,
    ExperimentConfig,
    Schedule,
    ScheduledOptimizerConfig,
)
from flowformer.train.run_files import ClassifierResult, Record

BELOW_1: Bound = ("in [0, 1)", lambda value: 0 <= value < 1)


@dataclass(frozen=True, kw_only=True)
class ImageDataConfig(Checked):
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

    bounds: ClassVar[Bounds] = {
        "image_size": AT_LEAST_1,
        "batch_size": AT_LEAST_1,
        "workers": AT_LEAST_0,
        "validation_fraction": FRACTION,
    }

    dataset: ImageSetName = "folder"
    path: ExistingPath | None = None
    image_size: int = 224
    validation_fraction: float = 0.1
    batch_size: int = 128
    workers: int = 0

    def require_source(self) -> None:
        """Refuse data that name no images, or a folder without any class of them.

        Raises:
            ValueError: they name none.
            FileNotFoundError: there is no such folder, or no class in it.
        """
        if self.dataset != "folder":
            return
        if self.path is None:
            raise ValueError(
                "no images to train on: give data.path, a folder with train/CLASS/IMAGE"
            )
        from flowformer.data.images.records import find_image_parts

        find_image_parts(self.path)


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig(Checked):
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

    bounds: ClassVar[Bounds] = {
        **dict.fromkeys(("shift", "color_jitter", "mixup", "cutmix"), AT_LEAST_0),
        **dict.fromkeys(("random_erasing", "label_smoothing"), BELOW_1),
    }

    crop: Literal["resized", "shift", "none"] = "resized"
    shift: int = 2
    rand_augment: str | None = None
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        """Check the values, and that those of photographs stand beside their crop."""
        super().__post_init__()
        for name in ("rand_augment", "color_jitter", "random_erasing"):
            if self.crop != "resized" and getattr(self, name):
                raise ValueError(f"{name} needs crop resized beside it, got crop {self.crop}")

    @property
    def mixes(self) -> bool:
        """Whether images are mixed by pairs."""
        return self.mixup > 0 or self.cutmix > 0


@dataclass(frozen=True, kw_only=True)
class ImagesOptimizerConfig(Checked):
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

    bounds: ClassVar[Bounds] = {"warmup_epochs": AT_LEAST_0, "reference_batch": AT_LEAST_1}

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
        """Check the values, with those of the schedule that they come to."""
        super().__post_init__()
        self.by_steps(1, images=self.reference_batch or 1)

    def by_steps(self, steps_per_epoch: int, *, images: int) -> ScheduledOptimizerConfig:
        """Return it for steps over a number of images.

        Args:
            steps_per_epoch: steps of the optimizer.
            images: images of a step.
        """
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        reference, epochs = own.pop("reference_batch"), own.pop("warmup_epochs")
        own["learning_rate"] *= 1.0 if reference is None else images / reference
        return ScheduledOptimizerConfig(warmup=round(epochs * steps_per_epoch), **own)


@dataclass(frozen=True, kw_only=True)
class ImagesTrainingConfig(EpochsConfig):
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

    bounds: ClassVar[Bounds] = {"accumulate": AT_LEAST_1, "average": FRACTION}

    model_from: ExistingPath | None = None
    average: float | None = None
    accumulate: int = 1
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        """Check the values, and that there is one whole model to average."""
        super().__post_init__()
        if self.average is not None and self.strategy == "fsdp":
            raise ValueError("training.average is for one process and ddp, got strategy fsdp")


@dataclass(frozen=True, kw_only=True)
class ImagesConfig(ExperimentConfig):
    """A whole experiment of image classification.

    Attributes:
        data: which images, and how they become batches.
        augmentation: what chance does to those that are trained on.
        model: the classifier.
        optimizer: how its parameters move.
        training: how long, from where, and by which rules.
        paper_classes: number of classes of the data that a paper prints a figure for. Of a run on
            data with another, its result has no such figure.
    """

    name: str
    data: ImageDataConfig = field(default_factory=ImageDataConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    model: VisionModelConfig = field(default_factory=VisionModelConfig)
    optimizer: ImagesOptimizerConfig = field(default_factory=ImagesOptimizerConfig)
    training: ImagesTrainingConfig = field(default_factory=ImagesTrainingConfig)
    paper_classes: int | None = None
    paper_accuracy: float | None = None
    paper_source: str | None = None

    def __post_init__(self) -> None:
        """Check the values, and that the images suit the mixing and the crop."""
        super().__post_init__()
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

    def check_early(self) -> None:
        """Refuse what can be seen at once, and data that name no images."""
        super().check_early()
        self.data.require_source()

    @property
    def dataset_name(self) -> str:
        """The name of the folder or set."""
        path = self.data.path
        return path.resolve().name if self.data.dataset == "folder" and path else self.data.dataset

    @property
    def has_test(self) -> bool:
        """Whether its data have a test part."""
        path = self.data.path
        if self.data.dataset != "folder" or path is None:
            return True
        return path.is_dir() and any(part != "train" for part in find_parts(subfolders(path)))


@dataclass(frozen=True, kw_only=True)
class ImagesRecord(Record):
    """What config.json holds of a run on images.

    Attributes:
        classes: names of the classes; labels index them.
        channels: of every image: 1 for grey, 3 for RGB.
        sizes: number of images in each part of the data.
    """

    config: ImagesConfig
    classes: tuple[str, ...]
    channels: int
    sizes: dict[str, int]
    task: Literal["images"] = "images"


ImagesResult = ClassifierResult
