"""How many threads an op takes is found out in the midst of training, and changes no byte of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from service.training import thread_choice
from service.training.one_thread import OneThreadAnOp, repeatable
from tests.training_harness import Death, Script, assert_same_end, dying_at, steps_a_call, train
from tests.training_zoo import ARRAYS, MLP, TRACED, X, Y, dense, model_of

# Each epoch ends with a shorter batch, which was not proven.
LONG = {"x": np.concatenate([X] * 9), "y": np.concatenate([Y] * 9), "batch_size": 8}
SCRIPT = Script(model_of(*MLP), {**ARRAYS, **LONG, "shuffle": True, "save_every": 8})


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try it after the first steps, on any machine."""
    monkeypatch.setattr(thread_choice, "WARM_S", 0.0)
    monkeypatch.setattr(thread_choice, "STEP_S", 60.0)
    monkeypatch.setattr(thread_choice, "TIMED_S", 0.0)
    monkeypatch.setattr(thread_choice, "threads_an_op", lambda: 2)


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread an op is chosen wherever it is possible."""
    monkeypatch.setattr(thread_choice, "WORTH", 1e9)


def as_ever(script: Script, folder: Path) -> Any:
    """Train with nothing tried."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thread_choice, "threads_an_op", lambda: 1)
        end = train(script, folder)
    assert chosen(folder) == []
    return end


def chosen(folder: Path) -> list[dict[str, Any]]:
    logs = sorted(folder.glob("attempts/*/log.jsonl"))
    rows = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return [row for row in rows if row["event"] == "threads_chosen"]


NAMES = ["mlp with dropout", "cnn, normalized and augmented", "lstm", "weight averaging"]


@pytest.mark.usefixtures("worth")
@pytest.mark.parametrize("name", NAMES)
def test_one_thread_an_op_changes_no_byte_nor_does_a_death(tmp_path: Path, name: str) -> None:
    script = TRACED[name]
    longer = {k: np.concatenate([script.arguments[k]] * 9) for k in ("x", "y")}
    script = script.but(**longer, save_every=8)
    wanted = as_ever(script, tmp_path / "wanted")
    with steps_a_call(lambda step: 3):
        assert_same_end(wanted, train(script, tmp_path / "whole"))
        with pytest.raises(Death), dying_at(31):
            train(script, tmp_path / "killed")
        assert_same_end(wanted, train(script, tmp_path / "killed"))
    (told,) = chosen(tmp_path / "whole")
    assert (told["threads_an_op"], told["equal"]) == (1, True)
    assert told["one_ms"] > 0 < told["all_ms"]


def pipeline() -> Any:
    return tf.data.Dataset.from_tensor_slices((LONG["x"], LONG["y"])).batch(8).repeat()


def generator() -> Any:
    while True:
        for start in range(0, 64, 8):
            yield LONG["x"][start : start + 8], LONG["y"][start : start + 8]


@pytest.mark.usefixtures("worth")
@pytest.mark.parametrize("source", [pipeline, generator])
def test_streamed_batches_too(tmp_path: Path, source: Any) -> None:
    script = SCRIPT.but(y=None, batch_size=None, steps_per_epoch=20, shuffle=False)
    wanted = as_ever(script.but(x=source()), tmp_path / "wanted")
    with steps_a_call(lambda step: 3):
        assert_same_end(wanted, train(script.but(x=source()), tmp_path / "tried"))
    assert [row["threads_an_op"] for row in chosen(tmp_path / "tried")] == [1]


def test_the_slower_way_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_choice, "WORTH", 0.0)
    with steps_a_call(lambda step: 3):
        end = train(SCRIPT, tmp_path / "tried")
    assert_same_end(as_ever(SCRIPT, tmp_path / "wanted"), end)
    assert [row["threads_an_op"] for row in chosen(tmp_path / "tried")] == [2]


class Differs(OneThreadAnOp):
    """Rounds otherwise: one weight of the model is another afterwards."""

    def __call__(self, lots: Any, count: Any) -> Any:
        results = super().__call__(lots, count)
        weight = MODELS[-1].trainable_variables[0]
        weight.assign(np.nextafter(weight.numpy(), np.float32(9)))
        return results


class Fails(OneThreadAnOp):
    def __call__(self, lots: Any, count: Any) -> Any:
        super().__call__(lots, count)
        raise tf.errors.InternalError(None, None, "no pipeline today\nand more")


MODELS: list[Any] = []


