"""Tuning with a clock that is made up: what is chosen, what is kept, what is passed over."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="triton has wheels for Linux alone")

from benchmarks.attention.gpu import tune as tune_gpu
from flowformer.ops.backends.triton import tuning
from flowformer.ops.backends.triton.tuning import (
    Key,
    Settings,
    default_settings,
    key_of,
)

KEY = key_of(64, 64, torch.bfloat16, True, 4096)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tuning, "CACHE", tmp_path)
    tuning._tuned.cache_clear()
    yield
    tuning._tuned.cache_clear()


def best_is(wanted: Settings):
    """Return a timer that takes longer for each setting that is another one."""
    return lambda settings: 1 + sum(a != b for a, b in zip(settings, wanted, strict=True))


def test_search_finds_settings_that_differ_in_several_ways():
    wanted = default_settings(KEY)._replace(size=32, warps=8, programs=1024)
    best, seconds, default = tune_gpu.search(KEY, best_is(wanted))
    assert (best, seconds, default) == (wanted, 1, 4)


def test_what_does_not_compile_is_passed_over():
    wanted = default_settings(KEY)._replace(size=32, warps=8)

    def timer(settings: Settings) -> float | None:
        return None if settings.warps == 8 else best_is(wanted)(settings)

    best, _, _ = tune_gpu.search(KEY, timer)
    assert best == default_settings(KEY)._replace(size=32)


def test_default_that_does_not_compile_is_replaced():
    default = default_settings(KEY)
    best, seconds, before = tune_gpu.search(KEY, lambda s: None if s == default else 1.0)
    assert best != default
    assert (seconds, before) == (1.0, None)


def test_where_nothing_compiles_the_default_stays():
    assert tune_gpu.search(KEY, lambda _: None) == (default_settings(KEY), None, None)


def test_what_is_faster_by_noise_is_not_taken():
    best, _, _ = tune_gpu.search(KEY, lambda s: 1.0 if s == default_settings(KEY) else 0.99)
    assert best == default_settings(KEY)


def test_blocks_are_no_wider_than_the_tensors():
    key = key_of(32, 64, torch.bfloat16, True, 4096)
    found = list(tune_gpu.candidates(key, default_settings(key)))
    assert max(settings.block for settings in found) == 32
    assert max(settings.y_block for settings in found) == 64


def test_found_settings_are_kept_and_not_tuned_again():
    keys = [KEY, KEY._replace(length=16_384)]
    wanted = default_settings(KEY)._replace(size=32)
    tuned: list[Key] = []

    def timer(key: Key, settings: Settings) -> float:
        tuned.append(key)
        return best_is(wanted)(settings)

    assert tune_gpu.tune("A card", iter(keys[:1]), timer)
    tuned.clear()
    assert tune_gpu.tune("A card", iter(keys), timer)
    assert set(tuned) == {keys[1]}
    assert tuning._tuned("A card") == {key.name: wanted for key in keys}


def test_out_of_time_stops_between_keys():
    past = time.monotonic() - 1
    assert not tune_gpu.tune("A card", iter([KEY]), lambda *_: 1.0, until=past)
    assert tuning._tuned("A card") == {}


def test_settings_of_another_version_are_refused_by_the_name_of_their_file(tmp_path, monkeypatch):
    monkeypatch.setattr(tuning, "CACHE", tmp_path)
    (tmp_path / "card.json").write_text('{"causal d64": {"tokens": 64}}')
    with pytest.raises(
        ValueError, match=r"card\.json must hold what python -m benchmarks tune_gpu .* delete"
    ):
        tuning._tuned("card")


def test_untuned_settings_depend_on_no_length():
    lengths = (torch.empty(1, length, 1, 64, device="meta") for length in (1, 500, 2**20))
    assert len({tuning.settings_of(x, x, causal=True) for x in lengths}) == 1
