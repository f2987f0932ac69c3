"""`keras.Model.fit` is ours where it is adopted, and a model's own `fit` keeps its part."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import pytest
from keras import layers

import outlast
from outlast import Loop, fit
from outlast.attempt import adoption, bare
from outlast.training.errors import NotSupported
from outlast.training.history import History
from outlast.training.keras_internals import trainer
from outlast_checkpoints.errors import UsageError
from tests.support.training_harness import (
    Death,
    End,
    Script,
    assert_same_end,
    begin_process,
    dying_at,
    end_of,
    keras_fit,
    process,
    rows,
)
from tests.support.training_zoo import ARRAYS, X, Y, tiny

PLAIN = Script(tiny(), ARRAYS)


@pytest.fixture(autouse=True)
def _only_here() -> Iterator[None]:
    yield
    adoption.end()


def adopted(script: Script, folder: Path) -> End:
    """Run the script, which calls Keras' fit, as one process that adopts it."""
    begin_process()
    outlast.adopt(folder)
    model, callbacks = script.build(), script.callbacks()
    with process(folder):
        history = model.fit(verbose=0, callbacks=callbacks, **script.arguments)
        end = end_of(model, history, callbacks)
    end.rows = rows(folder)
    return end


def said(folder: Path) -> str:
    return "".join(p.read_text() for p in folder.glob("attempts/*/log.jsonl"))


def test_an_adopted_fit_survives_and_ends_as_that_of_keras(tmp_path: Path) -> None:
    theirs = keras_fit(PLAIN)
    untouched = adopted(PLAIN, tmp_path / "untouched")
    assert_same_end(theirs, untouched, rows=False)
    with dying_at(3), pytest.raises(Death):
        adopted(PLAIN, tmp_path / "killed")
    assert_same_end(untouched, adopted(PLAIN, tmp_path / "killed"))
    assert '"resumed"' in said(tmp_path / "killed")


def test_a_call_is_as_in_keras(tmp_path: Path) -> None:
    begin_process()
    outlast.adopt(tmp_path)
    names = ["self", "x", "y", "batch_size", "epochs", "verbose", "callbacks", "validation_split"]
    assert list(inspect.signature(keras.Model.fit).parameters)[:8] == names
    model = PLAIN.build()
    with process(tmp_path):
        with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
            model.fit(X, Y, epoch=3)
        with pytest.raises(ValueError, match="compile"):
            tiny()().__class__([layers.Dense(3)]).fit(X, Y)
        first = model.fit(X, Y, 4, 2, 0)
        second = keras.Model.fit(model, x=X, y=Y, initial_epoch=2, epochs=3, verbose=0)
    assert isinstance(first, History)
    assert (first.epoch, second.epoch) == ([0, 1], [2])
    assert [row["phase"] for row in rows(tmp_path) if row["kind"] == "phase"] == [0, 1]


def in_a_thread(model: Any) -> None:
    thread = threading.Thread(target=lambda: model.fit(verbose=0, **ARRAYS))
    thread.start()
    thread.join()


def in_a_callback(model: Any) -> None:
    other = tiny()()

    def fit_other(epoch: int, logs: Any) -> None:
        keras.Model.fit(other, verbose=0, **ARRAYS)

    begin = keras.callbacks.LambdaCallback(on_epoch_begin=fit_other)
    model.fit(verbose=0, callbacks=[begin], **ARRAYS)


def in_a_loop(model: Any) -> None:
    folder = adoption.current().job_dir  # type: ignore[union-attr]
    for _ in Loop({"seen": []}, steps_per_epoch=1, job_dir=folder, verbose=0):
        model.fit(verbose=0, **ARRAYS)


def of_a_special_model(model: Any) -> None:
    model.make_train_function = lambda force=False: type(model).make_train_function(model, force)
    model.fit(verbose=0, **ARRAYS)


def with_an_argument_that_keras_accepts(model: Any) -> None:
    model.fit(verbose=0, **{**ARRAYS, "epochs": -1})


PLAIN_CALLS: dict[str, Callable[[Any], None]] = {
    "a thread calls it": in_a_thread,
    "within another fit or Loop": in_a_callback,
    "called within another fit": in_a_loop,
    "overrides make_train_function": of_a_special_model,
    "invalid value -1": with_an_argument_that_keras_accepts,
}


