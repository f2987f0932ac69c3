"""What the log says about training and validation data, before the first step."""

from __future__ import annotations

from typing import Any

from outlast.job.log_events import LogEvent
from outlast.training.data.tfdata import DatasetSource
from outlast.training.job import TrainingJob
from outlast.training.loaded_checkpoint import LoadedCheckpoint


def name_doubts(
    job: TrainingJob, stored: LoadedCheckpoint | None, feed: Any, validation: Any = None
) -> None:
    """Log why a resume may be inexact, each reason once a job."""
    if stored is not None:
        known = job.named_doubts
        known.extend(one for one in stored.plain["doubts"] if one not in known)
    doubts = list(feed.inexact_reasons())
    if validation is not None:
        doubts += [f"validation data: {doubt}" for doubt in validation.inexact_reasons()]
        doubts += between(feed, validation)
    for doubt in doubts:
        if doubt not in job.named_doubts:
            job.named_doubts.append(doubt)
            job.reporter.log.warning(LogEvent.INEXACT_DATA_FOUND, why=doubt)


def remove_locks(job: TrainingJob, *data: Any) -> None:
    """Remove what an earlier attempt of this job left locked when it was killed, and log it."""
    removed = [path for one in data for path in one.stale_locks(job.ctx.began)]
    if removed:
        job.reporter.log.info(LogEvent.CACHE_LOCKS_REMOVED, files=removed)


def between(feed: Any, validation: Any) -> list[str]:
    """Return the reasons why training and validation data together may be inexact."""
    source = getattr(feed, "source", None)
    if not isinstance(source, DatasetSource) or validation.passes is None:
        return []
    training, parts = source.passes.pipeline.parts, validation.passes.pipeline.parts
    doubts = []
    if feed.steps_per_epoch is not None and training.shared_later(parts):
        doubts.append(
            f"training and validation read the same {' and '.join(training.shared_later(parts))}, "
            "and steps_per_epoch lets one pass of the training continue while validation runs: "
            "which of the two draws its next order first is a matter of speed; give each its own "
            "shuffle, or leave out steps_per_epoch"
        )
    if training.read_past_a_file(parts):
        doubts.append(
            "a shuffle feeds a cache in a file and is also read without that cache: a resume finds "
            "the file complete and draws the shuffle's order less often; cache in memory, or "
            "shuffle twice with a seed for each"
        )
    return doubts
