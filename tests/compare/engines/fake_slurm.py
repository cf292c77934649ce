"""Slurm on this machine, as far as submitit asks it: sbatch, srun, scontrol, scancel, sacct.

Links of these names to this file are its commands. FAKE_SLURM names the folder of its state: a log
of what was asked for, and the processes of jobs.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(os.environ["FAKE_SLURM"])
ARRAY = 1000  # the number of the array


def main(name: str, arguments: list[str]) -> None:
    with (HERE / "log").open("a") as log:
        log.write(f"{shlex.join([name, *arguments])}\n")
    if name == "sbatch":
        script = Path(arguments[-1]).read_text()
        (HERE / "script").write_text(script)
        array = re.search(r"^#SBATCH --array=0-(\d+)", script, re.MULTILINE)
        assert array is not None, "one job alone is not played"
        for number in range(int(array[1]) + 1):
            start(number)
        sys.stdout.write(f"Submitted batch job {ARRAY}\n")
    elif name == "srun":
        at = arguments.index(sys.executable)
        os.execv(sys.executable, arguments[at:])
    elif name == "scancel":
        pid = int((HERE / f"job-{arguments[0].rpartition('_')[2]}").read_text())
        os.killpg(pid, signal.SIGKILL)
    elif name == "scontrol":  # requeue
        start(int(arguments[-1].rpartition("_")[2]), wait_for=os.getppid())


def start(number: int, *, wait_for: int | None = None) -> None:
    """Start a job of the array, once a process is gone."""
    own = {"JOB_ID": ARRAY + number, "ARRAY_JOB_ID": ARRAY, "ARRAY_TASK_ID": number, "PROCID": 0}
    own |= {"NTASKS": 1, "STEP_ID": 0, "STEP_NUM_TASKS": 1, "JOB_NUM_NODES": 1, "LOCALID": 0}
    environment = {f"SLURM_{name}": str(value) for name, value in own.items()}
    waiting = f"while kill -0 {wait_for} 2>/dev/null; do sleep 0.1; done; " if wait_for else ""
    process = subprocess.Popen(
        ["bash", "-c", f"{waiting}exec bash {shlex.quote(str(HERE / 'script'))}"],
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    (HERE / f"job-{number}").write_text(str(process.pid))


if __name__ == "__main__":
    main(Path(sys.argv[0]).name, sys.argv[1:])
