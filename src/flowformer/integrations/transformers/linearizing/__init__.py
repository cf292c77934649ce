"""From a language model with softmax attention to one with a state, by little training.

(a) attention transfer (`transfer.py`): each new mixer learns to give what the old attention gave;
(b) fine-tuning of the whole (`tuning.py`); (c) what that came to (`measures.py`).
"""

from flowformer.integrations.linearize_settings import (
    LinearizeSettings as LinearizeSettings,
)
from flowformer.integrations.transformers.linearizing.linearize import (
    Linearized as Linearized,
)
from flowformer.integrations.transformers.linearizing.linearize import (
    linearize as linearize,
)
