"""A module of a user's own is found beside the user, and hides nothing that is installed."""

import importlib
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from flowformer.own_modules import OwnModule, import_own, load_own, own_module


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, and modules and paths as they were afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # it tells texts of one second apart by
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]
    importlib.invalidate_caches()


@pytest.mark.parametrize("reference", ["own_a", "own_a.py", "./own_a.py", "{here}/own_a.py"])
def test_a_module_of_the_current_folder_is_imported_with_its_neighbours(here, reference):
    (here / "own_a.py").write_text("import own_b\nvalue = own_b.value\n")
    (here / "own_b.py").write_text("value = 3\n")
    (here / "numpy.py").write_text("raise AssertionError('this is not NumPy')\n")
    assert import_own(reference.format(here=here)).value == 3
    assert "site-packages" in str(importlib.import_module("numpy").__file__)
    assert sys.path[-1] == str(here)


@pytest.mark.parametrize("reference", ["own_p.inner.mixers", "own_p/inner/mixers.py"])
def test_a_module_of_a_package_is_imported_as_a_part_of_it(here, reference):
    (here / "own_p" / "inner").mkdir(parents=True)
    for folder in ("own_p", "own_p/inner"):
        (here / folder / "__init__.py").touch()
    (here / "own_p" / "value.py").write_text("value = 4\n")
    (here / "own_p" / "inner" / "mixers.py").write_text("from ..value import value\n")
    module = import_own(reference)
    assert (module.__name__, module.value) == ("own_p.inner.mixers", 4)


def test_another_process_finds_it_by_what_was_recorded(here, monkeypatch):
    (here / "own_a.py").write_text("value = 5\n")
    import_own("own_a")
    record = own_module("own_a")
    assert record is not None
    assert record == OwnModule(name="own_a", file=str(here / "own_a.py"), digest=record.digest)
    (here / "own_a.py").write_text("value = 6\n")
    assert own_module("own_a") != record
    assert own_module("flowformer.nn.mixers.flow") is None
    del sys.modules["own_a"]
    monkeypatch.chdir("/")
    sys.path.remove(str(here))
    load_own(record)
    assert sys.modules["own_a"].value == 6


def test_a_package_without_init_is_found_again_by_the_names_of_its_modules(here, monkeypatch):
    (here / "own_p" / "inner").mkdir(parents=True)
    (here / "own_p" / "value.py").write_text("value = 7\n")
    (here / "own_p" / "inner" / "mixers.py").write_text("from own_p.value import value\n")
    import_own("own_p.inner.mixers")
    record = own_module("own_p.inner.mixers")
    assert record is not None
    assert record.flag == " --import own_p.inner.mixers"
    for name in ("own_p.inner.mixers", "own_p.inner", "own_p.value", "own_p"):
        del sys.modules[name]
    monkeypatch.chdir("/")
    sys.path.remove(str(here))
    load_own(record)
    assert sys.modules["own_p.inner.mixers"].value == 7


@pytest.mark.parametrize(("spec", "name"), [(None, "mixers"), ("own_p.mixers", "own_p.mixers")])
def test_what_runs_as_main_is_recorded_by_the_name_it_can_be_imported_by(
    here, monkeypatch, spec, name
):
    (here / "mixers.py").touch()
    main = ModuleType("__main__")
    main.__file__ = str(here / "mixers.py")
    main.__spec__ = None if spec is None else ModuleSpec(spec, None)
    monkeypatch.setitem(sys.modules, "__main__", main)
    record = own_module("__main__")
    assert record is not None
    assert record.name == name


@pytest.mark.parametrize(
    ("reference", "text", "error", "message"),
    [
        ("random", "", ValueError, "random.py has the name of a module of Python's own: rename it"),
        ("./json.py", "", ValueError, "json.py has the name of a module of Python's own"),
        ("numpy", "", ValueError, r"numpy is \S+site-packages\S+ already, and not \S+numpy.py"),
        ("own_missing", None, ImportError, r"expected own_missing.py in \S+, or one that is inst"),
        ("missing.py", None, FileNotFoundError, "missing.py"),
        ("own_bad", "\n1 / 0", ImportError, r"ZeroDivisionError: division by zero \(\S+bad.py:2\)"),
        ("own_bad", "import own_n", ImportError, r"No module named 'own_n' \(\S+own_bad.py:1\)"),
        ("own_bad", "x = (", ImportError, r"SyntaxError: '\(' was never closed"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_told_with_its_place(here, reference, text, error, message):
    if text is not None:
        (here / reference).with_suffix(".py").write_text(text)
    with pytest.raises(error, match=message):
        import_own(reference)
