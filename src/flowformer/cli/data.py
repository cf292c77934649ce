"""`flowformer data list | prepare NAME | collect ENV | show NAME`: every kind of data."""

import sys
from collections.abc import Callable, Container
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from flowformer.cli.main import usage_of
from flowformer.cli.parsing import Named, parse
from flowformer.data.language.recall import RECALL
from flowformer.data.options import TextOptions
from flowformer.names import choose, did_you_mean

if TYPE_CHECKING:
    from flowformer.data.language.tokens import PreparedText

_TASKS = "Tasks, drawn as they are learned"
_SAMPLE = 400  # characters shown of a text


@dataclass(frozen=True)
class ListOptions:
    """List the texts and data sets that have a name, and where each is from."""


@dataclass(frozen=True, kw_only=True)
class PrepareFlags(TextOptions):
    """Fetch and tokenise a text once; what was stopped goes on, what is there is only checked.

    Training does the same where nothing is there yet: the flags mean what --data.… means to
    flowformer train, and the default folder is the one that it looks into. The sets of the Long
    Range Arena have flags of their own: flowformer data prepare listops --help.

    Attributes:
        corpus: name of the text, see flowformer data list.
        output: folder of the tokenised text; by default one under the user's cache.
    """

    corpus: Named[str] = field()  # no default
    output: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Show what a text or a data set holds.

    The sets of the Long Range Arena and the tasks of recall have flags of their own, which
    flowformer data show listops --help and flowformer data show recall --help list.

    Attributes:
        name: name of a text, to see how it begins; a prepared folder, to see what is in it; or a
            set of trajectories: a Minari data set, or a file of D4RL's.
        folder: where the files of the text are.
        part: the part shown of a prepared set of labelled sequences.
        count: cases of that part that are shown.
        output: the picture that shows them, where they are pictures; NAME-PART.png by default.
        time_limit: steps after which an episode ends, of a file of D4RL's without timeouts.
        num_actions: how many discrete actions a file of D4RL's has.
        action_bounds: least and greatest value of the actions of a file of D4RL's.
    """

    name: str
    folder: Path | None = None
    part: str = "test"
    count: int = 4
    output: Path | None = None
    time_limit: int | None = None
    num_actions: int | None = None
    action_bounds: tuple[float, float] | None = None


def main(arguments: list[str]) -> int:
    """Run the action that the first argument names."""
    action, *rest = arguments or ["--help"]
    if action in ("-h", "--help"):
        about = "Texts, labelled sequences and trajectories to train on."
        sys.stdout.write(usage_of("data ACTION [ARGUMENTS]", about, _ACTIONS))
        return 0
    run, _ = choose(action, _ACTIONS, "action")
    return run(rest)


def _list(arguments: list[str]) -> int:
    parse(ListOptions, arguments, prog="flowformer data list")
    from flowformer.data.language.corpora import CORPORA
    from flowformer.data.sequences.preparation import SEQUENCE_SETS
    from flowformer.data.trajectories.minari import find_minari_root, local_minari

    tables = {"Texts": CORPORA, "Long Range Arena": SEQUENCE_SETS, _TASKS: RECALL}
    width = max(len(name) for table in tables.values() for name in table)
    for title, table in tables.items():
        sys.stdout.write(f"{title}\n\n")
        for name, row in table.items():
            sys.stdout.write(f"{name:<{width}}  {row.description}\n")
            sys.stdout.write(f"{'':<{width}}  from {row.source}\n")
        sys.stdout.write("\n")
    root = find_minari_root() or "no folder: set FLOWFORMER_DATA, there is no home directory"
    sys.stdout.write(f"Trajectories, in {root}\n\n")
    for name in local_minari() or ["none: flowformer data collect ENV makes some"]:
        sys.stdout.write(f"{name}\n")
    sys.stdout.write("\n")
    sys.stdout.write("Next: flowformer data show NAME, or flowformer data prepare NAME\n")
    return 0


def _prepare(arguments: list[str]) -> int:
    from flowformer.data.sequences.preparation import SEQUENCE_SETS

    if name := _name_in(SEQUENCE_SETS, arguments):
        from flowformer.cli import data_sequences

        return data_sequences.prepare(name, arguments)
    options = parse(PrepareFlags, arguments, prog="flowformer data prepare")
    _require_known(options.corpus)
    from flowformer.train.language.config import TextDataConfig
    from flowformer.train.language.data import load_text

    own = {one.name: getattr(options, one.name) for one in fields(TextOptions)}
    text = load_text(TextDataConfig(**own, cache=options.output))
    sys.stdout.write(_describe(text))
    return 0


def _collect(arguments: list[str]) -> int:
    from flowformer.cli import data_trajectories

    return data_trajectories.main(arguments)


def _show(arguments: list[str]) -> int:
    from flowformer.cli import data_recall, data_sequences, data_trajectories
    from flowformer.data.language.corpora import CORPORA, load_corpus
    from flowformer.data.sequences.preparation import SEQUENCE_SETS, holds_sequences

    if _name_in(RECALL, arguments):
        return data_recall.show(arguments)
    if name := _name_in(SEQUENCE_SETS, arguments):
        return data_sequences.show(name, arguments)
    options = parse(ShowOptions, arguments, prog="flowformer data show")
    folder = Path(options.name)
    if options.name not in CORPORA and data_trajectories.is_trajectories(options.name):
        return data_trajectories.show(
            options.name,
            time_limit=options.time_limit,
            num_actions=options.num_actions,
            action_bounds=options.action_bounds,
        )
    if options.name not in CORPORA and folder.is_dir():
        if holds_sequences(folder):
            return data_sequences.show_folder(
                folder, part=options.part, count=options.count, output=options.output
            )
        from flowformer.data.language.tokens import open_text

        sys.stdout.write(_describe(open_text(folder)))
        return 0
    _require_known(options.name)
    corpus = load_corpus(options.name, folder=options.folder)
    start = next(iter(corpus.documents("train")), "")[:_SAMPLE]
    sys.stdout.write(f"{corpus.name}: {corpus.description}\nfrom {corpus.source}\n\n{start} …\n")
    return 0


def _name_in(table: Container[str], arguments: list[str]) -> str | None:
    """Return the name that is asked for, if the table has it, to know which flags there are."""
    for before, argument in pairwise(["", *arguments]):
        if argument in table and not before.startswith("--"):  # not --folder listops
            return argument
    return None


def _require_known(name: str) -> None:
    """Refuse a name that is no text's and no set's of the Long Range Arena; list those of all.

    Raises:
        ValueError: it is none.
    """
    from flowformer.data.language.corpora import CORPORA
    from flowformer.data.sequences.preparation import SEQUENCE_SETS
    from flowformer.data.trajectories.minari import find_minari_root, local_minari

    root = find_minari_root() or "no folder"
    kinds = {
        "texts": list(CORPORA),
        "Long Range Arena": list(SEQUENCE_SETS),
        _TASKS: list(RECALL),
        f"trajectories, in {root}": local_minari(),
    }
    texts, arena, tasks, trajectories = kinds.values()
    if name in (*texts, *arena):
        return
    for what, names in {"a set of trajectories": trajectories, "a task": tasks}.items():
        if name in names:
            raise ValueError(
                f"{name} is {what}, which needs no preparation: flowformer data show {name}"
            )
    hint = did_you_mean(name, (each for names in kinds.values() for each in names))
    there = "; ".join(f"{kind}: {', '.join(names) or 'none'}" for kind, names in kinds.items())
    raise ValueError(f"unknown text or data set {name!r}: {hint}there are {there}")


def _describe(text: "PreparedText") -> str:
    from flowformer.data.language.tokens import PARTS

    lines = [
        f"{text.settings['corpus']}, {text.tokenizer.kind} tokenizer with "
        f"{text.tokenizer.vocab_size:,} tokens, in {text.folder}",
        "",
        f"{'':<11}{'documents':>10}{'tokens':>13}{'words':>13}{'characters':>13}{'<unk>':>9}",
    ]
    for part in PARTS:
        counts = text.counts[part]
        lines.append(
            f"{part:<11}{counts.documents:>10,}{counts.tokens:>13,}{counts.words:>13,}"
            f"{counts.characters:>13,}{counts.unknown:>9,}"
        )
    start = text.tokenizer.decode(text.validation[:_SAMPLE].tolist())[:_SAMPLE]
    return "\n".join([*lines, "", f"{start} …", ""])


_ACTIONS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "list": (_list, "the texts and data sets that have a name"),
    "prepare": (_prepare, "fetch, generate or tokenise one: flowformer data prepare NAME"),
    "collect": (_collect, "play episodes for offline learning: flowformer data collect ENV"),
    "show": (_show, "how a text begins, some cases, or what a prepared folder holds"),
}
