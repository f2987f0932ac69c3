"""Random ops with hidden state, such as `tf.random.normal`, made to keep it in variables.

TensorFlow's kernel of such an op holds a counter that nobody can read or set. `install` makes new
traces use the op that draws the same numbers, but keeps its counter in a variable. So a checkpoint
can contain it. The numbers stay equal to TensorFlow's, because both ops start at the seed and count
alike. Ops without such a twin keep their hidden state; `new_hidden_ops` names them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.distribute import distribute_lib
from tensorflow.python.eager import context
from tensorflow.python.framework import func_graph, op_def_library, ops, random_seed
from tensorflow.python.ops import gen_random_ops
from tensorflow.python.ops import gen_stateful_random_ops as with_variable

from outlast.training.keras_internals import saved_models

_PHILOX = np.int64(1)

# Ops whose kernels hold a counter, and their twins. Each twin takes a variable's handle first.
_TWINS: dict[str, tuple[str, Callable[..., Any]]] = {
    "RandomStandardNormal": ("random_standard_normal", with_variable.stateful_standard_normal_v2),
    "RandomUniform": ("random_uniform", with_variable.stateful_uniform),
    "RandomUniformInt": ("random_uniform_int", with_variable.stateful_uniform_int),
    "TruncatedNormal": ("truncated_normal", with_variable.stateful_truncated_normal),
}
# Ops without a twin. An eager call with a seed uses the same kernel each time.
_WITHOUT_TWIN = {
    "Multinomial": "multinomial",
    "ParameterizedTruncatedNormal": "parameterized_truncated_normal",
    "RandomGamma": "random_gamma",
    "RandomPoissonV2": "random_poisson_v2",
    "RandomShuffle": "random_shuffle",
}
HIDDEN = frozenset(
    {
        *_TWINS,
        *_WITHOUT_TWIN,
        "AllCandidateSampler",
        "FixedUnigramCandidateSampler",
        "FractionalAvgPool",
        "FractionalMaxPool",
        "LearnedUnigramCandidateSampler",
        "LogUniformCandidateSampler",
        "RandomCrop",
        "RandomPoisson",
        "SampleDistortedBoundingBox",
        "SampleDistortedBoundingBoxV2",
        "ThreadUnsafeUnigramCandidateSampler",
        "UniformCandidateSampler",
    }
)
# Functions that these modules trace belong to a pipeline or a file. A variable has no place there.
_ELSEWHERE = (
    "/tensorflow/python/data/",
    "/tensorflow/python/saved_model/",
    "/keras/src/export/",
)
_VECTORIZED = "/tensorflow/python/ops/parallel_for/"
_NOT_THE_SCRIPTS = ("/tensorflow/python/", "/keras/src/", "/outlast/training/")


class _Stream:
    """The counter of the random ops with one key."""

    def __init__(self, seeds: tuple[int, int]) -> None:
        self.start = np.array([0, seeds[1], seeds[0]], np.int64)
        with ops.init_scope():
            self.variable = tf.Variable(self.start, trainable=False, name="random_stream")

    def set(self, words: Any) -> None:
        with ops.init_scope():
            self.variable.assign(words)


class _Streams:
    """The streams of this process."""

    def __init__(self) -> None:
        self.found: dict[str, _Stream] = {}
        self.stored: dict[str, Any] = {}  # restored before the function is traced
        self.scope = ""
        self.hidden: list[str] = []
        self.noted: set[str] = set()
        self.seeded: set[tuple[int, int]] = set()  # by the script, in eager calls

    def get(self, key: str, seeds: tuple[int, int]) -> Any:
        if key not in self.found:
            self.found[key] = _Stream(seeds)
            if key in self.stored:
                self.found[key].set(self.stored.pop(key))
        return self.found[key].variable.handle

    def note(self, hidden: str) -> None:
        if hidden not in self.noted:
            self.noted.add(hidden)
            self.hidden.append(hidden)


_streams = _Streams()


def install() -> None:
    """Make functions that are traced from now on keep their random state in variables."""
    if getattr(random_seed.get_seed, "of_outlast", False):
        return
    for op, (name, twin) in _TWINS.items():
        setattr(gen_random_ops, name, _twin_of(op, getattr(gen_random_ops, name), twin))
    for op, name in _WITHOUT_TWIN.items():
        setattr(gen_random_ops, name, _noting(op, getattr(gen_random_ops, name)))
    get_seed, helper = random_seed.get_seed, op_def_library._apply_op_helper

    def noting_seed(op_seed: Any) -> Any:
        seeds = get_seed(op_seed)
        if op_seed is not None and context.executing_eagerly():
            _streams.seeded.add(seeds)
        return seeds

    def noting_ops(op_type_name: str, *args: Any, **keywords: Any) -> Any:
        if op_type_name in HIDDEN:
            where = _Trace()
            if not where.elsewhere:
                _streams.note(f"{op_type_name} ({where.function})")
        return helper(op_type_name, *args, **keywords)

    noting_seed.of_outlast = True  # type: ignore[attr-defined]
    saved_models.note_calls(HIDDEN, lambda hidden: _streams.note(hidden))
    random_seed.get_seed = noting_seed
    op_def_library._apply_op_helper = noting_ops
    # TensorFlow makes all kernels start again when a seed is set or the session is cleared.
    for method in ("_set_global_seed", "clear_kernel_cache"):
        setattr(context.Context, method, _restarting(getattr(context.Context, method)))


def capture() -> dict[str, list[int]]:
    """Return the counters of all streams, by key."""
    return {key: stream.variable.numpy().tolist() for key, stream in _streams.found.items()}


def restore(counters: dict[str, list[int]]) -> None:
    """Restore what `capture` returned, also for functions that are traced later."""
    _streams.stored = {k: v for k, v in counters.items() if k not in _streams.found}
    for key, stream in _streams.found.items():
        stream.set(counters.get(key, stream.start))


def forget() -> None:
    """Forget all streams, as a new process has none."""
    global _streams
    _streams = _Streams()


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Give functions that are traced within the block streams of their own."""
    before, _streams.scope = _streams.scope, name
    try:
        yield
    finally:
        _streams.scope = before


