"""The processes of one run: which this is, what they agree on, and how one that is lost ends all.

`torchrun` starts them and says so in the environment, or `srun` with a task for each process;
`flowformer train` starts those of one machine itself. One process alone is the usual case, for
which nothing here does anything.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from flowformer.train.config import ComputeConfig

T = TypeVar("T")

LOST = 75  # the exit code of a process that ends because another one is gone: try again
_POLL_SECONDS = 0.1


class ProcessLostError(RuntimeError):
    """Another process of the run has died, hangs, or cannot be reached."""


class ShareDoneError(Exception):
    """This process has done its share; the first one alone goes on, with what all have trained."""


@dataclass
class Processes:
    """The processes of a run.

    Attributes:
        number: of this one.
        count: of all.
        store: what they tell each other by; None for one.
    """

    number: int = 0
    count: int = 1
    store: Any = None
    _agreed: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this one writes what there is to write."""
        return self.number == 0

    def agree(self, decide: Callable[[], T]) -> T:
        """Return what the first process decides; the others wait for it, however long it takes.

        Args:
            decide: gives a JSON value; called in the first process alone.

        Raises:
            SystemExit: it raised in the first process, which says what.
        """
        if self.store is None:
            return decide()
        if self.is_first:
            try:
                value = decide()
            except BaseException:
                self._tell({"failed": True})
                raise
            self._tell({"value": value})
            return value
        self._agreed += 1
        key = f"agreed/{self._agreed}"
        while not self.store.check([key]):
            time.sleep(_POLL_SECONDS)
        answer = json.loads(self.store.get(key))
        if "failed" in answer:
            raise SystemExit(1)
        return answer["value"]

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process do what is in the block, then the others: they find it done.

        Raises:
            SystemExit: it raised in the first process, which says what.
        """
        if not self.is_first:
            self.agree(lambda: None)
            yield
            return
        try:
            yield
        except BaseException:
            self._tell({"failed": True})
            raise
        self._tell({"value": None})

    def _tell(self, answer: Mapping[str, object]) -> None:
        if self.store is not None:
            self._agreed += 1
            self.store.set(f"agreed/{self._agreed}", json.dumps(answer))


_current = Processes()


def current() -> Processes:
    """Return the processes of the run that is going on here."""
    return _current


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the first of its run, or the only one."""
    if _count(environment) == 1:
        return True
    return environment.get("RANK", environment.get("SLURM_PROCID", "0")) == "0"


