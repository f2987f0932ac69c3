"""The program with one thread per op changes no byte of the result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from outlast.training.step import program
from outlast.training.step.compiled_steps import CompiledSteps
from outlast.training.step.intra_op import only_computes
from outlast.training.step.program import Program, graph_program
from tests.support.training_harness import (
    Death,
    Script,
    assert_same_end,
    dying_at,
    keras_fit,
    steps_per_call,
    train,
)
from tests.support.training_zoo import ARRAYS, MLP, TRACED, X, Y, dense, model_of

# Each epoch ends with a shorter batch.
LONG = {"x": np.concatenate([X] * 9), "y": np.concatenate([Y] * 9), "batch_size": 8}
SCRIPT = Script(model_of(*MLP), {**ARRAYS, **LONG, "shuffle": True, "save_every": 8})


def scheduled() -> Any:
    """TensorFlow's optimizer must apply the same rewrites here (x
    7 becomes x * (1
    7)).
    """
    schedule = keras.optimizers.schedules.ExponentialDecay(0.01, 7, 0.9)
    return keras.optimizers.SGD(schedule)


def of(name: str) -> Script:
    if name == "schedule":
        return SCRIPT.with_build(model_of(dense(3), optimizer=scheduled)).but(shuffle=False)
    script = TRACED[name]
    return script.but(**{k: np.concatenate([script.arguments[k]] * 9) for k in ("x", "y")})


@pytest.fixture
def used() -> Iterator[list[Program]]:
    """Record which programs are used."""
    programs: list[Program] = []
    use = CompiledSteps.use

    def note(self: CompiledSteps, program: Program) -> None:
        use(self, program)
        programs.append(program)

    with mock.patch.object(CompiledSteps, "use", note):
        yield programs


@pytest.fixture
def wherever_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use one thread per op wherever possible, even if it is not faster."""
    monkeypatch.setattr(program, "_SPLIT_FROM", 0)
    monkeypatch.setattr(program, "_CONVOLUTIONS", frozenset())
    monkeypatch.setattr(program, "_LOOPS", frozenset())


NAMES = ["mlp with dropout", "cnn, normalized and augmented", "lstm", "weight averaging"]


@pytest.mark.usefixtures("wherever_possible")
@pytest.mark.parametrize("name", [*NAMES, "own train_step", "schedule"])
def test_it_is_equal_to_keras_with_any_number_of_steps_per_call_and_after_a_kill(
    tmp_path: Path, name: str, used: list[Program]
) -> None:
    script = of(name).but(save_every=8)
    reference = keras_fit(script)
    with steps_per_call(lambda step: 1):
        one = train(script, tmp_path / "one")
    assert used[-1] == Program.ONE_THREAD
    assert one.state == reference.state
    assert one.history == reference.history
    with steps_per_call(lambda step: 1 + step % 5):
        with pytest.raises(Death), dying_at(31):
            train(script, tmp_path / "mixed")
        assert_same_end(one, train(script, tmp_path / "mixed"))
    assert used[-1] == Program.ONE_THREAD


@pytest.mark.parametrize("optimizer", [keras.optimizers.Adam, scheduled])
def test_a_small_dense_model_uses_one_thread_per_op_and_is_equal_to_keras(
    tmp_path: Path, used: list[Program], optimizer: Any
) -> None:
    """The MLP of the benchmark, whose ops TensorFlow splits in Keras' fit."""
    random = np.random.default_rng(3)
    x, y = random.normal(size=(1000, 784)).astype("float32"), random.integers(0, 3, 1000)
    build = model_of(dense(128, activation="relu"), dense(3), shape=(784,), optimizer=optimizer)
    script = Script(build, {"x": x, "y": y, "batch_size": 32, "epochs": 2, "shuffle": False})
    reference, ours = keras_fit(script), train(script, tmp_path)
    assert used[-1] == Program.ONE_THREAD
    assert ours.state == reference.state
    assert ours.history == reference.history


