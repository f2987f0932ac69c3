"""Trainings that are killed or stopped again and again end like undisturbed ones.

Byte for byte: weights, optimizer, seeds, metrics, callbacks, the History that `fit` returns and
the merged history of all attempts (times aside). The MLP that nobody touches runs under the plain
command line, and so does one that is killed; the others' attempts start faster (forked.py).
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Callable

import psutil
import pytest

from outlast.job.events import Ended
from outlast.job.outcome import Outcome
from tests.acceptance.jobs import Training, assert_same, gone, stopped

pytestmark = [pytest.mark.acceptance, pytest.mark.slow, pytest.mark.timeout(1500)]

SCRIPTS = ("mlp", "cnn", "transformer")
STEPS = 32  # an epoch, in each of the scripts

# import: Python has started, TensorFlow is being imported. restore: what is resumed from is known.
# validation, epoch_end, epoch_begin: held there by the script. write: a checkpoint is being
# written. step: anywhere else, some random steps on. both: the supervisor as well.
KILLS = {
    "import": 2, "restore": 2, "validation": 4, "epoch_end": 3, "epoch_begin": 2, "write": 4,
    "step": 2, "both": 1,
}  # fmt: skip
# The transformer takes longest to compile, and what is killed is the same: once at each moment.
EACH = dict.fromkeys(KILLS, 1)
COLD = {"import": 1, "write": 1, "both": 1}
TERMS = {"import": 1, "validation": 2, "epoch_end": 1, "epoch_begin": 1, "write": 2, "step": 1}


class Striker:
    """Ends one attempt after the other, each at a moment of a given kind."""

    def __init__(self, training: Training, signum: signal.Signals, seed: int) -> None:
        self.training = training
        self.signum = signum
        self.random = random.Random(seed)
        self.epoch = 0  # that the training has certainly reached
        self.last: psutil.Process | None = None
        self.struck: list[str] = []

    def strike(self, kind: str) -> None:
        """Wait for the next attempt, and in it for the moment, and send the signal.

        What has to be met while it trains is waited for only once it has come to an epoch's end:
        looking all the time costs as much as training.
        """
        number = len(self.struck) + 1
        soon = self.epoch + self.random.randint(0, 1)
        # Where nothing else holds the training, the end of an epoch does: it cannot run away.
        moment = {"both": "epoch_begin"}.get(kind, kind)
        held = moment in ("validation", "epoch_end", "epoch_begin")
        self.training.hold(moment if held else "epoch_end", soon, self.last)
        process = self.training.attempt(number)
        self.last = process
        if held:
            self.epoch = self.training.until_held(process, moment, soon)
            if kind == "both":
                self.training.kill_supervisor()
            self._send(process)
        elif kind == "import":
            self._send(process)
        elif kind == "restore":
            origin = f"attempts/{number:04d}/origin.json"
            self.training.until(origin, lambda: self.training.storage.exists(origin), 0)
            self._send(process)
        elif kind == "write":
            kind = self._while_writing(process, number, soon)
        else:
            self._some_steps_on(process, number, soon)
        self.struck.append(kind)
        self.training.hold("epoch_end", self.epoch, process)  # let go of this one only
        self.training.until(f"the end of attempt {number}", lambda: gone(process))
        if kind == "both":
            self.training.resume()

    def _while_writing(self, process: psutil.Process, number: int, soon: int) -> str:
        """Strike when a checkpoint's folder is there and its manifest is not."""
        soon = self.training.until_held(process, "epoch_end", soon)
        while True:
            writing = self.training.writing(number)
            if writing is None:
                soon = self._go_on(process, soon)
                continue
            process.suspend()
            self.training.until("its stop", lambda: stopped(process))
            if self.training.writing(number) == writing:
                break
            process.resume()
        self.epoch = writing.step // STEPS
        self._send(process)
        process.resume() if self.signum != signal.SIGKILL else None
        if self.signum == signal.SIGKILL:
            self.training.until("its end", lambda: gone(process))
            # A call that was on its way may have been finished by the kernel.
            return "step" if self.training.committed(writing) else "write"
        return "write"

    def _some_steps_on(self, process: psutil.Process, number: int, soon: int) -> None:
        soon = self.training.until_held(process, "epoch_end", soon)
        goal = (soon + 1) * STEPS + self.random.randint(1, STEPS)
        while True:
            newest = self.training.folders(number)[-1:]
            if newest and newest[0].step >= goal:
                break
            soon = self._go_on(process, soon)
        self.epoch = newest[0].step // STEPS
        self._send(process)

    def _go_on(self, process: psutil.Process, soon: int) -> int:
        """Let the training do one more epoch when it is being held."""
        assert not gone(process), self.training.diagnostics()
        held = self.training.held(process)
        if held is not None and held[1] >= soon:
            soon = held[1] + 1
            self.training.hold("epoch_end", soon)
        return soon

    def _send(self, process: psutil.Process) -> None:
        # Whoever is asked to leave may be asked twice.
        for _ in range(1 if self.signum == signal.SIGKILL else self.random.randint(1, 2)):
            process.send_signal(self.signum)

    def plan(self, wanted: dict[str, int]) -> list[str]:
        kinds = [kind for kind, count in wanted.items() for _ in range(count)]
        self.random.shuffle(kinds)
        return kinds

    def strike_all(self, wanted: dict[str, int]) -> None:
        waiting = self.plan(wanted)
        while waiting:
            kind = waiting.pop(0)
            self.strike(kind)
            if self.struck[-1] != kind:
                assert len(self.struck) < 2 * sum(wanted.values()), self.struck
                waiting.append(kind)
        self.training.hold("never")
        self.training.end()
        print(f"{self.training.script}: {self.signum.name} at {', '.join(self.struck)}")
        assert not Counter(wanted) - Counter(self.struck)


