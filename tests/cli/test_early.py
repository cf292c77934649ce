"""A mistake that can be seen at once is told before torch and what trains are imported."""

import subprocess
import sys
from collections.abc import Sequence
from inspect import Parameter, signature
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from flowformer.models.known_mixers import KNOWN_MIXERS, LAYER, Form, check_mixer_options
from flowformer.nn import MIXERS
from flowformer.nn.mixers.gated_options import GatedKeywords
from flowformer.nn.mixers.head_attention import option_defaults, option_names
from flowformer.nn.mixers.mixer import ProjectedMixer

RUNS = Path(__file__).parents[1] / "train" / "kept_runs"

# Its own process: this one has imported everything.
CALL = """
import sys
from flowformer.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    print(stop.code, *sys.modules.keys() & {"torch", "lightning", "pandas", "sklearn"})
"""


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train fly", "unknown recipe 'fly'"),
        ("train japanese-vowels --model.mixer flwo", "unknown mixer 'flwo': did you mean flow?"),
        ("train japanese-vowels --model.mixer retnet", "retnet has no bidirectional form, which "),
        (
            'train japanese-vowels --model.mixer-options {"clmp":1}',
            "'flow' has no option clmp; did you mean clamp? it takes allocation, backend, bias, ",
        ),
        (
            'train fashion-mnist --model.mixer-options {"feature_map":"tanh"}',
            "flow.feature_map must be one of 'sigmoid', 'relu', got 'tanh'",
        ),
        ("train japanese-vowels --model.dim 63", "dim must be divisible by num_heads, got dim=63"),
        ("train imagenet-deit-small --model.num-heads 5", "got dim=384 and num_heads=5; or give"),
        ("train japanese-vowels --model.dim wide", "Error parsing --model.dim"),
        ("train japanese-vowels --training.epochs 0", "epochs must be at least 1, got 0"),
        ("train japanese-vowels --optimizer.learning-rate -1", "learning_rate must be above 0"),
        ("train japanese-vowels --run-dir taken", "taken is not empty: choose another folder"),
        ("train time-series", "no series to train on"),
        ("train time-series --data.train-file none.ts", "none.ts: no such file"),
        (
            "train time-series --data.train-file taken/thesis.txt",
            "a file that ends in .ts, .npz, .csv, ",
        ),
        ("train time-series --data.train-file empty", "empty: expected files that end in .csv, "),
        ("compare time-series --data.train-file empty", "expected files that end in .csv, "),
        ("predict RUNS/series empty", "empty: expected files that end in .csv, "),
        (
            "train time-series --data.train-file taken/rows.csv --data.label stat "
            "--data.group plnt",
            "taken/rows.csv: expected columns 'stat' (--data.label) and 'plnt' (--data.group), got "
            "'machine', 'time', 'vib', 'state' (took 'time' for the time; found none for id ",
        ),
        (
            "compare time-series --data.train-file taken/rows.csv --data.label state",
            "(took 'time' for the time and 'state' for the label; found none for id and group "
            "(--data.id, --data.group))",
        ),
        (
            "train time-series --data.train-file taken/plain.csv --data.label stat",
            "taken/plain.csv: expected a column 'stat' (--data.label), got 'machine', 'stamp' "
            "(found none for id, time and group (--data.id, --data.time, --data.group))",
        ),
        ("train image-folder", "no images to train on"),
        ("train image-folder --data.path none", "none: no such file"),
        ("train image-folder --data.path empty", "empty has no folder train: expected "),
        ("train listops --data.folder none", "none: no such file"),
        ("train listops --data.folder empty", "expected basic_*.tsv in "),
        ("train hopper-medium --data.path none.hdf5", "none.hdf5: no such file"),
        ("train char-shakespeare --data.corpus text", "the corpus text is files of your own"),
        ("train char-shakespeare --data.corpus text --data.folder none", "folder of them, got "),
        ("train char-shakespeare --data.corpus text --data.folder empty", "expected text, in fil"),
        ("train char-shakespeare --data.tokenizer-file none.json", "none.json: no such file"),
        ("compare japanese-vowels --mixers flow,flwo", "unknown mixer 'flwo': did you mean flow?"),
        ("compare time-series --data.train-file none.ts", "none.ts: no such file"),
        ("compare char-shakespeare --mixers linformer", "linformer has no causal form, which char"),
        ("compare japanese-vowels --mixers flow,flow", "each once, got flow, flow"),
        ("compare japanese-vowels --methods rockt", "unknown method 'rockt': expected one of dtw"),
        ("compare japanese-vowels --mixers dtw", "dtw is no mixer but another method: give it to"),
        (
            "compare japanese-vowels --mixer-options flow.clamp=abc",
            "flow.clamp must be of type float, got 'abc'",
        ),
        (
            "compare japanese-vowels --mixers performer --mixer-options performer.features=8",
            "'performer' has no option features; did you mean num_features? it takes bias, ",
        ),
        (
            "compare japanese-vowels --mixers flow --mixer-options linear.eps=1",
            "linear.eps=1: linear is not compared here, flow are",
        ),
        ("compare japanese-vowels --mixer-options clamp=1", "expected NAME.OPTION=VALUE, got"),
        ("compare japanese-vowels --memory-limit much", "a size such as 512M or 8G, got 'much'"),
        ("compare japanese-vowels --cluster slrum", "ray, slurm or local, got 'slrum'"),
        ("compare japanese-vowels --gpus 1", "are for runs on a --cluster"),
        ("compare japanese-vowels char-shakespeare", "expected experiments that are measured alik"),
        ("compare japanese-vowels --output taken", "a comparison, and taken has "),
        (
            "compare time-series --data.train-file taken/rows.csv --data.id machine --methods dtw",
            "dtw needs series to test on: give --data.test-fraction 0.2, or --data.test-file",
        ),
        ("evaluate none", "none holds no run"),
        ("predict none none.ts", "none holds no run"),
        ("visualize none", "none holds no run"),
        ("generate none hello", "none holds no run"),
        ("rollout none", "none holds no run"),
        ("evaluate RUNS/series-stopped", "series-stopped has no weights.safetensors: it has not e"),
        ("evaluate RUNS/series --file taken/thesis.txt", "a file that ends in .ts, .npz, .csv, "),
        ("predict RUNS/series taken/thesis.txt", "a file that ends in .ts, .npz, .csv, "),
        (
            "predict RUNS/series taken/rows.csv",
            "taken/rows.csv: expected a column that says which series a row belongs to (--data.id",
        ),
        ("predict RUNS/series taken/rows.csv --output taken/rows.csv", "rows.csv would be lost"),
        (
            "visualize RUNS/series-stopped",
            "series-stopped has no weights.safetensors: it has not e",
        ),
        ("generate RUNS/series hello", "holds a run on series, and one on language is needed"),
        ("generate RUNS/language hello --max-new-tokens 0", "max_new_tokens must be at least 1, g"),
        ("rollout RUNS/language", "holds a run on language, and one on trajectories is needed"),
        ("rollout RUNS/trajectories --episodes 0", "episodes must be at least 1, got 0"),
        ("rollout RUNS/trajectories --video film.avi", "expected a file with .gif or .mp4, got "),
        ("linearize model --text taken/rows.csv --mixer flwo", "did you mean flow?"),
        ("linearize model --text taken/rows.csv --mixer mobile", "mobile has no causal form, whi"),
        (
            'linearize model --text taken/rows.csv --options {"nrm":1}',
            "'flow-gated' has no option nrm; did you mean norm?",
        ),
        ("check-mixer flwo", "unknown mixer 'flwo': did you mean flow?"),
        ('check-mixer flow --options {"clamp":[1]}', "flow.clamp must be of type float, got [1]"),
        ("check-mixer flow --longest 3", "longest must be at least 500, got 3"),
        ("data prepare nosuch", "unknown text or data set 'nosuch'"),
        ("data show nosuch", "unknown text or data set 'nosuch'"),
        ("data show recall --length 3", "needs a length of at least 24, got 3"),
        ("data show listops --count 0", "count must be at least 1, got 0"),
        ("data collect nosuch", "gymnasium has no environment 'nosuch'"),
        ("info --jsn", "unrecognized arguments: --jsn"),
        ("recipes all", "unrecognized arguments: all"),
    ],
)
def test_a_mistake_is_told_before_what_trains_is_imported(
    tmp_path: Path, command: str, message: str
):
    (tmp_path / "taken").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken" / "thesis.txt").touch()
    (tmp_path / "taken" / "rows.csv").write_text("machine,time,vib,state\n1,0,0.5,up\n")
    (tmp_path / "taken" / "plain.csv").write_text("machine,stamp\n1,0\n")
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", CALL, *command.replace("RUNS", str(RUNS)).split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert message in done.stderr
    assert done.stdout.split() == ["2"]
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_known_of_mixers_early_is_so() -> None:
    ours = {
        name: mixer for name, mixer in MIXERS.items() if mixer.__module__.startswith("flowformer.")
    }
    assert list(KNOWN_MIXERS) == list(ours)
    layer = [
        name
        for name, each in signature(ProjectedMixer).parameters.items()
        if each.kind is each.KEYWORD_ONLY
    ]
    assert sorted(LAYER) == sorted(layer)
    for name, mixer in ours.items():
        known = KNOWN_MIXERS[name]
        forms = [form for form in get_args(Form) if getattr(mixer.capabilities, form)]
        assert (name, list(known.forms)) == (name, forms)
        assert (name, sorted(known.options)) == (name, sorted(option_names(mixer.kind)))


def test_what_is_known_of_options_early_takes_the_defaults_and_what_is_annotated() -> None:
    for name, known in KNOWN_MIXERS.items():
        kind = MIXERS[name].kind
        check_mixer_options(name, option_defaults(kind))
        for option, type_ in known.options.items():
            annotated = signature(kind).parameters[option].annotation
            if annotated is Parameter.empty:  # spelled out of keywords, which the options declare
                annotated = get_type_hints(GatedKeywords)[option]
            assert (option, _alternatives(type_)) == (option, _alternatives(annotated)), name


def _alternatives(hint: Any) -> set[Any]:
    """`float | None` and `Literal` as a set, however written; a sequence as a tuple."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return set().union(*map(_alternatives, inner))
    if origin is Literal:
        return set(inner)
    if origin in (tuple, Sequence):
        return {("sequence", frozenset(_alternatives(inner[0])))}
    return {hint}


def test_options_of_a_mixer_of_ones_own_are_checked_when_it_is_built() -> None:
    check_mixer_options("mine", {"anything": 1})
