"""One small training for every kind of data that `fit` accepts, built again for each process."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

from tests.support.training_harness import Script

SAMPLES = 53  # with batches of 8 the last one is short
BATCH = 8
EPOCHS = 3

_RANDOM = np.random.default_rng(5)
X = _RANDOM.normal(size=(SAMPLES, 4)).astype("float32")
Y = X[:, :2].sum(axis=1, keepdims=True).astype("float32")
W = _RANDOM.uniform(0.5, 2.0, size=SAMPLES).astype("float32")


@dataclass(frozen=True)
class Kind:
    """A kind of data.

    make: returns the arguments of `fit`, all made anew. way: how the log says that a resume found
    its batch. build: returns the model. dropout: False where Keras' own failing step, the one that
    finds no more data, moves the seeds on.
    """

    make: Callable[[], dict[str, Any]]
    way: str
    build: Callable[[bool], Any] | None = None
    dropout: bool = True
    needs: str | None = None
    doubt: str | None = None  # a word of the warning given at the start

    def script(self) -> Script:
        arguments: dict[str, Any] = {}

        def build() -> Any:
            model = (self.build or plain_model)(self.dropout)
            arguments.clear()
            arguments.update({"epochs": EPOCHS, "shuffle": False, **self.make()})
            return model

        return Script(build, arguments)


def compiled(model: Any, **options: Any) -> Any:
    """Compile a minimal step that still shows the order of samples: hundreds are traced."""
    model.compile(keras.optimizers.SGD(0.05), **{"loss": "mse", **options})
    return model


def plain_model(dropout: bool = True) -> Any:
    drop = [layers.Dropout(0.3)] if dropout else []
    return compiled(keras.Sequential([layers.Input((4,)), *drop, layers.Dense(1)]))


def two_inputs(dropout: bool = True) -> Any:
    """A model with inputs "a" and "b"."""
    a, b = layers.Input((3,), name="a"), layers.Input((1,), name="b")
    joined = layers.Dropout(0.3)(layers.Concatenate()([a, b]))
    return compiled(keras.Model({"a": a, "b": b}, layers.Dense(1)(joined)))


def listed_inputs(dropout: bool = True) -> Any:
    a, b = layers.Input((3,)), layers.Input((1,))
    joined = layers.Dropout(0.3)(layers.Concatenate()([a, b]))
    return compiled(keras.Model([a, b], layers.Dense(1)(joined)))


def nested_inputs(dropout: bool = True) -> Any:
    """A model with inputs {"pair": [a, b], "one": c} and outputs "sum" and "mean"."""
    a, b, c = layers.Input((1,)), layers.Input((1,)), layers.Input((2,), name="one")
    joined = layers.Dropout(0.3)(layers.Concatenate()([a, b, c]))
    outputs = {"sum": layers.Dense(1, name="sum")(joined), "mean": layers.Dense(1)(joined)}
    model = keras.Model({"pair": (a, b), "one": c}, outputs)
    return compiled(model, loss={"sum": "mse", "mean": "mae"})


def without_targets(dropout: bool = True) -> Any:
    """A model that adds its loss itself."""
    inputs = layers.Input((4,))
    outputs = layers.ActivityRegularization(l2=0.1)(layers.Dense(2)(layers.Dropout(0.3)(inputs)))
    return compiled(keras.Model(inputs, outputs), loss=None)


def ragged_inputs(dropout: bool = True) -> Any:
    """A model on the means of rows of any length."""
    inputs = layers.Input((None,), ragged=True)
    means = layers.Lambda(lambda x: tf.reduce_mean(x, axis=1, keepdims=True), (1,))(inputs)
    return compiled(keras.Model(inputs, layers.Dense(1)(layers.Dropout(0.3)(means))))


class WithOptional(layers.Layer):  # type: ignore[misc]
    """Joins two inputs; the second may be missing."""

    def call(self, a: Any, b: Any = None) -> Any:
        return a if b is None else a + b


def optional_input(dropout: bool = True) -> Any:
    a, b = layers.Input((3,), name="a"), layers.Input((3,), name="b", optional=True)
    joined = layers.Dropout(0.3)(WithOptional()(a, b))
    return compiled(keras.Model({"a": a, "b": b}, layers.Dense(1)(joined)))


def classifier(dropout: bool = True) -> Any:
    """A two-class model whose loss accepts one-hot and sparse targets."""
    model = keras.Sequential([layers.Input((4,)), layers.Dropout(0.3), layers.Dense(2, "softmax")])
    return compiled(model, loss=crossed, weighted_metrics=[crossed], run_eagerly=True)


def crossed(y: Any, p: Any) -> Any:
    y = y if y.shape[-1] == 2 else tf.one_hot(tf.cast(tf.reshape(y, [-1]), tf.int32), 2)
    return keras.losses.categorical_crossentropy(y, p)


def temporal(dropout: bool = True) -> Any:
    """A model with four outputs per sample, each with its weight."""
    drop = layers.Dropout(0.3)
    model = keras.Sequential([layers.Input((4,)), layers.Reshape((4, 1)), drop, layers.Dense(1)])
    return compiled(model, weighted_metrics=["mae"], run_eagerly=True)


# -- arrays -------------------------------------------------------------------------------------


def frames() -> dict[str, Any]:
    import pandas

    x = pandas.DataFrame(X, columns=list("abcd"))
    return {"x": x, "y": pandas.Series(Y[:, 0]), "batch_size": BATCH}


def nested_arrays() -> dict[str, Any]:
    x = {"pair": (X[:, :1], X[:, 1:2]), "one": X[:, 2:]}
    return {"x": x, "y": {"sum": Y, "mean": Y / 4}, "batch_size": BATCH}


def of_scipy() -> Any:
    import scipy.sparse

    return scipy.sparse.csr_matrix(np.maximum(X, 0))


def of_tensorflow() -> tf.SparseTensor:
    return tf.sparse.from_dense(np.maximum(X, 0))


def ragged() -> tf.RaggedTensor:
    return tf.RaggedTensor.from_tensor(X, lengths=np.arange(SAMPLES) % 4 + 1)


LABELS = (X[:, 0] > 0).astype("int32")
# Rank 1, one-hot, and sparse of rank 2: all that class_weight accepts.
TARGETS = {"1": LABELS, "one-hot": np.eye(2, dtype="float32")[LABELS], "2": LABELS[:, None]}
CLASSES = {0: 0.5, 1: 2.0}
TIMES = (X[:, :, None], X[:, :, None] ** 2, _RANDOM.uniform(0.5, 2.0, (SAMPLES, 4)))


# -- tf.data ------------------------------------------------------------------------------------


def slices() -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, Y))


def interleaved() -> tf.data.Dataset:
    def part(i: Any) -> tf.data.Dataset:
        return slices().shard(4, i)

    return tf.data.Dataset.range(4).interleave(part, cycle_length=3, block_length=2)


def doubled_in_python() -> tf.data.Dataset:
    def double(x: Any, y: Any) -> Any:
        return tf.ensure_shape(tf.py_function(lambda v: v * 2, [x], tf.float32), [4]), y

    return slices().map(double)


def noisy() -> tf.data.Dataset:
    return slices().map(lambda x, y: (x + tf.random.normal([4], stddev=0.1), y))


def augmented() -> tf.data.Dataset:
    noise = layers.GaussianNoise(0.1)
    return slices().map(lambda x, y: (noise(x, training=True), y))


def from_generator() -> tf.data.Dataset:
    signature = (tf.TensorSpec([None, 4]), tf.TensorSpec([None, 1]))
    return tf.data.Dataset.from_generator(finite, output_signature=signature)


def labelled(y: np.ndarray[Any, Any]) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((X, y)).batch(BATCH)


def sparse() -> tf.data.Dataset:
    return slices().batch(BATCH).map(lambda x, y: (tf.sparse.from_dense(tf.nn.relu(x)), y))


# -- PyDataset ----------------------------------------------------------------------------------


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """Seven batches, the last one short."""

    def __len__(self) -> int:
        return -(-SAMPLES // BATCH)

    def __getitem__(self, i: int) -> Any:
        return X[i * BATCH : (i + 1) * BATCH], Y[i * BATCH : (i + 1) * BATCH]


class Parts(Batches):
    """Batches of any arrays."""

    def __init__(self, *arrays: Any, **options: Any) -> None:
        super().__init__(**options)
        self.arrays = arrays

    def __getitem__(self, i: int) -> Any:
        return tuple(array[i * BATCH : (i + 1) * BATCH] for array in self.arrays)


class Reshuffled(Batches):
    """Draws a new order at the end of each epoch."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.random = np.random.RandomState(3)
        self.order = np.arange(SAMPLES)

    def __getitem__(self, i: int) -> Any:
        chosen = self.order[i * BATCH : (i + 1) * BATCH]
        return X[chosen], Y[chosen]

    def on_epoch_end(self) -> None:
        self.order = np.roll(self.order, 7)


