"""What ablations remove or change, and what else is tried: ablations.py makes mixers of it.

Nothing is imported here: every run of an ablation imports it.
"""

from typing import Any

# Of `gated`, and of `flow-gated`.
WITHOUT: dict[str, dict[str, Any]] = {
    "convolution": {"convolution": 0},
    "gain": {"gain": None},
    "decay": {"decay": None},
    "input-gate": {"input_gate": False},
    "norm": {"norm": False},
    "output-gate": {"output_gate": False},
    "skip": {"skip": False},
    "long-decay": {"decay": (1.0, 64.0)},
}
WITHOUT_FLOWS: dict[str, dict[str, Any]] = {
    "competition": {"competition": None},
    "allocation": {"allocation": False},
}
# Of `flow`. Of classifiers the paper has no clamp, of language models one: each gets what it lacks.
OTHERWISE: dict[str, dict[str, Any]] = {
    "flow-relu": {"feature_map": "relu"},
    "flow-clamp": {"clamp": 1.0},
    "flow-no-clamp": {"clamp": None},
}
# Of `gated`: what gating_options.py tries.
TRIED: dict[str, dict[str, Any]] = {
    "gated-decays-8-512": {"decay": (8.0, 512.0)},
    "gated-gain-4": {"gain": 4.0},
    "gated-relu": {"feature_map": "relu"},
    "gated-all-one-way": {"directions": 1.0},
    "gated-all-both-ways": {"directions": 0.0},  # and so without decays
}
