"""Trainings on several replicas, compared with Keras' fit under the same strategy.

The logical devices of a process are fixed at its start. So a test runs
`python -m tests.support.replica_zoo REPLICAS`, which prints a JSON object: what was wrong in each
case, "" if nothing.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers

from outlast.training.errors import NotSupported, StateMismatch
from outlast.training.replicas import job_strategy
from tests.support import loop_harness, training_harness
from tests.support.loop_harness import assert_same_loop, run
from tests.support.training_harness import (
    Death,
    End,
    Script,
    assert_same_end,
    dying_at,
    keras_fit,
    steps_per_call,
    train,
)
from tests.support.training_zoo import (
    ARRAYS,
    IMAGES,
    MLP,
    MORE_TRACED,
    TRACED,
    X,
    Y,
    dense,
    dropout,
    model_of,
    own,
)

REPLICAS = int(sys.argv[1]) if len(sys.argv) > 1 else 2
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * REPLICAS,
)
PAGE = Path(__file__).parents[2] / "docs/replicas.md"
EVEN = {**ARRAYS, "x": X[:16], "y": Y[:16]}
BATCHES = (X[:8], Y[:8])
PLAIN = (dense(8, activation="relu"), dense(3))


@functools.cache
def strategy() -> Any:
    """Return the strategy of all cases: of two on one CPU, TensorFlow confuses the collectives."""
    return tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(REPLICAS)])


def scoped(build: Callable[[], Any]) -> Callable[[], Any]:
    """Return a function that builds a model in the scope of the strategy."""

    def build_in_scope() -> Any:
        with strategy().scope():
            return build()

    return build_in_scope


def on_replicas(script: Script, **changes: Any) -> Script:
    return script.with_build(scoped(script.build)).but(**changes)


def state_by_replica(model: Any) -> dict[str, bytes]:
    """Return the bytes of every variable of a model on each replica."""
    found = {}
    for group, variables in (
        ("model", model.variables),
        ("metrics", model.metrics_variables),
        ("optimizer", getattr(getattr(model, "optimizer", None), "variables", ())),
    ):
        for i, variable in enumerate(variables):
            live = variable.value
            for replica, copy in enumerate(getattr(live, "values", (live,))):
                found[f"{group}/{i}/{variable.path}/{replica}"] = copy.numpy().tobytes()
    return found


def died_and_resumed(script: Script, folder: Path, step: int = 3) -> End:
    """Train with a crash on the way, after a step that was not saved."""
    with pytest.raises(Death), dying_at(step):
        train(script.but(save_every=2), folder)
    return train(script.but(save_every=2), folder)


def as_keras(script: Script) -> Callable[[Path], None]:
    """Return a case: it ends as Keras' fit under the strategy does, over a death."""

    def case(folder: Path) -> None:
        theirs = keras_fit(on_replicas(script))
        assert len(theirs.epoch) == 2
        assert_same_end(theirs, died_and_resumed(on_replicas(script), folder), rows=False)

    return case


def refused(script: Script, problem: str, **changes: Any) -> Callable[[Path], None]:
    """Return a case: fit refuses it with this text, before anything is trained."""

    def case(folder: Path) -> None:
        with pytest.raises(NotSupported, match=problem):
            train(on_replicas(script, **changes), folder)

    return case


def generators_resume(folder: Path) -> None:
    def script() -> Script:
        batches = iter([BATCHES, (X[8:16], Y[8:16])] * 5)
        return on_replicas(
            Script(model_of(*PLAIN), {"x": batches, "steps_per_epoch": 2, "epochs": 2})
        )

    untouched = train(script(), folder / "untouched")
    with pytest.raises(Death), dying_at(3):
        train(script().but(save_every=2), folder / "died")
    assert_same_end(untouched, train(script().but(save_every=2), folder / "died"))


# -- what is equal to Keras ----------------------------------------------------------------


def cnn() -> Any:
    parts = (lambda: layers.Conv2D(4, 3), layers.BatchNormalization, layers.Flatten, dense(3))
    return model_of(*parts, shape=(8, 8, 1))()


def as_keras_on_pipelines(folder: Path) -> None:
    def script() -> Script:  # as in a new process: a dataset counts how often it was opened
        data = tf.data.Dataset.from_tensor_slices((X[:16], Y[:16])).shuffle(16, seed=3).batch(8)
        held_out = tf.data.Dataset.from_tensor_slices((X[:12], Y[:12])).batch(6)
        weights = {0: 1.0, 1: 2.0, 2: 0.5}
        arguments = {"x": data, "validation_data": held_out, "class_weight": weights, "epochs": 2}
        return on_replicas(Script(model_of(*PLAIN), arguments))

    theirs = keras_fit(script())
    with pytest.raises(Death), dying_at(3):
        train(script().but(save_every=2), folder)
    assert_same_end(theirs, train(script().but(save_every=2), folder), rows=False)


