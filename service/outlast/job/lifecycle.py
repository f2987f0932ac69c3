"""The life of a job as a pure function: `transition(job, event) -> (job, actions)`.

No clock and no I/O: what depends on them (the delay before a retry, what an attempt ended with)
comes in with the event, so that the same journal always gives the same job.
"""

from __future__ import annotations

import signal as signals
from enum import StrEnum
from typing import Any, Final

import msgspec

from outlast import exit_codes
from outlast.errors import InvalidTransition
from outlast.job.cluster_slot import Slot
from outlast.job.process_identity import Identity


class State(StrEnum):
    """Where a job is; why it is there is its `outcome` and `reason`."""

    PENDING = "pending"  # to be started, or an attempt is starting up
    RUNNING = "running"  # the attempt has shown a sign of life
    WAITING = "waiting"  # an attempt ended; the next one starts after the delay
    STOPPING = "stopping"  # the attempt was asked to leave
    STOPPED = "stopped"
    SUCCEEDED = "succeeded"
    FAILED = "failed"

    @property
    def final(self) -> bool:
        """Whether nothing more happens unless somebody resumes the job."""
        return self in (State.STOPPED, State.SUCCEEDED, State.FAILED)


class Outcome(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    REJECTED = "rejected"  # bad spec, cannot import: fatal at once
    PREEMPTED = "preempted"  # left with its state saved: retried, free of charge
    STOPPED = "stopped"
    CRASHED = "crashed"
    KILLED = "killed"  # SIGKILL from outside: perhaps out of memory
    STALLED = "stalled"  # no progress within the limit
    LOST = "lost"  # no heartbeat
    DIVERGED = "diverged"  # NaN, or damaged data: fatal at once


FATAL: Final = frozenset({Outcome.REJECTED, Outcome.DIVERGED})
FREE: Final = frozenset({Outcome.PREEMPTED})


# --- events: what happened, with all that the decision needs ---------------------------------


class Submitted(msgspec.Struct, frozen=True, kw_only=True, tag="submitted", tag_field="kind"):
    """The job exists. max_retries: attempts in a row without a new checkpoint before it fails."""

    max_retries: int = 3


class Queued(msgspec.Struct, frozen=True, kw_only=True, tag="queued", tag_field="kind"):
    """A cluster has taken the job and will start a supervisor for it; `handle` finds it there."""

    engine: str
    handle: dict[str, Any] = {}


class Claimed(msgspec.Struct, frozen=True, kw_only=True, tag="claimed", tag_field="kind"):
    """`owner` starts attempt `attempt`: from now on every older attempt is superseded.

    slot: the place that a cluster has given the owner.
    """

    attempt: int
    owner: Identity
    slot: Slot | None = None


class Launched(msgspec.Struct, frozen=True, kw_only=True, tag="launched", tag_field="kind"):
    """The backend has taken the attempt; `handle` is how to find it there again."""

    attempt: int
    handle: dict[str, Any] = {}


class Started(msgspec.Struct, frozen=True, kw_only=True, tag="started", tag_field="kind"):
    """The attempt has shown its first sign of life."""

    attempt: int


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """How far an attempt had come, as its last heartbeat said: phase, steps, epochs, metrics."""

    phase: int | None = None
    step: int = 0
    total_steps: int | None = None
    epoch: int = 0
    epochs: int | None = None
    logs: dict[str, float | None] = {}
    last_checkpoint: str | None = None


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended", tag_field="kind"):
    """The attempt is over.

    advanced: it committed a checkpoint beyond the one it started from. delay: seconds to wait
    should it be worth a retry, backoff and jitter already in it. reached: so that a list of jobs
    need not look for the heartbeat of one that has ended.
    """

    attempt: int
    outcome: Outcome
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    advanced: bool = False
    checkpoint: str | None = None
    delay: float = 0.0
    reached: Reached | None = None


class StopRequested(
    msgspec.Struct, frozen=True, kw_only=True, tag="stop-requested", tag_field="kind"
):
    """Somebody wants the job to stop; now: without waiting for a save."""

    by: str = ""
    now: bool = False


class Released(msgspec.Struct, frozen=True, kw_only=True, tag="released", tag_field="kind"):
    """The owner leaves (or is gone) between two attempts: anybody may go on with the job."""

    reason: str = ""


class Resumed(msgspec.Struct, frozen=True, kw_only=True, tag="resumed", tag_field="kind"):
    """Somebody wants an ended job to go on, with a fresh retry budget."""

    by: str = ""


Event = (
    Submitted | Queued | Claimed | Launched | Started | Ended | StopRequested | Released | Resumed
)


# --- actions: what the supervisor has to do about it -------------------------------------------


class Launch(msgspec.Struct, frozen=True):
    """Start the attempt."""

    attempt: int


class StopAttempt(msgspec.Struct, frozen=True):
    """Ask the attempt to save and leave; now: kill it."""

    attempt: int
    now: bool


class Wait(msgspec.Struct, frozen=True):
    """Wait so many seconds, then claim the next attempt."""

    seconds: float


class Leave(msgspec.Struct, frozen=True):
    """Nothing is left to do for this job."""


Action = Launch | StopAttempt | Wait | Leave


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as its journal tells it.

    attempt: the newest claim's number, 0 before the first; the fencing token. in_flight: that
    attempt has not ended. owner: who acts for the job now. handle: the backend's. failures:
    attempts in a row that used up budget without a new checkpoint; fruitless: the same with the
    free ones counted too, which sets the backoff. outcome, exit_code, reason: of the last attempt
    that ended. delay: seconds, while WAITING. stop: "save" or "now" once a stop is wanted.
    queued: where a cluster has the job, when one was given it. slot: the owner's place there.
    """

    state: State
    max_retries: int = 3
    attempt: int = 0
    in_flight: bool = False
    owner: Identity | None = None
    handle: dict[str, Any] | None = None
    failures: int = 0
    fruitless: int = 0
    outcome: Outcome | None = None
    exit_code: int | None = None
    reason: str = ""
    checkpoint: str | None = None
    delay: float = 0.0
    stop: str | None = None
    queued: Queued | None = None
    slot: Slot | None = None

    def evolve(self, **changes: Any) -> Job:
        return msgspec.structs.replace(self, **changes)


def transition(job: Job | None, event: Event) -> tuple[Job, tuple[Action, ...]]:
    """Return the job after `event`, and what is to be done. Raises `InvalidTransition`."""
    match event:
        case Submitted() if job is None:
            return Job(state=State.PENDING, max_retries=event.max_retries), ()
        case Submitted():
            pass
        case _ if job is None:
            pass
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
        case Launched() if _of_flight(job, event.attempt) and job.handle is None:
            launched = job.evolve(handle=event.handle)
            if job.state is State.STOPPING:  # the stop came while it was being launched
                return launched, (StopAttempt(event.attempt, job.stop == "now"),)
            return launched, ()
        case Started() if _of_flight(job, event.attempt) and job.state is not State.RUNNING:
            return (job if job.state is State.STOPPING else job.evolve(state=State.RUNNING)), ()
        case Ended() if _of_flight(job, event.attempt):
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
        story="",
    )


def _claimable(job: Job, event: Claimed) -> bool:
    return (
        job.state in (State.PENDING, State.WAITING)
        and not job.in_flight
        and event.attempt == job.attempt + 1
        and job.owner in (None, event.owner)
    )


def _of_flight(job: Job, attempt: int) -> bool:
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
    fruitless = fruitless_after(job, event.advanced)
    charged = event.outcome not in FREE and event.outcome is not Outcome.STOPPED
    failures = 0 if event.advanced else job.failures + charged
    after = job.evolve(
        in_flight=False,
        handle=None,
        owner=None,
        failures=failures,
        fruitless=fruitless,
        outcome=event.outcome,
        exit_code=event.exit_code,
        reason=event.reason,
        checkpoint=event.checkpoint or job.checkpoint,
    )
    if event.outcome is Outcome.COMPLETED:
        return after.evolve(state=State.SUCCEEDED, failures=0, fruitless=0), (Leave(),)
    if job.state is State.STOPPING or event.outcome is Outcome.STOPPED:
        return after.evolve(state=State.STOPPED), (Leave(),)
    if event.outcome in FATAL:
        return after.evolve(state=State.FAILED), (Leave(),)
    if event.outcome not in FREE and failures > job.max_retries:
        spent = (
            f"{failures} attempts in a row ended without a new checkpoint, {job.max_retries} "
            f"retries are allowed; the last one {event.outcome.value}: {event.reason}"
        )
        return after.evolve(state=State.FAILED, reason=spent), (Leave(),)
    waiting = after.evolve(state=State.WAITING, owner=job.owner, delay=event.delay)
    return waiting, (Wait(event.delay),)


def fruitless_after(job: Job, advanced: bool) -> int:
    """Return how many attempts in a row brought no new checkpoint, once this one has ended."""
    return 0 if advanced else job.fruitless + 1


def _name(event: Event) -> str:
    return str(event.__struct_config__.tag)


# --- what an attempt ended with ------------------------------------------------------------------

_BY_CODE: Final = {
    exit_codes.DONE: (Outcome.COMPLETED, "the script ran to its end"),
    exit_codes.USAGE: (Outcome.REJECTED, "wrong arguments (exit code 2)"),
    exit_codes.REJECTED: (Outcome.REJECTED, "it cannot be started (exit code 3)"),
    exit_codes.DIVERGED: (Outcome.DIVERGED, "diverged, or its data is damaged (exit code 65)"),
    exit_codes.NO_CHECKPOINT: (Outcome.REJECTED, "its checkpoint is missing (exit code 66)"),
    exit_codes.STORAGE_FAILED: (Outcome.CRASHED, "storage failed (exit code 74)"),
    exit_codes.RESUMABLE: (Outcome.PREEMPTED, "asked to leave, state saved"),
    exit_codes.INTERRUPTED: (Outcome.STOPPED, "interrupted"),
}


def judge(code: int | None, signum: int | None, error: str | None) -> tuple[Outcome, str]:
    """Return outcome and reason of an attempt that ended by itself.

    code: its exit code. signum: the signal that killed it. Both None: it is gone and nobody saw
    how. error: what its last heartbeat says it died of.
    """
    if signum is not None:
        return _judge_signal(signum, error)
    if code is None:
        return Outcome.LOST, error or "it is gone, and nobody saw how it ended"
    outcome, reason = _BY_CODE.get(code, (Outcome.CRASHED, f"exit code {code}"))
    return outcome, reason if code == exit_codes.DONE else (error or reason)


def _judge_signal(signum: int, error: str | None) -> tuple[Outcome, str]:
    try:
        name = signals.Signals(signum).name
    except ValueError:
        name = f"signal {signum}"
    if signum == signals.SIGKILL:
        return Outcome.KILLED, "killed by SIGKILL, perhaps out of memory"
    if signum in (signals.SIGTERM, signals.SIGINT, signals.SIGHUP):
        return Outcome.PREEMPTED, f"ended by {name} before it could save"
    known = {
        signals.SIGSEGV: "segmentation fault",
        signals.SIGBUS: "bus error",
        signals.SIGABRT: "abort",
        signals.SIGFPE: "arithmetic fault",
        signals.SIGILL: "illegal instruction",
    }
    what = known.get(signum, "killed")  # type: ignore[call-overload]
    return Outcome.CRASHED, f"{what} ({name})" + (f": {error}" if error else "")


def exit_code(job: Job) -> int:
    """Return what `outlast run` exits with when it leaves the job like this."""
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
            text = f"pending: {job.queued.engine} has it as {job.queued.handle.get('id')}"
        case State.PENDING if not job.in_flight:
            text = "pending: waiting for somebody to run it"
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
