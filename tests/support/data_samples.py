"""The samples, and every kind of object that yields them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from keras.src.trainers.data_adapters.data_adapter import DataAdapter

SAMPLES = 53  # with batches of 8 the last one is short
BATCH = 8
EPOCHS = 3
_RANDOM = np.random.default_rng(5)
X = _RANDOM.normal(size=(SAMPLES, 4)).astype("float32")
Y = X[:, :2].sum(axis=1, keepdims=True).astype("float32")
W = _RANDOM.uniform(0.5, 2.0, size=SAMPLES).astype("float32")


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
