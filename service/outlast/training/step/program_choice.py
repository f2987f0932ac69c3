"""`ProgramChoice`: chooses the program of the script, of the checkpoint, or the faster one."""

from __future__ import annotations

import time
from typing import Any

import tensorflow as tf

from outlast.job.log_events import LogEvent
from outlast.training.data.array_batches import ArrayFeed
from outlast.training.data.epoch_batches import Feed
from outlast.training.data.source import empty_batch
from outlast.training.state import random_state
from outlast.training.state.live_variables import LiveState
from outlast.training.step.compiled_steps import CompiledSteps
from outlast.training.step.program import Program, supports_xla, wants_xla

TRIAL_STEPS = 64  # most steps in a timed call
TRIAL_S = 0.1  # target duration of a timed call
TRIAL_BATCH = 32  # samples per batch, if the data does not fix it


class ProgramChoice:
    """Chooses the program once, at the start of a phase. `steps` must be traced."""

    def __init__(
        self, model: Any, steps: CompiledSteps, live: LiveState, feed: ArrayFeed | Feed, log: Any
    ) -> None:
        self._model = model
        self._steps = steps
        self._live = live
        self._feed = feed
        self._log = log

    def choose(self, asked: bool | str | None, stored: str | None) -> Program:
        """Return the program to train with.

        `asked` is the `jit_compile` of `fit`. `stored` is the checkpoint's program, or None for a
        new training.
        """
        if asked == "auto" and stored is None:
            return self._measured()
        if asked == "auto" and stored in (Program.XLA_STEP, Program.XLA_CALL):
            return Program(stored)
        xla = wants_xla(self._model) if asked is None else asked not in (False, "auto")
        program = self._steps.xla_program() if xla else self._without_xla(stored)
        if stored is not None and stored != program:
            self._log.warning(
                LogEvent.PROGRAM_CHANGED,
                why=f"the checkpoint was trained as {stored}, but the script selects {program}; "
                "the two round differently",
            )
        return program

    def _without_xla(self, stored: str | None = None) -> Program:
        """Return the checkpoint's program if it is without XLA and available, else the model's."""
        if stored == Program.GRAPH:
            return Program.GRAPH
        if stored == Program.ONE_THREAD and self._steps.can_run_one_thread():
            return Program.ONE_THREAD
        if isinstance(self._feed, ArrayFeed):
            return self._steps.graph_program(self._feed.data.batch_size)
        return Program.GRAPH

    def _measured(self) -> Program:
        """Time some steps of each program, restore the state, and return the faster program."""
        without = self._without_xla()
        if not supports_xla(self._model) or self._steps.replicas is not None:
            return without
        before, drawn = self._live.values(), random_state.capture()
        milliseconds, failed = {}, None
        try:
            for program in (without, self._steps.xla_program()):
                self._steps.use(program)
                milliseconds[program] = self._seconds_per_step() * 1e3
        except tf.errors.OpError as error:  # XLA has no kernel for one of the model's ops
            failed = str(error).splitlines()[0]
        finally:
            for variable, value in before:
                variable.assign(value)
            random_state.restore(drawn)
        program = min(milliseconds, key=milliseconds.__getitem__)
        times = {f"{name}_ms": round(ms, 3) for name, ms in milliseconds.items()}
        self._log.info(LogEvent.PROGRAM_CHOSEN, program=str(program), xla_error=failed, **times)
        return program

    def _seconds_per_step(self) -> float:
        self._train(1)  # compiles
        one = self._train(1)
        steps = max(1, min(TRIAL_STEPS, int(TRIAL_S / one)))
        return min(self._train(steps) for _ in range(3))

    def _train(self, steps: int) -> float:
        """Train `steps` steps, or a pass if it is shorter, and return the seconds per step."""
        if isinstance(self._feed, ArrayFeed) and self._steps.arrays is not None:
            batches: Any = self._feed.data.indices(0, 0, steps)
        else:
            batches = [empty_batch(self._steps.spec, TRIAL_BATCH)] * steps
        started = time.perf_counter()
        done = len(self._steps.run(batches))
        return (time.perf_counter() - started) / done
