"""The place that a cluster has given this process, and so who may be written off for it.

A cluster that starts a job once more has ended what ran there before, as far as it can see; where a
node's daemon died the old processes may still be at work, and are fenced.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import msgspec

VARIABLE: Final = "OUTLAST_SLOT"


class Slot(msgspec.Struct, frozen=True, kw_only=True):
    """One start of a job by a cluster.

    engine: the cluster's kind. id: the job's name there, the same at each start. start: how often
    it was started before.
    """

    engine: str
    id: str
    start: int = 0

    def follows(self, other: Slot | None) -> bool:
        """Return whether the cluster has given this place instead of that one."""
        return (
            other is not None
            and (self.engine, self.id) == (other.engine, other.id)
            and self.start > other.start
        )


def here(environ: Mapping[str, str] = os.environ) -> Slot | None:
    """Return the slot that this process is in, None outside of a cluster.

    Slurm: SLURM_JOB_ID, and SLURM_RESTART_COUNT, which counts requeues (sbatch(1)). Of an array
    each task is a place of its own, named as squeue names it: the array's own number, which is also
    the SLURM_JOB_ID of one of them, would mean all of them. Elsewhere OUTLAST_SLOT says
    "<engine>:<id>"; which start it is, is not known then.
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