class Endless(keras.utils.PyDataset):  # type: ignore[misc]
    """Has no end: batch indices continue over the epochs."""

    @property
    def num_batches(self) -> None:
        return None

    def __getitem__(self, i: int) -> Any:
        chosen = np.arange(i * BATCH, (i + 1) * BATCH) % SAMPLES
        return X[chosen], Y[chosen]


# -- generators ---------------------------------------------------------------------------------


def endless() -> Iterator[Any]:
    at = 0
    while True:
        chosen = np.arange(at, at + BATCH) % SAMPLES
        at += BATCH
        yield X[chosen], Y[chosen]


def finite() -> Iterator[Any]:
    for at in range(0, SAMPLES, BATCH):
        yield X[at : at + BATCH], Y[at : at + BATCH]


def passes() -> Iterator[Any]:
    """The samples in endless passes; the last batch of each pass is short."""
    while True:
        yield from finite()


def weighted() -> Iterator[Any]:
    while True:
        for at in range(0, SAMPLES, BATCH):
            yield X[at : at + BATCH], Y[at : at + BATCH], W[at : at + BATCH]


def inputs_only() -> Iterator[Any]:
    for x, _ in passes():
        yield (x,)


def dicts() -> Iterator[Any]:
    for x, y in passes():
        yield {"a": x[:, :3], "b": x[:, 3:]}, y


