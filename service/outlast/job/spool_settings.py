"""The spool of a job on this machine, and how long a finished training waits for its store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from outlast.job.spec import JobSpec
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.spool import Spool

_WAIT: Final = "OUTLAST_SPOOL_WAIT"
_WAIT_AT_END: Final = 600.0


def spool_of(storage: Storage, spec: JobSpec) -> Spool | None:
    """Return the job's spool on this machine; None if the job's storage is on this machine."""
    spool = Spool.of(storage, _life(spec))
    if spool is not None:
        spool.make()
    return spool


def existing_spool(storage: Storage, spec: JobSpec) -> Spool | None:
    """Return the job's spool if it is on this machine; nothing is created."""
    spool = Spool.of(storage, _life(spec))
    return spool if spool is not None and Path(spool.path).is_dir() else None


def _life(spec: JobSpec) -> str:
    return f"{spec.job} {spec.created!r}"


def wait_at_end() -> float:
    """Return how long a finished training waits for its store: $OUTLAST_SPOOL_WAIT seconds.

    The default is 600.

    Raises:
        UsageError: the variable is not a number.
    """
    given = os.environ.get(_WAIT)
    try:
        return _WAIT_AT_END if given is None else max(0.0, float(given))
    except ValueError:
        raise UsageError(
            field=_WAIT,
            problem=f"{given!r} is not a number of seconds",
            hint="Use for example 3600.",
        ) from None
