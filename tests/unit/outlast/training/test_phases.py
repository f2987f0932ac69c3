"""Whose phase it is: a result goes only to the fit that it is of, whatever the script skips."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from outlast import Loop, fit
from outlast.training.errors import PhaseMismatch, PhaseUnfinished, StateMismatch
from outlast_checkpoints.errors import UsageError
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.support.training_harness import (
    Death,
    all_state,
    begin_process,
    dying_at,
    generators,
    process,
    rows,
)

RNG = np.random.default_rng(3)
X = RNG.normal(size=(32, 4)).astype("float32")
Y = X.sum(1, keepdims=True)


def net(
    rate: float = 0.1,
    *,
    units: int = 3,
    activation: str = "relu",
    dropout: float = 0.1,
    momentum: float = 0.0,
    loss: Any = "mse",
) -> Any:
    model = keras.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(units, activation),
            layers.Dropout(dropout),
            layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(rate, momentum=momentum), loss, run_eagerly=True)
    return model


def trained(folder: Path, model: Any = None, **arguments: Any) -> Any:
    given = {"x": X, "y": Y, "epochs": 2, "batch_size": 16, "verbose": 0, "save_every": 1}
    return fit(model or net(), job_dir=folder, **{**given, **arguments})


def finished(folder: Path) -> list[tuple[int, str | None]]:
    store = CheckpointStore(open_storage(folder))
    return [(p, store.manifest(c).progress.phase_name) for p, c in store.finished_phases().items()]


# --- handed back only to the fit that it is ------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"model": lambda: net(0.01)}, "learning_rate"),
        ({"model": lambda: net(momentum=0.5)}, "optimizer"),
        ({"model": lambda: net(activation="tanh")}, "layer"),
        ({"model": lambda: net(dropout=0.3)}, "layer"),
        ({"model": lambda: net(units=4)}, "layers/dense/vars/0"),
        ({"model": lambda: net(loss=keras.losses.Huber(2.0))}, "loss"),
        ({"x": X + 1}, "content"),
        ({"x": X[:16], "y": Y[:16]}, "arguments, x"),
        ({"sample_weight": np.ones(32)}, "sample_weight"),
        ({"class_weight": {0: 2.0, 1: 1.0}, "y": (Y > 0).astype(int)}, "arguments, y"),
        ({"batch_size": 8}, "batch_size"),
        ({"shuffle": False}, "shuffle"),
        ({"validation_split": 0.5}, "validation_split"),
        ({"epochs": 1}, "epochs"),
    ],
    ids=str,
)
def test_a_finished_phase_is_not_handed_back_to_another_fit(
    tmp_path: Path, other: dict[str, Any], what: str
) -> None:
    begin_process()
    with process(tmp_path):
        trained(tmp_path)
    begin_process()
    model = other.get("model", net)()
    before = all_state(model)
    arguments = {key: value for key, value in other.items() if key != "model"}
    with process(tmp_path), pytest.raises(StateMismatch, match=what) as error:
        trained(tmp_path, model, **arguments)
    assert "Nothing was changed" in str(error.value) or "nothing was changed" in str(error.value)
    kept = {name: value for name, value in all_state(model).items() if name in before}
    assert kept == before


def test_a_script_that_passes_over_what_it_has_finished_is_told(tmp_path: Path) -> None:
    """A search with a book of its own: after a death the first fit is another trial's."""
    book: dict[str, float] = {}

    def search(die: bool) -> None:
        begin_process()
        with process(tmp_path):
            for rate in (0.1, 0.01):
                if str(rate) not in book:
                    book[str(rate)] = trained(tmp_path, net(rate)).history["loss"][-1]
                    if die:
                        raise Death

    with pytest.raises(Death):
        search(die=True)
    with pytest.raises(PhaseMismatch, match=r"learning_rate.*0\.1.*0\.01.*name=") as error:
        search(die=False)
    assert list(book) == ["0.1"]
    assert error.value.exit_code == 3


def test_such_a_script_with_names_and_seeds_of_its_own_ends_as_untouched(tmp_path: Path) -> None:
    def search(folder: Path, book: dict[str, list[float]], die: bool = False) -> None:
        begin_process()
        with process(folder):
            for number, rate in enumerate((0.1, 0.01, 0.001)):
                if str(rate) in book:
                    continue
                keras.utils.set_random_seed(number)
                done = trained(folder, net(rate), name=f"rate {rate}")
                book[str(rate)] = done.history["loss"]
                if die:
                    raise Death

    whole: dict[str, list[float]] = {}
    search(tmp_path / "whole", whole)
    parts: dict[str, list[float]] = {}
    for _ in range(2):
        with pytest.raises(Death):
            search(tmp_path / "parts", parts, die=True)
    with pytest.raises(Death), dying_at(3):
        search(tmp_path / "parts", parts)
    search(tmp_path / "parts", parts)
    assert parts == whole
    assert len({losses[-1] for losses in parts.values()}) == 3


