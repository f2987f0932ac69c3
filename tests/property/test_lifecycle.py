"""Invariants of a job under random events in any order."""

from __future__ import annotations

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from outlast.errors import InvalidTransition
from outlast.job.events import (
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
    Action,
    Job,
    Launch,
    State,
    StopAttempt,
    describe,
    exit_code,
    transition,
)
from outlast.job.outcome import Outcome
from outlast.job.process_identity import Identity

OWNERS = [Identity(host=f"h{i}", pid=i, boot_id="b", start=i) for i in range(1, 4)]


class AJobsLife(RuleBasedStateMachine):
    """Random events, valid or not; an independent model counts along."""

    def __init__(self) -> None:
        super().__init__()
        self.job: Job | None = None
        self.events: list[Event] = []
        self.launched: list[int] = []
        self.in_a_row = 0  # failures without a new checkpoint, counted independently
        self.completed = False

    @initialize(max_retries=st.integers(0, 3))
    def submit(self, max_retries: int) -> None:
        self.happen(Submitted(max_retries=max_retries))

    def happen(self, event: Event) -> bool:
        try:
            job, actions = transition(self.job, event)
        except InvalidTransition:
            return False
        self.check(self.job, event, job, actions)
        self.job = job
        self.events.append(event)
        return True

    def check(
        self, before: Job | None, event: Event, after: Job, actions: tuple[Action, ...]
    ) -> None:
        for action in actions:
            if isinstance(action, Launch):
                self.launched.append(action.attempt)
            if isinstance(action, StopAttempt):
                assert after.in_flight
                assert action.attempt == after.attempt
        if before is not None and before.owner is not None and isinstance(event, Claimed):
            assert event.owner == before.owner, "a job was taken from its owner"
        if before is not None and before.state.final and not after.state.final:
            assert isinstance(event, Resumed)

    @rule(owner=st.sampled_from(OWNERS), off=st.sampled_from([0, 1, 1, 1, 1, 2]))
    def claim(self, owner: Identity, off: int) -> None:
        assert self.job is not None
        self.happen(Claimed(attempt=self.job.attempt + off, owner=owner))

    @rule(off=st.sampled_from([0, 0, 0, -1, 1]))
    def launch(self, off: int) -> None:
        assert self.job is not None
        self.happen(Launched(attempt=self.job.attempt + off, handle={"pid": 1}))

    @rule(off=st.sampled_from([0, 0, 0, -1, 1]))
    def start(self, off: int) -> None:
        assert self.job is not None
        self.happen(Started(attempt=self.job.attempt + off))

    @rule(
        outcome=st.sampled_from(Outcome),
        advanced=st.booleans(),
        delay=st.floats(0, 60),
        off=st.sampled_from([0, 0, 0, -1, 1]),
    )
    def end(self, outcome: Outcome, advanced: bool, delay: float, off: int) -> None:
        assert self.job is not None
        attempt = self.job.attempt + off
        if self.happen(Ended(attempt=attempt, outcome=outcome, advanced=advanced, delay=delay)):
            self.completed = outcome is Outcome.COMPLETED
            if advanced or outcome in (Outcome.COMPLETED, Outcome.REWOUND, Outcome.ROLLED_BACK):
                self.in_a_row = 0
            elif outcome not in (Outcome.PREEMPTED, Outcome.STOPPED):
                self.in_a_row += 1

    @rule(now=st.booleans())
    def stop(self, now: bool) -> None:
        self.happen(StopRequested(by="somebody", now=now))

    @rule()
    def release(self) -> None:
        self.happen(Released())

    @rule()
    def resume(self) -> None:
        if self.happen(Resumed(by="somebody")):
            self.in_a_row = 0
            self.completed = False

    @invariant()
    def attempts_are_numbered_without_gaps(self) -> None:
        assert self.launched == list(range(1, len(self.launched) + 1))
        assert (self.job.attempt if self.job else 0) == len(self.launched)

    @invariant()
    def the_budget_is_kept(self) -> None:
        if self.job is None:
            return
        assert self.job.failures == self.in_a_row
        if self.job.state is State.WAITING and self.job.outcome is not Outcome.PREEMPTED:
            assert self.job.failures <= self.job.max_retries

    @invariant()
    def state_and_flight_agree(self) -> None:
        if self.job is None:
            return
        job = self.job
        assert (job.state is State.SUCCEEDED) == self.completed
        if job.state in (State.RUNNING, State.STOPPING):
            assert job.in_flight
        if job.in_flight:
            assert job.owner is not None
            assert not job.state.final
        if job.state.final:
            assert job.owner is None
        if job.state is State.WAITING:
            assert job.owner is not None
        if not job.in_flight:
            assert job.handle is None

    @invariant()
    def there_is_always_something_that_can_happen(self) -> None:
        if self.job is None:
            return
        job = self.job
        owner = job.owner or OWNERS[0]
        ways: list[Event] = [
            Claimed(attempt=job.attempt + 1, owner=owner),
            Ended(attempt=job.attempt, outcome=Outcome.LOST),
            Resumed(),
        ]

        def fits(event: Event) -> bool:
            try:
                transition(job, event)
            except InvalidTransition:
                return False
            return True

        assert any(map(fits, ways))

    @invariant()
    def it_can_be_told_and_stored(self) -> None:
        if self.job is None:
            return
        assert describe(self.job)
        assert 0 <= exit_code(self.job) <= 255
        assert msgspec.json.decode(msgspec.json.encode(self.job), type=Job) == self.job

    def teardown(self) -> None:
        """The same events always give the same job, also after a round trip through JSON."""
        stored = msgspec.json.encode(self.events)
        job: Job | None = None
        for event in msgspec.json.decode(stored, type=list[Event]):
            job, _ = transition(job, event)
        assert job == self.job


TestAJobsLife = AJobsLife.TestCase
TestAJobsLife.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
