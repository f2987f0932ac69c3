"""Five hundred jobs in all kinds of trouble; and the bugs that this would find, planted.

More of them: `python -m tests.simulation --seeds 100000`. A seed that fails prints its story.
"""

from __future__ import annotations

import os

import pytest

from tests.simulation.oracle import Violation
from tests.simulation.planted import BUGS, planted
from tests.simulation.world import simulate

ENOUGH = 400  # seeds within which a planted bug has to be found
SEEDS, SHARES = 500, 4  # more than enough for those


@pytest.mark.parametrize("share", range(SHARES))
def test_every_invariant_holds(share: int) -> None:
    worlds = [simulate(seed) for seed in range(share, SEEDS, SHARES)]
    assert sum(world.oracle.commits for world in worlds) > 5 * len(worlds)
    # What there was to withstand, so that nobody takes calm for strength.
    stories = [line for world in worlds for line in world.oracle.story]
    for trouble in (
        "is killed",
        "power fails",
        "stands still",
        "out of reach",
        "damaged:",
        "gave up on",
        "save failed",
        "Superseded",
        "JobBusy",
    ):
        assert any(trouble in line for line in stories), trouble


def test_a_seed_is_the_same_every_time() -> None:
    assert simulate(0).oracle.story == simulate(0).oracle.story


def test_the_real_process_keeps_its_own_scheduling() -> None:
    before = os.sched_getscheduler(0)
    assert simulate(0).oracle.commits
    assert os.sched_getscheduler(0) == before


@pytest.mark.parametrize("name", sorted(BUGS))
def test_a_planted_bug_is_found(name: str) -> None:
    with planted(name):
        for seed in range(ENOUGH):
            try:
                simulate(seed)
            except Violation as error:
                print(str(error).splitlines()[0])
                return
    pytest.fail(f"{ENOUGH} seeds have not shown that {name.replace('_', ' ')}")
