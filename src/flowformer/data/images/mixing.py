"""Mixup, CutMix and label smoothing of a batch, as timm does them."""

from jaxtyping import Float, Int
from torch import Tensor

try:
    from timm.data.mixup import Mixup, mixup_target
except ImportError as error:
    raise ImportError("timm is needed to mix images: pip install 'flowformer[vision]'") from error

from flowformer.data.images.transforms import seeded


class Mixing:
    """Makes of images and classes mixed images and distributions over the classes.

    Mixup (Zhang et al. 2018) adds two images, CutMix (Yun et al. 2019) puts a rectangle of one into
    the other; one or the other for a whole batch, whose first image is mixed with its last and so
    on. What is drawn is a function of a key.

    Args:
        num_classes: of the labels.
        mixup: parameter of the Beta distribution of mixup's weights; 0 for none.
        cutmix: that of the area of CutMix; 0 for none.
        label_smoothing: probability that is spread over all classes.
    """

    def __init__(
        self, num_classes: int, *, mixup: float, cutmix: float, label_smoothing: float
    ) -> None:
        """Keeps the settings."""
        self._num_classes = num_classes
        self._smoothing = label_smoothing
        self._mixup = None
        if mixup > 0 or cutmix > 0:
            self._mixup = Mixup(
                mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes
            )

    def __call__(
        self, images: Float[Tensor, "b c h w"], labels: Int[Tensor, " b"], *key: int
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b classes"]]:
        """The batch mixed.

        Args:
            images: an even number of them, where there is mixup or CutMix; they are left alone.
            labels: their classes.
            key: of what is drawn.
        """
        if self._mixup is None:
            return images, mixup_target(labels, self._num_classes, smoothing=self._smoothing)
        with seeded(*key):
            return self._mixup(images.clone(), labels)
