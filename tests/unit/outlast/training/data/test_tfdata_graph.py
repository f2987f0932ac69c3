"""`Pipeline` finds the parts of a tf.data pipeline without serializing its data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.data.ops.options import ExternalStatePolicy
from tensorflow.python.framework import config

from outlast.training.data.tfdata_graph import Pipeline
from outlast.training.data.tfdata_ops import MADE_ANEW, RANDOM

Dataset = tf.data.Dataset
NUMBERS = tf.range(20)


@pytest.fixture(params=[True, False], ids=["deterministic", "not deterministic"], autouse=True)
def deterministic(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Op determinism on, as in fit, and off, as in a job that disables it."""
    was = config.is_op_determinism_enabled()
    keras.utils.set_random_seed(7)
    (config.enable_op_determinism if request.param else config.disable_op_determinism)()
    yield request.param
    keras.utils.set_random_seed(7)
    (config.enable_op_determinism if was else config.disable_op_determinism)()


def plain() -> Any:
    return Dataset.from_tensor_slices(NUMBERS)


def interleaved(make: Callable[[], Any]) -> Any:
    return Dataset.range(3).interleave(lambda i: make())


def captured() -> Any:
    shuffled = plain().shuffle(5)
    return Dataset.range(3).interleave(lambda i: shuffled)


def looked_up() -> Any:
    table = layers.StringLookup(vocabulary=["a", "b"])
    return Dataset.from_tensor_slices(["a", "b"]).map(table)


def augmented() -> Any:
    noise = layers.GaussianNoise(0.1)
    return plain().map(lambda v: noise(tf.cast([v], tf.float32), training=True))


def from_generator() -> Any:
    signature = tf.TensorSpec([], tf.int32)
    return Dataset.from_generator(lambda: iter(range(3)), output_signature=signature)


def counted() -> Any:
    counter = tf.Variable(0)
    return plain().map(lambda v: v + counter.assign_add(1))


