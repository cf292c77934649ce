"""Files that may be gzipped."""

import gzip
import tracemalloc

import pytest

from flowformer.data import files
from flowformer.data.files import read_bytes


def test_a_small_file_takes_little_memory(tmp_path):
    """One read(n) of the largest n would make room for all of it."""
    path = tmp_path / "small.gz"
    path.write_bytes(gzip.compress(b"words" * 1000))
    tracemalloc.start()
    try:
        assert read_bytes(path) == b"words" * 1000
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_file_of_several_pieces_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_PIECE", 7)
    path = tmp_path / "some.gz"
    path.write_bytes(gzip.compress(bytes(range(200))))
    assert read_bytes(path) == bytes(range(200))


def test_a_bomb_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_UNPACKED", 1000)
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(10_000)))
    with pytest.raises(ValueError, match=r"bomb\.gz: expected at most 1,000 bytes unpacked"):
        read_bytes(path)
