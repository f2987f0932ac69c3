"""The operations of tf.data, and how exactly a resume reproduces each of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Promise(StrEnum):
    """How exactly a resume reproduces what an operation yields."""

    EXACT = "exact"
    SEEDED = "exact with a seed"
    FUNCTION = "exact if its function is"
    NAMED = "named"


class Opens(StrEnum):
    """When an operation opens its input in a pass."""

    AT_ONCE = "at once"
    FIRST = "for the first element"
    LATER = "later, or several times"


@dataclass(frozen=True)
class Op:
    """An operation of tf.data.

    Attributes:
        written: What users write.
        promise: How exactly a resume reproduces it.
        why: Reason of a promise that is not exact, with a remedy.
        opens: When it opens its (first) input.
        drains: Whether its input has ended when it has.
    """

    written: str
    promise: Promise = Promise.EXACT
    why: str = ""
    opens: Opens = Opens.AT_ONCE
    drains: bool = True


_FUNCTION = Promise.FUNCTION

# By kind; see `kind_of`. An operation that is missing here is reported as inexact.
OPS: dict[str, Op] = {
    # sources
    "csv": Op("experimental.CsvDataset, experimental.make_csv_dataset"),
    "fixedlengthrecord": Op("FixedLengthRecordDataset"),
    "generator": Op(
        "from_generator",
        Promise.NAMED,
        "a Python generator keeps state that no checkpoint contains",
    ),
    "list": Op("experimental.from_list"),
    "load": Op("Dataset.load"),
    "reduce": Op("reduce, within a function", _FUNCTION),
    "random": Op("Dataset.random", Promise.SEEDED),
    "range": Op("Dataset.range, counter"),
    "tensor": Op("from_tensors"),
    "tensorslice": Op("from_tensor_slices, list_files(shuffle=False)"),
    "textline": Op("TextLineDataset"),
    "tfrecord": Op("TFRecordDataset"),
    # one input
    "assertcardinality": Op("experimental.assert_cardinality"),
    "batch": Op("batch, map of whole batches"),
    "cache": Op("cache, in memory or in a file"),
    "densetoragged": Op("ragged_batch, experimental.dense_to_ragged_batch"),
    "densetosparsebatch": Op("sparse_batch, experimental.dense_to_sparse_batch"),
    "filter": Op("filter", _FUNCTION),
    "flatmap": Op("flat_map", _FUNCTION),
    "groupbyreducer": Op("experimental.group_by_reducer", _FUNCTION),
    "groupbywindow": Op("group_by_window, bucket_by_sequence_length", _FUNCTION),
    "ignoreerrors": Op("ignore_errors"),
    "interleave": Op("interleave", _FUNCTION),
    "map": Op("map", _FUNCTION),
    "mapandbatch": Op("experimental.map_and_batch", _FUNCTION),
    "options": Op("with_options"),
    "paddedbatch": Op("padded_batch"),
    "parallelbatch": Op("batch(num_parallel_calls=…)"),
    "parallelinterleave": Op("interleave(num_parallel_calls=…)", _FUNCTION),
    "parallelmap": Op("map(num_parallel_calls=…)", _FUNCTION),
    "parseexample": Op("experimental.parse_example_dataset"),
    "prefetch": Op("prefetch"),
    "rebatch": Op("rebatch"),
    "repeat": Op("repeat", opens=Opens.LATER),
    "restructured": Op("rejection_resample, experimental.copy_to_device"),
    "scan": Op("scan", _FUNCTION),
    "shard": Op("shard"),
    "shuffle": Op("shuffle, list_files", Promise.SEEDED, opens=Opens.FIRST),
    "shuffleandrepeat": Op("experimental.shuffle_and_repeat", Promise.SEEDED, opens=Opens.LATER),
    "skip": Op("skip"),
    "take": Op("take", drains=False),
    "takewhile": Op("take_while", _FUNCTION, drains=False),
    "unbatch": Op("unbatch"),
    "unique": Op("unique"),
    "window": Op("window"),
    # several inputs
    "concatenate": Op("concatenate"),
    "directedinterleave": Op(
        "sample_from_datasets, choose_from_datasets, rejection_resample", drains=False
    ),
    "zip": Op("zip, enumerate", drains=False),
    # what no resume can reproduce for certain
    "dataservice": Op(
        "experimental.service.distribute",
        Promise.NAMED,
        "the workers of a data service keep their own place; read the data in this process",
    ),
    "globalshuffle": Op(
        "experimental.global_shuffle", Promise.NAMED, "its order is not tested; use shuffle"
    ),
    "snapshot": Op(
        "snapshot",
        Promise.NAMED,
        "it reads what an earlier attempt has written, in another order than it was written; use "
        "cache, or save and load",
    ),
    "sql": Op(
        "experimental.SqlDataset",
        Promise.NAMED,
        "a query need not return its rows in the same order; read them into arrays, in order",
    ),
}


def kind_of(name: str) -> str:
    """Return the kind of an operation: "shuffle" for `_ShuffleDataset` and "ShuffleDatasetV3"."""
    return re.sub(r"Dataset(V\d+)?$", "", name).strip("_").removeprefix("Experimental").lower()


def is_dataset(name: str) -> bool:
    """Return whether an op of a graph makes a dataset, by its name."""
    return re.search(r"Dataset(V\d+)?$", name) is not None


def doubt_of(kind: str) -> str | None:
    """Return why an operation of this kind may be inexact, or None."""
    op = OPS.get(kind)
    if op is None:
        return "it is not among the operations that are tested"
    return op.why if op.promise is Promise.NAMED else None


# Random ops keep their state per pass of a data function. With op determinism, TensorFlow calls
# such a function in order, so each pass draws the same numbers.
RANDOM = {
    "Multinomial",
    "ParameterizedTruncatedNormal",
    "RandomGamma",
    "RandomPoisson",
    "RandomPoissonV2",
    "RandomShuffle",
    "RandomStandardNormal",
    "RandomUniform",
    "RandomUniformInt",
    "TruncatedNormal",
}
# A function that makes a shuffle or a cache makes a new one with each call.
MADE_ANEW = {"AnonymousMemoryCache", "AnonymousSeedGenerator", "DummyMemoryCache"}
MADE_ANEW |= {"DummySeedGenerator"}
# Stateful by name, but a data function cannot change what they read.
HARMLESS = {
    "AnonymousHashTable",
    "Assert",
    "CheckNumerics",
    "CheckNumericsV2",
    "HashTable",
    "HashTableV2",
    "InitializeTableFromTextFileV2",
    "InitializeTableV2",
    "LookupTableFindV2",
    "LookupTableSizeV2",
    "Print",
    "PrintV2",
}
# Their functions are in the same library, and are inspected there.
CALLS = {"Case", "For", "If", "PartitionedCall", "StatefulPartitionedCall", "While"}
# What users write to get the most common stateful ops.
MAKERS = {
    "EagerPyFunc": "tf.py_function",
    "PyFunc": "from_generator or numpy_function",
    "PyFuncStateless": "numpy_function",
    "ReadVariableOp": "a variable, for example of a Keras augmentation layer",
    "StatefulUniform": "tf.random.Generator",
    "StatefulUniformInt": "tf.random.Generator",
    "StatefulStandardNormalV2": "tf.random.Generator",
    "RngReadAndSkip": "tf.random.Generator",
}
