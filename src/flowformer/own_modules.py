"""Modules of a user's own, such as one with a mixer: found beside the user, known by their text.

Processes that we start import nothing from the current folder (`flowformer.machine.python`); what
a user names is found there all the same, after all that is installed, and hides none of it.
"""

import errno
import hashlib
import importlib
import os
import re
import shlex
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True, kw_only=True)
class OwnModule:
    """A module that is no part of this package, as a run records it.

    Attributes:
        name: by which it is imported.
        file: its file; None where it has none, as in a notebook.
        digest: of the text of that file.
    """

    name: str
    file: str | None = None
    digest: str | None = None

    @property
    def remedy(self) -> str:
        """What brings it back, in words."""
        if self.file is None:
            return "it was defined in no file: put it into one, and name that with --import"
        return f"give{self.flag}, or in Python import {self.name} first"

    @property
    def flag(self) -> str:
        """The flag of the command line that imports it, with a space in front."""
        by_file = self.file is not None and self.folder in (None, _of_file(Path(self.file))[1])
        return f" --import {shlex.quote(str(self.file) if by_file else self.name)}"

    @property
    def folder(self) -> Path | None:
        """The folder from which its name imports its file, if there is one.

        A file does not tell: a package may have no `__init__.py`.
        """
        parts = tuple(self.name.split("."))
        place = _without_suffix(Path(self.file or "")).parts
        return Path(*place[: -len(parts)]) if place[-len(parts) :] == parts else None


def own_module(name: str) -> OwnModule | None:
    """Return the record of a module that is imported; None of one of this package."""
    if name.partition(".")[0] == __package__:
        return None
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).is_file():
        return OwnModule(name=name)
    path = Path(file).resolve()
    if name == "__main__":  # of python -m, or a script, which another process imports by its file
        spec = getattr(module, "__spec__", None)
        name = path.stem if spec is None else spec.name
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return OwnModule(name=name, file=str(path), digest=digest)


def load_own(module: OwnModule) -> None:
    """Import a module in another process than that which recorded it.

    Raises:
        ImportError: it cannot be imported; the message says why.
    """
    if module.file is None:
        raise ImportError(f"the module {module.name} is needed, and {module.remedy}")
    if module.folder is None:
        import_own(module.file)
    else:
        _import(module.file, module.name, module.folder, Path(module.file))


def import_own(reference: str) -> ModuleType:
    """Import a module that a user names.

    Args:
        reference: a file, or a name: of a module in the current folder, or an installed one.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: there is no such module, or it failed; the message says where.
        ValueError: its name is that of another module.
    """
    return _import(reference, *_place(reference))


def _import(reference: str, name: str, folder: Path, local: Path | None) -> ModuleType:
    """Import a module by its name from a folder; `local` is its file, if it is found there."""
    if local is not None:
        if name.partition(".")[0] in sys.stdlib_module_names:
            raise ValueError(f"{local} has the name of a module of Python's own: rename it")
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # last, so that it hides nothing
            importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failed(reference, error) from error
        raise ImportError(
            f"no module {name}: expected {name.replace('.', '/')}.py in {folder}, or one that is "
            "installed"
        ) from None
    except Exception as error:
        raise _failed(reference, error) from error
    found = getattr(module, "__file__", None)
    if local is not None and (found is None or Path(found).resolve() != local.resolve()):
        raise ValueError(f"{name} is {found} already, and not {local}: rename that")
    return module


def may_define(reference: str, name: str) -> bool:
    """Return whether a module may have an attribute, by its text alone: an import takes seconds.

    One that is not beside the user, or takes names from elsewhere without writing them, may.

    Raises:
        FileNotFoundError: there is no such file.
    """
    *_, local = _place(reference)
    text = "" if local is None else local.read_text(errors="replace")
    by_itself = rf"\b{re.escape(name)}\b|import\s*\*|__getattr__|globals|setattr|vars|exec"
    return local is None or re.search(by_itself, text) is not None


def _place(reference: str) -> tuple[str, Path, Path | None]:
    """Return the name of a module, the folder from which it is imported by it, and its file."""
    name, folder = _named(reference)
    here = [folder.joinpath(f"{name.replace('.', '/')}{end}") for end in (".py", "/__init__.py")]
    return name, folder, next((path for path in here if path.is_file()), None)


def _named(reference: str) -> tuple[str, Path]:
    if not (reference.endswith(".py") or os.sep in reference):
        return reference, Path.cwd()
    path = Path(reference).resolve()
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "No such file", reference)
    return _of_file(path)


def _of_file(path: Path) -> tuple[str, Path]:
    """Return the name of a file's module, and the folder from which it is imported by it."""
    place = _without_suffix(path)
    parts, folder = [place.name], place.parent
    while (folder / "__init__.py").is_file():  # inside a package
        parts, folder = [folder.name, *parts], folder.parent
    return ".".join(parts), folder


def _without_suffix(path: Path) -> Path:
    return path.parent if path.stem == "__init__" else path.with_suffix("")


def _failed(reference: str, error: Exception) -> ImportError:
    """Return the error of a module that failed, with the place in it that a user can mend."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and "importlib" not in frame.filename
    ]
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return ImportError(f"{reference} cannot be imported: {type(error).__name__}: {error}{place}")
