"""The tables of the pages are those of the results in the repository."""

import json
from collections.abc import Callable

import pytest

from benchmarks.attention.cpu import report_attention as report_attention_cpu
from benchmarks.attention.gpu import report_attention as report_attention_gpu
from benchmarks.attention.gpu import report_kernels
from benchmarks.mixers import report_mixers
from benchmarks.models import report_rollouts
from benchmarks.pages import with_tables
from benchmarks.parallel import report_parallel
from benchmarks.reliability import report_reliability
from benchmarks.runner import ROOT


def _attention(name: str) -> str:
    result = json.loads(report_attention_cpu.RESULT.read_text())
    return report_attention_cpu.TABLES[name](result)


def _attention_gpu(name: str) -> str:
    return report_attention_gpu.TABLES[name](report_attention_gpu.load())


def _kernels(name: str) -> str:
    return report_kernels.TABLES[name]()


def _mixers(name: str) -> str:
    return report_mixers.TABLES[name]()


def _rollouts(name: str) -> str:
    return report_rollouts.TABLES[name]()


def _reliability(name: str) -> str:
    return report_reliability.table(name)


def _parallel(name: str) -> str:
    return report_parallel.TABLES[name]()


@pytest.mark.parametrize(
    ("page", "names", "table"),
    [
        *((page, names, _attention) for page, names in report_attention_cpu.PAGES.items()),
        *((page, names, _attention_gpu) for page, names in report_attention_gpu.PAGES.items()),
        *((page, names, _kernels) for page, names in report_kernels.PAGES.items()),
        *((page, names, _mixers) for page, names in report_mixers.PAGES.items()),
        *((page, names, _rollouts) for page, names in report_rollouts.PAGES.items()),
        *((page, names, _reliability) for page, names in report_reliability.PAGES.items()),
        *((page, names, _parallel) for page, names in report_parallel.PAGES.items()),
    ],
)
def test_page_holds_the_tables_of_the_results(
    page: str, names: tuple[str, ...], table: Callable[[str], str]
) -> None:
    text = (ROOT / page).read_text()
    assert with_tables(text, {name: table(name) for name in names}) == text


def test_a_table_is_made_anew_and_nothing_else() -> None:
    page = "a\n<!-- t:begin -->\nold\n<!-- t:end -->\nb\n"
    assert with_tables(page, {"t": "new \\1"}) == (
        "a\n<!-- t:begin -->\n\nnew \\1\n\n<!-- t:end -->\nb\n"
    )


def test_page_without_a_place_for_a_table_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected <!-- t:begin --> and :end once, found them 0×"):
        with_tables("# A page\n", {"t": ""})
