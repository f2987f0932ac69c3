"""Whether a write has taken effect, found out when its answer was lost."""

from __future__ import annotations

from outlast_checkpoints.errors import AlreadyExists, CommitUnknown, NotFound, StorageError
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document


def is_settled(storage: Storage) -> bool:
    """Return whether a call that raised has either taken effect already or never will.

    True on this machine. In a bucket a request that was given up on may still arrive, so a
    deletion could hit what was written since: nothing is deleted there that this attempt may
    write again.
    """
    return storage.capabilities.local or storage.capabilities.in_process


def confirm_created(storage: Storage, path: str, data: bytes, error: StorageError) -> None:
    """Return if a `create` that raised `error` worked after all; otherwise raise.

    The file is created a second time, which shows that it is durable and not only visible.

    Raises:
        StorageError: It was not created; `AlreadyExists` if another writer's content is there.
        CommitUnknown: Nobody can tell yet.
    """
    problem = error
    if not isinstance(error, AlreadyExists):
        try:
            storage.create(path, data)
            return
        except StorageError as again:
            problem = again
    try:
        there = read_document(storage, path)
    except NotFound:
        if is_settled(storage):
            raise problem from None
        # A request that was given up on may still arrive.
        raise CommitUnknown(path=path, reason=str(problem)) from error
    except StorageError as unread:
        raise CommitUnknown(path=path, reason=str(unread)) from error
    if there != data:
        raise problem
    if not isinstance(problem, AlreadyExists):
        raise CommitUnknown(path=path, reason=str(problem)) from error
