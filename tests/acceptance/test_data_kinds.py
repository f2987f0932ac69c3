"""Trainings on data other than arrays, killed with SIGKILL at random batches.

Threads read ahead, worker processes fetch, loaders draw at random: none of it survives, and the
end is that of the training that nobody touched, byte for byte.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from outlast.job.events import Ended
from outlast.job.outcome import Outcome
from tests.acceptance.jobs import Training

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.timeout(900)]

# The kind, and how many batches an epoch of it has.
KINDS = {
    "tf.data shuffle repeat": 5,
    "tf.data of unknown size": 6,
    "generator endless": 5,
    "PyDataset processes": 7,
    "grain noise": 5,
    "torch workers": 7,
}
EPOCHS = 3


def start(training: Training, deaths: list[tuple[str, int, int]]) -> None:
    (training.control / "kinds").write_text(json.dumps(list(KINDS)))
    (training.control / "deaths").write_text(json.dumps(deaths))
    training.start()
    training.end()


def ends(training: Training) -> dict[str, Any]:
    """Return every array of every kind's final checkpoint."""
    found = {}
    for phase, checkpoint in training.store.finished_phases().items():
        for file, arrays in training.store.load(checkpoint).files.items():
            for name, array in arrays.items():
                found[f"{phase}:{file}:{name}"] = (str(array.dtype), array.shape, array.tobytes())
    return found


def test_killed_twice_with_each_kind_of_data(
    train: Callable[..., Training], require_package: Callable[[str], None]
) -> None:
    require_package("torch")
    require_package("grain")
    options = {"options": "--save-every 2,epoch", "forked": True}
    untouched, touched = train("kinds", **options), train("kinds", **options)
    start(untouched, [])
    chance = random.Random(7)
    deaths = [
        (name, epoch, chance.randrange(batches))
        for name, batches in KINDS.items()
        for epoch in sorted(chance.sample(range(EPOCHS), 2))
    ]
    print(deaths)
    start(touched, deaths)

    ended = [e.event.outcome for e in touched.journal.read() if isinstance(e.event, Ended)]
    assert ended == [*[Outcome.KILLED] * len(deaths), Outcome.COMPLETED]
    mine, theirs = ends(touched), ends(untouched)
    assert len({name.partition(":")[0] for name in theirs}) == len(KINDS)
    assert list(mine) == list(theirs)
    assert [name for name, array in theirs.items() if mine[name] != array] == []
    assert touched.returned_history() == untouched.returned_history()
    assert touched.rows() == untouched.rows()
    steps = [step for _, step in touched.raw_steps()]
    assert len(steps) > len([row for row in touched.rows() if row["kind"] == "step"])
