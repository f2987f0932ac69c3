"""One untouched training, by our `fit` or `Loop`, and the digests of all that it leaves behind."""

from __future__ import annotations

import hashlib
import inspect
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from outlast import Loop, fit
from tests.support.loop_harness import of_part
from tests.support.training_harness import all_state, begin_process, generators
from tests.testbeds.repeatability.catalogue import LOOPS, SCRIPTS

Digests = dict[str, str]


def train(name: str) -> Digests:
    """Train the architecture in a job of its own; return a digest for each kind of result."""
    with tempfile.TemporaryDirectory(prefix="repeatability-") as folder:
        begin_process()
        parts = _train_loop(name, folder) if name in LOOPS else _train_script(name, folder)
    return {part: hashlib.sha256(repr(value).encode()).hexdigest() for part, value in parts}


def _train_script(name: str, folder: str) -> Iterator[tuple[str, Any]]:
    script = SCRIPTS[name]
    model, callbacks = script.build(), script.callbacks()
    arguments = {key: made(value) for key, value in script.arguments.items()}
    history = fit(
        model, callbacks=callbacks, job_dir=Path(folder) / "job", **{"verbose": 0, **arguments}
    )
    by_group: dict[str, dict[str, bytes]] = {"model": {}, "metrics": {}, "optimizer": {}}
    for path, value in all_state(model).items():
        by_group[path.partition("/")[0]][path] = value
    yield from by_group.items()
    yield "history", history.history
    yield "generators", generators()


def _train_loop(name: str, folder: str) -> Iterator[tuple[str, Any]]:
    def make(state: Any, data: Any = None, **options: Any) -> Loop:
        return Loop(state, data, job_dir=Path(folder) / "job", **{"verbose": 0, **options})

    loop, state = LOOPS[name](make)
    yield "state", {key: of_part(part) for key, part in state.items()}
    yield "history", loop.history.history
    yield "generators", generators()


def made(value: Any) -> Any:
    """Return an argument of `fit`; a pipeline or generator is made in the process that trains."""
    return value() if inspect.isfunction(value) else value