def started_outside(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether several processes were started by torchrun, or by srun with a task for each."""
    return _count(environment) > 1


def _count(environment: Mapping[str, str]) -> int:
    """How many processes the environment speaks of.

    Raises:
        ValueError: it says no number.
    """
    name = "WORLD_SIZE"
    if "RANK" not in environment:
        name = _slurm_tasks(environment)
    text = environment.get(name, "1")
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"expected a number of processes in {name}, got {text!r}: unset it")
    return int(text)


def _slurm_tasks(environment: Mapping[str, str]) -> str:
    """The variable with the tasks that srun has started."""
    # A batch script alone, or a shell in an allocation, has the names of the whole job too.
    if "SLURM_STEP_ID" not in environment:
        return "SLURM_BY_NOBODY"
    return "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"


def _by_hand(environment: Mapping[str, str]) -> bool:
    """Whether neither torchrun nor srun has put RANK and WORLD_SIZE there."""
    if "RANK" not in environment or "TORCHELASTIC_RUN_ID" in environment:
        return False
    return environment.get(_slurm_tasks(environment)) != environment.get("WORLD_SIZE")


def _in_environment(environment: Mapping[str, str]) -> str:
    """What there is of several processes, in words."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    return " ".join(f"{name}={environment[name]}" for name in names if name in environment)


def sizes_outside(
    environment: Mapping[str, str] = os.environ, *, asked: int | None = None
) -> tuple[int, int]:
    """Return processes on each machine, and machines, of those started outside.

    Args:
        environment: of this process.
        asked: how many are asked for, where that is known.

    Raises:
        ValueError: the machines have different numbers of processes; or neither torchrun nor srun
            has started them, and another number is asked for: the environment is left over.
    """
    count = _count(environment)
    if asked is not None and asked != count and _by_hand(environment):
        raise ValueError(_another_number(environment, asked))
    if "RANK" in environment:
        devices = int(environment.get("LOCAL_WORLD_SIZE", count))
        nodes = count // devices
    else:
        nodes = int(environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES", "1")))
        devices = count // nodes
    if devices * nodes != count:
        raise ValueError(f"expected as many processes on each machine, got {count} on {nodes}")
    return devices, nodes


def _another_number(environment: Mapping[str, str], asked: int) -> str:
    """Say that there are more or fewer processes than are asked for, and what to do."""
    count = _count(environment)
    if count > 1 and _by_hand(environment):
        return (
            f"training.devices and training.nodes ask for {asked} processes, and there are {count} "
            f"by the environment ({_in_environment(environment)}), which neither torchrun nor srun "
            "has started: if it is left over, unset RANK and WORLD_SIZE; if they are started by "
            "hand, give training.devices and training.nodes"
        )
    return (
        f"training.devices and training.nodes ask for {asked} processes, and "
        f"{'there is one' if count == 1 else f'there are {count}'}: start as many with torchrun, "
        "or by flowformer train on one machine"
    )


def _use_slurm() -> None:
    """Say in torchrun's words what srun says in its own."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    slurm = SLURMEnvironment(auto_requeue=False)
    os.environ.update(
        RANK=os.environ["SLURM_PROCID"],
        WORLD_SIZE=str(_count(os.environ)),
        LOCAL_RANK=os.environ["SLURM_LOCALID"],
        GROUP_RANK=os.environ.get("SLURM_NODEID", "0"),
        MASTER_ADDR=slurm.main_address,
        MASTER_PORT=str(slurm.main_port),
    )


@contextmanager
def joined(settings: ComputeConfig, *, again: str = "the same command") -> Iterator[Processes]:
    """Join the other processes of a run, for the time of the block.

    A process that dies, hangs or cannot be reached ends all others within `settings.timeout`
    seconds, and each says which it was; the run can be gone on with.

    Args:
        settings: of the training.
        again: the command that goes on with the run, for messages.

    Raises:
        ValueError: there are not as many processes as the settings say.
        RuntimeError: one has not come in time.
        ProcessLostError: one is gone.
    """
    global _current
    count = _count(os.environ)
    if count != settings.processes:
        raise ValueError(_another_number(os.environ, settings.processes))
    if count == 1:
        yield Processes()
        return
    if "RANK" not in os.environ:
        _use_slurm()
    _current, watch = _meet(settings, again)
    logger = logging.getLogger("flowformer.train")
    level = logger.level
    if not _current.is_first:
        logger.setLevel(logging.WARNING)  # what is said by all is said once
    try:
        watch.begin()
        _join_group(settings, _current)
        yield _current
    except ShareDoneError:
        watch.end()
        raise
    except RuntimeError as error:
        lost = watch.find_lost() if _is_of_the_network(error) else None
        watch.end(f"{type(error).__name__}: {error}" if lost is None else f"it lost {lost}")
        if lost is None:
            raise
        raise ProcessLostError(f"{lost}; go on with: {again}") from error
    except BaseException as error:
        watch.end(f"{type(error).__name__}: {error}")
        raise
    else:
        watch.end()
    finally:
        logger.setLevel(level)
        _current = Processes()
        leave_group()


def _meet(settings: ComputeConfig, again: str) -> tuple[Processes, Any]:
    """Come to the store of the run; the watch has a connection of its own to it."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    from flowformer.train.processes.watch import Watch

    if _by_hand(os.environ):
        logging.getLogger("flowformer.train").warning(
            "waiting up to %d s for %d more processes, of which the environment speaks (%s): where "
            "it is left over, unset RANK and WORLD_SIZE",
            *(settings.timeout, settings.processes - 1, _in_environment(os.environ)),
        )
    store, number, count = next(rendezvous("env://", timeout=timedelta(seconds=settings.timeout)))
    # When torchrun starts all anew, torch itself gives them a store, or a part of it, of their own.
    own = PrefixStore("flowformer", store)
    watch = Watch(
        own.clone(),
        process=number,
        processes=count,
        timeout=settings.timeout,
        on_lost=lambda lost: _end(f"{lost}; go on with: {again}"),
    )
    return Processes(number=number, count=count, store=own), watch


def _join_group(settings: ComputeConfig, processes: Processes) -> None:
    import torch
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore

    cuda = settings.accelerator != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=PrefixStore("group", processes.store),
        rank=processes.number,
        world_size=processes.count,
        timeout=timedelta(seconds=settings.timeout),
    )


def leave_group() -> None:
    """Leave the process group, if there is one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _is_of_the_network(error: RuntimeError) -> bool:
    from torch import distributed

    text = str(error).lower()
    return isinstance(error, distributed.DistError) or any(
        word in text for word in ("gloo", "nccl", "connection", "socket", "timeout", "pair closure")
    )


def _end(message: str) -> None:
    """End this process at once: its main thread may wait for ever for the one that is lost."""
    sys.stderr.write(f"error: {message}\n")
    sys.stderr.flush()
    os._exit(LOST)
