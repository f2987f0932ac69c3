"""The scripts of the acceptance tests under `outlast run`; attempts and supervisors are killed."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from outlast.job.events import Launched
from outlast.job.process_identity import of_process
from tests.acceptance.jobs import Training, assert_same

SCRIPTS = ("mlp", "cnn", "transformer", "gan", "environs")
SAVES = ("1", "5", "7,epoch", "epoch", "1s")
BETWEEN = 6.0  # at most so many seconds are between two kills
SUPERVISORS = 0.15  # of the kills also end the supervisor, which is then started again


class Twin:
    """A training that nobody touches."""

    def __init__(self, make: Callable[..., Training]) -> None:
        self.training = make("--save-every epoch")
        self.training.start()
        self.training.end()


def kill_again_and_again(
    make: Callable[..., Training], twin: Twin, chance: random.Random, limit: int
) -> tuple[int, list[str]]:
    """Train, with up to `limit` kills; return how many there were, and what differs at the end."""
    training = make(f"--save-every {chance.choice(SAVES)}")
    kills = 0
    try:
        training.start()
        while kills < limit:
            time.sleep(chance.uniform(0, BETWEEN))
            both = chance.random() < SUPERVISORS
            if (struck := _strike(training, both=both)) is None:
                break
            kills += struck
            if both:
                training.resume()
        training.end()
        assert_same(training, twin.training)
    except AssertionError as error:
        return kills, [str(error)]
    finally:
        training.close()
    return kills, []


def _strike(training: Training, *, both: bool) -> int | None:
    """Kill the attempt of now; return how many processes were, None when the job has ended."""
    assert training.supervisor is not None
    if training.supervisor.poll() is not None:
        return None
    killed = 0
    if both:
        training.kill_supervisor()
        killed += 1
    launches = [e.event for e in training.journal.read() if isinstance(e.event, Launched)]
    handle = launches[-1].handle if launches else {}
    with suppress(psutil.NoSuchProcess):
        pid = int(handle["pid"]) if handle else 0
        if pid and of_process(pid).start == handle["start"]:
            psutil.Process(pid).kill()
            killed += 1
    return killed


def maker(folder: Path, script: str, digits: Path) -> Callable[..., Training]:
    """Return what makes trainings of a script, each in a new folder, from options."""
    made = iter(range(1_000_000))

    def make(options: str) -> Training:
        at = folder / f"{script}-{next(made)}"
        return Training(at, script, digits, options=options, forked=True)

    return make
