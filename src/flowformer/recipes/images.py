"""Image classification: ImageNet as in the paper, folders of one's own, and Fashion-MNIST.

Settings on ImageNet: those of the published training, which are DeiT's (Touvron et al. 2021)
without erasing and repeated augmentation: AdamW, 5e-4 for 512 images, weight decay 0.05, cosine
after 5 epochs of warm-up, 300 epochs, RandAugment 9, mixup 0.8, CutMix 1, label smoothing 0.1,
gradient norm at most 1. What is not published is in docs/kinds/images.md. Accuracies:
Flowformer (ICML 2022), the table of ImageNet-1K. The paper's figures are those of the epoch that
was best on the validation images, as `protocol="published"` measures.
"""

from collections.abc import Callable, Mapping

from flowformer.models.images.config import VISION_PRESETS, VisionModelConfig
from flowformer.train.images.config import (
    AugmentationConfig,
    ImageDataConfig,
    ImagesConfig,
    ImagesOptimizerConfig,
    ImagesTrainingConfig,
)

SOURCE = "Flowformer (Wu et al., ICML 2022), ImageNet-1K table"
FIGURES = (f"Of images, test accuracy in percent, {SOURCE}.",)
PHOTOGRAPHS = AugmentationConfig(
    rand_augment="rand-m9-mstd0.5-inc1", mixup=0.8, cutmix=1.0, label_smoothing=0.1
)


def imagenet() -> ImagesConfig:
    """ImageNet-1K, the hierarchical Flowformer: --data.path FOLDER with train and val."""
    return _imagenet("imagenet", "hierarchical", 0.806)


def imagenet_deit_small() -> ImagesConfig:
    """ImageNet-1K, DeiT-S with Flow-Attention: --data.path FOLDER with train and val."""
    return _imagenet("imagenet-deit-small", "deit-small", 0.800)


def image_folder() -> ImagesConfig:
    """Images of your own: --data.path FOLDER with train/CLASS/IMAGE, and val or test."""
    return ImagesConfig(
        name="image-folder",
        data=ImageDataConfig(image_size=224, batch_size=64),
        augmentation=PHOTOGRAPHS,
        model=VISION_PRESETS["deit-tiny"],
        optimizer=ImagesOptimizerConfig(),
        training=ImagesTrainingConfig(epochs=100, average=0.9998),
    )


def fashion_mnist() -> ImagesConfig:
    """Fashion-MNIST, grey images of clothes, 28 × 28 in 10 classes: minutes on one core."""
    return _fashion("fashion-mnist", epochs=3, shift=0)


def fashion_mnist_long() -> ImagesConfig:
    """The same over more epochs, the images shifted by a pixel."""
    return _fashion("fashion-mnist-long", epochs=20, shift=1)


RECIPES: Mapping[str, Callable[[], ImagesConfig]] = {
    "imagenet": imagenet,
    "imagenet-deit-small": imagenet_deit_small,
    "image-folder": image_folder,
    "fashion-mnist": fashion_mnist,
    "fashion-mnist-long": fashion_mnist_long,
}


def _imagenet(name: str, preset: str, accuracy: float) -> ImagesConfig:
    return ImagesConfig(
        name=name,
        # A hundredth chooses the epoch: 12,800 images are enough, and the training misses them.
        data=ImageDataConfig(image_size=224, batch_size=128, validation_fraction=0.01, workers=8),
        augmentation=PHOTOGRAPHS,
        model=VISION_PRESETS[preset],
        optimizer=ImagesOptimizerConfig(learning_rate=5e-4, reference_batch=512),
        # Eight passes of 128 are DeiT's step of 1,024 images, whose averaged parameters these are.
        training=ImagesTrainingConfig(
            epochs=300, accumulate=8, average=0.99996, precision="bf16-mixed"
        ),
        paper_classes=1000,
        paper_accuracy=accuracy,
        paper_source=SOURCE,
    )


def _fashion(name: str, *, epochs: int, shift: int) -> ImagesConfig:
    return ImagesConfig(
        name=name,
        data=ImageDataConfig(dataset="fashion-mnist", image_size=32, batch_size=64),
        augmentation=AugmentationConfig(crop="shift", shift=shift),
        model=VisionModelConfig(
            patch_size=4,
            dims=(48, 96),
            depths=(1, 2),
            num_heads=(3, 6),
            layer_scale=None,
            drop_path=0.0,
        ),
        optimizer=ImagesOptimizerConfig(
            learning_rate=3e-3, reference_batch=None, warmup_epochs=0.5, weight_decay=0.05
        ),
        training=ImagesTrainingConfig(epochs=epochs),
    )
