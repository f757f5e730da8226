"""Starting the processes of one training run with torchrun."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from vimpo.config import ConfigError, Runtime


def is_launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Was this process started by torchrun?"""
    return "TORCHELASTIC_RUN_ID" in environment


def is_first_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Does this process speak for its run: the first of several, or the only one?"""
    return environment.get("RANK", "0") == "0"


def launch_command(
    runtime: Runtime,
    arguments: Sequence[str],
    environment: Mapping[str, str] = os.environ,
    module: str = "vimpo",
) -> list[str]:
    """torchrun on this node, each of whose processes runs `python -m MODULE` with `arguments`.

    Raises ConfigError for several nodes if nothing says which one this is.
    """
    here = runtime.processes // runtime.nodes
    place = ["--standalone"] if runtime.nodes == 1 else _meeting_point(runtime.nodes, environment)
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={here}"]
    return [*torchrun, *place, "-m", module, *arguments]


def _meeting_point(nodes: int, environment: Mapping[str, str]) -> list[str]:
    """Which node this is and where the first one listens, from the launcher or from Slurm."""
    rank = environment.get("NODE_RANK", environment.get("SLURM_NODEID"))
    address = environment.get("MASTER_ADDR", environment.get("SLURM_LAUNCH_NODE_IPADDR"))
    if rank is None or address is None:
        raise ConfigError(
            f"runtime.nodes: {nodes} need one start on each node, with NODE_RANK and MASTER_ADDR "
            "set, as `srun --nodes N --ntasks N` does; allowed: 1 without them"
        )
    # The same on all nodes of a job, and different for a job running next to it.
    port = environment.get("MASTER_PORT", 20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000)
    return [
        f"--nnodes={nodes}",
        f"--node-rank={rank}",
        f"--master-addr={address}",
        f"--master-port={port}",
    ]


def launch_environment(
    runtime: Runtime, environment: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """torchrun's environment: the study's threads, where its default is one per process.

    When told to stop, torchrun kills its processes after 30 s, too soon for a step and the
    checkpoint of a large model. The longer limit here outlasts that of any scheduler.
    """
    patience = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "600"}
    return {"OMP_NUM_THREADS": str(runtime.threads)} | patience | dict(environment)


def launch(runtime: Runtime, arguments: Sequence[str]) -> None:
    """Become torchrun, so that it gets signals and sets the exit code. Does not return."""
    command = launch_command(runtime, arguments)
    sys.stdout.flush()
    os.execve(command[0], command, launch_environment(runtime))