def test_a_loop_is_handed_back_only_to_itself(tmp_path: Path) -> None:
    def looped(**changes: Any) -> list[float]:
        begin_process()
        model = changes.pop("model", net)()
        given = {"data": (X, Y), "batch_size": 16, "epochs": 1, "verbose": 0, **changes}
        with process(tmp_path):
            loop = Loop({"model": model}, job_dir=tmp_path, **given)
            for x, y in loop:
                loop.log(loss=model.train_on_batch(x, y))
        return loop.history.history["loss"]

    first = looped()
    assert looped() == first
    for changes, what in (
        ({"data": (X + 1, Y)}, "content"),
        ({"batch_size": 8}, "batch_size"),
        ({"model": lambda: net(0.01)}, "learning_rate"),
        ({"model": lambda: net(activation="tanh")}, "layer"),
    ):
        with pytest.raises(PhaseMismatch, match=what):
            looped(**changes)


def test_what_a_resume_may_change_and_what_not(tmp_path: Path) -> None:
    def resumed(model: Any = None, **arguments: Any) -> None:
        begin_process()
        with process(tmp_path), dying_at(4), pytest.raises(Death):
            trained(tmp_path, model or net(), epochs=9, **arguments)

    begin_process()
    with process(tmp_path), dying_at(4), pytest.raises(Death):
        trained(tmp_path, epochs=9)
    for other in ({"activation": "tanh"}, {"dropout": 0.3}, {"momentum": 0.5}):
        begin_process()
        with process(tmp_path), pytest.raises(StateMismatch):
            trained(tmp_path, net(**other), epochs=9)
    with pytest.raises(StateMismatch, match="content"), process(tmp_path):
        trained(tmp_path, x=X + 1, epochs=9)
    resumed(net(0.01))  # kept, with a warning


# --- by name, whatever the order -----------------------------------------------------------------


def test_a_name_never_seen_begins_a_new_phase(tmp_path: Path) -> None:
    def one(name: str | None) -> Any:
        return trained(tmp_path, name=name).history

    begin_process()
    with process(tmp_path):
        first = one("a"), one(None)
    begin_process()
    with process(tmp_path):
        second = one("b")
    begin_process()
    with process(tmp_path):  # in another order, each its own
        assert one("b") == second
        assert one(None) == first[1]
        assert one("a") == first[0]
        one("c")
    assert finished(tmp_path) == [(0, "a"), (1, None), (2, "b"), (3, "c")]
    steps = [row["phase"] for row in rows(tmp_path) if row["kind"] == "step"]
    assert steps == sorted(steps)
    assert len(steps) == 16


def test_a_new_phase_waits_for_the_unfinished_one(tmp_path: Path) -> None:
    begin_process()
    with process(tmp_path), dying_at(2), pytest.raises(Death):
        trained(tmp_path, name="a")
    begin_process()
    with process(tmp_path), pytest.raises(PhaseUnfinished, match=r"named 'b'.*phase 0 \('a'\)"):
        trained(tmp_path, name="b")
    begin_process()
    with process(tmp_path):
        trained(tmp_path, name="a")
        trained(tmp_path, name="b")
    assert finished(tmp_path) == [(0, "a"), (1, "b")]


# --- left by an error or `break` -----------------------------------------------------------------


ASKED: list[int] = []  # the trials whose callback was called


class Pruned(Exception):
    def __init__(self, why: str, epoch: int = 0) -> None:
        super().__init__(why)
        self.epoch = epoch


