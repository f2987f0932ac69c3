"""Where a job's supervisor runs: a registry of names, each imported when it is first asked for."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Final

from outlast.engines.base import Engine, Standing
from outlast.job.lifecycle import Job

GROUP: Final = "outlast.engines"  # entry points of other packages
LOCAL: Final = "local"
_BUILT_IN: Final = {
    LOCAL: "outlast.engines.local:LocalEngine",
    "kubernetes": "outlast.engines.kubernetes:KubernetesEngine",
    "slurm": "outlast.engines.slurm:SlurmEngine",
}


def names() -> list[str]:
    """Return the names of all engines that can be asked for."""
    found = {point.name for point in importlib.metadata.entry_points(group=GROUP)}
    return sorted(found | set(_BUILT_IN))


def get(name: str) -> Engine:
    """Return the engine of that name; a supervisor of this machine for a backend without one."""
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name == name:
            found: Engine = point.load()()
            return found
    module, _, kind = _BUILT_IN.get(name, _BUILT_IN[LOCAL]).partition(":")
    engine: Engine = getattr(importlib.import_module(module), kind)()
    return engine


def standing(job: Job) -> Standing | None:
    """Return how the job stands with the cluster that has it, None when none has.

    Raises `BackendFailed` when that cannot be known now.
    """
    if job.queued is None:
        return None
    return get(job.queued.engine).poll(job.queued.handle)


def take_back(job: Job) -> None:
    """Take an ended job out of the cluster's queue. Raises `BackendFailed`."""
    if job.queued is not None and job.state.final and standing(job) is not None:
        get(job.queued.engine).stop(job.queued.handle)
