"""Which interval an audit trains again, where its attempt stops, and when one is due."""

from __future__ import annotations

import itertools

import pytest

from outlast.audit.interval import At, choose, following
from outlast.errors import AuditImpossible
from outlast.job.audit_schedule import AuditEvery
from outlast.job.audit_target import AuditTarget, moment
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format.layout import CheckpointId, Stage

STEP, EPOCH, END = Stage


def ids(*places: tuple[int, int, Stage]) -> list[CheckpointId]:
    return [CheckpointId(phase, step, stage, 1) for phase, step, stage in places]


TWO_PHASES = ids(
    (0, 0, STEP), (0, 10, STEP), (0, 20, STEP), (0, 20, EPOCH), (0, 30, STEP), (0, 30, END),
    (1, 0, STEP), (1, 0, EPOCH),
)  # fmt: skip


@pytest.mark.parametrize(
    ("at", "first", "last"),
    [
        ("latest", "00-000000000020.1-0001", "00-000000000030.2-0001"),  # phase 1 has no steps yet
        ("phase:0", "00-000000000020.1-0001", "00-000000000030.2-0001"),
        ("step:1", "00-000000000000.0-0001", "00-000000000010.0-0001"),
        ("step:10", "00-000000000000.0-0001", "00-000000000010.0-0001"),
        ("step:11", "00-000000000010.0-0001", "00-000000000020.1-0001"),
    ],
)
def test_the_interval_has_steps_and_the_end_of_its_epoch(at: str, first: str, last: str) -> None:
    found = choose(TWO_PHASES, "j", At.parse(at))
    assert (str(found.first), str(found.last)) == (first, last)


@pytest.mark.parametrize(
    ("at", "there"),
    [("latest", ids((0, 5, STEP))), ("latest", []), ("phase:1", TWO_PHASES), ("phase:2", []),
     ("step:31", TWO_PHASES), ("latest", ids((0, 5, STEP), (1, 5, STEP)))],
)  # fmt: skip
def test_without_two_checkpoints_it_says_what_to_do(at: str, there: list[CheckpointId]) -> None:
    with pytest.raises(AuditImpossible, match=r"Job 'j' cannot be audited.*--keep last:2") as found:
        choose(there, "j", At.parse(at))
    assert found.value.exit_code == 66


@pytest.mark.parametrize("text", ["", "step:0", "step:-1", "step:", "phase:x", "newest", "step:1 "])
def test_an_invalid_interval_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--at"):
        At.parse(text)


def test_a_background_audit_takes_the_next_checkpoint_with_a_step() -> None:
    (first,) = ids((0, 20, STEP))
    found = following(TWO_PHASES, first)
    assert found is not None
    assert (found.first, str(found.last)) == (first, "00-000000000030.0-0001")
    assert following(TWO_PHASES[:4], first) is None  # the epoch's end alone has no step
    assert following(TWO_PHASES, ids((1, 0, STEP))[0]) is None


def test_moments_are_in_the_order_in_which_they_occur() -> None:
    # the last step of an epoch; its batches are trained; the epoch is over; the next one has begun
    order = [
        moment(7, STEP, begun=True, trained=False),
        moment(7, STEP, begun=True, trained=True),
        moment(7, EPOCH, begun=False, trained=False),
        moment(7, EPOCH, begun=True, trained=False),
        moment(8, STEP, begun=True, trained=False),
        moment(8, END, begun=False, trained=False),
    ]
    assert order == sorted(order)
    assert len(set(order)) == len(order)
    for (i, wanted), (j, at) in itertools.product(enumerate(order), repeat=2):
        step, stage, late = wanted
        target = AuditTarget(phase=1, step=step, stage=stage, late=late)
        assert target.reached(1, at) is (j >= i)
        assert not target.reached(0, at)
        assert not target.reached(2, at)


def test_a_phase_that_ends_too_early_ends_the_audit() -> None:
    target = AuditTarget(phase=1, step=20, stage=STEP, late=False)
    assert target.reached(1, moment(7, END, begun=False, trained=False))
    assert not target.reached(1, moment(7, EPOCH, begun=True, trained=False))
    assert not target.reached(0, moment(7, END, begun=False, trained=False))


def test_calls_of_several_steps_end_at_the_target() -> None:
    target = AuditTarget(phase=1, step=20, stage=STEP, late=False)
    assert target.steps_until(1, 5, 100) == 15
    assert target.steps_until(1, 5, 10) == 10
    assert target.steps_until(1, 20, 10) == 1  # the epoch's end of step 20 may still be wanted
    assert target.steps_until(0, 5, 100) == 100


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("never", AuditEvery()), ("10", AuditEvery(checkpoints=10)), ("30m", AuditEvery(seconds=1800)),
     ("1.5h", AuditEvery(seconds=5400)), ("1D", AuditEvery(seconds=86400))],
)  # fmt: skip
def test_how_often_is_spelled(text: str, wanted: AuditEvery) -> None:
    assert AuditEvery.parse(text) == wanted
    assert wanted.wanted is (text != "never")


@pytest.mark.parametrize("text", ["0", "-1", "", "10 steps", "0s", "often", "5,10"])
def test_what_is_not_understood_is_named(text: str) -> None:
    with pytest.raises(UsageError, match=r"audit_every.*30m"):
        AuditEvery.parse(text)


def test_an_audit_is_due_after_checkpoints_or_time() -> None:
    assert [AuditEvery(checkpoints=3).due(n, 1e9) for n in range(5)] == [False] * 3 + [True] * 2
    assert AuditEvery(seconds=60.0).due(1, 60.0)
    assert not AuditEvery(seconds=60.0).due(1, 59.0)
    assert not AuditEvery(seconds=60.0).due(0, 1e9)  # nothing new to audit
    assert not AuditEvery().due(1000, 1e9)
