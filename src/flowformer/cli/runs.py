"""`flowformer evaluate | predict | visualize`: what to do with a trained run."""

import json
import pkgutil
import sys
from dataclasses import dataclass
from pathlib import Path

from flowformer.cli.parsing import parse
from flowformer.tasks.folder import RunFolder
from flowformer.tasks.kinds import SERIES, kind_of_run


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Test a trained run again, and compare with what its training found.

    Attributes:
        run: folder of the run.
        file: a labelled .ts file to test a run on series on, in place of its own test set.
        json: print the figures as JSON.
    """

    run: Path
    file: Path | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Classify what is in a file and write CSV.

    Attributes:
        run: folder of the run.
        file: of a run on series, a .ts file, with labels or without; of one on sequences, text with
            a case on each line (of pairs, a tab between the two), or a picture.
        output: the CSV file to write; standard output by default.
    """

    run: Path
    file: Path
    output: Path | None = None


@dataclass(frozen=True, kw_only=True)
class VisualizeOptions:
    """Write the report of a run: one HTML page and its pictures.

    Attributes:
        run: folder of the run.
        num_series: test series of which to draw flow maps; of other runs of no matter.
    """

    run: Path
    num_series: int = 4

    def __post_init__(self) -> None:
        """Refuses a number that is none."""
        if self.num_series < 0:
            raise ValueError(f"num_series must be at least 0, got {self.num_series}")


def evaluate(arguments: list[str]) -> int:
    """Tests a run again; the code is 1 when its test set gives another figure than before."""
    options = parse(EvaluateOptions, arguments, prog="flowformer evaluate")
    kind = kind_of_run(RunFolder(options.run))
    evaluation = pkgutil.resolve_name(kind.evaluate)(options.run, options.file)
    if options.json:
        sys.stdout.write(json.dumps(evaluation.to_dict(), indent=2) + "\n")
    else:
        sys.stdout.write(evaluation.describe())
    return 1 if evaluation.differs else 0


def predict(arguments: list[str]) -> int:
    """Writes predictions for a file."""
    options = parse(PredictOptions, arguments, prog="flowformer predict")
    kind = kind_of_run(RunFolder(options.run))
    if kind.predict is None:
        raise ValueError(
            f"{options.run} holds a language model, not a classifier: "
            f'flowformer generate {options.run} "PROMPT" uses it'
        )
    from flowformer.files import write_atomically

    text = pkgutil.resolve_name(kind.predict)(options.run, options.file)
    if options.output is None:
        sys.stdout.write(text)
    else:
        write_atomically(options.output, text)
    return 0


def visualize(arguments: list[str]) -> int:
    """Writes the report of a run and says where."""
    options = parse(VisualizeOptions, arguments, prog="flowformer visualize")
    kind = kind_of_run(RunFolder(options.run))
    only_series = {"num_series": options.num_series} if kind is SERIES else {}
    page = pkgutil.resolve_name(kind.report)(options.run, **only_series)
    sys.stdout.write(f"{page}\n")
    return 0
