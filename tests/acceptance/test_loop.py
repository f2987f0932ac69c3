"""Hand-written trainings under the real command line, killed with SIGKILL."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable

import pytest

from outlast.job.outcome import Outcome
from tests.acceptance.jobs import Training
from tests.acceptance.test_exactness import Striker, outcomes

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

EPOCHS = 12
KILLS = ("step", "epoch_end", "write", "epoch_begin")


def test_a_gan_that_is_killed_and_stopped_ends_as_untouched(
    train: Callable[..., Training], untouched: Callable[[str], Training]
) -> None:
    training = train("gan", forked=True)
    training.start()
    striker = Striker(training, signal.SIGKILL, 300)
    for kind in KILLS[:2]:
        striker.strike(kind)
    striker.signum = signal.SIGTERM
    striker.strike("epoch_end")
    striker.signum = signal.SIGKILL
    for kind in KILLS[2:]:
        striker.strike(kind)
    training.hold("never")
    training.end()
    ends = Counter({Outcome.KILLED: len(KILLS), Outcome.PREEMPTED: 1, Outcome.COMPLETED: 1})
    assert Counter(outcomes(training)) == ends

    whole = untouched("gan")
    mine, theirs = training.arrays(), whole.arrays()
    assert [name for name in theirs if mine.get(name) != theirs[name]] == []
    assert list(mine) == list(theirs)
    for part in ("critic", "both"):
        assert any(name.startswith(f"{part}.weights.h5:optimizer/") for name in theirs)
    assert training.final().place == whole.final().place
    assert training.rows() == whole.rows()
    assert training.returned_history() == whole.returned_history()
    told = json.loads(training.returned_history())
    assert told["epoch"] == [*range(EPOCHS)]
    assert list(told["history"]) == ["critic", "accuracy", "artist", "spread"]
    # It was no empty exercise: steps were done again.
    steps = [step for _, step in training.raw_steps()]
    assert len(steps) > max(steps) == EPOCHS * 32
