"""All trainings of `make repeatability`, by name. Importing them starts no TensorFlow runtime."""

from __future__ import annotations

from tests.support.loop_harness import Program
from tests.support.loop_zoo import PROGRAMS
from tests.support.training_harness import Script
from tests.support.training_zoo import MORE_TRACED, TRACED
from tests.testbeds.repeatability import cases, loops, own_steps, sequences, vision

ZOO_EPOCHS = 10  # the zoo has three batches in an epoch

SCRIPTS: dict[str, Script] = {
    **vision.SCRIPTS,
    **sequences.SCRIPTS,
    **own_steps.SCRIPTS,
    **cases.SCRIPTS,
    **{
        f"zoo: {name}": script.but(epochs=ZOO_EPOCHS)
        for name, script in {**TRACED, **MORE_TRACED}.items()
    },
}
LOOPS: dict[str, Program] = {
    **loops.PROGRAMS,
    **{f"zoo loop: {name}": program for name, program in PROGRAMS.items()},
}
NAMES = [*SCRIPTS, *LOOPS]
