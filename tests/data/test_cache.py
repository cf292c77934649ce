"""Prepared folders are told apart."""

import pytest

from flowformer.data.files import digest, preparing, require_empty, require_same


def test_a_folder_of_other_values_is_refused_with_each_of_them(tmp_path):
    require_same(tmp_path, {"seed": 1}, {"seed": 1}, what="options")
    with pytest.raises(ValueError, match="other settings: seed is 1 there, 2 asked for; size is"):
        require_same(tmp_path, {"seed": 1}, {"seed": 2, "size": "x" * 99}, what="settings")


def test_a_folder_with_files_of_somebody_else_is_refused(tmp_path):
    require_empty(tmp_path / "new", instead="a set")
    (tmp_path / ".unfinished").touch()
    require_empty(tmp_path, instead="a set")
    (tmp_path / "mine.txt").touch()
    with pytest.raises(FileExistsError, match=r"empty folder or a set, and .* has mine\.txt"):
        require_empty(tmp_path, instead="a set")


def test_the_lock_of_a_folder_lies_beside_it(tmp_path):
    with preparing(tmp_path / "set"):
        assert [path.name for path in tmp_path.iterdir()] == [".set.lock"]


def test_the_order_of_values_changes_no_name():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) == "ae8a9a50"
