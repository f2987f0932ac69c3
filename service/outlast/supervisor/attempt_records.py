"""What an attempt has written: on the job's storage or, while that is away, in the spool."""

from __future__ import annotations

from contextlib import suppress

from outlast.backends.base import Exit
from outlast.job import deadline, fault_decision, heartbeat, takeover
from outlast.job.events import Ended
from outlast.job.fault_decision import Decision
from outlast.job.heartbeat import Beat
from outlast.job.lifecycle import Job, fruitless_after
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast.supervisor import backoff
from outlast.supervisor.storage_outage import StorageOutage
from outlast_checkpoints.errors import StorageError
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.spool import Spool


class AttemptRecords:
    """Reads the heartbeats and checkpoints of a job's attempts.

    Args:
        spec: Spec of the job.
        storage: Storage of the job.
        spool: This machine's spool of the job; None when the storage is on this machine.
        outage: Whether the storage is away.
    """

    def __init__(
        self, spec: JobSpec, storage: Storage, spool: Spool | None, outage: StorageOutage
    ) -> None:
        self._spec = spec
        self._storage = storage
        self._spool = spool
        self._outage = outage

    def newest_beat(self, attempt: int, known: Beat | None) -> tuple[Beat | None, bool]:
        """Return the newest heartbeat of an attempt, and whether it could be looked at.

        While the storage is away, the attempt writes its heartbeat into the spool.

        Args:
            attempt: Number of the attempt.
            known: Newest heartbeat that the caller has seen.
        """
        found: list[Beat | None] = []
        if self._outage.ask(lambda: found.append(heartbeat.read(self._storage, attempt))):
            return found[0], True
        spooled = self._spooled_beat(attempt)
        before = 0 if known is None else known.count
        if spooled is not None and spooled.count >= before:
            return spooled, True
        return None, False

    def last_beat(self, attempt: int) -> Beat | None:
        """Return the last heartbeat of an attempt, from the storage or the spool.

        Raises:
            StorageError: the storage cannot be read.
        """
        found = [heartbeat.read(self._storage, attempt), self._spooled_beat(attempt)]
        return max(filter(None, found), key=lambda beat: beat.count, default=None)

    def ended(self, attempt: int, outcome: Outcome, reason: str, end: Exit, job: Job) -> Ended:
        """Return the event of an attempt's end, with what the attempt has reached.

        Raises:
            StorageError: the storage cannot be read, and the job has a spool.
        """
        checkpoint: str | None = None
        beat: Beat | None = None
        decided = Decision(outcome, reason)
        try:
            checkpoint = self.new_checkpoint(attempt)
            beat = self.last_beat(attempt)
            decided = fault_decision.decide(self._storage, self._spec, job, beat, outcome, reason)
        except StorageError:
            if self._spool is not None:
                raise  # the supervisor repeats this when the store is back
        fresh = checkpoint is not None or decided.rollback is not None
        return Ended(
            attempt=attempt,
            outcome=decided.outcome,
            reason=decided.reason,
            exit_code=end.code,
            signal=end.signal,
            advanced=checkpoint is not None,
            checkpoint=checkpoint,
            delay=backoff.delay(self._spec, fruitless_after(job, fresh), outcome),
            exception=None if beat is None else beat.exception,
            stepped=beat is None or beat.steps_done > 0,
            reached=None if beat is None else beat.reached(),
            rollback=decided.rollback,
        )

    def new_checkpoint(self, attempt: int) -> str | None:
        """Return the newest checkpoint that an attempt made beyond its start; None for none.

        Raises:
            StorageError: the storage cannot be read.
        """
        found = takeover.new_checkpoint(self._storage, attempt)
        if found is not None or self._spool is None:
            return found
        origin = takeover.origin_place(self._storage, attempt)
        newest = self._spool.waiting(attempt)[-1:]
        return str(newest[0]) if newest and newest[0].place > origin else None

    def write_deadline(self, attempt: int, why: str, within: float) -> None:
        """Tell an attempt, by a file on this machine, that it has `within` seconds to leave."""
        beside = self._storage if self._spool is None else self._spool.storage
        deadline.write(beside, attempt, why, within)

    def _spooled_beat(self, attempt: int) -> Beat | None:
        with suppress(StorageError):
            return None if self._spool is None else heartbeat.read(self._spool.storage, attempt)
        return None
