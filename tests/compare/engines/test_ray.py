"""The engine of a Ray cluster: two nodes on this machine, one of which is lost in the middle."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from flowformer.compare.engines.cluster import Cluster
from flowformer.compare.execution import execute
from flowformer.compare.plan import count_epochs
from tests.compare.engines.same import written

ray: Any = pytest.importorskip("ray")  # of the extra cluster: 240 MB, no part of dev

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of its files and of what it will change
]
EPOCHS = 200


def free_port() -> int:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def nodes(monkeypatch) -> Iterator[Any]:
    """A cluster whose head computes nothing: its client port, and two nodes of a processor each."""
    from ray.cluster_utils import Cluster as Nodes  # pyright: ignore[reportMissingImports]

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    port = free_port()
    head = {"num_cpus": 0, "ray_client_server_port": port, "include_dashboard": False}
    cluster = Nodes(initialize_head=True, head_node_args=head)
    cluster.port = port
    cluster.workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def test_a_node_lost_in_the_middle_changes_no_bit(real_plan, nodes):
    ours = real_plan("ours", ["flow", "linear"], seeds=2, epochs=EPOCHS)
    execute(ours, jobs=2)
    theirs = real_plan("theirs", ["flow", "linear"], seeds=2, epochs=EPOCHS)
    begun: list[int] = []

    def lose_a_node() -> None:
        while len(begun) < 2:
            time.sleep(0.1)
            begun[:] = [n for run in theirs.runs if (n := count_epochs(run.folder.root)) > 3]
        nodes.remove_node(nodes.workers[0], allow_graceful=False)

    loser = threading.Thread(target=lose_a_node, daemon=True)
    loser.start()
    execute(theirs, cluster=Cluster(address=f"ray://127.0.0.1:{nodes.port}"))
    loser.join()
    assert max(begun) < EPOCHS
    logs = [run.log.read_text() for run in theirs.runs]
    starts = [log.count(" parameters, folder ") for log in logs]
    assert sorted(starts) == [1, 1, 1, 2]  # one was on the node that is gone
    assert [log.count(f"epoch 1/{EPOCHS} ") for log in logs] == [1] * 4  # and went on
    assert written(theirs) == written(ours)


def test_a_cluster_without_room_is_told_of(real_plan, nodes, caplog):
    plan = real_plan("large", ["flow"])
    cluster = Cluster(address=f"ray://127.0.0.1:{nodes.port}", cpus=7)

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(plan, cluster=cluster, show=stop)
    assert "no machine of the cluster has 7 CPU now: the runs wait for one" in caplog.text
