"""This machine's spool of a job, and how long a finished training waits for its store."""

from __future__ import annotations

import os
from typing import Final

from outlast.job.spec import JobSpec
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.spool import Spool

_WAIT: Final = "OUTLAST_SPOOL_WAIT"
_WAIT_AT_END: Final = 600.0


def spool_of(storage: Storage, spec: JobSpec) -> Spool | None:
    """Return this machine's spool of a job, made; None when the job is on this machine itself."""
    spool = Spool.of(storage, f"{spec.job} {spec.created!r}")
    if spool is not None:
        spool.make()
    return spool


def wait_at_end() -> float:
    """Return the seconds that a finished training waits for a store that is away.

    They are $OUTLAST_SPOOL_WAIT (default 600). Raises `UsageError`.
    """
    given = os.environ.get(_WAIT)
    try:
        return _WAIT_AT_END if given is None else max(0.0, float(given))
    except ValueError:
        raise UsageError(
            field=_WAIT, problem=f"{given!r} is no number of seconds", hint="For example 3600."
        ) from None
