"""The compiled library is found and loaded; where it is not, a reason is given."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowformer.ops.backends.cpu import library as cpu_library
from flowformer.ops.backends.cpu.library import LibraryUnavailableError, open_library

HAS_COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))


# In a process of its own: the library is looked for once.
FIRST_USE = """
import logging
import torch
from flowformer import flow_attention
logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
query, key, value = torch.randn(3, 1, 63, 2, 8)
served = flow_attention(query, key, value)
assert torch.equal(served, flow_attention(query, key, value, backend="chunked"))
flow_attention(query, key, value, backend="cpu")
"""


@pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler here to have built it")
def test_library_is_there_where_a_compiler_is():
    assert cpu_library.why_unavailable() is None
    assert cpu_library.load_library() is cpu_library.load_library()


@pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler here to have built it")
def test_library_of_another_release_is_refused(monkeypatch):
    library = cpu_library.load_library()
    assert library is not None
    monkeypatch.setattr(cpu_library, "ABI_VERSION", 0)
    with pytest.raises(LibraryUnavailableError, match=r"has version \d+ .* needs 0: reinstall"):
        open_library(Path(library._name))


@pytest.mark.skipif(not HAS_COMPILER, reason="there is no C++ compiler here to have built it")
def test_instruction_set_that_is_not_to_be_had_is_warned_of(monkeypatch, tmp_path):
    library = cpu_library.load_library()
    assert library is not None

    def opened(wanted):  # a file of another name is another library, which chooses anew
        monkeypatch.setenv("FLOWFORMER_ISA", wanted)
        path = tmp_path / f"{wanted}.so"
        shutil.copy(library._name, path)
        return open_library(path).flowformer_isa().decode()

    assert opened("portable") == "portable"
    best = opened("")
    with pytest.warns(UserWarning, match=rf"'bogus' is not .*, {best} is used.* avx2, portable"):
        assert opened("bogus") == best


def test_file_that_is_no_library_gives_the_loaders_message(tmp_path):
    path = tmp_path / cpu_library.NAME
    path.write_text("not a library")
    with pytest.raises(LibraryUnavailableError, match=r"does not load: .*libflowformer_cpu"):
        open_library(path)


def test_library_of_something_else_is_named():
    path = Path(torch.__file__).parent / "lib" / cpu_library.NAME.replace("flowformer_cpu", "c10")
    with pytest.raises(LibraryUnavailableError, match=r"no library of flowformer: .*abi_version"):
        open_library(path)


def test_installation_that_never_built_says_how_to(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_library, "PACKAGE", tmp_path)
    with pytest.raises(LibraryUnavailableError, match="run pip install in its source tree"):
        open_library(tmp_path / cpu_library.NAME)


def test_failed_build_is_remembered_in_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_library, "PACKAGE", tmp_path)
    log = tmp_path / cpu_library.LOG_NAME
    log.write_text("no C++ compiler was found: none of c++, g++\n\nwhat it printed\n")
    with pytest.raises(LibraryUnavailableError) as caught:
        open_library(tmp_path / cpu_library.NAME)
    assert "without its compiled library: no C++ compiler was found: none of" in str(caught.value)
    assert str(log) in str(caught.value)


def test_without_library_chunked_serves_and_one_log_line_says_why(tmp_path):
    library = tmp_path / "nowhere.so"
    process = subprocess.run(
        [sys.executable, "-c", FIRST_USE],
        env=os.environ | {"FLOWFORMER_LIBRARY": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = process.stderr.splitlines()
    reason = f"FLOWFORMER_LIBRARY names a file that does not exist: {library}"
    assert [line for line in lines if line.startswith("flowformer:")] == [
        "flowformer: flow_attention uses the chunked backend on cpu tensors "
        f"(cpu backend unavailable: {reason})"
    ]
    assert lines[-1] == f"RuntimeError: cpu backend unavailable: {reason}"
