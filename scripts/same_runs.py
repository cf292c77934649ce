"""Train one tiny run of each kind of experiment, and compare two folders of such runs.

`same_runs.py make DIR [--python-path SRC]` writes small data into DIR/data, trains a run on each by
the command line alone, and uses it; `same_runs.py compare DIR_A DIR_B` says which files of two such
folders are the same, byte by byte, and exits with 1 where one is not. Left out of the comparison is
what differs between any two runs: seconds and speeds. Checkpoints to go on from and the files of
TensorBoard hold seconds too: of them it is compared whether they are there. The path of the folder
in which the runs were made (kept in where.txt) reads as ROOT in every file.
"""

import argparse
import csv
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

STEPS = ["--training.steps", "4", "--training.evaluate-every", "2", "--optimizer.warmup", "1"]
EPOCHS = ["--training.epochs", "2"]
COMPUTE = ["--training.accelerator", "cpu", "--training.threads", "1", "--training.progress"]
MODEL = ["--model.dim", "8", "--model.num-heads", "2", "--model.num-layers", "1"]
SMALL = [*MODEL, "--model.feedforward", "16"]
SERIES = ["--data.train-file", "data/waves_TRAIN.ts", "--data.test-file", "data/waves_TEST.ts"]
TEXT = ["--data.corpus", "text", "--data.folder", "data/rhyme.txt", "--data.length", "16"]
LISTOPS = ["--data.min-length", "4", "--data.max-length", "16", "--data.max-depth", "3"]
CASES = ["--data.sizes", "40", "16", "24", "--data.workers", "1", "--data.batch-size", "8"]
IMAGES = ["--data.path", "data/images", "--data.image-size", "16", "--data.batch-size", "4"]
STAGES = ["--model.patch-size", "8", "--model.dims", "8", "--model.depths", "1"]
HEADS = ["--model.num-heads", "2", "--optimizer.reference-batch", "4"]
AVERAGED = ["--optimizer.warmup-epochs", "0.5", "--training.average", "0.9"]
EPISODES = ["--data.path", "data/swings.hdf5", "--data.batch-size", "4", "--model.context", "4"]
PLAYED = ["--evaluation.episodes", "2", "--evaluation.validation-episodes", "1"]
ASKED = ["--evaluation.targets=-60", "--data.return-scale", "10", "--model.max-timestep", "12"]

RUNS = {  # of each kind: the recipe, and its options
    "series": ["time-series", *SERIES, *SMALL, *EPOCHS, "--data.batch-size", "8"],
    "language": ["char-shakespeare", *TEXT, *SMALL, *STEPS, "--model.max-length", "16"],
    "sequences": ["listops-small", *LISTOPS, *CASES, *SMALL, *STEPS],
    "images": ["image-folder", *IMAGES, *STAGES, *HEADS, *AVERAGED, *EPOCHS],
    "trajectories": ["decision", *EPISODES, *PLAYED, *ASKED, *MODEL, *STEPS],
}
COMMANDS = {  # what is then done with it, RUN being its folder
    "series": ["evaluate RUN --json", "predict RUN data/waves_TEST.ts"],
    "language": [
        "evaluate RUN --json",
        "generate RUN one --max-new-tokens 20",
        "generate RUN two --max-new-tokens 20 --sample --seed 1 --top-k 5",
    ],
    "sequences": ["evaluate RUN", "predict RUN data/expressions.txt"],
    "images": [
        "evaluate RUN --json",
        "predict RUN data/images/test/red/0.png data/images/test/blue/0.png",
    ],
    "trajectories": ["evaluate RUN", "rollout RUN --json --episodes 1 --form streaming"],
}
NAMES_ONLY = re.compile(r"last.ckpt|previous.ckpt|tfevents")  # they hold seconds in binary
TIMES = re.compile(  # of what the commands print, and of the reports
    r"[\d,.]+ (s in all|tokens a second)|trained in [\d.]+ \w+|Tokens a second<b>[\d,.]+"
)


def make(root: Path, python_path: Path | None) -> None:
    """Write the data, train the runs, and keep what the commands print."""
    (root / "outputs").mkdir(parents=True)
    (root / "where.txt").write_text(str(root))
    write_data(root / "data")
    environment = os.environ | {"FLOWFORMER_DATA": str(root / "cache"), "OMP_NUM_THREADS": "1"}
    if python_path is not None:
        environment["PYTHONPATH"] = str(python_path.resolve())
    for kind, options in RUNS.items():
        started, run, texts = time.perf_counter(), f"runs/{kind}", []
        commands = [["train", *options, *COMPUTE, "none", "--run-dir", run]]
        commands += [command.replace("RUN", run).split() for command in COMMANDS[kind]]
        for command in commands:
            whole = [sys.executable, "-m", "flowformer", *command]
            done = subprocess.run(whole, cwd=root, env=environment, capture_output=True, text=True)
            texts.append(f"$ {' '.join(command)}\n{done.stdout}\nsaid beside: {done.stderr}\n")
            if done.returncode:
                sys.exit(f"{texts[-1]}it ended with code {done.returncode}")
        (root / "outputs" / f"{kind}.txt").write_text("".join(texts))
        print(f"{kind}: {len(commands)} commands, {time.perf_counter() - started:.0f} s")
    print(f"made {root}")


