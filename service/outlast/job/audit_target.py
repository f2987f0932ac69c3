"""Where the attempt of an audit stops: where the checkpoint was taken that it is compared with."""

from __future__ import annotations

from typing import Final

import msgspec

from outlast.job.rollback import Rollback
from outlast_checkpoints.errors import NotFound
from outlast_checkpoints.format.layout import AUDIT, Stage
from outlast_checkpoints.format.sealed_json import seal, unseal
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document

FORMAT: Final = 1
VARIABLE: Final = "OUTLAST_AUDIT"  # "1" in the environment of an audit's script
FILES: Final = "files"  # folder of the audit for the files of Keras' callbacks

Moment = tuple[int, int, bool]


def moment(step: int, stage: int, *, begun: bool, trained: bool) -> Moment:
    """Return a moment of a phase at which it may be saved. Moments are ordered as they occur.

    Two moments of one stage differ: after the last step of an epoch, its batches count as trained
    or not yet; after an epoch, the next one has begun or not.

    Args:
        step: Steps done in the phase.
        stage: The stage of a checkpoint.
        begun: Whether the current epoch has begun.
        trained: Whether all batches of the current epoch are trained.
    """
    late = {Stage.STEP: trained, Stage.EPOCH: begun}.get(Stage(stage), False)
    return step, int(stage), late


class AuditTarget(msgspec.Struct, frozen=True, kw_only=True):
    """The moment at which an audit's attempt saves and stops."""

    format: int = FORMAT
    """Version of the format of audit.json."""
    phase: int
    """Index of the phase, from 0."""
    step: int
    """Steps done in the phase."""
    stage: int
    """Stage of the checkpoint that the audit compares with."""
    late: bool
    """Whether it is the later of the stage's two moments."""
    rollbacks: tuple[Rollback, ...] = ()
    """The job's rollbacks, whose batches the audit leaves out, too."""

    @property
    def moment(self) -> Moment:
        """The moment in the phase."""
        return self.step, self.stage, self.late

    def reached(self, phase: int, at: Moment) -> bool:
        """Return whether an attempt that is `at` this moment of `phase` has to stop.

        It also stops where the phase ends too early, so that it never trains anything else.
        """
        return phase == self.phase and (at >= self.moment or at[1] == Stage.END)

    def steps_until(self, phase: int, step: int, limit: int) -> int:
        """Return how many of the next `limit` steps lead at most to the target; at least 1."""
        return limit if phase != self.phase else min(limit, max(1, self.step - step))


def store(storage: Storage, target: AuditTarget) -> None:
    """Write the target into the folder of the audit's job."""
    storage.create(AUDIT, seal(target))


def load(storage: Storage) -> AuditTarget | None:
    """Return the target if the storage holds an audit's job; None for any other job."""
    try:
        return unseal(read_document(storage, AUDIT), AUDIT, AuditTarget, FORMAT)
    except NotFound:
        return None
