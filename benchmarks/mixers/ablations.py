"""`gated` with one part left out, each a mixer: for `flowformer compare --import`."""

from types import new_class
from typing import Any

from benchmarks.mixers.gating import WITHOUT, WITHOUT_FLOWS
from flowformer.nn.mixers.gated import (
    FlowGatedAttention,
    FlowGatedMixer,
    GatedAttention,
    GatedMixer,
)


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
