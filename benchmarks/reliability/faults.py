"""What does a run come to that is killed, loses a process, a disk or a number? `make faults`.

    python -m benchmarks faults [GROUP ...]

Groups: killed (one process, 20 times), killed-ddp and killed-fsdp (two processes, 10 times each),
lost (a process dies, hangs, or loses its network), disk, checkpoint, memory, clock, nan. The result
has an entry a group, and a table of all is printed. Linux alone; a full disk, a read-only one,
another user and a network that goes need root, and are left out else.
"""

import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.pages import Tables
from benchmarks.parallel.hosts import hosts
from benchmarks.reliability.fault_places import (
    ROOT,
    be_nobody,
    join_host,
    mount_again,
    mounted,
    plug,
    unplug,
)
from benchmarks.reliability.fault_runs import (
    MODEL,
    Ended,
    Moment,
    Run,
    after_epoch,
    at_rename,
    at_step,
    at_write,
    digest,
    outcome,
    small_run,
    with_training,
)
from benchmarks.runner import Result, machine, one_of, read, share

SEED = 0
KILLED = {
    "killed": "one process",
    "killed-ddp": "two processes, DDP",
    "killed-fsdp": "two processes, FSDP2",
}

Row = dict[str, Any]


def killed(base: Path, *, processes: int, strategy: str, times: int) -> list[Row]:
    """Kill runs at injected moments and at random ones; each goes on by the same command.

    Where a run has ended before its random moment, another one meets another moment.
    """
    settings = {"processes": processes, "strategy": strategy}
    reference = base / "whole"
    config = small_run(reference / "data", **settings)
    (first, *_) = Run(config, reference / "run").wait()
    require(first.code == 0, first.said)
    expected = outcome(reference / "run"), digest(reference / "data" / "tokens")
    draw = random.Random(SEED)
    injected = _moments(processes, strategy)
    rows = []
    while (number := len(rows)) < times:
        folder = base / f"{number}"
        config = small_run(folder / "data", **settings)
        name, moment = injected[number] if number < len(injected) else ("at random", None)
        run = Run(config, folder / "run", moment=moment)
        if moment is None:
            delay = draw.uniform(0.02, first.seconds)
            name = f"at random, after {delay:.2f} s"
            time.sleep(delay)
            of = draw.randrange(processes)
            os.kill(run.pids[of], signal.SIGKILL)
        ended = run.wait()
        others = [each for each in ended if each.code != -signal.SIGKILL]
        if len(others) == len(ended):
            require(moment is None and not ended[0].code, f"{name}: not killed\n{ended[0].said}")
            shutil.rmtree(folder)
            continue
        again = Run(config, folder / "run", resume=True).wait()
        require(all(each.code == 0 for each in again), again[0].said)
        got = outcome(folder / "run"), digest(folder / "data" / "tokens")
        rows.append(
            {
                "fault": f"killed: {name}",
                "killed": len(ended) - len(others),
                "others": [each.code for each in others],
                "seconds": max(each.seconds for each in ended),
                "same": got == expected,
                "left": unfinished(folder),
            }
        )
        shutil.rmtree(folder)
    return rows


def _moments(processes: int, strategy: str) -> list[tuple[str, Moment]]:
    """Return the moments at which a run is killed, with what they are called."""
    every = [
        ("half of the first checkpoint", at_write(".last.ckpt")),
        ("half of a later checkpoint", at_write(".last.ckpt", 3)),
        ("half of the best parameters", at_write(".best.ckpt", 2)),
        (
            "the last checkpoint moved aside, the new one not in its place",
            at_rename("previous.ckpt"),
        ),
        ("between two epochs", after_epoch(2)),
        ("before the test", after_epoch(4)),
    ]
    if processes == 1:
        return [
            ("half of a shard of the text", at_write("/tokens/")),
            ("half of a later file of the text", at_write("/tokens/", 4)),
            *every,
            ("a step", at_step(5)),
            ("half of the final weights", at_write(".weights.safetensors")),
        ]
    if strategy == "fsdp":
        return [
            ("half of a shard, in the first process", at_write("shard-")),
            ("half of a shard, in the second process", at_write("shard-", 4, of=1)),
            *every[3:5],
            ("a step, in the second process", at_step(8, of=1)),
        ]
    return [*every[:1], *every[3:5], ("a step, in the second process", at_step(8, of=1))]


