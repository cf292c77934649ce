"""Run functions on several processes that form a group, and gather what they raise."""

import os
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import multiprocessing

# What a case is: a function of the ranks that share a sequence, which raises where it finds fault.
Case = Callable[[dist.ProcessGroup], None]

# Imported once, by the server that forks the processes, and not by each of them.
PRELOADED = ["flowformer.models.language.model", "flowformer.models.sequences.model"]
TIMEOUT = timedelta(seconds=120)


def failures(table: Callable[[], Mapping[str, Case]], *, ranks: int, halves: bool) -> list[str]:
    """Run the cases of a table on so many processes, each on all and then on either half of them.

    Args:
        table: a function of a module; each process calls it, for cases cannot be sent.
        ranks: the processes.
        halves: whether to run the cases on groups of half as many too.

    Returns:
        The cases that failed, and how, of all ranks.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        started = [
            context.Process(target=_rank, args=(rank, ranks, table, folder, halves))
            for rank in range(ranks)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join()
        found = [path.read_text() for path in sorted(Path(folder).glob("*.txt"))]
    assert len(found) == ranks
    return [failure for text in found for failure in text.split("\0") if failure]


@contextmanager
def alone() -> Iterator[dist.ProcessGroup]:
    """A group of this process only."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        group = dist.group.WORLD
        assert group is not None
        try:
            yield group
        finally:
            dist.destroy_process_group()


def _rank(
    rank: int, ranks: int, table: Callable[[], Mapping[str, Case]], folder: str, halves: bool
) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=TIMEOUT
    )
    world = dist.group.WORLD
    assert world is not None
    groups = {f"{ranks} ranks": world}
    if halves:
        half = ranks // 2
        # Every process makes every group, its own or not.
        pairs = [dist.new_group(list(range(start, start + half))) for start in (0, half)]
        own = pairs[rank // half]
        assert isinstance(own, dist.ProcessGroup)
        groups[f"{half} ranks"] = own
    found = []
    for name, case in table().items():
        for size, group in groups.items():
            torch.manual_seed(0)
            try:
                case(group)
            except Exception:  # noqa: BLE001 - told below, and the other cases run too
                found.append(f"{name} on {size}, rank {rank}: {traceback.format_exc()}")
    Path(folder, f"{rank}.txt").write_text("\0".join(found))
    dist.barrier()
    dist.destroy_process_group()