def write_data(folder: Path) -> None:
    """Write what the five runs read, the same whenever it is called."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("TRAIN", 24), ("TEST", 12)):
        lines = ["@problemName waves", "@univariate false", "@dimensions 2"]
        lines += ["@classLabel true slow fast", "@data"]
        for number in range(count):
            label, speed = (("slow", 0.4), ("fast", 1.3))[number % 2]
            times = np.arange(rng.integers(5, 10))
            wave = np.sin(times * speed) + rng.normal(0, 0.2, (2, len(times)))
            lines.append(":".join([*(",".join(f"{v:.3f}" for v in row) for row in wave), label]))
        (folder / f"waves_{part}.ts").write_text("\n".join(lines) + "\n")
    rhyme = "".join(f"{n} and {n + 1} make {2 * n + 1}, one two.\n" for n in range(120))
    (folder / "rhyme.txt").write_text(rhyme)
    expressions = ["[MAX 2 9 [MIN 4 7 ] 0 ]", "[SM 1 2 3 ]", "[MED 5 [MAX 1 8 ] 3 ]"]
    (folder / "expressions.txt").write_text("\n".join(expressions) + "\n")
    for part, count in (("train", 4), ("val", 2), ("test", 2)):
        for label, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
            (folder / "images" / part / label).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(colour, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
                image = folder / "images" / part / label / f"{number}.png"
                Image.fromarray(pixels).save(image)
    write_episodes(folder / "swings.hdf5", rng)


def write_episodes(path: Path, rng: np.random.Generator) -> None:
    """Write 6 episodes of 12 steps in D4RL's format, of the environment that it names."""
    angles = rng.uniform(-3, 3, 72)
    description = {
        "name": "swings-v0",
        "source": "drawn",
        "env": "Pendulum-v1",
        "env_options": {"max_episode_steps": 12},
        "action_space": {"shape": [1], "low": -2.0, "high": 2.0, "n": None},
        "references": [-100.0, 0.0],
    }
    with h5py.File(path, "w") as file:
        observations = [np.cos(angles), np.sin(angles), rng.normal(size=72)]
        file["observations"] = np.stack(observations, axis=1).astype(np.float32)
        file["actions"] = rng.uniform(-2, 2, (72, 1)).astype(np.float32)
        file["rewards"] = -np.square(angles).astype(np.float32)
        file["terminals"] = np.zeros(72, bool)
        file["timeouts"] = np.arange(72) % 12 == 11
        file["metadata/flowformer"] = np.bytes_(json.dumps(description))


def compare(first: Path, second: Path) -> int:
    """Say of every file whether it is the same; the code is 1 where one is not."""
    files = [files_of(root) for root in (first, second)]
    names, different = sorted(files[0].keys() | files[1].keys()), 0
    for name in names:
        state = "OTHER"
        if name not in files[0] or name not in files[1]:
            state = f"not in {second if name in files[0] else first}"
        elif said(files[0][name], first) == said(files[1][name], second):
            state = "there" if NAMES_ONLY.search(name) else "same"
        different += state not in ("same", "there")
        print(f"{state}  {name}")
    print(f"{len(names) - different} of {len(names)} files are the same")
    return 1 if different else 0


def files_of(root: Path) -> dict[str, Path]:
    """Return the files of a folder by name; the name of a log would hold the time it began."""
    return {
        re.sub(r"tfevents\..*", "tfevents", path.relative_to(root).as_posix()): path
        for path in root.rglob("*")
        if path.is_file() and "cache" not in path.relative_to(root).parts
    }


def said(path: Path, root: Path) -> bytes:
    """Return what a file says, but for the time that it took and where it lies."""
    if NAMES_ONLY.search(path.name):
        return b""
    text = path.read_bytes().decode("latin-1").replace((root / "where.txt").read_text(), "ROOT")
    if path.name == "result.json":
        figures = json.loads(text)
        kept = {key: figures[key] for key in figures if "second" not in key}
        text = json.dumps(kept, indent=2, sort_keys=True)  # the order of keys says nothing
    elif path.name == "metrics.csv":
        rows = list(csv.DictReader(io.StringIO(text)))
        text = repr([{key: row[key] for key in row if "second" not in key} for row in rows])
    elif path.suffix in (".txt", ".html"):
        text = TIMES.sub("TIME", text)
    return text.encode()


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="train one tiny run of each kind in a new folder")
    making.add_argument("folder", type=Path)
    making.add_argument("--python-path", type=Path, help="src of the flowformer to train with")
    comparing = commands.add_parser("compare", help="say whether two such folders are the same")
    comparing.add_argument("folders", type=Path, nargs=2)
    options = parser.parse_args()
    if options.command == "compare":
        return compare(*options.folders)
    make(options.folder.resolve(), options.python_path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
