"""The state machine, decision by decision."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from outlast import exit_codes
from outlast.errors import InvalidTransition
from outlast.job.events import (
    Audited,
    Claimed,
    Ended,
    Event,
    Launched,
    Released,
    Resumed,
    Started,
    StopRequested,
    Submitted,
)
from outlast.job.lifecycle import (
    Job,
    Launch,
    Leave,
    State,
    StopAttempt,
    Wait,
    describe,
    exit_code,
    transition,
)
from outlast.job.outcome import Outcome, judge
from outlast.job.process_identity import Identity

ME = Identity(host="a", pid=1, boot_id="x", start=1)
OTHER = Identity(host="b", pid=2, boot_id="y", start=2)


def after(*events: Event, job: Job | None = None) -> Job:
    for event in events:
        job, _ = transition(job, event)
    assert job is not None
    return job


def running(attempt: int = 1, max_retries: int = 3) -> Job:
    job = after(Submitted(max_retries=max_retries))
    for number in range(1, attempt):
        job = after(*flight(number), Ended(attempt=number, outcome=Outcome.PREEMPTED), job=job)
    return after(*flight(attempt), job=job)


def flight(attempt: int) -> tuple[Event, ...]:
    return (
        Claimed(attempt=attempt, owner=ME),
        Launched(attempt=attempt, handle={"pid": 9}),
        Started(attempt=attempt),
    )


def ended(outcome: Outcome, attempt: int = 1, **more: Any) -> Ended:
    return Ended(attempt=attempt, outcome=outcome, **more)


def test_an_audit_changes_nothing() -> None:
    audited = Audited(first="a", last="b", exact=False)
    waiting = after(ended(Outcome.CRASHED), job=running())
    done = after(ended(Outcome.COMPLETED), job=running())
    for job in (after(Submitted()), running(), waiting, done):
        assert transition(job, audited) == (job, ())
    with pytest.raises(InvalidTransition):
        transition(None, audited)


def test_a_job_that_just_works() -> None:
    job, actions = transition(None, Submitted())
    assert (job.state, actions) == (State.PENDING, ())
    job, actions = transition(job, Claimed(attempt=1, owner=ME))
    assert (job.state, job.owner, actions) == (State.PENDING, ME, (Launch(1),))
    job = after(Launched(attempt=1, handle={"pid": 9}), job=job)
    assert (job.state, job.handle) == (State.PENDING, {"pid": 9})
    job = after(Started(attempt=1), job=job)
    assert job.state is State.RUNNING
    job, actions = transition(job, ended(Outcome.COMPLETED, exit_code=0))
    assert (job.state, job.owner, actions) == (State.SUCCEEDED, None, (Leave(),))
    assert exit_code(job) == exit_codes.DONE


@pytest.mark.parametrize(
    "outcome", [Outcome.CRASHED, Outcome.KILLED, Outcome.STALLED, Outcome.LOST, Outcome.PREEMPTED]
)
def test_a_crash_is_retried_after_the_delay(outcome: Outcome) -> None:
    job, actions = transition(running(), ended(outcome, delay=2.5))
    assert (job.state, job.delay, actions) == (State.WAITING, 2.5, (Wait(2.5),))
    job, actions = transition(job, Claimed(attempt=2, owner=ME))
    assert (job.state, job.delay, actions) == (State.PENDING, 0.0, (Launch(2),))


@pytest.mark.parametrize(
    ("outcome", "code"),
    [(Outcome.REJECTED, exit_codes.REJECTED), (Outcome.DIVERGED, exit_codes.DIVERGED)],
)
def test_a_fatal_outcome_fails_immediately(outcome: Outcome, code: int) -> None:
    job = after(ended(outcome, reason="why", advanced=True), job=running())
    assert (job.state, job.reason) == (State.FAILED, "why")
    assert exit_code(job) == code


def test_a_crash_loop_spends_the_retry_budget_and_says_why() -> None:
    job = after(Submitted(max_retries=2))
    for attempt in (1, 2, 3):
        assert job.state in (State.PENDING, State.WAITING)
        job = after(*flight(attempt), ended(Outcome.CRASHED, attempt, reason="it broke"), job=job)
    assert job.state is State.FAILED
    assert "3 consecutive attempts" in job.reason
    assert "2 retries" in job.reason
    assert "it broke" in job.reason
    assert exit_code(job) == exit_codes.FAILED


def crash(exception: str | None, attempt: int = 1, *, stepped: bool = False, **more: Any) -> Ended:
    return ended(Outcome.CRASHED, attempt, exception=exception, stepped=stepped, **more)


@pytest.mark.parametrize("kind", ["ValueError", "TypeError", "SyntaxError"])
def test_a_lasting_error_before_the_first_step_is_not_retried(kind: str) -> None:
    end = crash(f"{kind} (train.py, line 3)", advanced=True, reason="no such column")
    job, actions = transition(running(), end)
    assert (job.state, actions) == (State.FAILED, (Leave(),))
    assert job.reason.startswith("no such column; it is not retried, because")
    assert exit_code(job) == exit_codes.FAILED


@pytest.mark.parametrize(
    "end",
    [
        crash("ValueError (train.py, line 3)", stepped=True),
        crash("KeyError (train.py, line 3)"),
        crash(None),
        ended(Outcome.KILLED, exception="ValueError (a.py, line 1)", stepped=False),
    ],
)
def test_a_transient_error_is_retried(end: Ended) -> None:
    assert after(end, job=running()).state is State.WAITING


def test_the_same_exception_twice_without_a_step_is_not_retried() -> None:
    here, there = "KeyError (train.py, line 3)", "KeyError (train.py, line 4)"
    job = after(crash(here, stepped=True), *flight(2), job=running())
    assert after(crash(there, 2), job=job).state is State.WAITING
    assert after(crash(here, 2, stepped=True), job=job).state is State.WAITING
    assert after(crash("ValueError (train.py, line 4)", 2), job=job).state is State.WAITING
    failed = after(crash(here, 2), job=job)
    assert failed.state is State.FAILED
    assert "the previous attempt ended with the same error" in failed.reason
    again = after(Resumed(), *flight(3), crash(here, 3), job=failed)
    assert again.state is State.WAITING


def test_a_new_checkpoint_resets_the_retry_budget() -> None:
    job = after(Submitted(max_retries=1))
    for attempt in range(1, 40):  # advanced, fruitless, advanced, fruitless ...
        job = after(
            *flight(attempt),
            ended(Outcome.CRASHED, attempt, advanced=attempt % 2 == 1),
            job=job,
        )
        assert job.state is State.WAITING
        assert job.failures == (attempt + 1) % 2


def test_preemptions_are_free_but_count_for_the_backoff() -> None:
    job = after(Submitted(max_retries=0))
    for attempt in range(1, 30):
        job = after(*flight(attempt), ended(Outcome.PREEMPTED, attempt), job=job)
        assert (job.state, job.failures, job.fruitless) == (State.WAITING, 0, attempt)
    job = after(*flight(30), ended(Outcome.PREEMPTED, 30, advanced=True), job=job)
    assert job.fruitless == 0


def test_a_stop_saves_first_and_a_second_one_kills() -> None:
    job, actions = transition(running(), StopRequested(by="x"))
    assert (job.state, actions) == (State.STOPPING, (StopAttempt(1, now=False),))
    job, actions = transition(job, StopRequested(by="x", now=True))
    assert (job.state, actions) == (State.STOPPING, (StopAttempt(1, now=True),))
    job, actions = transition(job, StopRequested(by="x"))  # "now" is never taken back
    assert actions == (StopAttempt(1, now=True),)
    job, actions = transition(job, ended(Outcome.STOPPED))
    assert (job.state, job.owner, actions) == (State.STOPPED, None, (Leave(),))
    assert job.failures == 0  # to be stopped is no failure
    assert exit_code(job) == exit_codes.INTERRUPTED


def test_a_stop_while_launching_reaches_the_attempt() -> None:
    job = after(Submitted(), Claimed(attempt=1, owner=ME), StopRequested(by="x"))
    job, actions = transition(job, Launched(attempt=1))
    assert (job.state, actions) == (State.STOPPING, (StopAttempt(1, now=False),))
    assert after(Started(attempt=1), job=job).state is State.STOPPING


@pytest.mark.parametrize("outcome", [o for o in Outcome if o is not Outcome.COMPLETED])
def test_while_stopping_any_end_is_a_stop(outcome: Outcome) -> None:
    job = after(StopRequested(by="x"), ended(outcome), job=running())
    assert (job.state, job.outcome) == (State.STOPPED, outcome)
    assert exit_code(job) == exit_codes.RESUMABLE


def test_while_stopping_the_script_may_still_finish() -> None:
    assert after(StopRequested(), ended(Outcome.COMPLETED), job=running()).state is State.SUCCEEDED


@pytest.mark.parametrize(
    "job",
    [after(Submitted()), after(ended(Outcome.CRASHED), job=running())],
    ids=["pending", "waiting"],
)
def test_a_job_without_an_attempt_stops_at_once(job: Job) -> None:
    stopped, actions = transition(job, StopRequested(by="x"))
    assert (stopped.state, stopped.owner, actions) == (State.STOPPED, None, (Leave(),))


def test_an_owner_keeps_the_job_while_it_waits_until_it_is_released() -> None:
    waiting = after(ended(Outcome.CRASHED), job=running())
    assert waiting.owner == ME
    with pytest.raises(InvalidTransition):
        transition(waiting, Claimed(attempt=2, owner=OTHER))
    released = after(Released(), job=waiting)
    assert (released.state, released.owner) == (State.PENDING, None)
    assert after(Claimed(attempt=2, owner=OTHER), job=released).owner == OTHER


@pytest.mark.parametrize("outcome", [Outcome.REJECTED, Outcome.COMPLETED, Outcome.STOPPED])
def test_resuming_resets_the_retry_budget(outcome: Outcome) -> None:
    job = after(Resumed(by="x"), job=after(ended(outcome), job=running(attempt=1)))
    assert (job.state, job.failures, job.fruitless, job.stop) == (State.PENDING, 0, 0, None)
    assert after(Claimed(attempt=2, owner=OTHER), job=job).attempt == 2


@pytest.mark.parametrize(
    ("job", "event"),
    [
        (None, Claimed(attempt=1, owner=ME)),
        (after(Submitted()), Submitted()),
        (after(Submitted()), Claimed(attempt=2, owner=ME)),
        (after(Submitted()), Started(attempt=1)),
        (after(Submitted()), Released()),
        (after(Submitted()), Resumed()),
        (running(), Claimed(attempt=2, owner=ME)),
        (running(), Launched(attempt=1)),
        (running(), Started(attempt=1)),
        (running(), Released()),
        (running(), Resumed()),
        (running(2), ended(Outcome.COMPLETED, 1)),
        (after(ended(Outcome.COMPLETED), job=running()), ended(Outcome.CRASHED)),
        (after(ended(Outcome.COMPLETED), job=running()), StopRequested()),
        (after(ended(Outcome.COMPLETED), job=running()), Claimed(attempt=2, owner=ME)),
    ],
)
def test_events_that_are_not_allowed_are_refused(job: Job | None, event: Event) -> None:
    with pytest.raises(InvalidTransition) as caught:
        transition(job, event)
    assert str(event.__struct_config__.tag) in str(caught.value)


@pytest.mark.parametrize(
    ("code", "signum", "outcome"),
    [
        (0, None, Outcome.COMPLETED),
        (1, None, Outcome.CRASHED),
        (2, None, Outcome.REJECTED),
        (3, None, Outcome.REJECTED),
        (65, None, Outcome.DIVERGED),
        (66, None, Outcome.REJECTED),
        (74, None, Outcome.CRASHED),
        (75, None, Outcome.PREEMPTED),
        (77, None, Outcome.CRASHED),
        (130, None, Outcome.STOPPED),
        (None, signal.SIGKILL, Outcome.KILLED),
        (None, signal.SIGSEGV, Outcome.CRASHED),
        (None, signal.SIGTERM, Outcome.PREEMPTED),
        (None, 60, Outcome.CRASHED),
        (None, None, Outcome.LOST),
    ],
)
def test_the_exit_determines_the_outcome(
    code: int | None, signum: int | None, outcome: Outcome
) -> None:
    found, reason = judge(code, signum, None)
    assert found is outcome
    assert reason


def test_the_reason_is_the_error_that_the_attempt_reported() -> None:
    assert judge(1, None, "ValueError: boom")[1] == "ValueError: boom"
    assert "perhaps out of memory" in judge(None, signal.SIGKILL, None)[1]
    assert "segmentation fault" in judge(None, signal.SIGSEGV, None)[1]
    assert judge(0, None, "an old error")[1] == "the script ran to its end"


def test_every_state_has_a_line_for_people() -> None:
    crashed = after(ended(Outcome.CRASHED, reason="boom", delay=4), job=running())
    assert describe(after(Submitted())) == "pending: no supervisor has it"
    assert describe(after(Claimed(attempt=1, owner=ME), job=after(Submitted()))) == (
        "pending: attempt 1 is starting, by process 1 on a"
    )
    assert describe(running()) == "running: attempt 1, by process 1 on a"
    assert "saving and leaving" in describe(after(StopRequested(), job=running()))
    assert "being killed" in describe(after(StopRequested(now=True), job=running()))
    assert describe(crashed) == (
        "waiting 4.0 s before attempt 2 (attempt 1 crashed, boom), by process 1 on a"
    )
    assert describe(after(ended(Outcome.REJECTED, reason="no file"), job=running())) == (
        "failed (attempt 1 rejected, no file)"
    )
