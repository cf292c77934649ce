# %% [markdown]
# # Text at constant cost
#
# A language model with softmax attention keeps all that it has read, and each new token looks at
# all of it. Flow-Attention keeps a state of constant size: the ten-thousandth token costs what
# the first one did, in time and in memory.
#
# A small model learns to write like the reference manual of Python, which every Python carries
# (`help("lambda")` shows a piece of it). It needs `pip install 'flowformer[language]'`. (What
# stands behind `# quick:` are the values of a test of this file.)

# %%
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics
from time import thread_time

import matplotlib.pyplot as plt
import numpy as np
import torch

from flowformer.generation.generate import generate
from flowformer.generation.text import generate_text
from flowformer.models import LanguageModel
from flowformer.recipes import build_recipe
from flowformer.train.run import load_run, train

size = 600_000  # quick: 20_000
text = "\n".join(topics.values())[:size]
Path("python.txt").write_text(text)
print(f"{len(text):,} characters")

# %% [markdown]
# A recipe is a value, and a change of it another value. `flow-gated` is Flow-Attention with a
# gate, a decay and a short convolution.

# %%
steps = 200  # quick: 2
recipe = build_recipe("char-shakespeare")
config = replace(
    recipe,
    data=replace(recipe.data, corpus="text", folder=Path("python.txt"), length=128),
    model=replace(recipe.model, mixer="flow-gated", num_layers=2),
    optimizer=replace(recipe.optimizer, learning_rate=3e-3),
    training=replace(recipe.training, steps=steps, evaluate_every=steps // 2),
)
result = train(config, "runs/python")
print(f"{result.test_score:.2f} {result.measure} on text that it has not seen")

# %% [markdown]
# It writes token by token; a token is a character here.

# %%
tokens = 400  # quick: 4
run = load_run("runs/python")
prompt = "The statement "
written = generate_text(
    run.model, run.tokenizer, prompt, max_new_tokens=tokens, do_sample=True, temperature=0.7, seed=0
)
print(prompt + written)

# %% [markdown]
# And the cost? Two models of that size, one with softmax attention and one with Flow-Attention.
# They are not trained: what they write makes no difference to the time.


# %%
def milliseconds(model, count, window):
    """Return how long a token takes, the median of each `window` of them."""
    moments = []
    ids = torch.tensor([run.tokenizer.encode(prompt)])
    generate(model, ids, max_new_tokens=count, on_token=lambda _: moments.append(thread_time()))
    took = [1000 * (after - before) for before, after in pairwise(moments)]
    return [np.median(took[at : at + window]) for at in range(0, len(took), window)]


count = 6000  # quick: 8
window = 250  # quick: 4
torch.set_num_threads(1)
figure, panel = plt.subplots(figsize=(6, 3.2), layout="constrained")
for mixer in ("softmax", "flow"):
    untrained = replace(config.model, mixer=mixer, mixer_options=None)
    model = LanguageModel(untrained, vocab_size=run.tokenizer.vocab_size)
    cost = milliseconds(model, count, window)
    panel.plot(window * np.arange(len(cost)), cost, label=mixer)
    print(f"{mixer:<8} first tokens {cost[0]:.2f} ms each, last ones {cost[-1]:.2f} ms")
panel.set(xlabel="tokens before", ylabel="milliseconds for a token", ylim=(0, None))
panel.legend(frameon=False)
panel.spines[["top", "right"]].set_visible(False)
figure.savefig("constant-cost.png", dpi=110)
figure
