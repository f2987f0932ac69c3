"""Engines run the supervisor of a job: on this machine, or through the queue of a cluster."""

from __future__ import annotations

from typing import Final

from outlast.engines.base import Engine, QueueState
from outlast.job.lifecycle import Job
from outlast.job.plugins import Plugins
from outlast_checkpoints.storage.base import Storage

LOCAL: Final = "local"
PLUGINS: Final[Plugins[Engine]] = Plugins(
    "engine",
    {
        LOCAL: "outlast.engines.local:LocalEngine",
        "kubernetes": "outlast.engines.kubernetes:KubernetesEngine",
        "slurm": "outlast.engines.slurm:SlurmEngine",
    },
)
names = PLUGINS.names
get = PLUGINS.get


def queue_state(job: Job) -> QueueState | None:
    """Return the job's place in its cluster's queue; None when no cluster has it.

    Raises:
        EngineFailed: the cluster does not answer now.
    """
    if job.queued is None or job.queued.engine == LOCAL:  # this machine has no queue
        return None
    return get(job.queued.engine).poll(job.queued.handle)


def remove_from_queue(job: Job, storage: Storage) -> None:
    """Remove an ended job from its cluster's queue.

    Raises:
        EngineFailed: the queue has another job there, or the cluster does not answer now.
    """
    if job.queued is not None and job.state.final and queue_state(job) is not None:
        get(job.queued.engine).stop(job.queued.handle, storage)