def is_stream(variable: Any) -> bool:
    """Return whether a variable is the counter of a stream."""
    return any(stream.variable is variable for stream in _streams.found.values())


def new_hidden_ops() -> list[str]:
    """Return the ops with hidden state that were found since the last call, with their function."""
    found, _streams.hidden = _streams.hidden, []
    return found


class _Trace:
    """The trace in which an op is created.

    Attributes:
        elsewhere: Whether the function is traced for a pipeline, a file or Keras' shape inference.
        vectorized: Whether the op is in a function that `tf.vectorized_map` converts.
        function: Name of the function that is traced.
        calls: Names of the script's functions that led to the op, from the traced one on. They are
            the same whoever calls the function first, in this process or in another.
    """

    def __init__(self) -> None:
        self.elsewhere = self.vectorized = False
        graph = ops.get_default_graph()
        while isinstance(graph, func_graph.FuncGraph):
            self.elsewhere |= graph.name.startswith("scratch_graph")
            graph = graph.outer_graph
        names: list[str] = []
        within = 0
        frame: Any = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            file, name = code.co_filename, code.co_name
            self.elsewhere |= any(part in file for part in _ELSEWHERE)
            self.vectorized |= _VECTORIZED in file
            if name == "func_graph_from_py_func":
                within = len(names)
            elif name.endswith("_step") or not any(part in file for part in _NOT_THE_SCRIPTS):
                names.append(name.removeprefix("tf__"))
            frame = frame.f_back
        self.calls = names[:within][::-1]
        self.function = self.calls[0] if self.calls else "a function"


def _twin_of(op: str, plain: Callable[..., Any], twin: Callable[..., Any]) -> Callable[..., Any]:
    def draw(*args: Any, seed: int = 0, seed2: int = 0, name: Any = None) -> Any:
        key = _key(op, args, (seed, seed2))
        if key is None:
            return plain(*args, seed=seed, seed2=seed2, name=name)
        handle = _streams.get(key, (seed, seed2))
        return twin(handle, _PHILOX, *args, name=name)

    return draw


def _noting(op: str, plain: Callable[..., Any]) -> Callable[..., Any]:
    def draw(*args: Any, seed: int = 0, seed2: int = 0, **more: Any) -> Any:
        if context.executing_eagerly() and (seed, seed2) in _streams.seeded:
            _streams.note(f"{op} (called with seed={seed2})")
        return plain(*args, seed=seed, seed2=seed2, **more)

    return draw


def _key(op: str, args: tuple[Any, ...], seeds: tuple[int, int]) -> str | None:
    """Return the key of the stream of an op, or None to leave the op as it is."""
    if seeds == (0, 0) or distribute_lib.has_strategy():
        return None
    tail = f"{op}/{seeds[0]}/{seeds[1]}"
    if context.executing_eagerly():
        # Without a seed of the script, each call has another seed, and a kernel of its own.
        kind = getattr(args[1], "dtype", args[1])
        return f"eager/{tf.as_dtype(kind).name}/{tail}" if seeds in _streams.seeded else None
    graph = ops.get_default_graph()
    if not (isinstance(graph, func_graph.FuncGraph) and ops.executing_eagerly_outside_functions()):
        return None
    trace = _Trace()
    if trace.elsewhere or trace.vectorized or not trace.calls:
        return None
    return "/".join([_streams.scope, *trace.calls, tail])


def _restarting(method: Callable[..., Any]) -> Callable[..., Any]:
    def restart(self: Any, *args: Any) -> Any:
        result = method(self, *args)
        _streams.stored.clear()
        for stream in _streams.found.values():
            stream.set(stream.start)
        return result

    return restart