PIPELINES: dict[str, Callable[[], Any]] = {
    "slices": plain,
    "map": lambda: plain().map(lambda v: v + 1).batch(3).prefetch(2),
    "map of a captured tensor": lambda: Dataset.range(9).map(lambda i: tf.gather(NUMBERS, i)),
    "stateless random map": lambda: plain().map(
        lambda v: tf.random.stateless_uniform([], tf.stack([v, 1]))
    ),
    "random map": lambda: plain().map(lambda v: tf.random.uniform([])),
    "random map in a branch": lambda: plain().map(
        lambda v: tf.cond(v > 3, lambda: tf.random.uniform([]), lambda: 0.0)
    ),
    "py_function": lambda: plain().map(lambda v: tf.py_function(lambda w: w, [v], tf.int32)),
    "from_generator": from_generator,
    "keras layer": augmented,
    "lookup layer": looked_up,
    "variable": counted,
    "shuffle": lambda: plain().shuffle(5).batch(2),
    "seeded shuffle": lambda: plain().shuffle(5, seed=3).repeat(),
    "shuffle and cache": lambda: plain().shuffle(5).cache(),
    "zip with a shuffle": lambda: Dataset.zip((plain(), plain().shuffle(3))),
    "concatenated shuffle": lambda: plain().concatenate(plain().shuffle(3)),
    "interleave": lambda: interleaved(plain),
    "shuffle in an interleave": lambda: interleaved(lambda: plain().shuffle(5, seed=3)),
    "cache in an interleave": lambda: interleaved(lambda: plain().cache()),
    "captured shuffle": captured,
    "filter": lambda: plain().filter(lambda v: v > 3).take_while(lambda v: v < 9),
    "random filter": lambda: plain().filter(lambda v: tf.random.uniform([]) < 0.5),
    "scan": lambda: plain().scan(0, lambda s, v: (s + v, s)),
    "window": lambda: plain().window(3).flat_map(lambda w: w.batch(3)),
    "groups": lambda: plain().group_by_window(
        lambda v: tf.cast(v % 2, tf.int64), lambda k, w: w.batch(2), window_size=2
    ),
    "sampled": lambda: Dataset.sample_from_datasets([plain(), plain()], seed=3),
    "rejected": lambda: plain().rejection_resample(lambda v: v % 2, [0.5, 0.5], seed=3),
    "files": lambda: Dataset.list_files(["/*"]),
    "records": lambda: tf.data.TFRecordDataset(["/nowhere"], num_parallel_reads=2),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_the_parts_are_those_that_tensorflow_serializes(name: str, deterministic: bool) -> None:
    dataset = PIPELINES[name]()
    found = Pipeline(dataset)
    stateful = None
    try:
        dataset._as_serialized_graph(external_state_policy=ExternalStatePolicy.FAIL)
    except tf.errors.FailedPreconditionError as error:
        stateful = re.search(r"(\w+) is stateful", str(error.message))
    op = stateful[1] if stateful else None
    # With op determinism, a random op draws the same in each pass, so no state is lost. A shuffle
    # or cache that a function makes begins anew with each call.
    assert found.random == (op in MADE_ANEW or (deterministic and op in RANDOM))
    stateful = None if found.random else stateful
    assert found.stateful == (stateful[1] if stateful else None)
    graph = tf.compat.v1.GraphDef.FromString(dataset._as_serialized_graph().numpy())
    nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
    buffers = {op for n in nodes for op in ("Shuffle", "Cache") if n.op.startswith(op)}
    assert set(found.buffers) == {op.lower() for op in buffers}
    assert (found.unseeded, found.unordered) == ([], False)
    assert bool(found.inexact_reasons()) == bool(stateful)


UNSEEDED: dict[str, tuple[Callable[[], Any], str]] = {
    "shuffle": (lambda: plain().shuffle(5), "shuffle"),
    "once shuffled": (lambda: plain().shuffle(5, reshuffle_each_iteration=False), "shuffle"),
    "shuffle in an interleave": (lambda: interleaved(lambda: plain().shuffle(5)), "shuffle"),
    "captured shuffle": (captured, "shuffle"),
    "files": (lambda: Dataset.list_files(["/*"]), "shuffle"),
    "sampled": (lambda: Dataset.sample_from_datasets([plain(), plain()]), "random"),
}


@pytest.mark.parametrize("name", UNSEEDED)
def test_a_missing_seed_is_named(name: str, deterministic: bool) -> None:
    make, kind = UNSEEDED[name]
    assert Pipeline(make()).unseeded == []  # there is a global seed
    tf.random.set_seed(None)
    if deterministic:
        with pytest.raises(RuntimeError, match="require a seed"):
            make()
        return
    found = Pipeline(make())
    assert found.unseeded == [kind]
    assert f"{kind} in the pipeline without a seed" in found.inexact_reasons()[0]


def loosely(dataset: Any) -> Any:
    options = tf.data.Options()
    options.deterministic = False
    return dataset.with_options(options)


LOOSE: dict[str, Callable[[], Any]] = {
    "option": lambda: loosely(plain().map(lambda v: v, num_parallel_calls=2)),
    "map": lambda: plain().map(lambda v: v, num_parallel_calls=2, deterministic=False),
    "map in an interleave": lambda: interleaved(
        lambda: plain().map(lambda v: v, num_parallel_calls=2, deterministic=False)
    ),
}


@pytest.mark.parametrize("name", LOOSE)
def test_an_unspecified_order_is_named(name: str, deterministic: bool) -> None:
    found = Pipeline(LOOSE[name]())
    assert found.unordered == (not deterministic)
    reasons = found.inexact_reasons()
    assert all("in any order" in why for why in reasons)
    assert len(reasons) == (not deterministic)


@pytest.mark.parametrize("deterministic", [True], indirect=True)
def test_deterministic_ops_fix_an_unspecified_order() -> None:
    """So there is no warning then. Without op determinism, TensorFlow soon changes the order."""

    def work(w: Any) -> Any:
        return np.sum(np.ones(3000 * (5 - int(w) % 5)))

    def map_slowly(v: Any) -> Any:
        return tf.numpy_function(work, [v], tf.float64)

    numbers = loosely(Dataset.range(300).map(map_slowly, num_parallel_calls=4, deterministic=False))
    assert [int(v) for v in numbers] == [3000 * (5 - v % 5) for v in range(300)]
