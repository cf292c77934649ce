"""A mistake that can be seen at once is told before torch and what trains are imported."""

import subprocess
import sys
from pathlib import Path

import pytest

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
        ("train japanese-vowels --run-dir taken", "taken is not empty: choose another folder"),
        ("train time-series", "no series to train on"),
        ("train time-series --data.train-file none.ts", "none.ts: no such file"),
        (
            "train time-series --data.train-file taken/thesis.txt",
            "expected a file with .ts, .npz, ",
        ),
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
        ("train listops --data.folder none", "none: no such file"),
        ("train hopper-medium --data.path none.hdf5", "none.hdf5: no such file"),
        ("train char-shakespeare --data.corpus text", "the corpus text is files of your own"),
        ("train char-shakespeare --data.corpus text --data.folder none", "folder of them, got "),
        ("train char-shakespeare --data.tokenizer-file none.json", "none.json: no such file"),
        ("compare japanese-vowels --mixers flow,flwo", "unknown mixer 'flwo': did you mean flow?"),
        ("compare time-series --data.train-file none.ts", "none.ts: no such file"),
        ("evaluate none", "none holds no run"),
        ("predict none none.ts", "none holds no run"),
        ("visualize none", "none holds no run"),
        ("generate none hello", "none holds no run"),
        ("rollout none", "none holds no run"),
    ],
)
def test_a_mistake_is_told_before_what_trains_is_imported(
    tmp_path: Path, command: str, message: str
):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").touch()
    (tmp_path / "taken" / "rows.csv").write_text("machine,time,vib,state\n1,0,0.5,up\n")
    (tmp_path / "taken" / "plain.csv").write_text("machine,stamp\n1,0\n")
    done = subprocess.run(
        [sys.executable, "-c", CALL, *command.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert message in done.stderr
    assert done.stdout.split() == ["2"]
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_every_mixer_of_ours_is_known_early() -> None:
    from flowformer.names import MIXER_NAMES
    from flowformer.nn import MIXERS

    ours = [name for name, mixer in MIXERS.items() if mixer.__module__.startswith("flowformer.")]
    assert sorted(MIXER_NAMES) == sorted(ours)