def of_parts(*arrays: Any) -> Iterator[Any]:
    while True:
        yield from (Parts(*arrays)[i] for i in range(len(Parts(*arrays))))


class Cursor:
    """An iterator with a readable position, by either of the two usual pairs of methods."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(9)
        self.drawn = 0

    def __iter__(self) -> Cursor:
        return self

    def __next__(self) -> Any:
        self.drawn += 1
        chosen = self.random.integers(0, SAMPLES, BATCH)
        return X[chosen], Y[chosen]


class WithGetState(Cursor):
    def get_state(self) -> dict[str, Any]:
        return {"random": self.random.bit_generator.state, "drawn": self.drawn}

    def set_state(self, state: dict[str, Any]) -> None:
        self.random.bit_generator.state, self.drawn = state["random"], state["drawn"]


class WithStateDict(Cursor):
    def state_dict(self) -> dict[str, Any]:
        return {"random": self.random.bit_generator.state, "drawn": self.drawn}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.random.bit_generator.state, self.drawn = state["random"], state["drawn"]


def sparse_batches() -> Iterator[Any]:
    import scipy.sparse

    for i in range(EPOCHS * 5):
        chosen = np.arange(i, i + BATCH)
        yield scipy.sparse.coo_matrix(np.maximum(X[chosen], 0)), Y[chosen]


def without_b() -> Iterator[Any]:
    for i in range(EPOCHS * 5):
        chosen = np.arange(i, i + BATCH)
        yield {"a": X[chosen, :3], "b": None}, Y[chosen]


class Adapter(DataAdapter):  # type: ignore[misc]
    """A custom data adapter."""

    def get_tf_dataset(self) -> tf.data.Dataset:
        return slices().batch(BATCH)

    @property
    def num_batches(self) -> int:
        return -(-SAMPLES // BATCH)


# -- other loaders ------------------------------------------------------------------------------


def torch_loader(data: Any = None, **options: Any) -> Any:
    """A DataLoader of the samples. seed: seeds the loader's generator."""
    import torch

    if "seed" in options:
        options["generator"] = torch.Generator().manual_seed(options.pop("seed"))
    if data is None:
        data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    return torch.utils.data.DataLoader(data, batch_size=BATCH, **options)


