"""Joining the other processes of a run, before JAX looks for devices. Imports JAX only if there are others."""

import os
from collections.abc import Mapping

from rich.console import Console

from generalist.config.run import ClusterConfig

JOIN_SECONDS = 600  # how long processes wait for the last one to start


def several_expected(environment: Mapping[str, str]) -> bool:
    """Whether the launcher's environment variables say that this process is one of several."""
    # In this order: a Slurm step, the hosts of a TPU slice on GKE, several TPU slices.
    return (
        int(environment.get("SLURM_STEP_NUM_TASKS") or 1) > 1
        or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
        or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1
    )


def join(cluster: ClusterConfig, console: Console) -> bool:
    """Joins the other processes, by the settings or as the launcher says. All but the first print nothing from then on.

    Returns:
        Whether there are other processes.

    Raises:
        RuntimeError: the others do not start in time, or the launcher does not say where they are.
    """
    if cluster.coordinator is None and not several_expected(os.environ):
        return False
    console.print(f"joining the other processes, for at most {JOIN_SECONDS} s ...", highlight=False)
    import jax

    by_hand = cluster.coordinator not in (None, "auto")
    jax.distributed.initialize(
        coordinator_address=cluster.coordinator if by_hand else None,
        num_processes=cluster.processes,
        process_id=cluster.process,
        initialization_timeout=JOIN_SECONDS,
    )
    if jax.process_count() == 1:
        return False
    console.quiet = jax.process_index() > 0
    from generalist.training.hosts import wait_for_all

    # The first collective connects all processes, and fails if one is late. Done now, while all of them have just started,
    # later collectives may wait as long as it takes, for example while the first process records experts.
    wait_for_all("joined")
    return True