def lost(base: Path) -> list[Row]:
    """Let a process of two die, stop, or lose its network: the other names it, and goes on."""
    rows = []
    cases: dict[str, Moment] = {
        "a process is killed": at_step(5, of=1),
        "a process is stopped": at_step(5, of=1, what=signal.SIGSTOP),
        "the first process is stopped": at_step(5, of=0, what=signal.SIGSTOP),
    }
    for name, moment in cases.items():
        folder = base / name.replace(" ", "-")
        rows.append(_lose(folder, name, moment))
    if ROOT and shutil.which("ip"):
        with hosts(2):
            rows.append(_lose(base / "network", "a process loses its network", unplug, join_host))
    return rows


def _lose(folder: Path, name: str, fault: Moment, place: Moment = lambda _: None) -> Row:
    config = small_run(folder / "data", processes=2, timeout=5.0)
    expected = _whole(folder / "whole", config, place)

    def moment(number: int) -> None:
        place(number)
        fault(number)

    run = Run(config, folder / "run", moment=moment)
    ended = run.wait()
    if fault is unplug:
        plug()
    again = Run(config, folder / "run", resume=True, moment=place).wait()
    require(all(each.code == 0 for each in again), again[0].said)
    said = [line for each in ended for line in each.said.splitlines() if "error: Process" in line]
    return {
        "fault": name,
        "timeout": config.training.timeout,
        "seconds": min(each.seconds for each in ended if each.code != -signal.SIGKILL),
        "said": said[0] if said else "",
        "same": outcome(folder / "run") == expected,
    }


def _whole(folder: Path, config: Any, place: Moment = lambda _: None) -> dict[str, Any]:
    ended = Run(config, folder, moment=place).wait()
    require(all(each.code == 0 for each in ended), ended[0].said)
    return outcome(folder)


def disk(base: Path) -> list[Row]:
    """Use a disk that is full, one that is read-only, and a folder of somebody else."""
    rows = []
    expected = _whole(base / "whole" / "run", small_run(base / "whole" / "data"))
    if not ROOT:
        return rows
    full = base / "full"
    with mounted(full, "size=128k"):
        config = small_run(base / "data")
        (ended,) = Run(config, full / "run", command=_command(config, full / "run")).wait()
        mount_again(full, "remount,size=64m")
        again_by = _command(config, full / "run", "--resume")
        (again,) = Run(config, full / "run", command=again_by).wait()
        require(again.code == 0, again.said)
        same = outcome(full / "run") == expected
        rows.append(_told("the disk is full", ended, same=same))
        mount_again(full, "remount,ro")
        command = _command(config, full / "new")
        (ended,) = Run(config, base / "read-only", command=command).wait()
        rows.append(_told("the disk is read-only", ended))
        mount_again(full, "remount,rw")
    with mounted(small := base / "small", "size=128k"):
        config = small_run(base / "data", processes=2, strategy="fsdp")
        several = ("--training.devices", "2", "--training.strategy", "fsdp")
        command = _command(config, small / "run", *several)
        (ended, _) = Run(config, base / "shards", command=command).wait()
        rows.append(_told("the disk is full, two processes under FSDP2", ended))
    own = base / "own"
    own.mkdir(mode=0o700)
    config = small_run(base / "data")
    command = _command(config, own / "run")
    (ended,) = Run(config, base / "foreign", command=command, moment=be_nobody).wait()
    rows.append(_told("the folder is another user's", ended))
    return rows


