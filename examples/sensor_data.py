# %% [markdown]
# # Classify sensor data
#
# A watch with an accelerometer and a gyroscope records somebody who stands, walks, runs or plays
# badminton: 6 channels of 100 steps, ten seconds. The data set BasicMotions comes with
# [aeon](https://www.aeon-toolkit.org): 40 recordings to train on, 40 to test on.
#
# It needs `pip install 'flowformer[timeseries]'`. (What stands behind `# quick:` are the values
# of a test of this file.)

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from aeon.datasets import load_basic_motions

from flowformer.integrations.sklearn import FlowformerClassifier
from flowformer.report.figures import SeriesFlowMap, flow_map

train, train_motions = load_basic_motions(split="train")
test, test_motions = load_basic_motions(split="test")
motions = sorted(set(train_motions))
print("train", train.shape, "test", test.shape, motions)

figure, panels = plt.subplots(1, len(motions), figsize=(10, 2), sharey=True, layout="constrained")
for panel, motion in zip(panels, motions, strict=True):
    panel.plot(train[train_motions == motion][0].T, linewidth=0.8)
    panel.set_title(motion)
figure

# %% [markdown]
# An estimator as scikit-learn has them. A fifth of the training recordings is set aside and
# chooses the epoch; the test recordings are read once, at the end.

# %%
epochs = 60  # quick: 1
settings = {
    "dim": 64,
    "num_heads": 4,
    "feedforward": 128,
    "epochs": epochs,
    "batch_size": 8,
    "random_state": 0,
}
classifier = FlowformerClassifier(**settings, verbose=True).fit(train, train_motions)
print(f"test accuracy {classifier.score(test, test_motions):.3f}")

# %% [markdown]
# Pieces of other lengths, and with gaps, are recordings like any others: a list of arrays
# `[channels, time]`, NaN where a value is missing. With sinusoidal positions and the mean over
# time a model reads any length: it is trained on pieces, and tested on the whole.

# %%
rng = np.random.default_rng(0)
pieces = [one[:, : rng.integers(40, 101)].copy() for one in train]
for piece in pieces:
    piece[rng.integers(6), rng.integers(piece.shape[1])] = np.nan
any_length = {"pooling": "mean", "positions": "sinusoidal", "missing": "interpolate"}
pooled = FlowformerClassifier(**settings, **any_length).fit(pieces, train_motions)
print(f"trained on pieces, tested on whole recordings: {pooled.score(test, test_motions):.3f}")

# %% [markdown]
# What does it look at? Each head shares out its attention among the steps of a recording (source
# competition: 1 is an even share), and opens each step to what it receives (sink allocation).

# %%
recording = test[test_motions == "badminton"][0]
values = classifier.preprocessing_.apply(recording)
with torch.no_grad():
    layers = classifier.model_.flow_maps(torch.from_numpy(values)[None])
figure = flow_map(
    SeriesFlowMap(
        series=recording.T,
        label="badminton",
        predicted=str(classifier.predict(recording[None])[0]),
        source_competition=torch.cat([one.source_competition for one in layers]).numpy(),
        sink_allocation=torch.cat([one.sink_allocation for one in layers]).numpy(),
    )
)
figure.savefig("sensor-data.png", dpi=90)
figure