@pytest.mark.usefixtures("worth")
@pytest.mark.parametrize("way", [Differs, Fails])
def test_what_is_not_equal_or_fails_is_not_taken_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: type[OneThreadAnOp]
) -> None:
    def build() -> Any:
        MODELS.append(SCRIPT.build())
        return MODELS[-1]

    monkeypatch.setattr(thread_choice, "OneThreadAnOp", way)
    script = SCRIPT.with_build(build)
    with steps_a_call(lambda step: 3):
        end = train(script, tmp_path / "tried")
    assert_same_end(as_ever(SCRIPT, tmp_path / "wanted"), end)
    (told,) = chosen(tmp_path / "tried")
    assert (told["threads_an_op"], told["equal"]) == (2, False)
    assert told["error"] == (None if way is Differs else "no pipeline today")


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


def choosing() -> Any:
    return layers.Lambda(lambda x: x + tf.reduce_sum(tf.boolean_mask(x, x > 0)), (6,))


def looking_up() -> Any:
    table = tf.lookup.experimental.MutableHashTable(tf.int64, tf.float32, 0.0)

    def note(x: Any) -> Any:
        with tf.control_dependencies([table.insert([1], [1.0])]):
            return tf.identity(x)

    return layers.Lambda(note, (6,))


@pytest.mark.parametrize("part", [drawing, printing, calling, choosing, looking_up])
def test_steps_that_cannot_be_done_twice_or_compared_are_left_alone(
    tmp_path: Path, part: Any
) -> None:
    script = SCRIPT.with_build(model_of(part, dense(3))).but(epochs=1)
    with steps_a_call(lambda step: 3):
        train(script, tmp_path)
    assert chosen(tmp_path) == []


@pytest.mark.parametrize("way", ["eager", "xla"])
def test_only_graphs_are_tried(tmp_path: Path, way: str) -> None:
    script = SCRIPT.with_build(model_of(dense(3), run_eagerly=way == "eager"))
    train(script.but(epochs=1, jit_compile=way == "xla"), tmp_path)
    assert chosen(tmp_path) == []


def test_only_a_few_steps_are_trained_twice(tmp_path: Path) -> None:
    """A stop request waits for a call, and the one that proves takes both ways."""
    with steps_a_call(lambda step: 100) as taken:
        train(SCRIPT.but(save_every=1000, epochs=9), tmp_path)
    assert taken[:3] == [21, 1, 8]  # an epoch with its short last batch, the proof
    assert max(taken[3:]) > 8
    assert [row["equal"] for row in chosen(tmp_path)] == [True]


def test_large_state_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_choice, "STATE_BYTES", 100)
    train(SCRIPT.but(epochs=1), tmp_path)
    assert chosen(tmp_path) == []


def test_long_steps_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_choice, "STEP_S", 0.0)
    monkeypatch.setattr(thread_choice, "OneThreadAnOp", None)
    with steps_a_call(lambda step: 3):
        train(SCRIPT.but(epochs=1), tmp_path)
    assert chosen(tmp_path) == []


@pytest.mark.usefixtures("worth")
def test_an_error_in_a_step_is_the_one_that_it_was(tmp_path: Path) -> None:
    """A check fails after the choice; its kind and its words come out."""

    class Counted(layers.Layer):
        def build(self, shape: Any) -> None:
            self.seen = self.add_weight(shape=(), dtype="int32", trainable=False)

        def call(self, x: Any) -> Any:
            self.seen.assign_add(1)
            tf.debugging.assert_less(self.seen.value, 40, "too many batches")
            return x

    script = SCRIPT.with_build(model_of(Counted, dense(3)))
    with steps_a_call(lambda step: 3), pytest.raises(tf.errors.InvalidArgumentError) as raised:
        train(script, tmp_path)
    assert "too many batches" in str(raised.value)
    assert [row["threads_an_op"] for row in chosen(tmp_path)] == [1]


def test_a_median_of_calls_decides_once_there_are_enough() -> None:
    assert not thread_choice.enough([(0.1, 10)] * 2)
    assert thread_choice.enough([(0.1, 10)] * 3)
    assert thread_choice.a_step([(0.1, 10), (5.0, 10), (0.3, 10)]) == pytest.approx(0.03)


def test_a_step_that_only_computes_is_repeatable() -> None:
    state = tf.Variable([1.0, 2.0])

    @tf.function
    def step(x: Any) -> Any:
        state.assign_add(x)
        tf.debugging.assert_greater(tf.reduce_sum(state), 0.0)
        return tf.while_loop(lambda i: i < 3, lambda i: i + 1, [tf.constant(0)])

    assert repeatable(step.get_concrete_function(tf.TensorSpec([2])).graph.as_graph_def())
