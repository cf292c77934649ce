"""The data sets of the Long Range Arena, prepared once: read, generated or stood in for."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowformer.data.cache import data_cache
from flowformer.data.parallel import require_main
from flowformer.data.sequences.records import SequenceData
from flowformer.data.sequences.sets import (
    ARENA_SETS,
    GENERATED_PARTS,
    ArenaOptions,
    ArenaSet,
    Difficulty,
    Progress,
    find_arena_set,
)
from flowformer.files import locked, remove_unfinished, write_atomically
from flowformer.machine import available_processors

__all__ = [
    "ARENA_SETS",
    "PREPARATION",
    "ArenaOptions",
    "ArenaSet",
    "Difficulty",
    "arena_folder",
    "find_arena_set",
    "holds_sequences",
    "prepare_arena",
    "read_preparation",
    "sample_arena",
]

PREPARATION = "preparation.json"  # what a prepared folder was made from
_DESCRIPTION = "description.json"  # of `SequenceData.save`, which writes it last
# Raised when other data are made of the same options: an older folder is not taken for them then.
_REVISION = 1
_CASES_PER_WORKER = 500  # with fewer, starting a process takes longer than what it would do
_LEAST_SAMPLE = 100


def prepare_arena(
    name: str,
    options: ArenaOptions = ArenaOptions(),  # noqa: B008 - frozen
    *,
    output: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> SequenceData:
    """Reads or generates a set once into a folder, and opens it there, mapped into memory.

    Whoever asks at the same time waits. A kill leaves a folder that is prepared anew, and so do
    files of the user that have changed since: names, sizes or times.

    Args:
        name: in `ARENA_SETS`.
        options: those that the set takes.
        output: the folder; by default one of the name and the options under `data_cache()`.
        workers: processes that generate; by default as many as cores, and fewer for a small set.
            More than one needs the usual `if __name__ == "__main__":` in a script.
        progress: called with a part and its number of cases so far, where a set is generated.

    Raises:
        FileExistsError: the folder holds something else.
        FileNotFoundError: files are missing, or not to be had.
        ValueError: an unknown name; an option that the set does not take; a folder that was
            prepared with other options, or is damaged; ListOps longer than `max_length`; or what
            the readers and generators raise.
    """
    of = find_arena_set(name)
    chosen = of.resolve(options)
    folder = arena_folder(name, options) if output is None else output
    made_from = {**_record(of, chosen), "files": _stamp(of, chosen.folder)}
    if not _is_prepared(folder, made_from):
        require_main()
        # Beside the folder, which may hold nothing else: who comes second finds the set prepared.
        with locked(folder.with_name(f".{folder.name}.lock")):
            if not _is_prepared(folder, made_from):
                data = _make(of, chosen, workers, progress)
                _write(data, folder, made_from)
    return SequenceData.load(folder)


def arena_folder(name: str, options: ArenaOptions = ArenaOptions()) -> Path:  # noqa: B008 - frozen
    """Where `prepare_arena` keeps a set by default: a folder of its name and its options.

    Raises:
        ValueError: an unknown name, or an option that the set does not take.
    """
    of = find_arena_set(name)
    digest = _digest(_record(of, of.resolve(options)))
    return data_cache() / "arena" / f"{name}-{digest[:8]}"


def sample_arena(name: str, options: ArenaOptions, *, part: str, count: int) -> SequenceData:
    """A set to look at: what is generated only as far as needed and not kept, the others prepared.

    Args:
        name: in `ARENA_SETS`.
        options: those that the set takes.
        part: of which at least `count` cases are generated, and one of each other.
        count: cases wanted.

    Raises:
        ValueError: as `prepare_arena`.
    """
    of = find_arena_set(name)
    chosen = of.resolve(options)
    if of.generate is None or chosen.folder is not None:
        return prepare_arena(name, options)
    # Of ten values that are balanced, a few cases would have the first few only.
    least = _LEAST_SAMPLE if name == "listops" else 1
    sizes = tuple(max(count, least) if one == part else 1 for one in GENERATED_PARTS)
    return of.generate(replace(chosen, sizes=sizes), 1, None)


def _make(
    of: ArenaSet, options: ArenaOptions, workers: int | None, progress: Progress | None
) -> SequenceData:
    if of.generate is None or options.folder is not None:
        return of.read(options)
    if workers is None:
        cases = sum(options.sizes or ())
        workers = max(1, min(available_processors(), cases // _CASES_PER_WORKER))
    return of.generate(options, workers, progress)


def _write(data: SequenceData, folder: Path, made_from: Mapping[str, Any]) -> None:
    # Without its description a set is not whole: it goes first, and comes last.
    (folder / _DESCRIPTION).unlink(missing_ok=True)
    remove_unfinished(folder)
    write_atomically(folder / PREPARATION, json.dumps(made_from, indent=1) + "\n")
    data.save(folder)


def _is_prepared(folder: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether the set is there; refuses a folder that is of something else."""
    path = folder / PREPARATION
    if not path.is_file():
        # A process killed in its first write leaves a hidden file.
        others = [path.name for path in folder.glob("*") if not path.name.startswith(".")]
        if others:
            raise FileExistsError(
                f"expected an empty folder or a prepared set, and {folder} has {others[0]}"
            )
        return False
    there = read_preparation(folder)
    differences = _differences(there, made_from)
    if differences:
        raise ValueError(
            f"{folder} was prepared with other options: {'; '.join(differences)}. "
            "Take another folder, or delete this one"
        )
    return (folder / _DESCRIPTION).is_file() and there.get("files") == made_from["files"]


def holds_sequences(folder: Path) -> bool:
    """Whether a folder is of `prepare_arena`, be it whole or not, or of `SequenceData.save`."""
    return any((folder / name).is_file() for name in (PREPARATION, _DESCRIPTION))


def read_preparation(folder: Path) -> dict[str, Any]:
    """What a prepared folder was made from: set, revision, options and files.

    Raises:
        FileNotFoundError: it is no folder of `prepare_arena`.
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


def _differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    def flat(record: Mapping[str, Any]) -> dict[str, Any]:
        return {name: record.get(name) for name in ("set", "revision")} | record["options"]

    one, other = flat(there), flat(asked)
    return [
        f"{name} is {one.get(name)!r} there, {other.get(name)!r} asked for"
        for name in {**one, **other}
        if one.get(name) != other.get(name)
    ]


def _record(of: ArenaSet, options: ArenaOptions) -> dict[str, Any]:
    values = {name: getattr(options, name) for name in of.options}
    record = {"set": of.name, "revision": _REVISION, "options": values}
    # As it is in the file that it is compared with: tuples are lists there.
    return json.loads(json.dumps(record, default=str))


def _stamp(of: ArenaSet, folder: Path | None) -> dict[str, Any] | None:
    """Names, sizes and times of the user's files: not their content, which may be gigabytes."""
    if folder is None or not of.files:
        return None
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder with the files of {of.name}, got {folder}")
    digest = hashlib.sha256()
    count = size = 0
    for path in sorted({path for pattern in of.files for path in folder.glob(pattern)}):
        if not path.is_file():  # a folder, or a link to nothing
            continue
        state = path.stat()
        line = f"{path.relative_to(folder)}\t{state.st_size}\t{state.st_mtime_ns}\n"
        digest.update(line.encode(errors="surrogateescape"))
        count, size = count + 1, size + state.st_size
    return {"count": count, "bytes": size, "sha256": digest.hexdigest()}


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
