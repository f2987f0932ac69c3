"""The trainings that are killed: the zoos of the tests, each a script of its own process."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outlast import Loop, fit
from tests.support import data_kinds, loop_zoo, training_zoo
from tests.support.loop_harness import Program, of_part
from tests.support.training_harness import Script, begin_process, end_of, generators, rows

Digests = dict[str, str]
Victim = Callable[[Path, Any], Digests]
# A process that has imported these is too slow to start, or has threads that no fork has.
_HEAVY = {"torch", "grain"}


def _digest(what: Any) -> str:
    return hashlib.sha256(what if isinstance(what, bytes) else repr(what).encode()).hexdigest()


def _of_fit(script: Script) -> Victim:
    def train(folder: Path, save_every: Any) -> Digests:
        model, callbacks = script.build(), script.callbacks()
        given = {"verbose": 0, **script.arguments, "save_every": save_every}
        history = fit(model, callbacks=callbacks, job_dir=folder, **given)
        end = end_of(model, history, callbacks)
        told = {"history": end.history, "epoch": end.epoch, "params": end.params}
        return {name: _digest(value) for name, value in {**end.state, **told}.items()}

    return train


def _of_loop(program: Program) -> Victim:
    def train(folder: Path, save_every: Any) -> Digests:
        def make(state: Any, data: Any = None, **options: Any) -> Loop:
            given = {"verbose": 0, **options, "save_every": save_every}
            return Loop(state, data, job_dir=folder, **given)

        loop, state = program(make)
        told = {"history": loop.history.history, "epoch": loop.history.epoch, "steps": loop.step}
        found = {name: of_part(part) for name, part in state.items()}
        return {name: _digest(value) for name, value in {**found, **told}.items()}

    return train


def _can_run(kind: data_kinds.Kind) -> bool:
    lacking = kind.needs is not None and importlib.util.find_spec(kind.needs) is None
    return not lacking and kind.needs not in _HEAVY


def all_victims() -> dict[str, Victim]:
    """Return the trainings by name: architectures, hand-written loops and kinds of data."""
    scripts = {**training_zoo.TRACED, **training_zoo.MORE_TRACED}
    kinds = {name: kind for name, kind in data_kinds.KINDS.items() if _can_run(kind)}
    return {
        **{f"fit: {name}": _of_fit(script) for name, script in scripts.items()},
        **{f"loop: {name}": _of_loop(program) for name, program in loop_zoo.PROGRAMS.items()},
        **{f"data: {name}": _of_fit(kind.script()) for name, kind in kinds.items()},
    }


def run(victim: Victim, folder: Path, save_every: Any) -> None:
    """Train in this process, to its end; leave the digests of the end beside the folder."""
    begin_process()
    digests = victim(folder, save_every)
    told = {name: _digest(value) for name, value in generators().items()}
    new = folder.with_suffix(".new")
    new.write_text(json.dumps({**digests, **told}))
    new.replace(folder.with_suffix(".end"))


def end(folder: Path) -> Digests:
    """Return the digests of a training that has ended, its merged history among them."""
    found: Digests = json.loads(folder.with_suffix(".end").read_text())
    found["rows"] = _digest(rows(folder))
    return found