def checkpoint(base: Path) -> list[Row]:
    """Cut the last checkpoint short, take an older one, or damage both."""
    config = small_run(base / "data")
    expected = _whole(base / "whole", config)
    rows = []

    def cut_last(run: Path) -> None:
        last = run / "checkpoints" / "last.ckpt"
        last.write_bytes(last.read_bytes()[:-100])

    def cut_both(run: Path) -> None:
        cut_last(run)
        previous = run / "checkpoints" / "previous.ckpt"
        previous.write_bytes(b"")

    def take_older(run: Path) -> None:
        shutil.copy(run / "checkpoints" / "previous.ckpt", run / "checkpoints" / "last.ckpt")

    cases: dict[str, Callable[[Path], None]] = {
        "the last checkpoint is cut short": cut_last,
        "the last checkpoint is an older one": take_older,
        "both checkpoints are damaged": cut_both,
    }
    for name, damage in cases.items():
        run = base / name.replace(" ", "-")
        Run(config, run, moment=after_epoch(3)).wait()
        damage(run)
        (ended,) = Run(config, run, command=_command(config, run, "--resume")).wait()
        goes_on = {} if damage is cut_both else {"same": outcome(run) == expected}
        rows.append(_told(name, ended, **goes_on))
    return rows


def memory(base: Path) -> list[Row]:
    """Train on a batch that does not fit: the error says what is to be lowered."""
    config = small_run(base / "data")
    config = replace(config, data=replace(config.data, batch_size=2_000_000, length=24))

    def limit(_: int) -> None:
        from flowformer.memory import limit_memory, resident_memory

        limit_memory((resident_memory() or 0) + 2**28)

    (ended,) = Run(
        config, base / "run", command=_command(config, base / "run"), moment=limit
    ).wait()
    return [_told("memory is short", ended)]


def clock(base: Path) -> list[Row]:
    """Let the clock of the machine jump by days, to and fro."""
    config = small_run(base / "data")
    expected = _whole(base / "whole", config)

    def jump(_: int) -> None:
        draw, real = random.Random(SEED), time.time
        time.time = lambda: real() + draw.choice((-1, 1)) * draw.uniform(0, 5 * 86_400)

    (ended,) = Run(config, base / "run", moment=jump).wait()
    return [_told("the clock jumps", ended, same=outcome(base / "run") == expected)]


def nan(base: Path) -> list[Row]:
    """Make a loss NaN: it ends the run and its batch is kept, or is left out and counted."""
    from flowformer.models.language.model import LanguageModel

    def spoil(_: int) -> None:
        calls, original = [], LanguageModel.forward

        def counting(*arguments: Any, **options: Any) -> Any:
            result = original(*arguments, **options)
            if arguments[0].training:
                calls.append(result)
                if len(calls) == 5 and result.loss is not None:
                    return result._replace(loss=result.loss * float("nan"))
            return result

        LanguageModel.forward = counting  # pyright: ignore[reportAttributeAccessIssue]

    rows = []
    for processes in (1, 2):
        config = small_run(base / "data", processes=processes)
        run = base / f"ends-{processes}"
        ended = Run(config, run, moment=spoil).wait()[0]
        kept = (run / "nan_batch.safetensors").exists()
        rows.append(
            {**_told(f"the loss is NaN, {processes} process(es)", ended), "batch kept": kept}
        )
        config = with_training(config, skip_nan=1)
        run = base / f"skips-{processes}"
        ended = Run(config, run, moment=spoil).wait()[0]
        lines = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
        skipped = sum(int(row[lines[0].index("skipped")]) for row in lines[1:])
        rows.append({**_told("the same, with skip_nan 1", ended), "skipped": skipped})
    return rows


def _command(config: Any, run: Path, *more: str) -> list[str]:
    """Return the command line of the same run."""
    settings = {
        "data.corpus": "text",
        "data.folder": config.data.folder,
        "data.tokenizer": "char",
        "data.length": config.data.length,
        "data.batch-size": config.data.batch_size,
        "data.cache": config.data.cache,
        **{f"model.{name.replace('_', '-')}": value for name, value in MODEL.items()},
        "optimizer.learning-rate": config.optimizer.learning_rate,
        "optimizer.warmup": config.optimizer.warmup,
        "training.steps": config.training.steps,
        "training.evaluate-every": config.training.evaluate_every,
        "training.accelerator": "cpu",
        "training.threads": 1,
        "training.progress": "none",
    }
    flags = [str(part) for name, value in settings.items() for part in (f"--{name}", value)]
    return ["train", "char-shakespeare", "--run-dir", str(run), *flags, *more]