@pytest.mark.parametrize("why", PLAIN_CALLS)
def test_what_cannot_be_adopted_trains_as_in_keras_and_is_named_once(
    tmp_path: Path, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    begin_process()
    outlast.adopt(tmp_path)
    with process(tmp_path):
        for _ in range(2):
            PLAIN_CALLS[why](tiny()())
    told = capfd.readouterr().err
    assert told.count("outlast: a fit is not adopted: ") == 1
    assert why in told


def test_a_plain_fit_is_no_stall(tmp_path: Path) -> None:
    begin_process()
    outlast.adopt(tmp_path)
    with process(tmp_path):
        status = bare.open_bare(tmp_path).status
        of_a_special_model(tiny()())
        assert status.progress >= ARRAYS["epochs"] * len(X) // ARRAYS["batch_size"]


@pytest.mark.parametrize("why", [why for why in PLAIN_CALLS if why != "a thread calls it"])
def test_strictly_it_is_refused(tmp_path: Path, why: str) -> None:
    begin_process()
    outlast.adopt(tmp_path, strict=True)
    with process(tmp_path), pytest.raises(UsageError, match=why):
        PLAIN_CALLS[why](tiny()())


def test_without_a_job_it_says_what_to_pass() -> None:
    with pytest.raises(UsageError, match="job_dir: it is missing"):
        outlast.adopt()
    assert adoption.current() is None


class Doubling(keras.Sequential):  # type: ignore[misc]
    """Its own fit changes the data, as the preprocessor of a KerasHub task does."""

    calls = 1

    def fit(self, x: Any, y: Any, validation_data: Any = None, **options: Any) -> Any:
        held = validation_data and (2 * validation_data[0], validation_data[1])
        for _ in range(self.calls):
            result = super().fit(2 * x, y, validation_data=held, **options)
        return result


class Twice(Doubling):
    calls = 2


class Calling(keras.Sequential):  # type: ignore[misc]
    def fit(self, x: Any, y: Any, **options: Any) -> Any:
        return fit(self, 2 * x, y, **options)


def special(kind: type) -> Any:
    model = kind(
        [layers.Input((6,)), layers.Dense(8, "relu"), layers.Dropout(0.4), layers.Dense(3)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    return model


OWN = Script(lambda: special(Doubling), {**ARRAYS, "validation_data": (X[:4], Y[:4])})


@pytest.mark.parametrize("adopt", [False, True])
def test_a_fit_that_ends_in_that_of_keras_keeps_its_own_part(tmp_path: Path, adopt: bool) -> None:
    theirs = keras_fit(OWN)
    assert theirs.history != keras_fit(OWN.with_build(lambda: special(keras.Sequential))).history

    def train(folder: Path) -> End:
        if adopt:
            return adopted(OWN, folder)
        begin_process()
        model = OWN.build()
        with process(folder):
            history = fit(model, job_dir=folder, verbose=0, **OWN.arguments)
            end = end_of(model, history, [])
        end.rows = rows(folder)
        return end

    assert_same_end(theirs, train(tmp_path / "untouched"), rows=False)
    with dying_at(3), pytest.raises(Death):
        train(tmp_path / "killed")
    assert_same_end(theirs, train(tmp_path / "killed"), rows=False)


def test_each_call_of_an_own_fit_is_a_phase(tmp_path: Path) -> None:
    begin_process()
    with process(tmp_path):
        fit(special(Twice), X, Y, job_dir=tmp_path, name="a", verbose=0)
        fit(special(Calling), X, Y, job_dir=tmp_path, name="b", verbose=0)
    assert [row["name"] for row in rows(tmp_path) if row["kind"] == "phase"] == ["a", "a 2", "b"]


class Hidden(keras.Sequential):  # type: ignore[misc]
    """Its fit trains by itself, though one of its methods speaks of a fit."""

    def fit(self, x: Any, y: Any) -> Any:
        return self.train_on_batch(x, y)

    def again(self, x: Any, y: Any) -> Any:
        return self.fit(x, y)


class Alone(keras.Sequential):  # type: ignore[misc]
    def fit(self, x: Any, y: Any) -> Any:
        raise AssertionError("never called")


@pytest.mark.parametrize("kind", [Hidden, Alone])
def test_a_fit_that_never_gets_there_is_refused(tmp_path: Path, kind: type) -> None:
    begin_process()
    model = special(kind)
    problem = f"model: the fit of {kind.__name__} does not call the fit of keras.Model"
    with process(tmp_path), pytest.raises(NotSupported, match=problem):
        fit(model, X, Y, job_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_adoption_the_fit_of_keras_is_untouched(tmp_path: Path) -> None:
    begin_process()
    outlast.adopt(tmp_path)
    adoption.end()
    model = tiny()()
    assert trainer.overrides_fit(model) is False
    assert type(model.fit(X, Y, verbose=0)) is keras.callbacks.History
    assert list(tmp_path.iterdir()) == []