def torch_seeded(**options: Any) -> Any:
    """A DataLoader that draws from torch's global generator."""
    import torch

    torch.manual_seed(4)
    return torch_loader(shuffle=True, **options)


def torch_noisy(**options: Any) -> Any:
    """A DataLoader of a dataset that draws from every global generator."""
    import torch

    class Noisy(torch.utils.data.Dataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return SAMPLES

        def __getitem__(self, i: int) -> Any:
            noise = torch.rand(4).numpy() + np.random.rand() + random.random()
            return X[i] + 0.1 * noise.astype("float32"), Y[i]

    torch.manual_seed(4)
    return torch_loader(Noisy(), shuffle=True, seed=5, **options)


def torch_stream(**options: Any) -> Any:
    """A DataLoader of an IterableDataset."""
    import torch

    class Stream(torch.utils.data.IterableDataset):  # type: ignore[misc]
        def __iter__(self) -> Iterator[Any]:
            worker = torch.utils.data.get_worker_info()
            start, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
            for i in range(start, SAMPLES, step):
                yield X[i], Y[i]

    return torch_loader(Stream(), **options)


def grain_dataset() -> Any:
    import grain

    return grain.MapDataset.source([(X[i], Y[i]) for i in range(SAMPLES)]).shuffle(seed=4)


def grain_noisy() -> Any:
    """An endless dataset with a new order and new noise in each pass, read by two threads."""
    import grain

    class Noise(grain.transforms.RandomMap):  # type: ignore[misc]
        def random_map(self, pair: Any, rng: np.random.Generator) -> Any:
            return pair[0] + 0.1 * rng.random(4, dtype="float32"), pair[1]

    ds = grain_dataset().seed(6).random_map(Noise()).repeat().batch(BATCH)
    return ds.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))


def grain_windowed() -> Any:
    """Shuffled through a window, like data without random access."""
    import grain

    ds = grain_dataset().to_iter_dataset()
    return grain.experimental.WindowShuffleIterDataset(ds, window_size=20, seed=3).batch(BATCH)


