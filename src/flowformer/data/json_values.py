"""JSON, whatever comes."""

import json
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Reads JSON.

    Raises:
        ValueError: it is none, or nested more deeply than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("expected JSON, got values that are nested too deeply") from error
