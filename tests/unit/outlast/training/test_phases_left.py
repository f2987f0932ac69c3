"""A phase that the script leaves by an error that it catches, or by `break`, stays left."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import pytest
import tensorflow as tf

from outlast import Loop
from outlast.training import call_site
from outlast.training.errors import Diverged, PhaseUnfinished
from outlast.training.trainer import Trainer
from outlast_checkpoints.errors import UsageError
from tests.support.phase_scripts import X, Y, dying_in, finished, net, trained
from tests.support.training_harness import (
    Death,
    all_state,
    begin_process,
    generators,
    process,
    rows,
)

ASKED = "TRIAL_WAS_ASKED"  # in the environment, for what a callback fills is its state


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
        os.environ[ASKED] = "1"
        if self.hook == "epoch" and self.trial == 1 and epoch == 1:
            raise Pruned("no good", epoch=epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.hook == "batch" and self.trial == 1 and batch == 1:
            raise Pruned("no good")


def trials(folder: Path, hook: str, named: bool, save_every: Any = 2) -> dict[str, Any]:
    """Four trials, of which the second is pruned; return all that can be seen of them."""
    begin_process()
    os.environ.pop(ASKED, None)
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
    return seen if os.environ.pop(ASKED, None) else {**seen, "nothing": True}


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


class Refuse(keras.callbacks.Callback):
    def __init__(self, make: Callable[[], Exception]) -> None:
        super().__init__()
        self.make = make

    def on_test_end(self, logs: Any = None) -> None:
        raise self.make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: tf.errors.ResourceExhaustedError(None, None, "out of memory"),
        lambda: Diverged(value=7.0, step=3, epoch=1),
        lambda: OSError(2, "not there", "file"),
        lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "no"),
        lambda: KeyError("key"),
    ],
)
def test_errors_of_all_kinds_are_raised_again(
    tmp_path: Path, make: Callable[[], Exception]
) -> None:
    for _ in range(2):
        begin_process()
        with process(tmp_path):
            with pytest.raises(type(make())) as error:
                trained(tmp_path, validation_data=(X, Y), callbacks=[Refuse(make)])
            assert str(error.value) == str(make())
            trained(tmp_path)
    assert finished(tmp_path) == [(0, None), (1, None)]


def test_later_changes_to_the_model_are_not_part_of_the_phase(tmp_path: Path) -> None:
    def script(folder: Path) -> list[Any]:
        begin_process()
        with process(folder):
            model = net()
            with pytest.raises(Pruned):
                trained(folder, model, callbacks=[Prune(1, "epoch")], epochs=3)
            seen = [all_state(model)]
            model.train_on_batch(X, Y)
            seen += [trained(folder, model).history, all_state(model), generators()]
        return seen

    whole = script(tmp_path / "whole")
    with pytest.raises(Death), dying_in(1, 1):
        script(tmp_path / "parts")
    assert script(tmp_path / "parts") == whole


def test_a_kill_between_the_record_and_the_next_phase_changes_nothing(tmp_path: Path) -> None:
    whole = trials(tmp_path / "whole", "epoch", True)
    start = Trainer.start

    def die(self: Trainer, epoch: int) -> None:
        if self.phase.index == 2:
            raise Death
        start(self, epoch)

    with mock.patch.object(Trainer, "start", die), pytest.raises(Death):
        trials(tmp_path / "parts", "epoch", True)
    assert finished(tmp_path / "parts") == [(0, "trial 0"), (1, "trial 1")]
    assert trials(tmp_path / "parts", "epoch", True) == whole


def booked(folder: Path, book: set[int], *, named: bool, dies_after: int | None = None) -> None:
    """Trials that a library calls, and skips by its own records."""
    begin_process()
    with process(folder):
        for trial in range(4):
            if trial in book:
                continue
            name = f"trial {trial}" if named else None
            callbacks = [Prune(trial, "epoch")]
            with suppress(Pruned):
                trained(folder, net(0.1 + trial), epochs=3, callbacks=callbacks, name=name)
            book.add(trial)
            if trial == dies_after:
                raise Death


@pytest.mark.parametrize("named", [True, False])
def test_a_trial_that_the_scripts_own_book_skips_is_ended(tmp_path: Path, named: bool) -> None:
    book: set[int] = set()
    script = tmp_path / "script.py"
    script.write_text("the same in each attempt")
    with mock.patch.object(call_site, "main_file", return_value=str(script)):
        with pytest.raises(Death):
            booked(tmp_path / "job", book, named=named, dies_after=1)  # trial 1 was pruned
        assert [phase for phase, _ in finished(tmp_path / "job")] == [0]
        with pytest.raises(Death):
            booked(tmp_path / "job", book, named=named, dies_after=2)
        booked(tmp_path / "job", book, named=named)
    assert book == {0, 1, 2, 3}
    assert [phase for phase, _ in finished(tmp_path / "job")] == [0, 2, 3]
    logs = "".join(path.read_text() for path in tmp_path.rglob("log.jsonl"))
    assert "phases_passed_over" in logs


def test_a_trial_that_is_called_again_after_a_death_goes_on(tmp_path: Path) -> None:
    whole = trials(tmp_path / "whole", "epoch", True)
    book: set[int] = set()
    with pytest.raises(Death):
        booked(tmp_path / "parts", book, named=True, dies_after=1)
    begin_process()
    model = net(1.1)
    with process(tmp_path / "parts"), pytest.raises(Pruned):
        trained(tmp_path / "parts", model, epochs=3, callbacks=[Prune(1, "epoch")], name="trial 1")
    assert whole["pruned 1"] == ("no good", 1)


def test_an_error_that_cannot_be_raised_again_is_refused_immediately(tmp_path: Path) -> None:
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


def test_a_fit_that_fails_before_it_begins_enters_no_phase(tmp_path: Path) -> None:
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


def bar_of(batches: Any) -> Iterator[Any]:
    """Wrap batches as progress bars do, which have work to do at their end."""
    try:
        for count, batch in enumerate(batches):
            print(count, end=" ")
            yield batch
    finally:
        print("closed")


class Bar:
    """A bar that a variable holds while its loop is left."""

    def __init__(self, batches: Any) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        yield from bar_of(self.batches)


def walk_wrapped(loop: Loop, wrap: Callable[[Any], Any], fails: bool) -> Iterator[int]:
    held = wrap(loop)
    for _ in held:
        yield loop.step
        try:
            if loop.step == 2:
                if fails:
                    raise ArithmeticError
                break
        finally:
            print("left")


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("wrap", [Bar, lambda loop: loop], ids=["bar", "none"])
def test_a_break_is_told_from_an_error_behind_wrappers_too(
    tmp_path: Path, wrap: Callable[[Any], Any], fails: bool
) -> None:
    for again in (False, True):
        begin_process()
        with process(tmp_path):
            loop = Loop({"n": []}, X, batch_size=8, verbose=0, job_dir=tmp_path)
            with pytest.raises(ArithmeticError) if fails else nullcontext():
                assert list(walk_wrapped(loop, wrap, fails)) == ([] if again else [0, 1, 2])
            if fails:
                with pytest.raises(UsageError, match="an error in the loop's body"):
                    trained(tmp_path)
                return
            trained(tmp_path)
    assert finished(tmp_path) == [(0, None), (1, None)]


@pytest.mark.parametrize("fails", [False, True])
def test_an_iterator_that_a_variable_holds_is_never_taken_for_ended(
    tmp_path: Path, fails: bool
) -> None:
    """It is dropped later, by whatever frees the variable."""

    def walk(loop: Loop) -> None:
        held = map(abs, (0 * loop.step for _ in bar_of(loop)))
        for _ in held:
            if fails:
                raise ArithmeticError
            break

    begin_process()
    with process(tmp_path):
        loop = Loop({"n": []}, X, batch_size=8, verbose=0, job_dir=tmp_path)
        with suppress(ArithmeticError):
            walk(loop)
        with pytest.raises((UsageError, PhaseUnfinished)):
            trained(tmp_path)


@pytest.mark.parametrize("way", ["return", "enumerate", "zip"])
def test_other_ways_to_leave_a_loop_are_recognized(tmp_path: Path, way: str) -> None:
    def walk(loop: Loop) -> None:
        if way == "return":
            for _ in loop:
                if loop.step == 2:
                    return
        elif way == "enumerate":
            for count, _ in enumerate(loop):
                if count == 2:
                    break
        else:
            for count, _ in zip(range(9), loop, strict=False):
                if count == 2:
                    break

    for _ in range(2):
        begin_process()
        with process(tmp_path):
            walk(Loop({"n": []}, X, batch_size=8, verbose=0, job_dir=tmp_path))
            trained(tmp_path)
    assert finished(tmp_path) == [(0, None), (1, None)]


def test_a_phase_waits_for_a_loop_that_an_error_ended(tmp_path: Path) -> None:
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


def test_the_log_has_the_phase_that_was_left(tmp_path: Path) -> None:
    trials(tmp_path, "epoch", True)
    lines = [
        json.loads(line)
        for path in tmp_path.glob("attempts/*/log.jsonl")
        for line in path.read_text().splitlines()
    ]
    (left,) = [line for line in lines if line["event"] == "phase_left"]
    assert (left["phase"], left["name"], left["why"]) == (1, "trial 1", "Pruned")


def test_at_a_prompt_a_shown_error_means_a_retry(
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
