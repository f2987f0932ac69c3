"""How a call of K steps is done: as TensorFlow's graph, with all threads or one thread an op, or by
XLA, per step or as a whole.

Within one training the program never changes, for each rounds in its own way; across the number
of steps a call none does.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import tensorflow as tf

from outlast.training.keras_internals.models import all_layers, was_compiled_for_xla

_CONVOLUTIONS = frozenset(
    {
        "Conv2D",
        "Conv2DBackpropFilter",
        "Conv2DBackpropInput",
        "Conv3D",
        "Conv3DBackpropFilterV2",
        "Conv3DBackpropInputV2",
        "DepthwiseConv2dNative",
    }
)
_LOOPS = frozenset({"While", "StatelessWhile"})

# Where one thread an op is faster. TensorFlow splits an op on some 50,000 numbers or more between
# threads, and waking them takes some 10 to 100 us; a larger op, or many samples, are worth that.
# Dense models by their largest variable and by variables times batch, ms a step with all threads
# of two processors and with one: 50,176 and 1.6 million 0.35 and 0.34, 100,352 and 3.3 million 0.74
# and 0.52, 200,704 and 6.5 million 1.04 and 0.79, 401,408 and 13 million 1.38 and 1.28.
_SPLIT_FROM, _SPLIT_WELL_FROM = 1 << 16, 1 << 18  # numbers in the largest variable
_SMALL_STEP = 1 << 24  # numbers in all variables, times samples


class Program(StrEnum):
    """The ways to compile K steps.

    GRAPH: no XLA. ONE_THREAD: the same, but no op is split between threads. XLA_STEP: each step is
    one XLA program, as Keras' fit has it, called from TensorFlow's loop. XLA_CALL: the loop over
    the K steps is one XLA program: several times faster where a step is short.
    """

    GRAPH = "graph"
    ONE_THREAD = "one-thread"
    XLA_STEP = "xla-step"
    XLA_CALL = "xla-call"


def wants_xla(model: Any) -> bool:
    """Whether the model was compiled with `jit_compile=True`.

    Keras takes it back where op determinism is on, which a job turns on by itself; a model that
    says so by its layers (`supports_jit`) stays without.
    """
    if model.jit_compile:
        return True
    return was_compiled_for_xla(model) and supports_xla(model)


def supports_xla(model: Any) -> bool:
    """Whether XLA may be tried: no layer says that it cannot, and steps are compiled at all."""
    layers = all(layer.supports_jit for layer in all_layers(model))
    return layers and not model.run_eagerly


def graph_program(graph: Any, variables: list[int | None], batch: int) -> Program:
    """Return the program without XLA for the step traced as `graph`.

    variables: how many numbers each trained variable has, None where that is not fixed. batch: in
    samples. By the model alone, whatever the machine and its pace: the same script gets the same.
    """
    sizes = [size for size in variables if size is not None]
    if not sizes or len(sizes) < len(variables):
        return Program.GRAPH
    large = _SPLIT_FROM <= max(sizes) < _SPLIT_WELL_FROM
    short = sum(sizes) * batch <= _SMALL_STEP
    if not (large and short) or _ops(graph) & (_CONVOLUTIONS | _LOOPS):
        return Program.GRAPH
    return Program.ONE_THREAD


def xla_program(graph: Any, *, streamed: bool) -> Program:
    """Return XLA's program for the step traced as `graph`, by what is known before it runs.

    XLA's CPU compiler runs convolutions within a loop on one thread without its fast kernels (the
    whole call was measured at a sixth of the speed of Keras' fit), so there each step is a
    program, as it is for data that is not resident.
    """
    if streamed:
        return Program.XLA_STEP
    slow = bool(_ops(graph) & _CONVOLUTIONS) and not tf.config.list_physical_devices("GPU")
    return Program.XLA_STEP if slow else Program.XLA_CALL


def nodes_of(graph: Any) -> list[Any]:
    """Return all nodes of a `GraphDef`, those of its functions as well."""
    return [*graph.node, *(node for f in graph.library.function for node in f.node_def)]


def _ops(graph: Any) -> set[str]:
    return {node.op for node in nodes_of(graph)}
