"""Starting the processes of a run on one machine, as torchrun does."""

import logging
import os
import signal
import sys
from collections.abc import Sequence

_PROGRAM = "from flowformer.cli import main; main()"
_PATIENCE = "10"  # seconds that a process has to end by itself when another one has died


def launch(arguments: Sequence[str], *, processes: int) -> int:
    """Runs `flowformer` with these arguments in several processes at once, and waits for them.

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
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
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
        elastic_launch(config, sys.executable)("-c", _PROGRAM, *arguments)
    except ChildFailedError as error:
        # One that was killed is why others have failed at the same time.
        for number, failure in error.failures.items():
            if failure.exitcode < 0:
                raise RuntimeError(
                    f"process {number} of {processes} (pid {failure.pid}) was ended by "
                    f"{failure.signal_name()}"
                ) from None
        return error.get_first_failure()[1].exitcode
    except SignalException as stop:
        if stop.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + stop.sigval) from None
    return 0
