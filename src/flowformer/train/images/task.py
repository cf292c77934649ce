"""The training of classifiers of images: they are mixed, and the parameters averaged."""

from typing import Any

from torch import Tensor, nn

try:
    from timm.utils.model_ema import ModelEmaV3
except ImportError as error:
    raise ImportError(
        "timm is needed to train on images: pip install 'flowformer[vision]'"
    ) from error

from flowformer.data.images.transforms import Mixing
from flowformer.models.images.model import VisionClassifier
from flowformer.train.loop.classification import ClassificationTask


class ImagesTask(ClassificationTask):
    """Cross-entropy training of a classifier of images.

    The training accuracy is that on the mixed images, with the class that has most of each.

    Args:
        model: gives `logits` and `loss` for `images` and `labels`.
        parts: those of a `RecordedTask`; the seed is of what is mixed, too.
        mixing: of the images and labels that are trained on.
        average: decay of a moving average of the parameters; None for none. Step t has
            min(decay, 1 - t^(-2/3)), so that a short training is averaged too.
        options: further ones of a `RecordedTask`.
    """

    def __init__(
        self,
        model: VisionClassifier,
        *parts: Any,
        mixing: Mixing,
        average: float | None,
        **options: Any,
    ) -> None:
        super().__init__(model, *parts, **options)
        self._mixing = mixing
        # A module of this one, so that checkpoints have it.
        self.average = None
        if average is not None:
            self.average = ModelEmaV3(model, decay=average, use_warmup=True)
            self.average.requires_grad_(False)  # nobody has a gradient of them, nor waits for one
            self.average.train()  # like the model beside it: the loop turns both to evaluation
        self._averaged_at = 0

    @property
    def measured(self) -> nn.Module:
        """The averaged parameters, where there are any."""
        return self.model if self.average is None else self.average.module

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of a batch that was mixed.

        Raises:
            NonFiniteLossError: it is NaN or infinite.
        """
        # Each process mixes its own share; the first one draws what one alone does.
        key = [self._seed, self.current_epoch, batch_idx]
        if self.global_rank:
            key.append(self.global_rank)
        images, labels = self._mixing(batch["images"], batch["labels"], *key)
        return super().training_step({"images": images, "labels": labels}, batch_idx)

    def on_train_start(self) -> None:
        """Take the number of steps that were averaged before."""
        self._averaged_at = self.global_step

    def on_train_batch_end(self, *_arguments: Any, **_options: Any) -> None:
        """Average, where the batch ended a step of the optimizer."""
        if self.average is not None and self.global_step != self._averaged_at:
            self._averaged_at = self.global_step
            self.average.update(self.model, step=self.global_step)