def loss_scaling() -> Script:
    return MORE_TRACED["loss scaling"].but(**EVEN)


# -- what Keras does not do right: a batch that the replicas cannot share evenly -----------


def an_uneven_batch_counts_by_its_rows(folder: Path) -> None:
    script = Script(model_of(*PLAIN, metrics=["accuracy", "mse"], loss="mse"),
                    {**ARRAYS, "y": np.eye(3)[Y], "epochs": 3})  # fmt: skip
    alone = train(script, folder / "alone")
    ours = died_and_resumed(on_replicas(script), folder / "replicas")
    for name, values in alone.history.items():
        np.testing.assert_allclose(ours.history[name], values, rtol=1e-5, err_msg=name)
    pairs = zip(ours.model.variables, alone.model.variables, strict=True)
    for mine, other in pairs:
        np.testing.assert_allclose(mine.numpy(), other.numpy(), atol=2e-6, err_msg=mine.path)
    for row, other in zip(ours.rows, alone.rows, strict=True):
        assert row.get("step") == other.get("step")
        if "batch_loss" in other:
            np.testing.assert_allclose(row["batch_loss"], other["batch_loss"], rtol=1e-5)


def steps_per_call_change_no_byte(folder: Path) -> None:
    script = on_replicas(Script(model_of(*MLP), {**ARRAYS, "epochs": 3}))
    ends: list[End] = []
    for sizes in (lambda step: 1, lambda step: 20):
        with steps_per_call(sizes):
            ends.append(train(script, folder / str(len(ends))))
    assert_same_end(*ends)


# -- what a checkpoint holds ---------------------------------------------------------------


