"""Packages hold what the sources hold, with a C++ compiler or without; environments their folder's.

None compiles here: `scripts/check_wheel.py` looks at the package with its library.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What a build reads, apart from the working tree: a build writes into its folder."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    built = shutil.ignore_patterns("*.so", "*.dylib", "*.log", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT / "src", folder / "src", ignore=built)
    return folder


def build(source, wheels, *options, **environment):
    return subprocess.run(
        [*BUILD, "--verbose", *options, "--wheel-dir", wheels, source],
        env=os.environ | {"FLOWFORMER_REQUIRE_LIBRARY": ""} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def the_log(wheels):
    """Check that the one wheel is pure and return the log in it."""
    (wheel,) = wheels.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as packed:
        assert [name for name in packed.namelist() if name.endswith((".so", ".dylib"))] == []
        (info,) = (name for name in packed.namelist() if name.endswith(".dist-info/WHEEL"))
        assert "Root-Is-Purelib: true" in packed.read(info).decode()
        return packed.read("flowformer/libflowformer_cpu.log").decode()


def test_without_a_compiler_the_wheel_is_pure_and_says_why(source, tmp_path):
    done = build(source, tmp_path, CXX="/nonexistent/c++ -O2")
    assert done.returncode == 0, done.stdout
    reason = "the C++ compiler that CXX names was not found: /nonexistent/c++"
    assert f"built without its CPU library and slower: {reason}" in done.stdout
    assert the_log(tmp_path).splitlines()[0] == reason


def test_the_wheel_for_any_platform_leaves_the_library_out_and_says_how_to_have_it(
    source, tmp_path
):
    done = build(source, tmp_path, FLOWFORMER_PURE="1")
    assert done.returncode == 0, done.stdout
    assert "pip install --no-binary flowformer flowformer compiles it" in the_log(tmp_path)


# Stands for a compiler of another processor: it says so, and makes an empty file where it is asked.
CROSS_COMPILER = """#!/bin/sh
echo "$@" >> "$0.log"
[ "$1" = -dM ] && echo "#define __aarch64__ 1" && exit
while [ "$1" != -o ]; do shift; done
touch "$2"
"""


def test_a_wheel_for_another_processor_has_its_name_and_no_flags_of_this_one(source, tmp_path):
    compiler = tmp_path / "cross-c++"
    compiler.write_text(CROSS_COMPILER)
    compiler.chmod(0o755)
    option = "--build-option=--plat-name=manylinux_2_17_aarch64"
    done = build(source, tmp_path / "wheels", f"--config-settings={option}", CXX=str(compiler))
    assert done.returncode == 0, done.stdout
    (wheel,) = (tmp_path / "wheels").iterdir()
    assert wheel.name.endswith("-py3-none-manylinux_2_17_aarch64.whl")
    with zipfile.ZipFile(wheel) as packed:
        assert "flowformer/libflowformer_cpu.so" in packed.namelist()
    log = compiler.with_name("cross-c++.log").read_text()
    assert "kernels_portable.cpp" in log
    assert "-mavx" not in log
    assert "--version-script=src/flowformer/csrc/exports.map" in log


def test_a_compiler_that_fails_leaves_its_message(source, tmp_path):
    compiler = tmp_path / "broken-c++"
    compiler.write_text('#!/bin/sh\n[ "$1" = -dM ] && exit\necho "unknown flag" >&2\nexit 1\n')
    compiler.chmod(0o755)
    done = build(source, tmp_path / "wheels", CXX=str(compiler))
    assert done.returncode == 0, done.stdout
    log = the_log(tmp_path / "wheels")
    assert log.startswith(f"{compiler} could not compile src/flowformer/csrc/")
    assert "unknown flag" in log


def test_a_library_that_is_required_and_missing_is_an_error(source, tmp_path):
    done = build(source, tmp_path, CXX="/nonexistent/c++", FLOWFORMER_REQUIRE_LIBRARY="1")
    assert done.returncode != 0
    assert "CXX names was not found: /nonexistent/c++ (FLOWFORMER_REQUIRE_LIBRARY" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_second_build_in_the_same_folder_holds_what_the_sources_hold_then(source, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(source, again)
    package = again / "src" / "flowformer"
    (package / "gone.py").write_text("")
    changed = package / "config_json.py"
    assert build(again, tmp_path / "first", CXX="/nonexistent/c++").returncode == 0
    (package / "gone.py").unlink()
    changed.write_text("NEW = True\n")
    os.utime(changed, (0, 0))  # as a checkout or an archive of older sources leaves it
    done = build(again, tmp_path / "second", CXX="/nonexistent/c++")
    assert done.returncode == 0, done.stdout
    (wheel,) = (tmp_path / "second").iterdir()
    with zipfile.ZipFile(wheel) as packed:
        assert "flowformer/gone.py" not in packed.namelist()
        assert packed.read("flowformer/config_json.py").decode() == "NEW = True\n"
    assert not (again / "build").exists()


def test_the_source_archive_holds_no_tests(source, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(source, again)
    (again / "tests").mkdir()
    (again / "tests" / "test_something.py").write_text("")
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", tmp_path / "dist"]
    subprocess.run(command, cwd=again, check=True, capture_output=True)
    (archive,) = (tmp_path / "dist").iterdir()
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    assert {"setup.py", "src/flowformer/csrc/api.h", "src/flowformer/__init__.py"} <= names
    assert [name for name in names if name.startswith("tests")] == []


# Stands for Python and pip: an environment whose pip says where it is, as a real one does.
PYTHON = """#!/bin/bash
case "$*" in
  *"-m venv"*)
    rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo made >> log
    printf '#!%s\npip 1 from %s/lib/pip\n' "$PWD/.venv/bin/python" "$PWD/.venv" > .venv/bin/pip
    chmod +x .venv/bin/pip ;;
  *"-m pip install"*) echo installed >> log ;;
  *"--version"*) if [ -f "$1" ]; then tail -n 1 "$1"; else echo Python 3.11; fi ;;
  *version_info*"format"*) echo python3.11 ;;
