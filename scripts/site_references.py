"""References on the API pages: the roles of docstrings, and names that other libraries document.

mkdocs.yml names this file twice: as an extension of griffe, which reads the package, and as a hook
of MkDocs. In docstrings a reference is written as Sphinx has it, since that is what editors and
`help` readers know; the pages know Markdown alone.
"""

import re
from typing import Any

from griffe import Extension, NameResolutionError, Object

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([\w.]+)`")

PYTHON, NUMPY, TORCH = (
    "https://docs.python.org/3/library/",
    "https://numpy.org/doc/stable/reference/",
    "https://docs.pytorch.org/docs/stable/",
)
# Links of the pages, which a reader follows or not: nothing is fetched when they are built, as an
# inventory of each library would be.
ELSEWHERE = {
    "collections.abc.Callable": f"{PYTHON}collections.abc.html#collections.abc.Callable",
    "collections.abc.Iterable": f"{PYTHON}collections.abc.html#collections.abc.Iterable",
    "collections.abc.Iterator": f"{PYTHON}collections.abc.html#collections.abc.Iterator",
    "collections.abc.Mapping": f"{PYTHON}collections.abc.html#collections.abc.Mapping",
    "collections.abc.Sequence": f"{PYTHON}collections.abc.html#collections.abc.Sequence",
    "numpy.ndarray": f"{NUMPY}generated/numpy.ndarray.html",
    "pathlib.Path": f"{PYTHON}pathlib.html#pathlib.Path",
    "torch.Generator": f"{TORCH}generated/torch.Generator.html",
    "torch.Tensor": f"{TORCH}tensors.html#torch.Tensor",
    "torch.device": f"{TORCH}tensor_attributes.html#torch.device",
    "torch.dtype": f"{TORCH}tensor_attributes.html#torch.dtype",
    "torch.nn.Module": f"{TORCH}generated/torch.nn.Module.html",
    "torch.utils.data.DataLoader": f"{TORCH}data.html#torch.utils.data.DataLoader",
    "torch.utils.data.Dataset": f"{TORCH}data.html#torch.utils.data.Dataset",
}


class Roles(Extension):
    """Turns :func:`name` of a docstring into a link to what the name is where it is written."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of an object, once all objects are known."""
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(
                lambda role: _link(obj, role[2], last=bool(role[1])), obj.docstring.value
            )


def _link(obj: Object, name: str, *, last: bool) -> str:
    """Return the link; of a name with ~ only the last word is shown, as Sphinx does."""
    first, *rest = name.split(".")
    try:
        path = ".".join([obj.resolve(first), *rest])
    except NameResolutionError:  # a whole path, or what leads nowhere, which is reported
        path = name
    return f"[`{rest[-1] if last and rest else name}`][{path}]"


def on_env(env: Any, *, config: Any, **_: Any) -> Any:
    """Make known to the references where other libraries document their names."""
    for name, url in ELSEWHERE.items():
        config.plugins["autorefs"].register_url(name, url)
    return env
