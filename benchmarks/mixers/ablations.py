"""One part of `gated` or `flow` removed or changed, each a mixer: for `compare --import`.

A comparison that was begun refuses to go on with mixers of another text of this file.
"""

from types import new_class
from typing import Any

from benchmarks.mixers.parts import OTHERWISE, TRIED, WITHOUT, WITHOUT_FLOWS
from flowformer.nn.mixers.flow import FlowAttention, FlowMixer
from flowformer.nn.mixers.gated import (
    FlowGatedAttention,
    FlowGatedMixer,
    GatedAttention,
    GatedMixer,
)


def _register(mixer: Any, attention: Any, name: str, body: dict[str, Any], how: str) -> None:
    kind = new_class(f"{attention.__name__}Changed", (attention,), {}, lambda at: at.update(body))
    fill = {"kind": kind, "__doc__": f"{mixer.__doc__} {how}.", "__module__": __name__}
    new_class(f"{mixer.__name__}Changed", (mixer,), {"name": name}, lambda at: at.update(fill))


def _gated(mixer: Any, attention: Any, name: str, changed: dict[str, Any]) -> None:
    body = {"defaults": attention.defaults._replace(**changed)}
    _register(mixer, attention, name, body, f"With {_shown(changed)}")


def _shown(options: dict[str, Any]) -> str:
    return ", ".join(f"{option} {value}" for option, value in options.items())


for part, options in WITHOUT.items():
    _gated(GatedMixer, GatedAttention, f"gated-no-{part}", options)
for part, options in WITHOUT_FLOWS.items():
    _gated(FlowGatedMixer, FlowGatedAttention, f"flow-gated-no-{part}", options)
for name, options in TRIED.items():
    _gated(GatedMixer, GatedAttention, name, options)
for name, options in OTHERWISE.items():
    _register(FlowMixer, FlowAttention, name, {"fixed": options}, f"With {_shown(options)}")
