"""SavedModels that a script loads: their variables go on, their hidden random ops are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tests.support.loop_harness import MakeLoop, assert_same_loop, run
from tests.support.training_harness import Death, Script, assert_same_end, dying_at, train
from tests.support.training_zoo import ARRAYS, X, Y

ROWS = [tf.TensorSpec([None, 6])]


class Counting(tf.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.inner = tf.Module()
        self.inner.calls = tf.Variable(0.0)

    @tf.function(input_signature=ROWS)  # type: ignore[untyped-decorator]
    def __call__(self, x: Any) -> Any:
        return x * (1 + 0.1 * self.inner.calls.assign_add(1.0))

    @tf.function(input_signature=ROWS)  # type: ignore[untyped-decorator]
    def noisy(self, x: Any) -> Any:
        return self(x) + tf.random.normal(tf.shape(x), seed=3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("saved"))
    made = Counting()
    tf.saved_model.save(made, path, signatures={"serve": made.__call__})
    return path


class Loaded(layers.Layer):  # type: ignore[misc]
    def __init__(self, path: str) -> None:
        super().__init__()
        self.loaded = tf.saved_model.load(path)

    def call(self, x: Any) -> Any:
        return self.loaded(x)


class Calls(keras.callbacks.Callback):  # type: ignore[misc]
    """Calls a SavedModel that no layer has."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.loaded = tf.saved_model.load(path)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.loaded(X)
        logs["calls"] = float(self.loaded.inner.calls)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        logs["calls"] = float(self.loaded.inner.calls)


@pytest.mark.parametrize(
    ("layer", "eagerly"),
    [
        (Loaded, False),
        (Loaded, True),
        (lambda path: layers.TFSMLayer(path, call_endpoint="serve"), False),
    ],
    ids=["a layer's", "a layer's, eager", "TFSMLayer"],
)
def test_the_variables_of_a_saved_model_go_on(
    layer: Callable[[str], Any], eagerly: bool, saved: str, tmp_path: Path
) -> None:
    def build() -> Any:
        output = layers.Lambda(lambda x: x["output_0"] if isinstance(x, dict) else x)
        model = keras.Sequential([keras.Input((6,)), layer(saved), output, layers.Dense(1)])
        model.compile("sgd", "mse", run_eagerly=eagerly)
        return model

    script = Script(build, {**ARRAYS, "save_every": 2}, lambda: [Calls(saved)])
    whole = train(script, tmp_path / "whole")
    assert whole.history["calls"] == [3.0, 6.0]
    for step in (1, 5):
        with pytest.raises(Death), dying_at(step):
            train(script, tmp_path / "killed")
    assert_same_end(train(script, tmp_path / "killed"), whole)


@pytest.mark.parametrize("noisy", [False, True])
def test_a_loop_saves_the_variables_and_names_the_random_ops(
    noisy: bool, saved: str, tmp_path: Path
) -> None:
    def program(make: MakeLoop) -> Any:
        model = keras.Sequential([keras.Input((6,)), layers.Dense(1)])
        model.compile("sgd", "mse")
        state = {"model": model, "loaded": tf.saved_model.load(saved)}
        call = state["loaded"].noisy if noisy else state["loaded"]
        loop = make(state, (X, np.float32(Y)), batch_size=8, epochs=2, save_every=2)
        for x, y in loop:
            loop.log(loss=model.train_on_batch(call(x), y))
        return loop, {"model": model, "calls": state["loaded"].inner.calls}

    whole = run(program, tmp_path / "whole")
    with pytest.raises(Death), dying_at(3):
        run(program, tmp_path / "killed")
    log = (tmp_path / "killed" / "attempts" / "0001" / "log.jsonl").read_text()
    named = "RandomStandardNormal (in a SavedModel)"
    assert (named in log) == noisy
    if not noisy:
        assert_same_loop(run(program, tmp_path / "killed"), whole)
