"""The state machine of a job: `transition(job, event) -> (job, actions)`. Pure.

Whatever depends on a clock or on I/O (the delay before a retry, how an attempt ended) is part of
the event. So the same journal always gives the same job.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final

import msgspec

from outlast import exit_codes
from outlast.errors import InvalidTransition
from outlast.job.cluster_slot import Slot
from outlast.job.events import (
    Audited,
    Claimed,
    Ended,
    Event,
    Forked,
    Launched,
    Queued,
    Released,
    Removed,
    Resumed,
    Started,
    StopRequested,
    Submitted,
)
from outlast.job.outcome import FATAL, FREE, Outcome
from outlast.job.process_identity import Identity
from outlast.job.rollback import Rollback

LASTING: Final = frozenset({"ValueError", "TypeError", "SyntaxError"})  # before the first step


class State(StrEnum):
    """The state of a job. Why the job is in it, its `outcome` and `reason` say."""

    PENDING = "pending"
    """The job waits to be started, or an attempt is starting up."""
    RUNNING = "running"
    """The attempt has written a heartbeat."""
    WAITING = "waiting"
    """An attempt ended, and the next one starts after a delay."""
    STOPPING = "stopping"
    """The attempt was asked to leave."""
    STOPPED = "stopped"
    """Final: stopped on request, or interrupted."""
    SUCCEEDED = "succeeded"
    """Final: the script ran to its end."""
    FAILED = "failed"
    """Final: not worth a retry, or the retry budget is spent."""
    REMOVED = "removed"
    """Final: somebody has begun to delete the job; nothing can resume it."""

    @property
    def final(self) -> bool:
        """Whether the job stays in this state until somebody resumes it."""
        return self in (State.STOPPED, State.SUCCEEDED, State.FAILED, State.REMOVED)


class Launch(msgspec.Struct, frozen=True):
    """Action: start the attempt."""

    attempt: int


class StopAttempt(msgspec.Struct, frozen=True):
    """Action: ask the attempt to save and leave; with `now`, kill it."""

    attempt: int
    now: bool


class Wait(msgspec.Struct, frozen=True):
    """Action: wait this many seconds, then claim the next attempt."""

    seconds: float


class Leave(msgspec.Struct, frozen=True):
    """Action: nothing is left to do for this job."""


Action = Launch | StopAttempt | Wait | Leave


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job, as folded from its journal."""

    state: State
    """The state of the job."""
    max_retries: int = 3
    """Consecutive attempts without a new checkpoint that are retried."""
    attempt: int = 0
    """Number of the newest claim, 0 before the first; the fencing token."""
    in_flight: bool = False
    """Whether that attempt has not ended yet."""
    owner: Identity | None = None
    """The process that acts for the job now."""
    handle: dict[str, Any] | None = None
    """The backend's handle of the attempt."""
    failures: int = 0
    """Consecutive attempts that used up budget without a new checkpoint."""
    fruitless: int = 0
    """Consecutive attempts without a new checkpoint, free ones included; sets the backoff."""
    exception: str | None = None
    """Exception that ended the last attempt; None if a retry may help."""
    stepped: bool = False
    """Whether any attempt trained a step."""
    outcome: Outcome | None = None
    """Outcome of the last attempt that ended."""
    exit_code: int | None = None
    """Exit code of the last attempt that ended."""
    reason: str = ""
    """Why the last attempt ended, or why the job is in its state; for people."""
    checkpoint: str | None = None
    """Id of the newest checkpoint that an ended attempt committed."""
    delay: float = 0.0
    """Seconds before the next attempt, while WAITING."""
    stop: str | None = None
    """"save" or "now" once somebody wants the job to stop."""
    queued: Queued | None = None
    """The job's place in a cluster's queue, if it was submitted to one."""
    slot: Slot | None = None
    """The owner's slot in that cluster."""
    rollbacks: tuple[Rollback, ...] = ()
    """The rollbacks so far, oldest first."""

    def evolve(self, **changes: Any) -> Job:
        """Return a copy with these fields changed."""
        return msgspec.structs.replace(self, **changes)


