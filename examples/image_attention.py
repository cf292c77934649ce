# %% [markdown]
# # What an image model looks at
#
# Two small vision models, one with Flow-Attention and one with softmax attention, learn the 1,797
# handwritten digits that come with scikit-learn. Then each shows what the token in the middle of
# a picture takes from all the others, layer by layer.
#
# It needs `pip install 'flowformer[vision]'`. (What stands behind `# quick:` are the values of a
# test of this file.)

# %%
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from flowformer.recipes import build_recipe
from flowformer.report.attention_maps import head_maps, side_by_side
from flowformer.train.images.attention import ShownModel, SinkChoice, show_image
from flowformer.train.run import load_run, train

# %% [markdown]
# Images of your own lie in a folder, `FOLDER/train/CLASS/IMAGE` and `FOLDER/val/CLASS/IMAGE`. So
# do these, every fifth of them in `val`.

# %%
every = 1  # quick: 10
digits = load_digits()
for number in range(0, len(digits.images), every):
    part = "val" if number // every % 5 == 0 else "train"
    folder = Path("digits", part, str(digits.target[number]))
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.pad(digits.images[number] * 255 / 16, 1).astype("uint8")
    image = Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC)
    image.save(folder / f"{number}.png")

figure, panel = plt.subplots(figsize=(2, 2))
panel.imshow(Image.open("digits/val/0/0.png"), cmap="gray")
panel.axis("off")
figure

# %% [markdown]
# A small recipe, with a folder in place of its images: two stages, 8 × 8 tokens and then 4 × 4.

# %%
epochs = 12  # quick: 1
recipe = build_recipe("fashion-mnist")
models = []
for mixer in ("flow", "softmax"):
    config = replace(
        recipe,
        data=replace(recipe.data, dataset="folder", path=Path("digits"), batch_size=32),
        augmentation=replace(recipe.augmentation, crop="none"),  # no flips: a 2 is no mirrored 2
        model=replace(recipe.model, mixer=mixer, mixer_options=None),
        training=replace(recipe.training, epochs=epochs, seed=1),
    )
    result = train(config, f"runs/digits-{mixer}")
    print(f"{mixer}: {100 * result.test_accuracy:.1f} % of the digits in val")
    run = load_run(f"runs/digits-{mixer}")
    models.append(
        ShownModel(
            name=mixer, model=run.model, preprocessing=run.preprocessing, classes=run.classes
        )
    )

# %% [markdown]
# The weights are exact: the attention's output is linear in its values, and row i of that map is
# what token i (under the cross) takes from each token. Red is more than an even share, blue is
# less.

# %%
image = Path("digits/val/0/0.png")
pictures = [show_image(model, image, SinkChoice()) for model in models]
figure = side_by_side(pictures)
figure.savefig("image-attention.png", dpi=110)
figure

# %% [markdown]
# Flow-Attention has more to show: the share that each token wins in the competition of the
# sources, whoever asks.

# %%
figure = head_maps(pictures[0], "competition")
figure.savefig("image-competition.png", dpi=110)
figure