def arrays_of(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def note(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            found[name] = node[()]

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def what_differs_is_stored_by_replica(folder: Path) -> None:
    script = Script(cnn, {**EVEN, "x": IMAGES[:16], "save_every": 1, "keep": "last:9"})
    train(on_replicas(script), folder)
    first = sorted(folder.glob("checkpoints/00-*"))[1]  # after the first step
    weights, state = (arrays_of(first / name) for name in ("model.weights.h5", "state.h5"))
    assert weights["layers/batch_normalization/vars/2"].shape == (4,)
    by_replica = {
        name.removeprefix("variables/replicas/"): array.shape
        for name, array in state.items()
        if name.startswith("variables/replicas/")
    }
    assert by_replica == {
        "layers/batch_normalization/vars/2": (REPLICAS, 4),
        "layers/batch_normalization/vars/3": (REPLICAS, 4),
    }
    shapes = {array.shape for name, array in state.items() if name.startswith("variables/0")}
    assert shapes == {(REPLICAS,)}  # the sums of loss and accuracy
    sums = state["variables/000001"]  # of samples
    assert sums.tolist() == [8 / REPLICAS] * REPLICAS


# -- a hand-written loop -------------------------------------------------------------------


SCRIPTS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def program(make: Any) -> Any:
    """The loop of docs/replicas.md."""
    found: dict[str, Any] = {}
    with strategy().scope(), mock.patch("outlast.Loop", make):
        exec(compile(SCRIPTS[1], str(PAGE), "exec"), found)
    return found["loop"], {name: found[name] for name in ("model", "optimizer")}


def loops_resume(folder: Path) -> None:
    untouched = run(program, folder / "untouched")
    first, *_, last = untouched.history["loss"]
    assert last < first
    with pytest.raises(Death), dying_at(7):
        run(program, folder / "died", save_every=3)
    assert_same_loop(untouched, run(program, folder / "died", save_every=3))


def loops_of_train_on_batch_share_the_batch(folder: Path) -> None:
    def of(build: Callable[[], Any]) -> Callable[[Any], Any]:
        def program(make: Any) -> Any:
            model = build()
            loop = make(model, (X[:16], Y[:16]), batch_size=8, epochs=2, seed=3)
            for x, y in loop:
                loss, _ = model.train_on_batch(x, y)
                loop.log(loss=loss)
            return loop, {"model": model}

        return program

    alone = run(of(model_of(*PLAIN)), folder / "alone")
    ours = run(of(scoped(model_of(*PLAIN))), folder / "replicas")
    np.testing.assert_allclose(ours.history["loss"], alone.history["loss"], rtol=1e-5)


# -- what is refused -----------------------------------------------------------------------


def another_number_is_refused(folder: Path) -> None:
    script = Script(model_of(*PLAIN), {**EVEN, "save_every": 1})
    with pytest.raises(Death), dying_at(2):
        train(on_replicas(script), folder)
    with pytest.raises(StateMismatch, match=f"replicas: the checkpoint has {REPLICAS}, the script"):
        train(script, folder)


def another_number_than_the_jobs_is_refused(folder: Path) -> None:
    with mock.patch.object(job_strategy, "_wanted", REPLICAS + 1):
        refused(Script(model_of(*PLAIN), EVEN), "it has .* replicas, and the job has")(folder)


def an_optimizer_of_another_scope_is_refused(folder: Path) -> None:
    adam = optimizers.Adam()
    script = Script(model_of(*PLAIN, optimizer=lambda: adam), EVEN)
    refused(script, "outside of the scope of the model's strategy")(folder)


def small_batches_of_batch_normalization_are_refused(folder: Path) -> None:
    script = Script(cnn, {**ARRAYS, "x": IMAGES[:9], "y": Y[:9]})
    refused(script, "cannot normalize a replica's empty share")(folder)


def one_device_trains(folder: Path) -> None:
    def build() -> Any:
        with tf.distribute.OneDeviceStrategy("CPU:0").scope():
            return model_of(*MLP)()

    script = Script(build, EVEN)
    assert_same_end(keras_fit(script), died_and_resumed(script, folder), rows=False)


ACCUMULATING = model_of(*PLAIN, optimizer=lambda: optimizers.Adam(gradient_accumulation_steps=2))
OVERWRITING = model_of(
    *PLAIN, optimizer=lambda: optimizers.SGD(use_ema=True, ema_overwrite_frequency=2)
)

BOTH: dict[str, Callable[[Path], None]] = {
    "mlp with dropout": as_keras(Script(model_of(*MLP), EVEN)),
    "cnn, moments by replica": as_keras(Script(cnn, {**EVEN, "x": IMAGES[:16]})),
    "an uneven batch": an_uneven_batch_counts_by_its_rows,
    "steps per call": steps_per_call_change_no_byte,
    "stored by replica": what_differs_is_stored_by_replica,
    "loops": loops_resume,
}
TWO: dict[str, Callable[[Path], None]] = {
    "own train_step": as_keras(Script(own(), EVEN)),
    "loss scaling": as_keras(loss_scaling()),
    "synchronized moments, eager": as_keras(
        Script(
            model_of(
                lambda: layers.BatchNormalization(synchronized=True), dense(3), run_eagerly=True
            ),
            EVEN,
        )
    ),
    "tf.data and validation": as_keras_on_pipelines,
    "validation_split, weights": as_keras(
        Script(
            model_of(dropout, dense(3), weighted_metrics=["accuracy"]),
            {
                **ARRAYS,
                "x": X[:18],
                "y": Y[:18],
                "sample_weight": np.linspace(0, 2, 18),
                "batch_size": 4,
                "validation_split": 0.1,
            },
        )
    ),
    "a generator": generators_resume,
    "train_on_batch": loops_of_train_on_batch_share_the_batch,
    "one device": one_device_trains,
    "another number": another_number_is_refused,
    "another number than the job's": another_number_than_the_jobs_is_refused,
    "optimizer elsewhere": an_optimizer_of_another_scope_is_refused,
    "small batches": small_batches_of_batch_normalization_are_refused,
    "late variables": refused(TRACED["two optimizers"], "creates variables when it first runs"),
    "accumulation": refused(Script(ACCUMULATING, EVEN), "gradient_accumulation_steps"),
    "overwriting": refused(Script(OVERWRITING, EVEN), "ema_overwrite_frequency"),
    "xla": refused(Script(model_of(*PLAIN), EVEN), "XLA cannot compile", jit_compile=True),
    "validation by a generator": refused(
        Script(model_of(*PLAIN), EVEN),
        "must not be a",
        validation_data=iter([BATCHES]),
        validation_steps=1,
    ),
}


@contextmanager
def looking_at_each_replica() -> Iterator[None]:
    with (
        mock.patch.object(training_harness, "all_state", state_by_replica),
        mock.patch.object(loop_harness, "all_state", state_by_replica),
    ):
        yield


def main(chosen: list[str]) -> dict[str, str]:
    """Run the cases and return what was wrong in each."""
    cases = {**BOTH, **TWO} if REPLICAS == 2 else BOTH
    found = {}
    for name, case in cases.items():
        if chosen and name not in chosen:
            continue
        with tempfile.TemporaryDirectory() as folder, looking_at_each_replica():
            try:
                case(Path(folder))
                found[name] = ""
            except BaseException:  # noqa: BLE001 - the test shows it
                found[name] = traceback.format_exc()[-2000:]
        print(f"{time.process_time():.1f} s: {name} {found[name]}", file=sys.stderr)
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[2:])))
