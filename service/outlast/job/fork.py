"""Makes a new job that starts from a checkpoint of another one."""

from __future__ import annotations

import json
from contextlib import suppress

from outlast.errors import InvalidTransition, JobExists
from outlast.job import spec as specs
from outlast.job import trust
from outlast.job.events import Forked, Submitted
from outlast.job.journal import Journal
from outlast.job.spec import JobSpec
from outlast_checkpoints.errors import AlreadyExists, PlaceTaken
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.format.manifest import Manifest
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import with_spec
from outlast_checkpoints.store.fork_job import fork_job


def fork(parent: Storage, root: Storage, spec: JobSpec, at: CheckpointId) -> Manifest:
    """Create the job `spec.job` below `root`, which starts from checkpoint `at` of `parent`.

    It is pending until somebody resumes it. The spec is written last: an interrupted fork is no
    job, and the next one of this name starts anew.

    Args:
        parent: The other job; it may be training.
        root: Folder or URL of the new job's root.
        spec: Spec of the new job.
        at: The checkpoint.

    Returns:
        The manifest of the checkpoint.

    Raises:
        JobExists: there is a job of this name.
        PlaceTaken: something else is there.
        NoCheckpoint: the checkpoint does not exist.
    """
    storage, document = root.sub(spec.job), specs.encode(spec)
    trust.check_owner(storage, spec.job)
    if storage.exists(layout.SPEC):
        raise JobExists(job=spec.job, root=root.root)
    if storage.exists(layout.COPYING):
        root.delete_tree(spec.job)
    elif storage.list(""):
        raise PlaceTaken(root=storage.root, problem="it is not empty")
    storage = with_spec(storage, document)
    storage.create(layout.COPYING, json.dumps({"forked from": parent.root}).encode())
    made = fork_job(parent, storage, at)
    journal = Journal(storage)
    with suppress(InvalidTransition):  # repeated after a lost answer
        journal.append(Submitted(max_retries=spec.max_retries))
        journal.append(Forked(parent=parent.root, checkpoint=str(at), attempt=at.attempt))
    try:
        storage.create(layout.SPEC, document)
    except AlreadyExists:
        raise JobExists(job=spec.job, root=root.root) from None
    trust.remember(document, storage.root)
    storage.delete(layout.COPYING)
    return made
