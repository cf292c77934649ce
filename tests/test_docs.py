"""The code that the quick start shows does what the page says."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_quick_start_runs_from_top_to_bottom():
    page = (DOCS / "quickstart.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block, namespace)
