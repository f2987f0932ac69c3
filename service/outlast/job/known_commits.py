"""What the journal says about the checkpoints of earlier attempts. Nothing is listed."""

from __future__ import annotations

from collections.abc import Iterable

from outlast.job import heartbeat
from outlast.job.events import Ended
from outlast.job.journal import Entry
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.store.known_commits import KnownCommit


def known_commits(storage: Storage, entries: Iterable[Entry]) -> list[KnownCommit]:
    """Return the newest checkpoints that ended attempts have reported, oldest attempt first.

    A checkpoint may have been only in the spool of the attempt's machine. It was certainly sent if
    the attempt's last heartbeat says that nothing was waiting.

    Args:
        storage: Storage of the job.
        entries: Events of the journal.
    """
    local = storage.local_path("") is not None
    found: dict[CheckpointId, int] = {}
    for entry in entries:
        event = entry.event
        if not isinstance(event, Ended):
            continue
        reached = event.reached
        for name in (event.checkpoint, None if reached is None else reached.last_checkpoint):
            checkpoint = CheckpointId.parse(name or "")
            if checkpoint is not None:
                found[checkpoint] = event.attempt
    last = next(reversed(found.values()), None)
    beat = None if local or last is None else heartbeat.read(storage, last)
    sent = local or (beat is not None and beat.spooled == 0)
    return [KnownCommit(one, local or (sent and by == last)) for one, by in found.items()]
