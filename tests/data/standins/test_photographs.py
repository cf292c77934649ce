"""The photographs are asked for by name and digest, and read as images."""

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowformer.data.standins import packages
from flowformer.data.standins.photographs import PHOTOGRAPHS, fetch_photographs


def test_photographs_come_from_one_release_and_others_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel with other files of the same names, in place of the package index."""
    wheel = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for member in PHOTOGRAPHS.members:
            Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / Path(member).name)
            archive.write(tmp_path / Path(member).name, member)
    asked: list[tuple[str, str]] = []

    def download(package: str, version: str, scratch: Path, _folder: Path) -> Path:
        asked.append((package, version))
        return Path(shutil.copy(wheel, scratch))

    monkeypatch.setattr(packages, "_installed", lambda *_: [])
    monkeypatch.setattr(packages, "_download", download)
    with pytest.raises(ValueError, match="got 5 files with"):
        fetch_photographs(tmp_path / "cache")
    assert asked == [("scikit-image", "0.25.2")]
