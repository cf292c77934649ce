"""What a cluster is asked for, and what a machine of it is told."""

import sys
import threading

import pytest

from flowformer.compare.engines import cluster
from flowformer.compare.engines.cluster import Cluster, do
from flowformer.compare.engines.engine import Task
from flowformer.config_json import to_plain
from flowformer.files import write_atomically


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"address": "slrum"}, "must be ray://HOST:PORT, ray, slurm or local, got 'slrum'"),
        ({"address": "slurm", "cpus": 0}, "cpus must be at least 1, got 0"),
        ({"address": "ray", "gpus": -1}, "gpus must be at least 0, got -1"),
    ],
    ids=["kind", "cpus", "gpus"],
)
def test_a_cluster_that_cannot_be_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Cluster(**values)


def test_a_run_is_told_where_data_are_and_its_threads_and_no_secret(monkeypatch):
    monkeypatch.setenv("AEON_DATA", "/shared/aeon")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    told = Cluster(address="ray", cpus=3).environment
    assert told["AEON_DATA"] == "/shared/aeon"
    assert told["OMP_NUM_THREADS"] == "3"
    assert "HF_TOKEN" not in told
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert Cluster(address="ray", cpus=3).environment["OMP_NUM_THREADS"] == "1"


def test_a_machine_that_does_not_see_the_folder_says_so(real_plan, monkeypatch):
    monkeypatch.setattr(cluster, "SEEN_SECONDS", 0.0)
    task = Task.of(real_plan("unseen", ["flow"]).runs[0], None)
    with pytest.raises(FileNotFoundError, match="must be one that all its machines share"):
        do(to_plain(task), {})


def test_what_another_machine_writes_is_waited_for(tmp_path):
    file = tmp_path / "folder" / "file"
    threading.Timer(0.3, lambda: write_atomically(file, "")).start()
    assert cluster.appears(file)


@pytest.mark.parametrize(
    ("address", "library"), [("ray://head:10001", "ray"), ("slurm", "submitit")]
)
def test_a_library_that_is_missing_is_named_with_its_extra(tmp_path, monkeypatch, address, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"^{library}.* is needed .*flowformer\[cluster\]"):
        Cluster(address=address).open(tmp_path, at_once=None, memory_limit=None)
