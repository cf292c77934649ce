"""`flowformer evaluate | predict | visualize | generate | rollout`: the use of a trained run."""

import json
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from flowformer.cli.parsing import Positional, parse
from flowformer.files import require_no_input, write_atomically
from flowformer.names import Early, ExistingPath, check_sizes, endings
from flowformer.progress import showing
from flowformer.train.folder import RunFolder, require_ended, require_kind, require_run
from flowformer.train.kinds import kind_of_run


def _of(path: Path, kind: str | None = None) -> None:
    """Refuse a folder without a finished run, of a kind if one is needed."""
    require_run(path)
    if kind is not None:
        require_kind(RunFolder(path), kind)
    require_ended(RunFolder(path))


RunPath = Annotated[Path, Early(_of)]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Test a trained run again, and compare with what its training found.

    Attributes:
        run: folder of the run.
        file: what to test on in place of the run's own test set: of a run on series, labelled ones
            (a table, a folder of tables, a .ts or .npz file); of one on images, a folder of them,
            FOLDER/CLASS/IMAGE.
        json: print the figures as JSON.
    """

    run: RunPath
    file: ExistingPath | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Classify what is in a file, or images, and write CSV.

    Attributes:
        run: folder of the run.
        file: of a run on series, a table, a folder of tables, a .ts or .npz file, with labels or
            without; of one on sequences, text with a case on each line (of pairs, a tab between the
            two), or a picture; of one on images, an image; of a task of recall, text with the
            tokens of a sequence on each line.
        more: further images.
        output: the CSV file to write; standard output by default.
    """

    run: RunPath
    file: ExistingPath
    more: Positional[tuple[ExistingPath, ...]] = ()
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


@dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    r"""Go on with a text, shown as it is made. Without sampling the most probable token is taken.

    Attributes:
        run: folder of the run of a language model.
        prompt: the text to go on with; - reads it from standard input.
        max_new_tokens: the most tokens that are made.
        sample: draw each token, in place of the most probable one.
        temperature: divides the logits before a draw.
        top_k: draw from so many most probable tokens only.
        top_p: draw from the fewest tokens that together have this probability.
        repetition_penalty: above 1 makes tokens that have occurred less probable.
        num_beams: above 1 looks for the most probable text, with so many at a time.
        stop: texts that end it, for example --stop "." $'\n\n'; they are no part of it.
        seed: of the draws.
    """

    run: Annotated[Path, Early(partial(_of, kind="language"))]
    prompt: str
    max_new_tokens: int = 200
    sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float = 1.0
    num_beams: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "max_new_tokens", "top_k", "num_beams")


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """Let a trained decision model act. What is not given is as in the run's own test.

    Attributes:
        run: folder of the run.
        targets: returns that it is asked for.
        form: streaming carries the state over the episode; windowed reads the last steps again.
        context: steps that the windowed form reads; by default those of the training.
        episodes: at each target and seed.
        seeds: of the episodes.
        env: another environment with the same observations and actions.
        video: a file, .gif or .mp4, with the first episode at the first target; with it, no others
            are played unless --episodes is given.
        json: print the figures as JSON.
    """

    run: Annotated[Path, Early(partial(_of, kind="trajectories"))]
    targets: tuple[float, ...] = ()
    form: Literal["streaming", "windowed"] | None = None
    context: int | None = None
    episodes: int | None = None
    seeds: tuple[int, ...] = ()
    env: str | None = None
    video: Annotated[Path, endings(".gif", ".mp4")] | None = None
    json: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, "context", "episodes")


def evaluate(arguments: list[str]) -> int:
    """Test a run again; the code is 1 when its test set gives another figure than before."""
    options = parse(EvaluateOptions, arguments, prog="flowformer evaluate")
    if options.file is not None:
        _check_files(options.run, options.file)
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
    inputs, output = (options.file, *options.more), options.output
    if output is not None:
        require_no_input(output, [*inputs, *RunFolder(options.run).files])
    _check_files(options.run, *inputs)
    kind = kind_of_run(RunFolder(options.run))
    study = kind.study
    study.require_classifier(options.run, *inputs)
    for path in inputs:
        if path.is_dir() and not study.reads_folders:
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
        runs, images = _runs_and_images([options.run, *options.more])
        from flowformer.train.images.attention import SinkChoice, write_attention_pictures

        row, column = options.sink
        page = write_attention_pictures(
            runs,
            images,
            options.output,
            sink=SinkChoice(row=row, column=column, class_token=options.class_token),
        )
    else:
        _of(options.run)
        if options.output is not None or options.class_token:
            raise ValueError(
                "expected an image beside --output or --class-token, got none: they are of "
                "pictures of the attention"
            )
        from flowformer.train.run import write_report

        name = kind_of_run(RunFolder(options.run)).name
        drawn = name in ("series", "regression")
        only_series = {"num_series": options.num_series} if drawn else {}
        page = write_report(options.run, **only_series)
    sys.stdout.write(f"{page}\n")
    return 0


