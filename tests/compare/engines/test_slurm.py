"""The engine of a Slurm cluster: submitit, on this machine or with Slurm's commands played."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from flowformer.compare.engines.cluster import Cluster
from flowformer.compare.engines.slurm import JOBS, SlurmArray, _reason
from flowformer.compare.execution import execute
from flowformer.compare.plan import count_epochs
from tests.compare.engines.same import written

pytest.importorskip("submitit")  # of dev, and of the extra cluster

# What a job of four tasks has set around whoever starts a comparison in it.
JOB = {"JOB_ID": "7", "NTASKS": "4", "PROCID": "1", "STEP_ID": "0", "STEP_NUM_TASKS": "4"}
JOB |= {"JOB_NUM_NODES": "2", "LOCALID": "1", "NODEID": "1", "JOB_NODELIST": "node[1-2]"}


def test_jobs_of_submitit_leave_what_workers_do_also_in_the_environment_of_a_job(
    real_plan, monkeypatch
):
    ours = real_plan("ours", ["flow", "linear"])
    execute(ours)
    for name, value in JOB.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    theirs = real_plan("theirs", ["flow", "linear"])
    execute(theirs, jobs=2, cluster=Cluster(address="local"))
    assert written(theirs) == written(ours)


def test_an_array_is_queued_and_a_run_whose_time_is_over_goes_on_from_its_last_epoch(
    real_plan, slurm
):
    plan = real_plan("queued", ["flow", "linear"], epochs=150)
    flow = plan.runs[0]

    def end_the_time() -> None:
        until = time.monotonic() + 120
        while count_epochs(flow.folder.root) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(process_of(1000), signal.SIGUSR2)

    threading.Thread(target=end_the_time, daemon=True).start()
    options = {"slurm_partition": "short", "timeout_min": 7}
    cluster = Cluster(address="slurm", cpus=3, gpus=2, options=options)
    execute(plan, jobs=2, memory_limit=2**31, cluster=cluster)
    assert [run.say_result() for run in plan.runs]
    script = (slurm / "script").read_text()
    for line in ("array=0-1%2", "partition=short", "time=7", "cpus-per-task=3", "gpus-per-node=2"):
        assert f"#SBATCH --{line}\n" in script
    assert "#SBATCH --mem=2" in script
    asked = (slurm / "log").read_text()
    assert "scontrol requeue 1000_0\n" in asked
    assert "scancel" not in asked
    log = flow.log.read_text()
    assert log.count(" parameters, folder ") == 2
    assert log.count("epoch 1/150") == 1
    assert "epoch 150/150" in log


def process_of(job: int) -> int:
    """Return the process of submitit that does a job."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            environment = (entry / "environ").read_bytes()
        except OSError:
            continue
        if b"submitit.core._submit" in command and b"SLURM_JOB_ID=%d\0" % job in environment:
            return int(entry.name)
    raise AssertionError(f"nothing does job {job}")


def test_what_a_killed_comparison_has_left_in_the_queue_is_taken_out(tmp_path, slurm):
    jobs = tmp_path / "comparison" / JOBS
    jobs.mkdir(parents=True)
    (jobs / "queued.txt").write_text("1000_0\n1000_1")
    left = [subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(2)]
    for number, process in enumerate(left):
        (slurm / f"job-{number}").write_text(str(process.pid))
    SlurmArray(Cluster(address="slurm"), jobs.parent, at_once=None, memory_limit=None)
    assert (slurm / "log").read_text() == "scancel 1000_0\nscancel 1000_1\n"
    assert [process.wait() for process in left] == [-signal.SIGKILL] * 2


def test_what_is_stopped_leaves_the_queue(real_plan, slurm):
    plan = real_plan("stopped", ["flow", "linear"], epochs=100_000)

    def stop(text: str) -> None:
        if text and any(count_epochs(run.folder.root) for run in plan.runs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(plan, cluster=Cluster(address="slurm"), show=stop)
    assert "scancel 1000_0\nscancel 1000_1\n" in (slurm / "log").read_text()
    for job in (1000, 1001):
        with pytest.raises(AssertionError, match="nothing does job"):
            process_of(job)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "Job 1_0 (task: 0) with path /x\nhas not produced any output (state: NODE FAIL)\n---",
            "its job has ended without a result: NODE FAIL",
        ),
        (
            "Job (task=0) failed during processing with trace:\n----------\nTraceback:\n  x\n"
            "FileNotFoundError: no folder\n\n----------\nYou can check full logs with",
            "FileNotFoundError: no folder",
        ),
        ("", "RuntimeError"),
    ],
    ids=["no result", "its error", "nothing"],
)
def test_the_reason_of_a_job_without_a_result_is_a_line(text, reason):
    assert _reason(RuntimeError(text)) == reason


def test_options_that_submitit_has_not_and_a_machine_without_slurm_are_told(
    tmp_path, slurm, monkeypatch
):
    how = {"at_once": None, "memory_limit": None}
    with pytest.raises(ValueError, match=r"submitit: .*slurm_partitions"):
        Cluster(address="slurm", options={"slurm_partitions": "x"}).open(tmp_path, **how)
    assert subprocess.run(["sacct"], check=True).returncode == 0
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match='submitit: Could not detect "srun"'):
        Cluster(address="slurm").open(tmp_path, **how)
    assert slurm.exists()
