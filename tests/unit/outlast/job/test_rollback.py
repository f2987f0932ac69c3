"""What a rollback leaves out, and when a job ends instead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast.job.rollback import Fault, LeftOut, Policy, Rollback
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.format.layout import CheckpointId, Stage

START = CheckpointId(0, 0, Stage.STEP, 1)


def fault(step: int, phase: int = 0) -> Fault:
    return Fault(phase=phase, step=step, epoch=0, batch=step - 1, value="nan")


def decided(
    policy: str, step: int, *earlier: Rollback, kept: tuple[CheckpointId, ...] = (START,)
) -> Rollback:
    found = Policy.parse(policy).decide(len(earlier) + 1, fault(step), earlier, kept)
    assert isinstance(found, Rollback), found
    return found


def steps(one: Rollback) -> tuple[int, int]:
    return one.first, one.last


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", (1, 1, 3)),
        ("back:0", (0, 1, 3)),
        ("back:100, skip:200", (100, 200, 3)),
        ("max:0", (1, 1, 0)),
        ("max:5,skip:2,back:7", (7, 2, 5)),
    ],
)
def test_a_policy_is_parsed(policy: str, expected: tuple[int, int, int]) -> None:
    found = Policy.parse(policy or "back:1,skip:1,max:3")
    assert (found.back, found.skip, found.most) == expected


@pytest.mark.parametrize(
    "policy", ["", "skip:0", "back", "back:-1", "back:1,back:2", "lr:0.5", "back:1;skip:2"]
)
def test_what_is_no_policy_is_refused_by_name(policy: str) -> None:
    with pytest.raises(UsageError, match=r"rollback.*back:1,skip:1,max:3"):
        Policy.parse(policy)


def test_the_batches_around_the_fault_are_left_out() -> None:
    assert steps(decided("back:1,skip:1", 40)) == (39, 40)
    assert steps(decided("back:0,skip:1", 40)) == (40, 40)
    assert steps(decided("back:10,skip:5", 40)) == (30, 44)
    assert steps(decided("back:10,skip:1", 4)) == (1, 4)


def test_it_does_not_depend_on_which_checkpoints_are_there() -> None:
    several = tuple(CheckpointId(0, step, Stage.STEP, 1) for step in (10, 20, 30))
    for kept in ((START,), several, several[:1], (*several, CheckpointId(0, 39, Stage.STEP, 1))):
        assert steps(decided("back:2,skip:3", 40, kept=kept)) == (38, 42)


def test_what_was_pruned_is_not_trained_again() -> None:
    kept = (CheckpointId(0, 35, Stage.STEP, 1), CheckpointId(0, 38, Stage.STEP, 1))
    assert steps(decided("back:10,skip:1", 40, kept=kept)) == (36, 40)
    later = (CheckpointId(0, 40, Stage.STEP, 1),)
    found = Policy().decide(1, fault(40), (), later)
    assert found == "no checkpoint before it is left"


def test_one_more_fault_at_the_same_place_ends_the_job() -> None:
    earlier: list[Rollback] = []
    for step in (40, 41, 42):
        earlier.append(decided("back:0,skip:1,max:3", step, *earlier))
    found = Policy.parse("back:0,skip:1,max:3").decide(4, fault(43), earlier, (START,))
    assert found == "3 rollbacks at this place were allowed, and left out steps 40 to 42"
    assert steps(decided("back:0,skip:1,max:3", 44, *earlier)) == (44, 44)  # step 43 was fine
    assert Policy.parse("max:0").decide(1, fault(3), (), (START,)) == "no rollback is allowed"


def test_a_fault_within_what_is_left_out_counts_as_the_same_place() -> None:
    first = decided("back:5,skip:1,max:1", 40)
    assert steps(first) == (35, 40)
    policy = Policy.parse("back:5,skip:1,max:1")
    assert isinstance(policy.decide(2, fault(44), [first], (START,)), str)
    assert steps(decided("back:5,skip:1,max:1", 60, first)) == (55, 60)


def test_phases_are_told_apart() -> None:
    other = Rollback(attempt=1, fault=fault(40, phase=1), first=39, last=40)
    assert steps(decided("back:1,skip:1,max:1", 40, other)) == (39, 40)
    assert LeftOut([other], 0).next_steps(38) == 0
    assert LeftOut([other], 1).next_steps(38) == 2


@given(
    ranges=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 9)), max_size=5),
    most=st.integers(1, 9),
    group=st.integers(1, 4),
)
def test_each_step_is_trained_or_left_out(
    ranges: list[tuple[int, int]], most: int, group: int
) -> None:
    """As the loop asks: in calls of up to `most` steps, or in groups of steps_per_execution."""
    made = [Rollback(attempt=1, fault=fault(at), first=at, last=at + n) for at, n in ranges]
    wanted = {step for one in made for step in range(one.first, one.last + 1)}
    if group > 1:
        wanted = {
            step
            for begin in range(0, 100 * group, group)
            if wanted & set(range(begin + 1, begin + group + 1))
            for step in range(begin + 1, begin + group + 1)
        }
    left, step, left_out = LeftOut(made, 0), 0, set()
    while step < 90:
        if count := left.next_steps(step, group):
            left_out |= set(range(step + 1, step + count + 1))
            step += count
        else:
            step += group if group > 1 else left.until(step, most)
    assert left_out == {one for one in wanted if one <= step}