def transition(job: Job | None, event: Event) -> tuple[Job, tuple[Action, ...]]:
    """Return the job after `event`, and what the supervisor has to do about it.

    Raises:
        InvalidTransition: the event is not allowed in the job's state.
    """
    match event:
        case Submitted() if job is None:
            return Job(state=State.PENDING, max_retries=event.max_retries), ()
        case Submitted():
            pass
        case _ if job is None or job.state is State.REMOVED:
            pass
        case Removed() if job.state.final:
            return job.evolve(state=State.REMOVED), (Leave(),)
        case Audited():
            return job, ()
        case Forked() if job.attempt == 0 and event.attempt > 0:
            return job.evolve(attempt=event.attempt, checkpoint=event.checkpoint), ()
        case Queued() if not job.state.final:
            return job.evolve(queued=event), ()
        case Claimed():
            if _claimable(job, event):
                claimed = job.evolve(
                    state=State.PENDING,
                    attempt=event.attempt,
                    in_flight=True,
                    owner=event.owner,
                    slot=event.slot,
                    handle=None,
                    delay=0.0,
                )
                return claimed, (Launch(event.attempt),)
        case Launched() if _is_in_flight(job, event.attempt) and job.handle is None:
            launched = job.evolve(handle=event.handle)
            if job.state is State.STOPPING:  # the stop came while it was being launched
                return launched, (StopAttempt(event.attempt, job.stop == "now"),)
            return launched, ()
        case Started() if _is_in_flight(job, event.attempt) and job.state is not State.RUNNING:
            return (job if job.state is State.STOPPING else job.evolve(state=State.RUNNING)), ()
        case Ended() if _is_in_flight(job, event.attempt):
            return _ended(job, event)
        case StopRequested() if not job.state.final:
            return _stop(job, event)
        case Released() if job.owner is not None and not job.in_flight:
            return job.evolve(state=State.PENDING, owner=None, delay=0.0), ()
        case Resumed() if job.state.final:
            fresh = job.evolve(
                state=State.PENDING,
                failures=0,
                fruitless=0,
                exception=None,
                stop=None,
                delay=0.0,
                reason="",
                queued=None,
            )
            return fresh, ()
        case _:
            pass
    raise InvalidTransition(
        event=_name(event),
        state="not submitted" if job is None else job.state.value,
        attempt=0 if job is None else job.attempt,
        recent_events="",
    )


def _claimable(job: Job, event: Claimed) -> bool:
    return (
        job.state in (State.PENDING, State.WAITING)
        and not job.in_flight
        and event.attempt == job.attempt + 1
        and job.owner in (None, event.owner)
    )


def _is_in_flight(job: Job, attempt: int) -> bool:
    return job.in_flight and job.attempt == attempt


def _stop(job: Job, event: StopRequested) -> tuple[Job, tuple[Action, ...]]:
    stop = "now" if event.now or job.stop == "now" else "save"
    if not job.in_flight:
        stopped = job.evolve(
            state=State.STOPPED, stop=stop, owner=None, delay=0.0, reason=f"stopped by {event.by}"
        )
        return stopped, (Leave(),)
    stopping = job.evolve(state=State.STOPPING, stop=stop)
    return stopping, (StopAttempt(job.attempt, stop == "now"),)


