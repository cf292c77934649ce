"""`gated` with one part left out, each a mixer: for `flowformer compare --import`."""

from types import new_class
from typing import Any

from flowformer.nn.mixers.gated import (
    FlowGatedAttention,
    FlowGatedMixer,
    GatedAttention,
    GatedMixer,
)

WITHOUT: dict[str, dict[str, Any]] = {
    "convolution": {"convolution": 0},
    "gain": {"gain": None},
    "decay": {"decay": None},
    "input-gate": {"input_gate": False},
    "norm": {"norm": False},
    "output-gate": {"output_gate": False},
}
WITHOUT_FLOWS: dict[str, dict[str, Any]] = {
    "competition": {"competition": None},
    "allocation": {"allocation": False},
}


def _register(mixer: Any, attention: Any, name: str, changed: dict[str, Any]) -> None:
    body = {"defaults": attention.defaults._replace(**changed)}
    kind = new_class(f"{attention.__name__}Without", (attention,), {}, lambda at: at.update(body))
    text = f"{mixer.__doc__} Without {', '.join(changed)}."
    fill = {"kind": kind, "__doc__": text, "__module__": __name__}
    new_class(f"{mixer.__name__}Without", (mixer,), {"name": name}, lambda at: at.update(fill))


for part, options in WITHOUT.items():
    _register(GatedMixer, GatedAttention, f"gated-no-{part}", options)
for part, options in WITHOUT_FLOWS.items():
    _register(FlowGatedMixer, FlowGatedAttention, f"flow-gated-no-{part}", options)

NAMES = [
    *(f"gated-no-{part}" for part in WITHOUT),
    *(f"flow-gated-no-{part}" for part in WITHOUT_FLOWS),
]
