"""The temporary job of an audit: it shares the job's checkpoints and trains from one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from outlast.audit.interval import Interval
from outlast.job import audit_target
from outlast.job import spec as specs
from outlast.job.audit_target import AuditTarget
from outlast.job.rollback import Rollback
from outlast.job.spec import JobSpec
from outlast_checkpoints.errors import NotFound
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import belonging, read_document
from outlast_checkpoints.storage.temp_dirs import temp_dir
from outlast_checkpoints.store.checkpoint_store import CheckpointStore, Loaded

# Trackers that the script may write to. They find nothing to write to in an audit.
_TRACKERS: Final = {"WANDB_MODE": "disabled", "NEPTUNE_MODE": "debug"}


@dataclass(frozen=True)
class Scratch:
    """The folder of one audit."""

    folder: Path
    """The folder; it is deleted when the audit ends."""
    job: Storage
    """The temporary job, which begins at the interval's first checkpoint."""
    kept: Storage
    """Holds the interval's last checkpoint, so that retention cannot take it away."""

    def keep(self, source: Storage, last: CheckpointId) -> Loaded:
        """Keep the last checkpoint and return its content. Raises `NoCheckpoint` if it is gone."""
        _adopt(source, self.kept, last)
        return CheckpointStore(self.kept).load(last)

    def begin(self, source: Storage, spec: JobSpec, first: CheckpointId) -> None:
        """Give the temporary job its spec, the first checkpoint and what belongs to it.

        Raises:
            NoCheckpoint: the checkpoint is gone.
            StorageError: a file cannot be read or written.
        """
        self.job.create(layout.SPEC, specs.encode(_spec_here(spec)))
        store = CheckpointStore(source)
        _adopt(source, self.job, first)
        for phase, end in store.finished_phases().items():
            if phase < first.phase:
                _adopt(source, self.job, end)
        paths = [layout.origin(n) for n in store.lineage().attempts if n <= first.attempt]
        for path in [*paths, layout.MACHINE]:
            with suppress(NotFound):
                self.job.create(path, read_document(source, path))

    def describe(self, spec: JobSpec, target: AuditTarget) -> JobSpec:
        """Write where the attempt of the temporary job stops, and return the job's spec."""
        audit_target.store(self.job, target)
        return _spec_here(spec)


@contextmanager
def scratch(source: Storage) -> Iterator[Scratch]:
    """Yield a new folder for an audit of the job in `source`; delete it afterwards.

    It is inside the job's folder, so that checkpoints are linked instead of copied. For a job in a
    bucket it is below TMPDIR.
    """
    with temp_dir(source.local_path("")) as folder:
        kept = belonging(open_storage(folder / "kept"), source, "kept by an audit")
        yield Scratch(folder, open_storage(folder / "job"), kept)


def target_of(interval: Interval, late: bool, rollbacks: Sequence[Rollback] = ()) -> AuditTarget:
    """Return where the attempt stops; see `AuditTarget` for the arguments."""
    last = interval.last
    return AuditTarget(
        phase=last.phase,
        step=last.step,
        stage=int(last.stage),
        late=late,
        rollbacks=tuple(rollbacks),
    )


def _spec_here(spec: JobSpec) -> JobSpec:
    """Return the spec of the temporary job."""
    env: Mapping[str, str] = {**spec.env, audit_target.VARIABLE: "1", **_TRACKERS}
    return msgspec.structs.replace(
        spec,
        env=dict(env),
        save_every="never",
        keep="all",
        audit_every="never",
        warm_spare=False,
        preemption="none",
    )


def _adopt(source: Storage, target: Storage, checkpoint: CheckpointId) -> None:
    made = CheckpointStore(source).manifest(checkpoint)
    try:
        CheckpointStore(target).adopt(made, source)
    except NotFound:  # pruned while it was copied
        CheckpointStore(source).manifest(checkpoint)  # raises, unless it is damaged
        raise
