"""Keras' data adapters, which recognize and convert the `x` of `fit`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import tensorflow as tf
from keras.src.trainers.data_adapters import (
    array_slicing,
    data_adapter_utils,
    is_grain_dataset,
    is_tf_dataset,
    is_torch_dataloader,
    raise_unsupported_arg,
)
from keras.src.trainers.data_adapters.array_data_adapter import (
    ArrayDataAdapter,
    can_convert_arrays,
)
from keras.src.trainers.data_adapters.data_adapter import DataAdapter
from keras.src.trainers.data_adapters.generator_data_adapter import GeneratorDataAdapter
from keras.src.trainers.data_adapters.py_dataset_adapter import (
    OrderedEnqueuer,
    PyDatasetAdapter,
    init_pool_generator,
)
from keras.src.trainers.data_adapters.tf_dataset_adapter import TFDatasetAdapter
from keras.src.trainers.data_adapters.torch_data_loader_adapter import TorchDataLoaderAdapter

__all__ = [
    "DataAdapter",
    "OrderedEnqueuer",
    "PyDatasetAdapter",
    "TFDatasetAdapter",
    "can_convert_arrays",
    "init_pool_generator",
    "is_grain_dataset",
    "is_tf_dataset",
    "is_torch_dataloader",
    "raise_unsupported_arg",
]

# The number of batches from which Keras learns the shapes.
BATCHES_FOR_SPEC: int = data_adapter_utils.NUM_BATCHES_FOR_TENSOR_SPEC

Sparse = array_slicing.TensorflowSparseWrapper
"""A sparse tensor as ragged indices and values, whose rows can be gathered."""

rows_of_sparse = array_slicing.slice_tensorflow_sparse_wrapper
split_validation = array_slicing.train_validation_split
spec_of = data_adapter_utils.get_tensor_spec
unpack = data_adapter_utils.unpack_x_y_sample_weight


class Arrays(NamedTuple):
    """Arrays as Keras' fit converts them. `inputs` is their structure; a missing part is None."""

    samples: int
    batch_size: int
    inputs: Any


def convert_arrays(x: Any, y: Any, sample_weight: Any, **options: Any) -> Arrays:
    """Convert and check arrays. `options` are arguments of Keras' `ArrayDataAdapter`."""
    adapter = ArrayDataAdapter(x, y, sample_weight=sample_weight, **options)
    return Arrays(adapter._num_samples, adapter._batch_size, adapter._inputs)


def sliceable(arrays: Any) -> Any:
    """Convert a structure of arrays so that rows can be gathered from it."""
    return array_slicing.convert_to_sliceable(arrays, target_backend="tensorflow")


def dense_or_tf_sparse(value: Any) -> Any:
    """Convert sparse arrays of scipy and jax to tf.SparseTensor; return other values unchanged."""
    if data_adapter_utils.is_scipy_sparse(value):
        return data_adapter_utils.scipy_sparse_to_tf_sparse(value)
    if data_adapter_utils.is_jax_sparse(value):
        return data_adapter_utils.jax_sparse_to_tf_sparse(value)
    return value


def standard_batch(adapter: PyDatasetAdapter, batch: Any) -> Any:
    """Convert a batch of a PyDataset to a tuple, with class weights as sample weights."""
    return adapter._standardize_batch(batch)


def torch_adapter(loader: Any, iterated: Any) -> TorchDataLoaderAdapter:
    """Return Keras' adapter for a torch DataLoader, which iterates `iterated` instead of it."""
    adapter = TorchDataLoaderAdapter(loader)
    adapter._dataloader = iterated
    return adapter


class OrderedGenerator(GeneratorDataAdapter):  # type: ignore[misc]
    """Keras' adapter for generators. With `in_order`, nothing is read ahead of what is asked for.

    Keras reads a few batches ahead in a thread. How many they are is a matter of speed, which
    counts if the generator draws from random generators that others draw from as well.
    """

    in_order = False

    def get_tf_dataset(self) -> Any:
        dataset = super().get_tf_dataset()
        if not self.in_order:
            return dataset
        (unprefetched,) = dataset._inputs()
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False
        options.autotune.enabled = False
        return unprefetched.with_options(options)


class PoolEnqueuer(OrderedEnqueuer):  # type: ignore[misc]
    """Keras' enqueuer over a custom process pool.

    `pool` makes the pool from the number of workers and the arguments of `init_pool_generator`.
    `starting` returns the context in which the thread that starts the workers runs.
    """

    def __init__(
        self,
        *args: Any,
        pool: Callable[[int, Any], Any],
        starting: Callable[[], AbstractContextManager[None]],
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._pool = pool
        self._starting = starting

    def _get_executor_init(self, count: int) -> Callable[[Any], Any]:
        return lambda datasets: self._pool(count, datasets)

    def _run(self) -> None:
        with self._starting():
            super()._run()
