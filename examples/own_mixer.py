# %% [markdown]
# # Write your own mixer
#
# From an equation to learning curves beside Flow-Attention and softmax attention. The equation is
# that of a leaky average: each channel h forgets at a rate of its own, which it learns.
#
# $$y_t = a\,y_{t-1} + (1 - a)\,x_t$$
#
# It needs `pip install 'flowformer[language]'`. (What stands behind `# quick:` are the values of
# a test of this file.)

# %%
import csv
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

import matplotlib.pyplot as plt
import torch
from torch import nn

from flowformer.nn import register_mixer
from flowformer.recipes import build_recipe
from flowformer.train.run import train

# %% [markdown]
# A plain module: hidden states `[batch, time, dim]` come in and go out mixed. It has one form,
# the causal one, and a state: the last average. Written as a sum over all steps before, the
# recurrence is a product with a triangular matrix of powers of a.


# %%
class LeakyAverage(nn.Module):
    def __init__(self, dim, slowest=64.0):
        super().__init__()
        self.value, self.gate = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        # Channels remember for 1 to `slowest` steps.
        memory = slowest ** torch.linspace(0, 1, dim)
        self.logit = nn.Parameter(torch.log(memory))  # a = sigmoid(logit) = memory / (memory + 1)

    def forward(self, x, *, state=None, return_state=False):
        value = self.value(x)
        time = torch.arange(x.shape[1], device=x.device)
        log_a = nn.functional.logsigmoid(self.logit)
        apart = time[:, None] - time  # i - j
        powers = (apart.clamp(min=0)[..., None] * log_a).exp() * (apart >= 0)[..., None]
        average = torch.einsum("ijd,bjd->bid", powers, value) * (1 - log_a.exp())
        if state is not None:
            average = average + state[:, None] * ((time[:, None] + 1) * log_a).exp()
        mixed = self.out(average * nn.functional.silu(self.gate(x)))
        return mixed, average[:, -1] if return_state else None


print(register_mixer("leaky", LeakyAverage))

# %% [markdown]
# What was printed is what a trial has shown that it can do. `flowformer check-mixer
# FILE:LeakyAverage` runs the whole conformance suite: padding, future, streaming, packing,
# dtypes, compile.
#
# Now it stands in every model under its name. Three small language models read the reference
# manual of Python, by characters.

# %%
steps = 200  # quick: 2
every = 20  # quick: 1
size = 600_000  # quick: 20_000
Path("python.txt").write_text("\n".join(topics.values())[:size])
recipe = build_recipe("char-shakespeare")
figure, panel = plt.subplots(figsize=(6, 3.2), layout="constrained")
for mixer in ("leaky", "flow", "softmax"):
    config = replace(
        recipe,
        data=replace(recipe.data, corpus="text", folder=Path("python.txt"), length=128),
        model=replace(recipe.model, mixer=mixer, mixer_options=None, num_layers=2),
        optimizer=replace(recipe.optimizer, learning_rate=3e-3),
        training=replace(
            recipe.training, steps=steps, evaluate_every=every, validation_tokens=20_000
        ),
    )
    result = train(config, f"runs/{mixer}")
    print(f"{mixer:<8} {result.test_score:.3f} {result.measure}")
    with Path("runs", mixer, "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    panel.plot(
        [int(row["step"]) for row in rows],
        [float(row["validation_bits_per_character"]) for row in rows],
        label=mixer,
    )

panel.set(xlabel="steps", ylabel="bits per character")
panel.legend(frameon=False)
panel.spines[["top", "right"]].set_visible(False)
figure.savefig("own-mixer.png", dpi=110)
figure