esac
"""


@pytest.fixture
def folder(tmp_path):
    """A project with an environment, made by a Python whose path holds a space."""
    python = tmp_path / "a folder" / "python"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    project = tmp_path / "project"
    (project / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "make_environment.sh", project / "scripts")
    (project / "src" / "flowformer" / "csrc").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", "setup.py"):
        (project / name).touch()
    assert make_environment(project) == ["made", "installed"]
    return project


def make_environment(project):
    """Run the script, and return what it had to do."""
    log = project / "log"
    log.unlink(missing_ok=True)
    python = project.parent / "a folder" / "python"
    subprocess.run(
        [project / "scripts" / "make_environment.sh", "timeseries"],
        env=os.environ | {"PYTHON": str(python), "CXX": "c++"},
        check=True,
        capture_output=True,
    )
    return log.read_text().split() if log.exists() else []


def test_an_environment_is_made_once_and_installed_again_when_its_requirements_change(folder):
    assert make_environment(folder) == []
    newer = (folder / ".venv" / ".installed-timeseries").stat().st_mtime + 10
    os.utime(folder / "constraints.txt", (newer, newer))
    assert make_environment(folder) == ["installed"]


def test_where_the_library_alone_is_older_than_its_sources_it_is_compiled(folder):
    newer = (folder / ".venv" / ".compiled").stat().st_mtime + 10
    os.utime(folder / "setup.py", (newer, newer))
    assert make_environment(folder) == ["installed"]


def test_an_environment_that_was_moved_is_made_anew(folder):
    assert make_environment(folder.rename(folder.parent / "moved")) == ["made", "installed"]


def test_an_environment_that_was_copied_is_made_anew(folder):
    copied = shutil.copytree(folder, folder.parent / "copied")
    assert make_environment(copied) == ["made", "installed"]
    assert make_environment(folder) == []


def test_an_environment_whose_python_is_gone_is_made_anew(folder):
    (folder / ".venv" / "bin" / "python").unlink()
    assert make_environment(folder) == ["made", "installed"]


def test_the_environment_of_another_folder_is_not_touched_through_a_link(folder):
    copied = shutil.copytree(folder, folder.parent / "copied")
    shutil.rmtree(copied / ".venv")
    (copied / ".venv").symlink_to(folder / ".venv")
    assert make_environment(copied) == ["made", "installed"]
    assert not (copied / ".venv").is_symlink()
    assert make_environment(folder) == []
