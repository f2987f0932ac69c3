"""The copy-on-write on which snapshots rely: held values do not change while training continues.

`Variable.read_value` shares the variable's buffer, and the next in-place update writes elsewhere.
TensorFlow does not document that, so these tests check it for all updates that trainings make.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers

from outlast.training.keras_internals import variables as internal_variables
from outlast.training.keras_internals.variables import raw
from outlast.training.state import held_values as holding
from outlast.training.state import live_variables
from outlast.training.state.held_values import Holder, hold
from outlast.training.state.live_variables import LiveState
from outlast.training.state.weights_layout import all_variables
from outlast.training.step.compiled_steps import CompiledSteps
from tests.support.training_harness import begin_process

RNG = np.random.default_rng(2)
X = RNG.normal(size=(64, 12)).astype("float32")
Y = RNG.normal(size=(64, 3)).astype("float32")
TOKENS = RNG.integers(0, 50, (64, 7))

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "adam": lambda: optimizers.Adam(0.01),
    "adamw ema": lambda: optimizers.AdamW(0.01, use_ema=True, ema_overwrite_frequency=3),
    "sgd": lambda: optimizers.SGD(0.01),
    "momentum": lambda: optimizers.SGD(0.01, momentum=0.9, nesterov=True),
    "adagrad": lambda: optimizers.Adagrad(0.01),
    "rmsprop": lambda: optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "lion": lambda: optimizers.Lion(0.01),
    "scaled": lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.01), dynamic_growth_steps=2),
}


def dense(optimizer: Any, **options: Any) -> Any:
    # Large enough that TensorFlow does not copy small values out of habit.
    parts = [layers.Dense(70), layers.BatchNormalization(), layers.Dropout(0.3), layers.Dense(3)]
    model = keras.Sequential([layers.Input((12,)), *parts])
    model.compile(optimizer, "mse", metrics=["mae"], **options)
    return model


def embedding(optimizer: Any, **options: Any) -> Any:
    parts = [layers.Embedding(50, 30), layers.GlobalAveragePooling1D(), layers.Dense(3)]
    model = keras.Sequential([layers.Input((7,)), *parts])
    model.compile(optimizer, "mse", **options)
    return model


def watch(model: Any, x: Any, calls: int = 3) -> None:
    """Hold all values after each call of 3 steps, train on, and compare with copies made then."""
    steps = CompiledSteps(model, (tf.constant(x), tf.constant(Y)), None)
    steps.trace()
    live = LiveState(model, steps.touched_variables())
    variables = list({id(raw(v)): v for v in [*all_variables(model), *live.rest]}.values())
    held: list[tuple[list[Any], list[bytes]]] = []
    for call in range(calls):
        views = Holder(variables).hold()
        held.append((views, [raw(v).numpy().tobytes() for v in variables]))
        steps.run(np.arange(24).reshape(3, 8) + call)
    changed = 0
    for views, copies in held:
        for variable, view, copy in zip(variables, views, copies, strict=True):
            assert np.asarray(view).tobytes() == copy, f"{variable.path} changed while it was held"
            changed += raw(variable).numpy().tobytes() != copy
    assert changed > len(held), "the training changed nothing: nothing was watched"


def aligned(array: Any) -> Any:
    """Return a copy in memory with the alignment that TensorFlow needs."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def trained_on(monkeypatch: pytest.MonkeyPatch, *, large: int) -> tuple[dict[str, Any], list[bool]]:
    """Restore the same state, train, hold, and train again.

    Returns the held values, and the arrays whose memory was taken over.
    """
    monkeypatch.setattr(live_variables, "_LARGE", large)
    begin_process()
    model = dense(OPTIMIZERS["adam"]())
    steps = CompiledSteps(model, (tf.constant(X), tf.constant(Y)), None)
    steps.trace()
    live = LiveState(model, steps.touched_variables())
    random = np.random.default_rng(5)
    put_back = {
        path: aligned(random.uniform(size=v.shape).astype(raw(v).dtype.as_numpy_dtype))
        for path, v in live.layout.variables.items()
    }
    live.assign(put_back, live.others())
    variables = live.layout.variables
    shared = [np.shares_memory(hold(variables[p]), array) for p, array in put_back.items()]
    del put_back
    held = {path: np.asarray(value) for path, value in live.weights().arrays.items()}
    copies = {path: array.copy() for path, array in held.items()}
    steps.run(np.arange(24).reshape(3, 8))
    gc.collect()
    assert {p: a.tobytes() for p, a in held.items()} == {p: a.tobytes() for p, a in copies.items()}
    return {p: np.array(a) for p, a in live.weights().arrays.items()}, shared