class Prune(keras.callbacks.Callback):
    """Ends trial 1 as a pruner does; may look at what a restart does not have any more."""

    def __init__(self, trial: int, hook: str) -> None:
        super().__init__()
        self.trial, self.hook = trial, hook

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        ASKED.append(self.trial)
        if self.hook == "epoch" and self.trial == 1 and epoch == 1:
            raise Pruned("no good", epoch=epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.hook == "batch" and self.trial == 1 and batch == 1:
            raise Pruned("no good")


def trials(folder: Path, hook: str, named: bool, save_every: Any = 2) -> dict[str, Any]:
    """Four trials, of which the second is pruned; return all that can be seen of them."""
    begin_process()
    ASKED.clear()
    seen: dict[str, Any] = {}
    with process(folder):
        for trial in range(4):
            model = net()
            try:
                seen[f"history {trial}"] = trained(
                    folder,
                    model,
                    epochs=3,
                    callbacks=[Prune(trial, hook)],
                    name=f"trial {trial}" if named else None,
                    save_every=save_every,
                ).history
            except Pruned as error:
                seen[f"pruned {trial}"] = str(error), error.epoch
            seen[f"state {trial}"] = all_state(model)
            seen[f"generators {trial}"] = generators()
    seen["rows"] = rows(folder)
    return seen if ASKED else {**seen, "nothing": True}


@pytest.mark.parametrize("hook", ["epoch", "batch"])
@pytest.mark.parametrize("named", [True, False])
def test_a_fit_left_by_an_error_that_the_script_caught_stays_left(
    tmp_path: Path, hook: str, named: bool
) -> None:
    whole = trials(tmp_path / "whole", hook, named)
    assert "pruned 1" in whole
    for phase, step in ((0, 3), (1, 1), (2, 1), (2, 5), (3, 2)):
        with pytest.raises(Death), dying_in(phase, step):
            trials(tmp_path / "parts", hook, named)
    assert trials(tmp_path / "parts", hook, named) == whole
    again = trials(tmp_path / "parts", hook, named)
    assert again == {**whole, "nothing": True}  # every phase is ended: no hook is called


def dying_in(phase: int, step: int) -> Any:
    from unittest import mock

    from outlast.training.phase import Phase

    record = Phase.record_steps

    def record_and_die(self: Phase, *args: Any) -> None:
        record(self, *args)
        if self.index == phase and self.step >= step:
            raise Death(step)

    return mock.patch.object(Phase, "record_steps", record_and_die)


def test_an_error_that_nothing_could_raise_again_is_refused_at_once(tmp_path: Path) -> None:
    class Local(Exception):
        pass

    class Raise(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            raise Local

    begin_process()
    with process(tmp_path):
        with pytest.raises(Local):
            trained(tmp_path, callbacks=[Raise()])
        with pytest.raises(UsageError, match=r"phase 0 was left by Local.*top of its module"):
            trained(tmp_path)


def test_a_fit_that_fails_before_it_began_takes_no_phase(tmp_path: Path) -> None:
    begin_process()
    with process(tmp_path):
        with pytest.raises(ValueError, match="cardinality"):
            trained(tmp_path, y=Y[:3])
        trained(tmp_path)
    begin_process()
    with process(tmp_path):
        trained(tmp_path)
    assert finished(tmp_path) == [(0, None)]


def looped(folder: Path, leave: Callable[[Loop], bool]) -> dict[str, Any]:
    begin_process()
    with process(folder):
        model = net()
        first = Loop({"model": model}, (X, Y), batch_size=8, epochs=2, verbose=0, job_dir=folder)
        for x, y in first:
            first.log(loss=model.train_on_batch(x, y))
            if leave(first):
                break
        second = trained(folder, model).history
        return {
            "first": first.history.history,
            "second": second,
            "state": all_state(model),
            "generators": generators(),
            "rows": rows(folder),
        }


def test_a_loop_left_by_break_stays_left(tmp_path: Path) -> None:
    whole = looped(tmp_path / "whole", lambda loop: loop.step == 5)
    for phase, step in ((0, 3), (1, 1), (1, 3)):
        with pytest.raises(Death), dying_in(phase, step):
            looped(tmp_path / "parts", lambda loop: loop.step == 5)
    assert looped(tmp_path / "parts", lambda loop: loop.step == 5) == whole
    assert looped(tmp_path / "parts", lambda loop: pytest.fail("it is over")) == whole


def test_a_loop_left_by_an_error_in_its_body_is_refused_at_once(tmp_path: Path) -> None:
    def fail(loop: Loop) -> bool:
        raise ArithmeticError

    begin_process()
    with pytest.raises(ArithmeticError):
        looped(tmp_path, fail)
    begin_process()
    with process(tmp_path):
        loop = Loop({"n": []}, X, job_dir=tmp_path, verbose=0, name="x")
        with pytest.raises(PhaseUnfinished):
            next(iter(loop))


def test_the_log_tells_of_it(tmp_path: Path) -> None:
    trials(tmp_path, "epoch", True)
    lines = [
        json.loads(line)
        for path in tmp_path.glob("attempts/*/log.jsonl")
        for line in path.read_text().splitlines()
    ]
    (left,) = [line for line in lines if line["event"] == "phase_left"]
    assert (left["phase"], left["name"], left["why"]) == (1, "trial 1", "Pruned")


def test_at_a_prompt_the_error_that_was_shown_means_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_process()
    model = net()
    with process(tmp_path):
        with pytest.raises(Pruned) as shown:
            trained(tmp_path, model, callbacks=[Prune(1, "epoch")])
        monkeypatch.setattr(sys, "last_value", shown.value, raising=False)
        trained(tmp_path, model)
    assert finished(tmp_path) == [(0, None)]
