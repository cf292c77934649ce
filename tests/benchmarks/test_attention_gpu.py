"""The GPU benchmark without a GPU: what it keeps, how it goes on, what its report says."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="triton has wheels for Linux alone")

from benchmarks import pages
from benchmarks.attention.gpu import attention as attention_gpu
from benchmarks.attention.gpu import peers as gpu_peers
from benchmarks.attention.gpu.attention import DECODING, Group, Plan, Run
from benchmarks.attention.gpu.clock import BrokenContextError
from benchmarks.attention.gpu.goals import rows
from benchmarks.attention.gpu.peers import FLA, FLASH, GRAPH
from benchmarks.attention.gpu.traffic import Call
from benchmarks.attention.peers import BOTH, CHUNKED, FORWARD, OURS, PUBLISHED

PLAN = Plan(
    heads=1,
    widths=(16,),
    tokens=32,
    lengths=(16, 64),
    batches=(1,),
    positions=(10,),
    copied=64,
    product=4,
    rounds=3,
    budget=0.0,
    shortest=0.0,
)
SAME = {"card": "a card", "backend": "triton", "heads": 16, "torch": "2", "triton": "3"}


class Clock:
    """Calls, and says what it is told to."""

    def __init__(self, taken: float = 1e-3, error: str | None = None) -> None:
        self.device = torch.device("cpu")
        self.name = "a card"
        self.taken, self.error = taken, error

    def seconds(self, call: Callable[[], object], calls: int) -> float:
        for _ in range(calls):
            call()
        return calls * self.taken

    def peak(self, call: Callable[[], object]) -> int:
        call()
        if self.error is not None:
            error, self.error = self.error, None
            raise RuntimeError(error)
        return 100


@pytest.fixture(autouse=True)
def _without_fla(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (attention_gpu, gpu_peers):
        monkeypatch.setattr(module, "fla_missing", lambda: "not installed")


def run_in(folder: Path, clock: Clock | None = None, **options: Any) -> Run:
    run = Run(
        plan=PLAN,
        clock=clock or Clock(),
        backend=CHUNKED,
        dtypes=(torch.float32,),
        path=folder / "attention_gpu.json",
        **options,
    )
    attention_gpu.resume(run, anew=False)
    return run


def kept(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "attention_gpu.json").read_text())


def test_every_side_has_a_row_with_its_time_or_a_reason(tmp_path):
    assert attention_gpu.measure_all(run_in(tmp_path))
    found = kept(tmp_path)
    by_peer: dict[str, list[dict[str, Any]]] = {}
    for row in found["rows"].values():
        assert (row["seconds"] is None) != (row["problem"] is None)
        by_peer.setdefault(row["peer"], []).append(row)
    # Two lengths, two passes and two forms, and a step.
    assert len(by_peer[OURS]) == len(by_peer[CHUNKED]) == 2 * 2 * 2 + 1
    assert all(row["seconds"] == [1e-3] * 3 for row in by_peer[PUBLISHED] + by_peer[OURS])
    assert all(row["moved"] > row["width"] for row in by_peer[OURS])
    assert {row["problem"] for row in by_peer[FLA]} == {"not installed"}
    assert all(row["problem"] for row in by_peer[GRAPH])  # there is no CUDA here
    assert found["limits"]["bandwidth"] == 2 * 64 / 1e-3
    assert found["same"]["card"] == "a card"


def test_a_run_goes_on_with_what_is_missing(tmp_path):
    attention_gpu.measure_all(run_in(tmp_path))
    complete = kept(tmp_path)
    gone = [name for name, row in complete["rows"].items() if row["kind"] == BOTH]
    for name in gone:
        del complete["rows"][name]
    (tmp_path / "attention_gpu.json").write_text(json.dumps(complete))
    attention_gpu.measure_all(run_in(tmp_path, Clock(taken=2e-3)))
    taken = {
        row["kind"]: row["seconds"][0] for row in kept(tmp_path)["rows"].values() if row["seconds"]
    }
    assert taken == {FORWARD: 1e-3, BOTH: 2e-3, DECODING: 1e-3}


def test_out_of_time_says_that_it_is_not_complete(tmp_path):
    assert not attention_gpu.measure_all(run_in(tmp_path, until=time.monotonic() - 1))


def test_another_card_does_not_go_on_in_the_same_file(tmp_path):
    attention_gpu.measure_all(run_in(tmp_path))
    other = Clock()
    other.name = "another card"
    with pytest.raises(SystemExit, match=r"is of .*'a card'.*'another card'.*--anew"):
        run_in(tmp_path, other)


def test_what_breaks_the_card_is_a_row_and_the_next_process_goes_on(tmp_path):
    error = "CUDA error: an illegal memory access was encountered"
    with pytest.raises(BrokenContextError, match="illegal memory access"):
        attention_gpu.measure_all(run_in(tmp_path, Clock(error=error)))
    (row,) = kept(tmp_path)["rows"].values()
    assert row["peer"] == OURS
    assert attention_gpu.measure_all(run_in(tmp_path))
    rows = kept(tmp_path)["rows"].values()
    assert [error in row["problem"] for row in rows if row["peer"] == OURS and row["problem"]] == [
        True
    ]


def test_what_does_not_fit_is_a_row_that_says_so(tmp_path):
    error = "CUDA out of memory. Tried to allocate 20.00 GiB"
    attention_gpu.measure_all(run_in(tmp_path, Clock(error=error)))
    problems = [row["problem"] for row in kept(tmp_path)["rows"].values() if row["peer"] == OURS]
    assert problems[0] == "does not fit in the card's memory"
    assert problems[1:] == [None] * 8


@pytest.mark.parametrize(
    ("peer", "quadratic", "taken", "tried"),
    [(OURS, False, 4.0, True), (FLASH, True, 2.0, False), (FLASH, True, 1.0, True)],
    ids=["linear", "quadratic-too-slow", "quadratic-in-time"],
)
def test_a_side_is_not_tried_where_its_growth_says_that_it_takes_too_long(
    tmp_path, peer, quadratic, taken, tried
):
    run = run_in(tmp_path)
    sizes = {"causal": True, "heads": 1, "width": 16, "dtype": torch.float32}
    # As many tokens in sequences four times as long.
    short = Group(call=Call(batch=4, length=16, **sizes), kind=BOTH)
    long = Group(call=Call(batch=1, length=64, **sizes), kind=BOTH)
    run.keep(short.row(peer, seconds=[taken], memory=0))
    reason = attention_gpu.too_slow(run, long, peer, quadratic)
    assert (reason is None) is tried
    if not tried:
        assert reason == "8 s a call expected, more than 5"


# The report, of a result that is made up.


def made_up(**seconds: float) -> dict[str, Any]:
    """Return a result with the given seconds for peers at 32,768 tokens, all passes."""
    found = {}
    for causal in (True, False):
        call = Call(
            causal=causal, batch=2, length=32_768, heads=16, width=128, dtype=torch.bfloat16
        )
        for kind in (FORWARD, BOTH):
            group = Group(call=call, kind=kind)
            for peer, taken in seconds.items():
                figures = {"seconds": [taken] * 3, "memory": 2**30, "moved": 10**9, "flop": 10**12}
                row = group.row(peer, **figures)
                found[attention_gpu.row_name(row)] = row
            row = group.row(PUBLISHED, problem="does not fit in the card's memory")
            found[attention_gpu.row_name(row)] = row
    return {
        "same": SAME,
        "machine": {"processor": "a host", "cores": 2, "python": "3"},
        "limits": {"bandwidth": 2e12, "product": {"bfloat16": 5e14}},
        "datasheet_flop": 1e15,
        "rows": found,
    }


def reached(result: dict[str, Any]) -> dict[tuple[str, str], tuple[float, bool]]:
    return {
        (row["what"], row["against"].split()[0]): (round(case["ratio"], 6), case["holds"])
        for row in rows(result)
        for case in row["cases"]
        if case["ratio"] is not None
    }


def test_goals_are_of_the_ratios_that_they_name():
    # Eight passes over 65,536 × 16 × 128 bfloat16 are 2.147 GB: 1.07 ms at 2 TB/s.
    assert reached(made_up(**{OURS: 2e-3, FLASH: 24e-3, FLA: 1e-3})) == {
        ("causal forward and backward", "FlashAttention"): (12.0, True),
        ("causal forward", "flash-linear-attention"): (2.0, False),
        ("causal forward and backward", "flash-linear-attention"): (2.0, False),
        ("bidirectional forward", "the"): (0.536871, False),
    }
    assert reached(made_up(**{OURS: 1.5e-3, FLASH: 12e-3, FLA: 1e-3})) == {
        ("causal forward and backward", "FlashAttention"): (8.0, False),
        ("causal forward", "flash-linear-attention"): (1.5, True),
        ("causal forward and backward", "flash-linear-attention"): (1.5, True),
        ("bidirectional forward", "the"): (0.715828, True),
    }


def test_far_faster_than_flash_attention_is_asked_at_32768_tokens():
    slow = rows(made_up(**{OURS: 2e-3, FLASH: 19e-3}))[0]["cases"][-1]
    assert (slow["label"], slow["ratio"], slow["holds"]) == ("32,768 tokens", 9.5, False)


def test_report_shows_times_shares_and_what_did_not_fit():
    result = made_up(**{OURS: 2e-3, FLASH: 24e-3})
    table = attention_gpu.details(result)
    assert (
        "| 32,768 | 2 ms, 1.00 GiB | 24 ms, 1.00 GiB | does not fit in the card's memory" in table
    )
    # 1 GB in 2 ms of 2 TB/s; 10¹² operations in 2 ms of 10¹⁵ a second.
    assert "| 25 | 50 |" in table
    assert "a copy: 2 TB/s" in table
    assert "On a card (torch 2), backend `triton`." in attention_gpu.goals_table(result)


def test_report_shows_the_microseconds_of_a_token():
    result = made_up(**{OURS: 2e-3})
    call = Call(causal=True, batch=64, length=1000, heads=16, width=128, dtype=torch.bfloat16)
    row = Group(call=call, kind=DECODING).row(OURS, seconds=[3e-5], memory=0, moved=1, flop=0)
    result["rows"]["a step"] = row
    assert "| 64 | 1,000 | 30 µs |" in attention_gpu.details(result)


def test_without_a_result_the_pages_say_that_none_was_taken(tmp_path):
    tables = pages.tables_of("attention_gpu", attention_gpu, tmp_path)
    assert "GPU timings are missing" in tables["attention_gpu"]
    assert "missing too" in tables["attention_gpu_details"]


def test_measured_result_can_be_reported(tmp_path):
    attention_gpu.measure_all(run_in(tmp_path))
    tables = pages.tables_of("attention_gpu", attention_gpu, tmp_path)
    assert f"| {OURS} |" in tables["attention_gpu_details"]
    assert "not measured" in tables["attention_gpu"]
