"""`Program`: the ways to run K steps, as a TensorFlow graph or with XLA, and the choice of one.

Programs round differently, so the program never changes within a training. The number of steps per
call does not affect rounding.
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

# The range in which one thread per op is faster. TensorFlow splits ops on about 50,000 numbers or
# more between threads, and waking threads takes 10 to 100 us. That pays off for larger ops and for
# many samples. Measured on dense models, in ms per step on two CPUs:
#   largest variable   variables x batch   all threads   one thread
#             50,176         1.6 million          0.35         0.34
#            100,352         3.3 million          0.74         0.52
#            200,704         6.5 million          1.04         0.79
#            401,408          13 million          1.38         1.28
_SPLIT_FROM, _SPLIT_WELL_FROM = 1 << 16, 1 << 18  # numbers in the largest variable
_SMALL_STEP = 1 << 24  # numbers in all variables, times samples in a batch


class Program(StrEnum):
    """The ways to compile K steps."""

    GRAPH = "graph"
    """Without XLA."""
    ONE_THREAD = "one-thread"
    """Without XLA, and with one thread per op."""
    XLA_STEP = "xla-step"
    """Each step is one XLA program, as in Keras' fit, called from TensorFlow's loop."""
    XLA_CALL = "xla-call"
    """The loop over K steps is one XLA program, several times faster for short steps."""


def wants_xla(model: Any) -> bool:
    """Return whether the model was compiled with `jit_compile=True` and supports XLA.

    A job enables op determinism, with which Keras resets `jit_compile`, so the argument of
    `compile` counts.
    """
    if model.jit_compile:
        return True
    return was_compiled_for_xla(model) and supports_xla(model)


def supports_xla(model: Any) -> bool:
    """Return whether all layers support XLA and the model does not run eagerly."""
    layers = all(layer.supports_jit for layer in all_layers(model))
    return layers and not model.run_eagerly


def graph_program(graph: Any, variables: list[int | None], batch: int) -> Program:
    """Return the program without XLA for the step traced as `graph`.

    `variables` are the sizes of the trained variables, each None if it is not fixed; `batch` is the
    number of samples. Only the model decides, not the machine or its speed, so a script always gets
    the same program.
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
    """Return the program with XLA for the step traced as `graph`.

    In a loop, XLA's CPU compiler runs convolutions on one thread without its fast kernels; a whole
    call was measured at a sixth of the speed of Keras' fit. So there each step is one program, and
    likewise for streamed data.
    """
    if streamed:
        return Program.XLA_STEP
    slow = bool(_ops(graph) & _CONVOLUTIONS) and not tf.config.list_physical_devices("GPU")
    return Program.XLA_STEP if slow else Program.XLA_CALL


def nodes_of(graph: Any) -> list[Any]:
    """Return all nodes of a `GraphDef`, including those of its functions."""
    return [*graph.node, *(node for f in graph.library.function for node in f.node_def)]


def _ops(graph: Any) -> set[str]:
    return {node.op for node in nodes_of(graph)}