def _ended(job: Job, event: Ended) -> tuple[Job, tuple[Action, ...]]:
    fresh = event.advanced or event.outcome in (Outcome.REWOUND, Outcome.ROLLED_BACK)
    fruitless = fruitless_after(job, fresh)
    charged = event.outcome not in FREE and event.outcome is not Outcome.STOPPED
    failures = 0 if fresh else job.failures + charged
    after = job.evolve(
        in_flight=False,
        handle=None,
        owner=None,
        failures=failures,
        fruitless=fruitless,
        exception=event.exception,
        stepped=job.stepped or event.stepped,
        outcome=event.outcome,
        exit_code=event.exit_code,
        reason=event.reason,
        checkpoint=event.checkpoint or job.checkpoint,
        rollbacks=job.rollbacks if event.rollback is None else (*job.rollbacks, event.rollback),
    )
    if event.outcome is Outcome.REWOUND and job.state is not State.STOPPING:
        return after.evolve(state=State.PENDING), ()
    if event.outcome is Outcome.COMPLETED:
        return after.evolve(state=State.SUCCEEDED, failures=0, fruitless=0), (Leave(),)
    if job.state is State.STOPPING or event.outcome is Outcome.STOPPED:
        return after.evolve(state=State.STOPPED), (Leave(),)
    if event.outcome in FATAL:
        return after.evolve(state=State.FAILED), (Leave(),)
    not_retried = _why_not_retried(job, event)
    if not_retried is not None:
        return after.evolve(state=State.FAILED, reason=f"{event.reason}; {not_retried}"), (Leave(),)
    if event.outcome not in FREE and failures > job.max_retries:
        spent = (
            f"{failures} consecutive attempts ended without a new checkpoint; {job.max_retries} "
            f"retries are allowed. The last attempt {event.outcome.value}: {event.reason}"
        )
        return after.evolve(state=State.FAILED, reason=spent), (Leave(),)
    waiting = after.evolve(state=State.WAITING, owner=job.owner, delay=event.delay)
    return waiting, (Wait(event.delay),)


def _why_not_retried(job: Job, event: Ended) -> str | None:
    """Return why another attempt would end in the same way, or None if it may not."""
    if event.outcome is not Outcome.CRASHED or event.exception is None or event.stepped:
        return None
    if event.exception == job.exception:
        return "it is not retried, because the previous attempt ended with the same error"
    kind = event.exception.partition(" ")[0]
    if kind in LASTING and not job.stepped:
        return f"it is not retried, because a {kind} before the first step would occur again"
    return None


def fruitless_after(job: Job, advanced: bool) -> int:
    """Return the number of consecutive attempts without a new checkpoint after this one.

    Args:
        advanced: Whether this attempt committed a new checkpoint.
    """
    return 0 if advanced else job.fruitless + 1


def _name(event: Event) -> str:
    return str(event.__struct_config__.tag)


def exit_code(job: Job) -> int:
    """Return the exit code of `outlast run` for a job in this state."""
    match job.state:
        case State.SUCCEEDED:
            return exit_codes.DONE
        case State.FAILED if job.outcome is Outcome.REJECTED:
            return exit_codes.REJECTED
        case State.FAILED if job.outcome is Outcome.DIVERGED:
            return exit_codes.DIVERGED
        case State.FAILED:
            return exit_codes.FAILED
        case State.STOPPED if job.stop == "now":
            return exit_codes.INTERRUPTED
        case _:
            return exit_codes.RESUMABLE


def describe(job: Job) -> str:
    """Return the job's state in one line, for people."""
    match job.state:
        case State.PENDING if not job.in_flight and job.queued is not None:
            text = f"pending: queued in {job.queued.engine} as {job.queued.handle.get('id')}"
        case State.PENDING if not job.in_flight:
            text = "pending: no supervisor has it"
        case State.PENDING:
            text = f"pending: attempt {job.attempt} is starting"
        case State.RUNNING:
            text = f"running: attempt {job.attempt}"
        case State.STOPPING:
            how = "being killed" if job.stop == "now" else "saving and leaving"
            text = f"stopping: attempt {job.attempt} is {how}"
        case State.WAITING:
            text = f"waiting {job.delay:.1f} s before attempt {job.attempt + 1}"
        case _:
            text = job.state.value
    if not job.in_flight:
        ended = f"attempt {job.attempt} {job.outcome.value}" if job.outcome is not None else ""
        detail = ", ".join(part for part in (ended, job.reason) if part)
        text += f" ({detail})" if detail else ""
    if job.owner is not None and not job.state.final:
        text += f", by {job.owner}"
    return text