def generate(arguments: list[str]) -> int:
    """Write the prompt and what follows it."""
    options = parse(GenerateOptions, arguments, prog="flowformer generate")
    draws = (options.temperature != 1, options.top_k is not None, options.top_p is not None)
    if any(draws) and not options.sample:
        raise ValueError("--temperature, --top-k and --top-p are for draws: give --sample too")
    from flowformer.generation.text import generate_text
    from flowformer.train.language.study import Language

    run = Language.load(options.run)
    if run.tokenizer is None:
        instead = " (flowformer predict answers)" if Language.classifies(options.run) else ""
        raise ValueError(
            f"{options.run} was trained on {run.config.data.corpus}, and has no text to go on with"
            f"{instead}"
        )
    prompt = sys.stdin.read() if options.prompt == "-" else options.prompt
    waiting = [prompt]  # shown with what follows it: an error says no word of it

    def show(text: str) -> None:
        sys.stdout.write((waiting.pop() if waiting else "") + text)
        sys.stdout.flush()

    # Text that comes word by word on a terminal shows for itself how far it is.
    with showing(False if sys.stdout.isatty() and options.num_beams == 1 else None):
        generate_text(
            run.model,
            run.tokenizer,
            prompt,
            max_new_tokens=options.max_new_tokens,
            stop_ids=run.stop_ids,
            stop_strings=options.stop,
            on_text=show,
            do_sample=options.sample,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            repetition_penalty=options.repetition_penalty,
            num_beams=options.num_beams,
            seed=options.seed,
        )
    show("\n")
    return 0


def rollout(arguments: list[str]) -> int:
    """Play the episodes, print what they came to, and write the film."""
    options = parse(RolloutOptions, arguments, prog="flowformer rollout")
    import numpy as np

    from flowformer.config_json import to_plain
    from flowformer.data.options import NOT_D4RL
    from flowformer.data.trajectories.environments import make_environment, task_of
    from flowformer.data.trajectories.records import EnvironmentOptions
    from flowformer.rollouts.scores import check_target, evaluate_returns
    from flowformer.train.trajectories.config import describe_outcomes
    from flowformer.train.trajectories.data import (
        environment_maker,
        rollout_settings,
        warn_of_another,
    )
    from flowformer.train.trajectories.study import Trajectories, outcomes_of, say_rollouts

    run = Trajectories.load(options.run)
    record, own = run.record, run.record.config.evaluation
    form = options.form or own.form
    config = replace(record.config, evaluation=replace(own, form=form))
    settings = rollout_settings(config, run.preprocessing)
    if options.context is not None:
        settings = replace(settings, context=options.context)
    env, made_with = record.env, EnvironmentOptions.of(record.env_options)
    if options.env is not None:
        warn_of_another(options.env, "--env", env, made_with)
        env, made_with = options.env, EnvironmentOptions()
    make_env = environment_maker(env, made_with, preprocessing=run.preprocessing)
    targets = options.targets or record.targets
    for target in targets:
        check_target(target, np.array([record.data_worst, record.data_best]))
    seeds = options.seeds or (own.seed,)
    if options.video is not None:
        from flowformer.rollouts.video import record_episode

        played = record_episode(
            run.model,
            make_environment(env, options=made_with, render_mode="rgb_array"),
            options.video,
            target_return=targets[0],
            seed=seeds[0],
            settings=settings,
        )
        say_rollouts(played)
        sys.stdout.write(f"{options.video}\n")
        if options.episodes is None:
            return 0
    played = evaluate_returns(
        run.model,
        make_env,
        targets=targets,
        seeds=seeds,
        episodes=own.episodes if options.episodes is None else options.episodes,
        settings=settings,
        on_rollouts=say_rollouts,
    )
    outcomes = outcomes_of(played, record.references)
    if options.json:
        sys.stdout.write(json.dumps(to_plain(outcomes), indent=2) + "\n")
        return 0
    steps = "" if settings.context is None else f", {settings.context} steps"
    sys.stdout.write("\n".join(describe_outcomes(outcomes)) + "\n")
    note = "" if task_of(env, "") is None else f" {NOT_D4RL}"
    sys.stdout.write(f"in {made_with.in_words(env)}, {settings.form}{steps}.{note}\n")
    return 0


def _check_files(run: Path, *files: Path) -> None:
    """Refuse what a run cannot read, as far as that can be seen before anything is imported."""
    folder = RunFolder(run)
    record = kind_of_run(folder).record.read(folder)
    for file in files:
        record.check_file(file)


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