def test_a_training_continues_in_memory_shared_with_restored_arrays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied, none_shared = trained_on(monkeypatch, large=1 << 40)
    taken, shared = trained_on(monkeypatch, large=1)
    assert not any(none_shared)
    assert all(shared)
    assert {p: a.tobytes() for p, a in copied.items()} == {p: a.tobytes() for p, a in taken.items()}


@pytest.mark.parametrize("odd", ["unaligned", "read only", "a strange type"])
def test_memory_that_cannot_be_shared_is_copied(odd: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_variables, "_LARGE", 1)
    dtype = tf.bfloat16.as_numpy_dtype if odd == "a strange type" else np.float32
    array = aligned(np.arange(50, dtype=np.float32).astype(dtype))
    if odd == "unaligned":
        array = array[1:]
    array.flags.writeable = odd != "read only"
    variable = tf.Variable(tf.zeros(array.shape, array.dtype))
    variable.assign(live_variables._as_it_lies(array))
    assert variable.numpy().tobytes() == array.tobytes()
    assert odd == "a strange type" or not np.shares_memory(hold(variable), array)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_held_values_do_not_change(name: str) -> None:
    begin_process()
    watch(dense(OPTIMIZERS[name]()), X)


@pytest.mark.parametrize("name", ["adam", "sgd", "momentum", "adagrad"])
def test_held_embeddings_do_not_change(name: str) -> None:
    begin_process()
    watch(embedding(OPTIMIZERS[name]()), TOKENS)


@pytest.mark.parametrize("name", ["adam"])
def test_held_values_do_not_change_under_xla(name: str) -> None:
    begin_process()
    model = dense(OPTIMIZERS[name]())
    # Keras turns XLA off where determinism is on; the step itself compiles all the same.
    model._jit_compile = True
    watch(model, X)


def test_held_values_do_not_change_in_eager_steps() -> None:
    begin_process()
    watch(dense(OPTIMIZERS["adam"](), run_eagerly=True), X, calls=2)


