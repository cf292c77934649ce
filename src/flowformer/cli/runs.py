"""`flowformer evaluate | predict | visualize`: what to do with a trained run."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from flowformer.cli.parsing import Positional, parse
from flowformer.train.folder import RunFolder
from flowformer.train.kinds import kind_of_run


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Test a trained run again, and compare with what its training found.

    Attributes:
        run: folder of the run.
        file: what to test on in place of the run's own test set: of a run on series, a labelled .ts
            file; of one on images, a folder of them, FOLDER/CLASS/IMAGE.
        json: print the figures as JSON.
    """

    run: Path
    file: Path | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Classify what is in a file, or images, and write CSV.

    Attributes:
        run: folder of the run.
        file: of a run on series, a .ts file, with labels or without; of one on sequences, text with
            a case on each line (of pairs, a tab between the two), or a picture; of one on images,
            an image.
        more: further images.
        output: the CSV file to write; standard output by default.
    """

    run: Path
    file: Path
    more: Positional[tuple[Path, ...]] = ()
    output: Path | None = None


@dataclass(frozen=True, kw_only=True)
class VisualizeOptions:
    """Write the report of a run: one HTML page and its pictures.

    With images: what every layer of runs on images attends to in them. That of one run goes into
    its report; several runs stand side by side on a page of their own.

    Attributes:
        run: folder of the run.
        more: further runs on images, and image files.
        num_series: test series of which to draw flow maps; ignored for other runs.
        sink: with images, the place whose token receives in the pictures of the attention: row and
            column, from 0 to 1, in the square that the model reads.
        class_token: with images, the class token in place of that.
        output: with images, the folder of a page of its own; by default, of one run none, of
            several report/side-by-side in the first.
    """

    run: Path
    more: Positional[tuple[Path, ...]] = ()
    num_series: int = 4
    sink: tuple[float, float] = (0.5, 0.5)
    class_token: bool = False
    output: Path | None = None

    def __post_init__(self) -> None:
        """Refuse a negative number of series."""
        if self.num_series < 0:
            raise ValueError(f"num_series must be at least 0, got {self.num_series}")


def evaluate(arguments: list[str]) -> int:
    """Test a run again; the code is 1 when its test set gives another figure than before."""
    options = parse(EvaluateOptions, arguments, prog="flowformer evaluate")
    from flowformer.train import run

    evaluation = run.evaluate(options.run, options.file)
    if options.json:
        sys.stdout.write(json.dumps(evaluation.to_dict(), indent=2) + "\n")
    else:
        sys.stdout.write(evaluation.describe())
    return 1 if evaluation.differs else 0


def predict(arguments: list[str]) -> int:
    """Write predictions for a file."""
    options = parse(PredictOptions, arguments, prog="flowformer predict")
    kind = kind_of_run(RunFolder(options.run))
    study = kind.study
    inputs = (options.file, *options.more)
    study.require_classifier(options.run, *inputs)
    from flowformer.files import require_no_input, write_atomically

    output = options.output
    if output is not None:
        require_no_input(output, [*inputs, *RunFolder(options.run).files])
    for path in inputs:
        if path.is_dir():
            what = "the images in it" if kind.name == "images" else f"a file ({study.reads})"
            raise IsADirectoryError(f"{path} is a folder: flowformer predict takes {what}")
    text = study.predict(options.run, *inputs)
    if output is None:
        sys.stdout.write(text)
    else:
        # What a link leads to is written, /dev/stdout too: the link stays.
        write_atomically(output.resolve() if output.is_file() else output, text)
    return 0


def visualize(arguments: list[str]) -> int:
    """Write the report of a run and say where."""
    options = parse(VisualizeOptions, arguments, prog="flowformer visualize")
    if options.more:
        from flowformer.train.images.attention import SinkChoice, write_attention_pictures

        row, column = options.sink
        page = write_attention_pictures(
            *_runs_and_images([options.run, *options.more]),
            options.output,
            sink=SinkChoice(row=row, column=column, class_token=options.class_token),
        )
    else:
        if options.output is not None or options.class_token:
            raise ValueError(
                "expected an image beside --output or --class-token, got none: they are of "
                "pictures of the attention"
            )
        from flowformer.train.run import write_report

        name = kind_of_run(RunFolder(options.run)).name
        only_series = {"num_series": options.num_series} if name == "series" else {}
        page = write_report(options.run, **only_series)
    sys.stdout.write(f"{page}\n")
    return 0


def _runs_and_images(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Tell folders of runs, which have a config.json, from images.

    Raises:
        FileNotFoundError: there is no such file or folder, or no run in a folder.
        ValueError: there is no run, or no image.
    """
    runs = [path for path in paths if RunFolder(path).config.exists()]
    images = [path for path in paths if path not in runs]
    for path in images:
        if path.is_dir():
            raise FileNotFoundError(f"{path} holds no run: expected config.json in it, or an image")
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such run or image")
    if not runs or not images:
        raise ValueError(
            f"expected at least one run and one image, got {len(runs)} and {len(images)}"
        )
    return runs, images
