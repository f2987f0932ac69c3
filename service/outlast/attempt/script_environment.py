"""What a script learns of its job from its environment, for trackers and its own files."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Final

from outlast.job.spec import ATTEMPT, JOB, RUN_ID
from outlast_checkpoints.format.layout import SPEC
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document
from outlast_checkpoints.storage.signed import identity_of

_DIGITS: Final = 16


def tell(storage: Storage, attempt: int, environ: MutableMapping[str, str]) -> None:
    """Set the variables of this attempt: the job's folder or URL, its run id, and the number.

    The run id is the same in all attempts of a job and in a copy of it, and no other job has it.
    """
    environ[JOB] = storage.root
    environ[ATTEMPT] = str(attempt)
    environ[RUN_ID] = identity_of(read_document(storage, SPEC))[:_DIGITS]