def outcomes(training: Training) -> list[Outcome]:
    return [e.event.outcome for e in training.journal.read() if isinstance(e.event, Ended)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_20_times(
    script: str, train: Callable[..., Training], untouched: Callable[[str], Training]
) -> None:
    """SIGKILL at any moment costs the steps since the last checkpoint, and nothing else."""
    seed = 100 + SCRIPTS.index(script)
    print(f"seed of the kills: {seed}")
    kills = EACH if script == "transformer" else KILLS
    training = train(script, forked=True)
    training.start()
    striker = Striker(training, signal.SIGKILL, seed)
    striker.strike_all(kills)
    assert len(striker.struck) >= (8 if kills is EACH else 20)
    *others, last = outcomes(training)
    assert last is Outcome.COMPLETED
    # The one whose supervisor died as well ended unseen.
    assert Counter(others) == {Outcome.KILLED: len(striker.struck) - 1, Outcome.LOST: 1}
    assert_same(training, untouched(script))
    # It was no empty exercise: the callbacks did their work, and steps were done again.
    assert "learning_rate" in training.returned_history()
    steps = [step for _, step in training.raw_steps()]
    assert len(steps) > max(steps)


def test_killed_when_every_attempt_starts_cold(
    train: Callable[..., Training], untouched: Callable[[str], Training]
) -> None:
    """The same where each attempt is a new interpreter, which imports TensorFlow first."""
    training = train("mlp")
    training.start()
    striker = Striker(training, signal.SIGKILL, 400)
    striker.strike_all(COLD)
    assert outcomes(training)[-1] is Outcome.COMPLETED
    assert_same(training, untouched("mlp"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_stopped_by_signals(
    script: str, train: Callable[..., Training], untouched: Callable[[str], Training]
) -> None:
    """SIGTERM at any moment loses nothing: no step is ever trained twice."""
    seed = 200 + SCRIPTS.index(script)
    print(f"seed of the signals: {seed}")
    training = train(script, forked=True)
    training.start()
    striker = Striker(training, signal.SIGTERM, seed)
    striker.strike_all(TERMS)
    assert outcomes(training) == [Outcome.PREEMPTED] * len(striker.struck) + [Outcome.COMPLETED]
    steps = [step for _, step in training.raw_steps()]
    assert steps == list(range(1, len(steps) + 1))
    assert_same(training, untouched(script))
