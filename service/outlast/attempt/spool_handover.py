"""Sends waiting checkpoints of a previous attempt, and waits for the sender at the end."""

from __future__ import annotations

import time
from typing import Any, Final

from outlast import exit_codes
from outlast.attempt.context import AttemptContext
from outlast.errors import NotSent
from outlast.job import spool_settings, standard_streams
from outlast.job.log_events import LogEvent
from outlast_checkpoints.errors import OutlastError
from outlast_checkpoints.format.lineage import read_lineage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.spool import Spool
from outlast_checkpoints.store.spool_sender import Sender

_AFTER_ERROR: Final = 2.0  # seconds that a failed training waits
_SHARE: Final = 0.8  # of the grace; the rest is for leaving


def send_left(ctx: AttemptContext, spool: Spool, store: CheckpointStore) -> None:
    """Send the checkpoints that the previous attempt left in this machine's spool.

    Call it before this attempt begins. Checkpoints that are no longer part of the lineage are
    logged instead, and deleted when they are old.

    Raises:
        StorageError: the storage cannot be reached.
        Superseded: a newer attempt was claimed.
    """
    line = read_lineage(ctx.storage)[0].attempts
    for attempt in spool.attempts():
        if attempt >= ctx.attempt:
            continue
        waiting = spool.waiting(attempt)
        if waiting and attempt not in line[:1]:
            ctx.log.warning(
                LogEvent.SPOOL_ABANDONED,
                checkpoints=[str(one) for one in waiting],
                path=spool.path,
                why=f"the training continued from a checkpoint before the end of attempt {attempt}",
                hint="they are not sent; they are deleted after seven days",
            )
            if not spool.is_old(attempt):
                continue
        elif waiting:
            _send(ctx, spool, store, attempt)
        spool.forget(attempt)


def _send(ctx: AttemptContext, spool: Spool, store: CheckpointStore, attempt: int) -> None:
    for checkpoint in spool.waiting(attempt):
        for damage in spool.damage(checkpoint)[:1]:
            ctx.log.error(LogEvent.SPOOL_LOST, checkpoint=str(checkpoint), error=str(damage))
            spool.drop(checkpoint)

    def tell(event: str, fields: dict[str, Any]) -> None:
        ctx.log.warning(event, **{name: str(value) for name, value in fields.items()})

    started = time.monotonic()
    sent = Sender(spool, store, attempt, on_event=tell).send_all()
    if sent:
        ctx.log.info(
            LogEvent.SENT,
            checkpoints=[str(one) for one in sent],
            seconds=round(time.monotonic() - started, 3),
            why=f"attempt {attempt} left them in {spool.path}",
        )


def settle(ctx: AttemptContext, sender: Sender, code: int) -> int:
    """Wait until all checkpoints are sent; return the exit code to use instead of `code`.

    If the store is away, a finished training waits $OUTLAST_SPOOL_WAIT seconds (default 600). A
    training that was asked to leave waits four fifths of the grace, or of the time in a cloud's
    notice. A failed training waits two seconds. Checkpoints that cannot be sent stay in the spool
    and are reported; a finished training then exits with 74 instead of 0.
    """
    if code == exit_codes.SUPERSEDED or ctx.stop.reason == "superseded":
        sender.close()
        return code
    done = code == exit_codes.DONE
    before, ctx.status.activity = ctx.status.activity, "saving"

    def seconds_left() -> float:
        ctx.status.tick()
        asked = ctx.stop.requested_at
        until = ended + (spool_settings.wait_at_end() if done else _AFTER_ERROR)
        if asked is not None:
            until = _wait_until(ctx, asked)
        return until - time.monotonic()

    ended = time.monotonic()
    settled = sender.settle(seconds_left)
    ctx.status.activity = before
    error = sender.take_error()
    sender.close()
    if settled:
        return code
    if isinstance(error, OutlastError):
        ctx.status.error = f"{type(error).__name__}: {error}"
        ctx.log.error(LogEvent.SEND_FAILED, error=str(error))
        return error.exit_code
    left = sender.backlog()
    problem = NotSent(
        count=left.count,
        size=left.size,
        root=ctx.storage.root,
        reason=left.reason.rstrip(".") or "the time was up",
        path=left.path,
        job=ctx.spec.job,
    )
    ctx.log.error(LogEvent.SEND_FAILED, error=str(problem))
    standard_streams.say(f"outlast: {problem}")
    if not done:
        return code
    ctx.status.error = f"NotSent: {problem}"
    return problem.exit_code


def _wait_until(ctx: AttemptContext, asked: float) -> float:
    """Return until when a training that was asked to leave waits, in monotonic seconds."""
    by = ctx.leave_by()
    return asked + _SHARE * (ctx.spec.grace if by is None else max(0.0, by - asked))
