"""Starting the processes of a run on one machine, as torchrun does."""

import logging
import os
import signal
from collections.abc import Sequence
from typing import Any

from flowformer.machine import available_processors, python
from flowformer.train.processes.group import LOST

_PROGRAM = "from flowformer.cli import main; main()"
_PATIENCE = "10"  # seconds that a process has to end by itself when another one has died


def _order(failure: Any) -> tuple[bool, bool, int]:
    """Sort failures by whether others have followed from them.

    One that was killed is why others fail; those that lose a process, or are given SIGTERM once one
    has failed, are not.
    """
    followed = failure.exitcode in (-signal.SIGTERM, LOST)
    return followed, failure.exitcode >= 0, failure.timestamp


def launch(arguments: Sequence[str], *, processes: int) -> int:
    """Run `flowformer` with these arguments in several processes at once, and wait for them.

    Args:
        arguments: of the command line, the command first.
        processes: how many.

    Returns:
        The exit code: 0 where all ended well, else that of the first that did not.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM came; its code is 143.
        RuntimeError: a process was ended by a signal; the message says which.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _PATIENCE)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_processors() // processes)))
    # Its own account of a failure is half a screen; ours is a line.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.distributed.launcher")):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=f"flowformer-{os.getpid()}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    try:
        command, *rest = python("-c", _PROGRAM, *arguments)
        elastic_launch(config, command)(*rest)
    except ChildFailedError as error:
        number, failure = min(error.failures.items(), key=lambda each: _order(each[1]))
        if failure.exitcode < 0:
            raise RuntimeError(
                f"process {number} of {processes} (pid {failure.pid}) was ended by "
                f"{failure.signal_name()}"
            ) from None
        return failure.exitcode
    except SignalException as stop:
        if stop.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + stop.sigval) from None
    return 0
