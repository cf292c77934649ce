"""What docs/kinds/series.md says goes wrong, goes wrong with the messages it prints."""

import re
from pathlib import Path

import pytest

from flowformer.data import TsFormatError, read_ts

PAGE = (Path(__file__).parents[2] / "docs" / "kinds" / "series.md").read_text()


@pytest.mark.parametrize(
    ("line", "wrong"), [(9, "0.3,?:fast"), (8, "0.1,0.2x:1,2:slow"), (9, "0.3,?:2.0,2.5:fsat")]
)
def test_the_page_quotes_the_errors_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: int, wrong: str
) -> None:
    monkeypatch.chdir(tmp_path)
    match = re.search(r'write_text\("""\\\n(.*?)"""\)', PAGE, re.DOTALL)
    assert match is not None
    content = match[1].splitlines()
    content[line - 1] = wrong
    path = Path("walk_TRAIN.ts")
    path.write_text("\n".join(content))
    with pytest.raises(TsFormatError) as caught:
        read_ts(path)
    assert f"    {caught.value}\n" in PAGE