def _told(name: str, ended: Ended, **more: Any) -> Row:
    telling = ("error:", "going on from", "is no checkpoint", "is left out", "at fault")
    lines = [line for line in ended.said.splitlines() if any(word in line for word in telling)]
    said = re.sub(r"\S*/faults-[^/]+/", "…/", "; ".join(lines))  # whatever the folder is called
    return {"fault": name, "code": ended.code, "said": said, **more}


def unfinished(folder: Path) -> list[str]:
    """Return what was left half written."""
    return [str(path.relative_to(folder)) for path in folder.rglob(".*.unfinished")]


def require(holds: bool, message: str) -> None:
    """End the whole with a message, unless something holds."""
    if not holds:
        raise SystemExit(f"a run that met no fault failed:\n{message}")


GROUPS: dict[str, Callable[[Path], list[Row]]] = {
    "killed": lambda base: killed(base, processes=1, strategy="ddp", times=20),
    "killed-ddp": lambda base: killed(base, processes=2, strategy="ddp", times=10),
    "killed-fsdp": lambda base: killed(base, processes=2, strategy="fsdp", times=10),
    "lost": lost,
    "disk": disk,
    "checkpoint": checkpoint,
    "memory": memory,
    "clock": clock,
    "nan": nan,
}


def options(parser: ArgumentParser) -> None:
    """Add the options."""
    share(parser, "faults")
    group = one_of("group", GROUPS)
    parser.add_argument("groups", nargs="*", type=group, default=list(GROUPS), metavar="GROUP")


def execute(arguments: Namespace) -> int:
    """Meet the faults of the groups, write the results and print all that there are."""
    file: Path = arguments.output
    results: Result = {}
    for name in arguments.groups:
        start = time.monotonic()
        base = Path(tempfile.mkdtemp(prefix=f"faults-{name}-"))
        try:
            rows = GROUPS[name](base)
        finally:
            shutil.rmtree(base, ignore_errors=True)
        results = read(file.stem, file.parent) or {}
        results[name] = {
            "machine": machine(),
            "seconds": round(time.monotonic() - start, 1),
            "rows": rows,
        }
        file.write_text(json.dumps(results, indent=1) + "\n")
    sys.stdout.write(table(results))
    return 0 if all(holds(row) for group in results.values() for row in group["rows"]) else 1


def holds(row: Row) -> bool:
    """Return whether what has to hold after a fault does."""
    return row.get("same", True) and not row.get("left") and row.get("batch kept", True)


def table(results: Result) -> str:
    """Return a line for each fault."""
    lines = []
    for name, group in results.items():
        lines.append(f"{name} ({group['seconds']:.0f} s)")
        for row in group["rows"]:
            rest = {key: row[key] for key in row if key not in ("fault", "left", "said")}
            text = ", ".join(f"{key} {_show(value)}" for key, value in rest.items())
            lines.append(f"  {'ok ' if holds(row) else 'BAD'} {row['fault']}: {text}")
            if row.get("said"):
                lines.append(f"        {row['said']}")
    return "\n".join(lines) + "\n"


def _show(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def killed_table(results: Result) -> str:
    """Return a row for each kind of run that was killed."""
    lines = ["| run | killed | of these ended the same | left half written |", "|---|---|---|---|"]
    for name, what in KILLED.items():
        if name not in results:
            lines.append(f"| {what} | not run | – | – |")
            continue
        rows = [row for row in results[name]["rows"] if row["killed"]]
        same = sum(row["same"] for row in rows)
        left = sum(len(row["left"]) for row in rows)
        lines.append(f"| {what} | {len(rows)} | {same} | {left} |")
    return "\n".join(lines)


def others_table(results: Result) -> str:
    """Return a row for each other fault: what the run said and came to."""
    lines = ["| fault | exit code | what it says | gone on with |", "|---|---|---|---|"]
    for name, group in results.items():
        for row in [] if name in KILLED else group["rows"]:
            code = row.get("code", f"{row.get('seconds', 0):.0f} s after its start")
            said = row["said"].replace("error: ", "").replace("|", "\\|")
            after = {True: "the same end", False: "**another end**"}.get(row.get("same"), "–")
            lines.append(f"| {row['fault']} | {code} | {said} | {after} |")
    return "\n".join(lines)


TABLES: Tables = {"faults-killed": killed_table, "faults-others": others_table}