CHANGES: list[Callable[[Any], Any]] = [
    lambda v: v.assign(raw(v).numpy() + np.float32(7)),
    lambda v: v.assign_add(np.ones(v.shape, "float32")),
    lambda v: raw(v).assign_sub(tf.ones(v.shape)),
    lambda v: raw(v).scatter_nd_update([[0, 0]], [float(raw(v)[0, 0]) + 5.0]),
    lambda v: raw(v)[0].assign(raw(v)[0] + tf.ones(v.shape[1:])),
    lambda v: tf.raw_ops.ResourceScatterAdd(
        resource=raw(v).handle, indices=[1], updates=tf.ones([1, v.shape[1]])
    ),
    lambda v: tf.raw_ops.ResourceApplyGradientDescent(
        var=raw(v).handle, alpha=0.5, delta=tf.ones(v.shape)
    ),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("first", ["initialized", "restored", "taken over", "trained"])
def test_held_values_do_not_change_by_any_assignment(
    change: Callable[[Any], Any], first: str
) -> None:
    variable = keras.Variable(RNG.normal(size=(40, 40)).astype("float32"))
    if first == "restored":
        raw(variable).assign(RNG.normal(size=(40, 40)).astype("float32"))
    elif first == "taken over":
        lying = aligned(RNG.normal(size=(40, 40)).astype("float32"))
        raw(variable).assign(tf.experimental.dlpack.from_dlpack(lying.__dlpack__()))
        assert np.shares_memory(hold(variable), lying)
    elif first == "trained":
        change(variable)
    view = hold(variable)
    among_others = np.asarray(Holder([variable, tf.Variable(1.0)]).hold()[0])
    copy = view.tobytes()
    assert among_others.tobytes() == copy
    change(variable)
    change(variable)
    assert raw(variable).numpy().tobytes() != copy
    assert view.tobytes() == copy
    assert among_others.tobytes() == copy


@pytest.mark.parametrize("change", CHANGES)
def test_values_held_together_do_not_change(change: Callable[[Any], Any]) -> None:
    """Some ops update a variable in place once they have seen it; readers then get a copy."""
    variable = keras.Variable(RNG.normal(size=(40, 40)).astype("float32"))
    others = [tf.Variable(1.0), tf.Variable(tf.zeros([70, 70]))]
    for _ in range(3):
        held = Holder([*others, variable]).hold()[-1]
        copy = raw(variable).numpy().tobytes()
        change(variable)
        change(variable)
        assert raw(variable).numpy().tobytes() != copy
        assert np.asarray(held).tobytes() == copy


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int64", "uint8"])
def test_holding_reads_every_type_exactly(dtype: str) -> None:
    value = tf.cast(tf.constant([[0, 1, 2], [250, 3, 4]]), dtype)
    view = hold(tf.Variable(value))
    assert view.dtype == value.dtype.as_numpy_dtype
    assert view.tobytes() == value.numpy().tobytes()


@pytest.mark.parametrize("way", ["at once", "each", "on an accelerator"])
def test_many_values_are_held_as_single_ones(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "each":  # a TensorFlow without the op
        monkeypatch.setattr(internal_variables, "_OF_MANY", "_NoSuchOp")
    elif way == "on an accelerator":
        monkeypatch.setattr(holding, "_all_is_here", lambda: False)
    kinds = ("float32", "float16", "bfloat16", "float64", "int64", "uint8", "bool", "float32")
    numbers = [tf.reshape(tf.range(7 * n), (n, 7)) for n in range(len(kinds))]  # none at first
    variables = [tf.Variable(tf.cast(n, kind)) for n, kind in zip(numbers, kinds, strict=True)]
    variables.append(tf.Variable(3.0))
    for _ in range(2):
        held = Holder(variables).hold()
        copies = [variable.numpy() for variable in variables]
        for variable in variables:
            variable.assign(tf.ones_like(variable))
        for one, copy in zip(held, copies, strict=True):
            found = np.asarray(one)
            assert (found.dtype, found.shape) == (copy.dtype, copy.shape)
            assert found.tobytes() == copy.tobytes()
            assert one.nbytes == copy.nbytes
    assert Holder([]).hold() == []


def test_values_held_several_times_are_not_copied() -> None:
    variables = [tf.Variable(tf.zeros([300, 300])) for _ in range(3)]
    holder = Holder(variables)
    for one, two in zip(holder.hold(), holder.hold(), strict=True):
        assert np.shares_memory(np.asarray(one), np.asarray(two))


def test_holding_a_large_variable_shares_its_buffer() -> None:
    """Two holds of one value share one buffer, so nothing is copied."""
    variable = tf.Variable(tf.zeros([1000, 1000]))
    one, two = hold(variable), hold(variable)
    assert np.shares_memory(one, two)


def test_a_held_value_outlives_its_variable() -> None:
    variable = tf.Variable(tf.range(100_000))
    view = hold(variable)
    del variable
    others = [tf.Variable(tf.fill([100_000], i)) for i in range(5)]
    assert len(others) == 5
    assert np.array_equal(view, np.arange(100_000))
