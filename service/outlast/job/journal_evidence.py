"""Evidence that the end of a signed journal was cut off: attempts that it does not know."""

from __future__ import annotations

from outlast.job.journal import Journal
from outlast_checkpoints.errors import FormatError, NotAuthentic, NotFound
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document


def check_complete(storage: Storage) -> None:
    """Check a signed job's journal against the attempts that have begun.

    An attempt writes its signed origin after it was claimed. So an origin without a claim proves
    that the claim, and all that followed it, was deleted.

    Raises:
        NotAuthentic: an event is not authentic, or is missing.
    """
    claimed = Journal(storage).latest_attempt()
    attempts = map(layout.parse_attempt, storage.list(layout.ATTEMPTS))
    for attempt in sorted(number for number in attempts if number and number > claimed):
        path = layout.origin(attempt)
        try:
            read_document(storage, path)
        except (NotFound, FormatError):
            continue  # it proves nothing
        reason = f"attempt {attempt} has begun, and the event that claims it is missing"
        raise NotAuthentic(path=layout.JOURNAL, reason=reason)
