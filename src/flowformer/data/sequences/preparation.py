"""The table of the sets of sequences, and their preparation: read or generated once."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowformer.data import standins
from flowformer.data.files import data_cache, digest, preparing, require_empty, require_same
from flowformer.data.options import SequenceOptions
from flowformer.data.parallel import require_main
from flowformer.data.sequences.listops import LISTOPS
from flowformer.data.sequences.pathfinder import PATHFINDERS
from flowformer.data.sequences.pictures import CIFAR10_GREY, FASHION_MNIST
from flowformer.data.sequences.records import (
    DESCRIPTION,
    GENERATED_PARTS,
    SequenceData,
    SequenceSet,
)
from flowformer.data.sequences.texts import AAN, IMDB
from flowformer.files import remove_unfinished, write_atomically
from flowformer.machine import available_processors
from flowformer.names import choose

SEQUENCE_SETS: dict[str, SequenceSet] = {
    one.name: one
    for one in (
        *(LISTOPS, IMDB, standins.MOVIE_REVIEWS, AAN, standins.WIKI_PASSAGES),
        *(CIFAR10_GREY, FASHION_MNIST, *PATHFINDERS),
    )
}

PREPARATION = "preparation.json"  # what a prepared folder was made from
# Raised when other data are made of the same options: an older folder is not taken for them then.
_REVISION = 1
_CASES_PER_WORKER = 500  # with fewer, starting a process takes longer than what it would do
_LEAST_SAMPLE = 100


def find_sequence_set(name: str) -> SequenceSet:
    """Return the entry of a name.

    Raises:
        ValueError: there is no such set; the message lists the names.
    """
    return choose(name, SEQUENCE_SETS, "data set")


def prepare_sequences(
    options: SequenceOptions,
    *,
    output: Path | None = None,
    workers: int | None = None,
) -> SequenceData:
    """Read or generate a set once into a folder, and open it there, mapped into memory.

    Whoever asks at the same time waits. A kill leaves a folder that is prepared anew, and so do
    files of the user that have changed since: names, sizes or times.

    Args:
        options: the set, in `SEQUENCE_SETS`, and the options that it takes.
        output: the folder; by default one of the name and the options under `data_cache()`.
        workers: processes that generate; by default as many as cores, and fewer for a small set.
            More than one needs the usual `if __name__ == "__main__":` in a script.

    Raises:
        FileExistsError: the folder holds something else.
        FileNotFoundError: files are missing, or not to be had.
        ValueError: an unknown name; an option that the set does not take; a folder that was
            prepared with other options, or is damaged; ListOps longer than `max_length`; or what
            the readers and generators raise.
    """
    of = find_sequence_set(options.dataset)
    chosen = of.resolve(options)
    folder = sequences_folder(options) if output is None else output
    made_from = {**_record(of, chosen), "files": _stamp(of, chosen.folder)}
    if not _is_prepared(folder, made_from):
        require_main()
        with preparing(folder):
            if not _is_prepared(folder, made_from):
                data = _make(of, chosen, workers)
                _write(data, folder, made_from)
    return SequenceData.load(folder)


def sequences_folder(options: SequenceOptions) -> Path:
    """Return where `prepare_sequences` keeps a set by default.

    Raises:
        ValueError: an unknown name, or an option that the set does not take.
    """
    of = find_sequence_set(options.dataset)
    return data_cache() / "arena" / f"{of.name}-{digest(_record(of, of.resolve(options)))}"


def sample_sequences(options: SequenceOptions, *, part: str, count: int) -> SequenceData:
    """Return a set to look at: generated only as far as needed and not kept, or prepared.

    Args:
        options: the set, and the options that it takes.
        part: the part of which at least `count` cases are generated, and one of each other.
        count: cases wanted.

    Raises:
        ValueError: as `prepare_sequences`.
    """
    of = find_sequence_set(options.dataset)
    chosen = of.resolve(options)
    if of.generate is None or chosen.folder is not None:
        return prepare_sequences(options)
    # Of ten values that are balanced, a few cases would have the first few only.
    least = _LEAST_SAMPLE if of.name == "listops" else 1
    sizes = tuple(max(count, least) if one == part else 1 for one in GENERATED_PARTS)
    return of.generate(replace(chosen, sizes=sizes), 1)


def holds_sequences(folder: Path) -> bool:
    """Return whether a folder is of `prepare_sequences`, whole or not, or `SequenceData.save`."""
    return any((folder / name).is_file() for name in (PREPARATION, DESCRIPTION))


def read_preparation(folder: Path) -> dict[str, Any]:
    """Return what a prepared folder was made from: set, revision, options and files.

    Raises:
        FileNotFoundError: it is no folder of `prepare_sequences`.
        ValueError: the record is damaged.
    """
    path = folder / PREPARATION
    if not path.is_file():
        raise FileNotFoundError(f"expected {PREPARATION} in {folder}, found none")
    try:
        there = json.loads(path.read_text())
        return {**there, "options": dict(there["options"])}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: delete the folder ({error})") from error


def _make(of: SequenceSet, options: SequenceOptions, workers: int | None) -> SequenceData:
    if of.generate is None or options.folder is not None:
        return of.read(options)
    if workers is None:
        cases = sum(options.sizes or ())
        workers = max(1, min(available_processors(), cases // _CASES_PER_WORKER))
    return of.generate(options, workers)


def _write(data: SequenceData, folder: Path, made_from: Mapping[str, Any]) -> None:
    # Without its description a set is not whole: it goes first, and comes last.
    (folder / DESCRIPTION).unlink(missing_ok=True)
    remove_unfinished(folder)
    write_atomically(folder / PREPARATION, json.dumps(made_from, indent=1) + "\n")
    data.save(folder)


def _is_prepared(folder: Path, made_from: Mapping[str, Any]) -> bool:
    """Return whether the set is there; refuse a folder that is of something else."""
    if not (folder / PREPARATION).is_file():
        require_empty(folder, instead="a prepared set")
        return False
    there = read_preparation(folder)
    require_same(folder, _flat(there), _flat(made_from), what="options")
    return (folder / DESCRIPTION).is_file() and there.get("files") == made_from["files"]


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record.get(name) for name in ("set", "revision")} | record["options"]


def require_files(of: SequenceSet, folder: Path) -> None:
    """Refuse a folder that has no file of a set.

    Raises:
        FileNotFoundError: it has none, or is no folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder with the files of {of.name}, got {folder}")
    if of.files and not any(path for pattern in of.files for path in folder.glob(pattern)):
        raise FileNotFoundError(f"expected {' and '.join(of.files)} in {folder}, found none")


def _record(of: SequenceSet, options: SequenceOptions) -> dict[str, Any]:
    values = {name: getattr(options, name) for name in of.options}
    record = {"set": of.name, "revision": _REVISION, "options": values}
    # As it is in the file that it is compared with: tuples are lists there.
    return json.loads(json.dumps(record, default=str))


def _stamp(of: SequenceSet, folder: Path | None) -> dict[str, Any] | None:
    """Names, sizes and times of the user's files: not their content, which may be gigabytes."""
    if folder is None or not of.files:
        return None
    require_files(of, folder)
    seen = hashlib.sha256()
    count = size = 0
    for path in sorted({path for pattern in of.files for path in folder.glob(pattern)}):
        if not path.is_file():  # a folder, or a link to nothing
            continue
        state = path.stat()
        line = f"{path.relative_to(folder)}\t{state.st_size}\t{state.st_mtime_ns}\n"
        seen.update(line.encode(errors="surrogateescape"))
        count, size = count + 1, size + state.st_size
    return {"count": count, "bytes": size, "sha256": seen.hexdigest()}
