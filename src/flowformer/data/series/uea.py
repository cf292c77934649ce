"""The UEA and UCR archives: in a folder, inside aeon's package, or from the network."""

import difflib
import importlib.util
import os
import tempfile
import warnings
from pathlib import Path

from flowformer.data.files import data_cache, find_cache, find_home
from flowformer.data.series.collection import load_ts_files
from flowformer.data.series.records import TimeSeriesData

_FOLDER, _HOME = "the folder", "aeon's own folder"


def load_uea(
    name: str, *, folder: str | Path | None = None, regression: bool = False
) -> TimeSeriesData:
    """Load a data set of the UEA (multivariate), UCR or regression archive by its name.

    The first of these places that has it: the folder; aeon's package, which carries JapaneseVowels,
    BasicMotions and a few more; aeon's own folder (`$AEON_DATA`, else `~/aeon_data`, or without a
    home directory `$FLOWFORMER_DATA/aeon_data`); a download
    through aeon, into the folder if one is given, else into aeon's own. A folder has the files as
    `folder/NAME/NAME_TRAIN.ts` or `folder/NAME_TRAIN.ts`, with `NAME_TEST.ts` beside it; the case
    of the names does not matter.

    Args:
        name: the data set, as the archive spells it.
        folder: an existing folder.
        regression: whether its labels are numbers to predict: of the regression archive, as
            Covid3Month.

    Warns:
        UserWarning: the folder has no such set, and another place has.

    Raises:
        FileNotFoundError: there is no such folder; a training file lacks its test file; or no place
            has the set. The message then lists the places, why the download failed, and what to do.
        ImportError: no folder has the set, and aeon is missing.
        TsFormatError: a file is malformed; the message names the line.
        ValueError: the two files do not belong together, see `load_ts_files`.
    """
    pair = find_uea(name, folder=folder)
    if pair is not None:
        # Named as the file is, for a name in another case finds it too.
        return load_ts_files(*pair, name=pair[0].stem[: -len("_TRAIN")], regression=regression)
    places = _places(folder)
    tried = ", ".join(f"{what} ({place})" for what, place in places.items())
    if importlib.util.find_spec("aeon") is None:
        raise ImportError(
            f"{name} is not in {tried}, and aeon is needed to load UEA data from elsewhere: "
            "pip install 'flowformer[timeseries]'"
        )
    root = Path(folder) if folder is not None else places.get(_HOME) or data_cache()
    try:
        _download(name, root, regression=regression)
    except (ValueError, OSError) as error:
        raise FileNotFoundError(
            f"cannot find the data set {name!r}{_suggestion(name, regression)}. Tried {tried}, and "
            f"a download through aeon, which failed: {error} -- Without a network, put "
            f"{name}_TRAIN.ts and {name}_TEST.ts into a folder, and give that folder "
            "(data.folder, or folder=... in Python)."
        ) from error
    pair = (root / name / f"{name}_{part}.ts" for part in ("TRAIN", "TEST"))
    return load_ts_files(*pair, name=name, regression=regression)


def find_uea(name: str, *, folder: str | Path | None = None) -> tuple[Path, Path] | None:
    """Return the training and the test file of a set that is on this machine, see `load_uea`.

    Warns:
        UserWarning: the folder has no such set, and another place has.

    Raises:
        FileNotFoundError: there is no such folder; or a training file lacks its test file.
    """
    if folder is not None and not Path(folder).is_dir():
        raise FileNotFoundError(f"expected an existing folder of data sets, got {folder}")
    for what, place in _places(folder).items():
        pair = _find_pair(place, name)
        if pair is not None:
            if folder is not None and what != _FOLDER:
                # From this line, so that a process tells it once.
                warnings.warn(
                    f"{folder} has no {name}: it is read from {what} ({place})", stacklevel=1
                )
            return pair
    return None


def _places(folder: str | Path | None) -> dict[str, Path]:
    """Return where sets may be, the first place first."""
    places: dict[str, Path] = {} if folder is None else {_FOLDER: Path(folder)}
    aeon = importlib.util.find_spec("aeon")  # found, not imported: that takes seconds
    if aeon is not None and aeon.submodule_search_locations:
        package = Path(aeon.submodule_search_locations[0])
        places["aeon's package"] = package / "datasets" / "data"
    home = find_home(os.environ.get("AEON_DATA", "~/aeon_data"))
    if home is None and (cache := find_cache()) is not None:  # of who has no home
        home = cache / "aeon_data"
    if home is not None:
        places[_HOME] = home
    return places


def _find_pair(root: Path, name: str) -> tuple[Path, Path] | None:
    """Return the training and the test file in a folder; None where there is no training file."""
    for folder in [*_entries(root, name), root]:
        train = _entries(folder, f"{name}_TRAIN.ts")
        test = _entries(folder, f"{name}_TEST.ts")
        if train and not test:
            raise FileNotFoundError(f"expected {name}_TEST.ts beside {train[0]}, got none")
        if train:
            return train[0], test[0]
    return None


def _entries(folder: Path, name: str) -> list[Path]:
    """Return what a folder holds under a name: the exact spelling first, then any other case."""
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if entry.name.casefold() == name.casefold()]
    return sorted(found, key=lambda entry: entry.name != name)


def _download(name: str, root: Path, *, regression: bool) -> None:
    from aeon.datasets import load_classification, load_regression

    root.mkdir(parents=True, exist_ok=True)
    # aeon writes files in place, so a download cut short would be taken for the data set next time.
    with tempfile.TemporaryDirectory(dir=root, prefix=f".{name}-") as scratch:
        if regression:
            load_regression(name, extract_path=scratch)
        else:
            load_classification(name, extract_path=scratch)
        (root / name).mkdir(exist_ok=True)
        for file in sorted(Path(scratch, name).iterdir()):  # TEST, then TRAIN: by it a set is found
            file.replace(root / name / file.name)


def _suggestion(name: str, regression: bool) -> str:
    from aeon.datasets.tsc_datasets import tsc_zenodo
    from aeon.datasets.tser_datasets import tsr_zenodo

    known = tsr_zenodo if regression else tsc_zenodo
    close = [] if name in known else difflib.get_close_matches(name, known, n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