def test_the_program_of_the_checkpoint_is_kept(
    tmp_path: Path, used: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resume keeps either program, also for checkpoints from before there were two."""
    for first, second in ((0, 1 << 16), (1 << 16, 0)):
        monkeypatch.setattr(program, "_SPLIT_FROM", first)
        wanted = train(SCRIPT, tmp_path / f"wanted {first}")
        with pytest.raises(Death), dying_at(20):
            train(SCRIPT, tmp_path / f"{first}")
        begun = used[-1]
        monkeypatch.setattr(program, "_SPLIT_FROM", second)
        assert_same_end(wanted, train(SCRIPT, tmp_path / f"{first}"))
        assert used[-1] == begun
    assert set(used) == {Program.GRAPH, Program.ONE_THREAD}


@pytest.mark.usefixtures("wherever_possible")
@pytest.mark.parametrize("jit", [None, "auto"])
def test_an_unavailable_program_is_replaced_with_a_warning(
    tmp_path: Path,
    used: list[Program],
    monkeypatch: pytest.MonkeyPatch,
    jit: str | None,
) -> None:
    with pytest.raises(Death), dying_at(20):
        train(SCRIPT, tmp_path)
    assert used[-1] == Program.ONE_THREAD
    gpu = tf.config.PhysicalDevice("/physical_device:GPU:0", "GPU")
    listed = tf.config.list_physical_devices

    def with_gpu(kind: str | None = None) -> list[Any]:
        return [gpu] if kind == "GPU" else listed(kind)

    monkeypatch.setattr(tf.config, "list_physical_devices", with_gpu)
    train(SCRIPT.but(jit_compile=jit), tmp_path)
    assert used[-1] == Program.GRAPH
    assert "program_changed" in "".join(
        path.read_text() for path in tmp_path.glob("attempts/*/log.jsonl")
    )


def drawing() -> Any:
    return layers.Lambda(lambda x: x + tf.random.uniform(tf.shape(x)), (6,))


def printing() -> Any:
    def tell(x: Any) -> Any:
        with tf.control_dependencies([tf.print("seen", output_stream="file:///dev/null")]):
            return tf.identity(x)

    return layers.Lambda(tell, (6,))


def calling() -> Any:
    return layers.Lambda(
        lambda x: tf.ensure_shape(tf.py_function(lambda v: v, [x], x.dtype), (None, 6)), (6,)
    )


def looking_up() -> Any:
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)

    def note(x: Any) -> Any:
        with tf.control_dependencies([table.insert([1], [1.0])]):
            return tf.identity(x)

    return layers.Lambda(note, (6,))


@pytest.mark.usefixtures("wherever_possible")
@pytest.mark.parametrize("part", [drawing, printing, calling, looking_up])
def test_steps_with_side_effects_use_all_threads(
    tmp_path: Path, part: Any, used: list[Program]
) -> None:
    train(SCRIPT.with_build(model_of(part, dense(3))).but(epochs=1), tmp_path)
    assert used[-1] == Program.GRAPH


@pytest.mark.usefixtures("wherever_possible")
def test_streamed_batches_use_all_threads(tmp_path: Path, used: list[Program]) -> None:
    data = tf.data.Dataset.from_tensor_slices((LONG["x"], LONG["y"])).batch(8)
    train(SCRIPT.but(x=data, y=None, batch_size=None, epochs=1), tmp_path)
    assert used[-1] == Program.GRAPH


class Counting(layers.Layer):
    """Counts its batches in a variable of unknown shape, and fails at one of them."""

    def __init__(self, fail: Any) -> None:
        super().__init__()
        self.fail = fail

    def build(self, shape: Any) -> None:
        self.seen = tf.Variable(np.zeros(1, "int32"), shape=[None], trainable=False)

    def call(self, x: Any) -> Any:
        self.seen.assign(self.seen + 1)
        return x + tf.cast(tf.minimum(self.fail(self.seen[0]), 0), x.dtype)


def check(seen: Any) -> Any:
    with tf.control_dependencies([tf.debugging.assert_less(seen, 20, "too many batches")]):
        return tf.constant(1)


def run_out(seen: Any) -> Any:
    axis = tf.where(seen < 20, 0, 7)
    return tf.reshape(tf.strings.length(tf.strings.reduce_join(["a", "b"], axis)), [])


@pytest.mark.usefixtures("wherever_possible")
@pytest.mark.parametrize("fail", [check, run_out])
def test_an_error_in_a_step_is_raised_unchanged(
    tmp_path: Path, fail: Any, used: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    script = SCRIPT.with_build(model_of(lambda: Counting(fail), dense(3)))
    with steps_per_call(lambda step: 3), pytest.raises(tf.errors.OpError) as raised:
        train(script, tmp_path / "narrow")
    assert used[-1] == Program.ONE_THREAD
    monkeypatch.setattr(program, "_SPLIT_FROM", 1 << 16)
    with steps_per_call(lambda step: 3), pytest.raises(tf.errors.OpError) as wide:
        train(script, tmp_path / "wide")
    assert used[-1] == Program.GRAPH
    assert type(raised.value) is type(wide.value)
    if fail is check:
        assert "too many batches" in str(raised.value)


def graph_of(function: Any, *spec: Any) -> Any:
    return tf.function(function).get_concrete_function(*spec).graph.as_graph_def()


@pytest.mark.parametrize(
    ("sizes", "batch", "wanted"),
    [
        ([100_352, 128, 1280, 10], 32, Program.ONE_THREAD),  # the MLP of the benchmark
        ([100_352, 128, 1280, 10], 512, Program.GRAPH),  # many samples: threads pay
        ([50_176, 64, 640, 10], 32, Program.GRAPH),  # nothing is split
        ([401_408, 512, 5120, 10], 32, Program.GRAPH),
        ([100_352, None], 32, Program.GRAPH),
        ([], 32, Program.GRAPH),
    ],
)
def test_only_the_model_decides_about_one_thread_per_op(
    sizes: list[int | None], batch: int, wanted: Program
) -> None:
    graph = graph_of(lambda x: x @ tf.transpose(x), tf.TensorSpec([4, 4]))
    assert graph_program(graph, sizes, batch) == wanted
    looped = graph_of(
        lambda x: tf.while_loop(lambda y: tf.reduce_sum(y) < 9, lambda y: [y + 1], [x]),
        tf.TensorSpec([4, 4]),
    )
    convolved = graph_of(lambda x: tf.nn.conv2d(x, x, 1, "SAME"), tf.TensorSpec([4, 4, 4, 4]))
    for other in (looped, convolved):
        assert graph_program(other, sizes, batch) == Program.GRAPH


def test_a_step_that_changes_variables_only_computes() -> None:
    state = tf.Variable([1.0, 2.0])

    def step(x: Any) -> Any:
        state.assign_add(x)
        tf.debugging.assert_greater(tf.reduce_sum(state), 0.0)
        return tf.while_loop(lambda i: i < 3, lambda i: i + 1, [tf.constant(0)])

    assert only_computes(graph_of(step, tf.TensorSpec([2])))