class Pairs:
    """The samples by index. Its repr differs in every process."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, i: int) -> Any:
        return X[i], Y[i]


def grain_loader(workers: int = 0) -> Any:
    import grain

    return grain.DataLoader(
        data_source=list(map(Pairs().__getitem__, range(SAMPLES))) if workers else Pairs(),
        sampler=grain.samplers.IndexSampler(SAMPLES, shuffle=True, seed=4, num_epochs=1),
        operations=[grain.transforms.Batch(BATCH)],
        worker_count=workers,
    )


def of(make: Callable[[], Any], way: str, **rest: Any) -> Kind:
    """Return the kind of an `x`; options that are not fields of `Kind` are arguments of `fit`."""
    fields = {k: rest.pop(k) for k in list(rest) if k in Kind.__dataclass_fields__}
    return Kind(lambda: {"x": make(), **rest}, way, **fields)


GRAINS_WAY = "its iterator's own state"

KINDS: dict[str, Kind] = {
    # arrays
    "tensors": Kind(
        lambda: {"x": tf.constant(X), "y": tf.constant(Y), "batch_size": BATCH}, "by cursor"
    ),
    "pandas": Kind(frames, "by cursor", needs="pandas"),
    "list": Kind(
        lambda: {"x": [X[:, :3], X[:, 3:]], "y": Y, "batch_size": BATCH},
        "by cursor",
        listed_inputs,
    ),
    "dict": Kind(
        lambda: {"x": {"b": X[:, 3:], "a": X[:, :3]}, "y": Y, "batch_size": BATCH},
        "by cursor",
        two_inputs,
    ),
    "nested": Kind(nested_arrays, "by cursor", nested_inputs),
    "arrays with steps_per_epoch": Kind(
        lambda: {"x": X, "y": Y, "batch_size": BATCH, "steps_per_epoch": 5}, "by cursor"
    ),
    "scipy sparse": of(of_scipy, "by cursor", y=Y, batch_size=BATCH, needs="scipy"),
    "sparse tensor": of(of_tensorflow, "by cursor", y=Y, batch_size=BATCH),
    "ragged tensor": of(ragged, "by cursor", y=Y, batch_size=BATCH, build=ragged_inputs),
    "arrays class_weight": Kind(
        lambda: {"x": X, "y": TARGETS["2"], "batch_size": BATCH, "class_weight": CLASSES},
        "by cursor",
        classifier,
    ),
    "arrays temporal weights": Kind(
        lambda: dict(zip(("x", "y", "sample_weight", "batch_size"), (*TIMES, BATCH), strict=True)),
        "by cursor",
        temporal,
    ),
    # tf.data
    "tf.data": of(lambda: slices().batch(BATCH), "iterator"),
    "tf.data shuffle": of(lambda: slices().shuffle(SAMPLES, seed=4).batch(BATCH), "skip"),
    "tf.data repeat": of(lambda: slices().repeat().batch(BATCH), "iterator", steps_per_epoch=5),
    "tf.data shuffle repeat": of(
        lambda: slices().shuffle(20, seed=4).repeat().batch(BATCH), "skip", steps_per_epoch=5
    ),
    "tf.data in pieces": of(lambda: slices().batch(BATCH), "iterator", steps_per_epoch=3),
    "tf.data of unknown size": of(
        lambda: slices().filter(lambda x, y: y[0] < 1.5).batch(BATCH), "iterator", dropout=False
    ),
    "tf.data cache": of(lambda: slices().cache().batch(BATCH), "skip"),
    "tf.data interleave": of(lambda: interleaved().batch(BATCH), "iterator", dropout=False),
    "tf.data parallel map": of(
        lambda: (
            slices()
            .map(lambda x, y: (x * 2, y), num_parallel_calls=tf.data.AUTOTUNE)
            .batch(BATCH)
            .prefetch(tf.data.AUTOTUNE)
        ),
        "iterator",
    ),
    "tf.data py_function": of(
        lambda: doubled_in_python().batch(BATCH), "replay", doubt="EagerPyFunc"
    ),
    "tf.data random map": of(lambda: noisy().batch(BATCH), "replay", doubt="RandomStandardNormal"),
    "tf.data layer map": of(lambda: augmented().batch(BATCH), "replay", doubt="ReadVariableOp"),
    "tf.data from_generator": of(from_generator, "replay", dropout=False, doubt="PyFunc"),
    "tf.data sparse": of(sparse, "iterator"),
    "data adapter": of(Adapter, "iterator"),
    **{
        f"tf.data class_weight, targets {kind}": of(
            partial(labelled, y),
            "iterator",
            class_weight=CLASSES,
            build=classifier,
        )
        for kind, y in TARGETS.items()
    },
    "tf.data weighted": of(
        lambda: tf.data.Dataset.from_tensor_slices((X, Y, W)).batch(BATCH), "iterator"
    ),
    "tf.data temporal weights": of(
        lambda: tf.data.Dataset.from_tensor_slices(TIMES).batch(BATCH), "iterator", build=temporal
    ),
    # PyDataset
    "PyDataset": of(Batches, "by cursor"),
    "PyDataset threads": of(lambda: Batches(workers=3, max_queue_size=4), "by cursor"),
    "PyDataset processes": of(
        lambda: Batches(workers=2, use_multiprocessing=True, max_queue_size=4), "by cursor"
    ),
    "PyDataset reshuffled": of(Reshuffled, "by cursor"),
    "PyDataset in pieces": of(Reshuffled, "by cursor", steps_per_epoch=3),
    "PyDataset endless": of(Endless, "by cursor", steps_per_epoch=5),
    "PyDataset endless threads": of(
        lambda: Endless(workers=2, max_queue_size=3), "by cursor", steps_per_epoch=5
    ),
    "PyDataset class_weight": of(
        lambda: Parts(X, TARGETS["one-hot"]), "by cursor", class_weight=CLASSES, build=classifier
    ),
    "PyDataset weighted": of(lambda: Parts(X, Y, W), "by cursor"),
    "PyDataset temporal weights": of(lambda: Parts(*TIMES), "by cursor", build=temporal),
    # generators
    "generator endless": of(endless, "replay from its start", steps_per_epoch=5),
    "generator finite": of(finite, "replay from its start", dropout=False),
    "generator short batches": of(passes, "replay from its start", steps_per_epoch=5),
    "generator weighted": of(weighted, "replay from its start", steps_per_epoch=5),
    "generator inputs only": of(
        inputs_only, "replay from its start", build=without_targets, steps_per_epoch=5
    ),
    "generator temporal weights": of(
        lambda: of_parts(*TIMES), "replay from its start", build=temporal, steps_per_epoch=5
    ),
    "generator dicts": of(dicts, "replay from its start", build=two_inputs, steps_per_epoch=5),
    "generator scipy sparse": of(
        sparse_batches, "replay from its start", needs="scipy", steps_per_epoch=5
    ),
    "generator without an input": of(
        without_b, "replay from its start", build=optional_input, steps_per_epoch=5
    ),
    "iterator get_state": of(WithGetState, "its own state", steps_per_epoch=5),
    "iterator state_dict": of(WithStateDict, "its own state", steps_per_epoch=5),
    # other loaders
    "torch": of(torch_loader, "skip within the pass", needs="torch"),
    "torch shuffle": of(
        lambda: torch_loader(shuffle=True, seed=4), "skip within the pass", needs="torch"
    ),
    "torch global shuffle": of(torch_seeded, "skip within the pass", needs="torch"),
    "torch in pieces": of(torch_seeded, "skip within the pass", needs="torch", steps_per_epoch=5),
    "torch noise": of(torch_noisy, "skip within the pass", needs="torch"),
    "torch workers": of(lambda: torch_noisy(num_workers=2), "skip within the pass", needs="torch"),
    "torch stream": of(torch_stream, "skip within the pass", needs="torch", dropout=False),
    "torch stream workers": of(
        lambda: torch_stream(num_workers=2), "skip within the pass", needs="torch", dropout=False
    ),
    "grain": of(lambda: grain_dataset().batch(BATCH), GRAINS_WAY, needs="grain", dropout=False),
    "grain noise": of(grain_noisy, GRAINS_WAY, needs="grain", steps_per_epoch=5),
    "grain window": of(grain_windowed, GRAINS_WAY, needs="grain", dropout=False),
    "grain DataLoader": of(grain_loader, GRAINS_WAY, needs="grain", dropout=False),
}
# Keras' own pool of processes can wait for ever for one that it has forked beside TensorFlow's
# threads: what it would train on is what its pool of threads trains on, in the same order.
KERAS_INSTEAD = {"PyDataset processes": "PyDataset threads"}
# Keras itself takes generators only, no other iterators.
BEYOND_KERAS = {"iterator get_state", "iterator state_dict"}
