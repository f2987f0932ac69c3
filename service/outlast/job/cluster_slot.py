"""The slot that a cluster has given this process. It decides who may be written off.

A cluster that restarts a job has ended the previous start, as far as it knows. If the daemon of a
node died, the old processes may still run; they are fenced.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import msgspec

VARIABLE: Final = "OUTLAST_SLOT"


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One start of a job by a cluster."""

    engine: str
    """Name of the engine, for example "slurm"."""
    id: str
    """Id of the job in the cluster; the same at each start."""
    start: int = 0
    """How often the cluster started the job before."""

    def follows(self, other: Slot | None) -> bool:
        """Return whether the cluster has given this slot in place of `other`."""
        return (
            other is not None
            and (self.engine, self.id) == (other.engine, other.id)
            and self.start > other.start
        )


def here(environ: Mapping[str, str] = os.environ) -> Slot | None:
    """Return the slot of this process; None outside a cluster.

    Slurm sets SLURM_JOB_ID and SLURM_RESTART_COUNT, which counts requeues (sbatch(1)). Each task of
    an array is its own slot, named as in squeue, because the number of the array is also the
    SLURM_JOB_ID of one of its tasks. Elsewhere, OUTLAST_SLOT is "<engine>:<id>", without the
    number of the start.
    """
    if (job := environ.get("SLURM_JOB_ID", "")).isdecimal():
        array, task = (environ.get(f"SLURM_ARRAY_{name}_ID", "") for name in ("JOB", "TASK"))
        count = environ.get("SLURM_RESTART_COUNT", "")
        return Slot(
            engine="slurm",
            id=f"{array}_{task}" if array.isdecimal() and task.isdecimal() else job,
            start=int(count) if count.isdecimal() else 0,
        )
    engine, separator, number = environ.get(VARIABLE, "").partition(":")
    return Slot(engine=engine, id=number) if separator else None
