"""How a call of K steps is compiled: as TensorFlow's graph, or by XLA, per step or as a whole.

Within one training the program never changes, for each rounds in its own way; across the number
of steps a call none does.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import tensorflow as tf

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


class Program(StrEnum):
    """The ways to compile K steps.

    GRAPH: no XLA. XLA_STEP: each step is one XLA program, as Keras' fit has it, called from
    TensorFlow's loop. XLA_CALL: the loop over the K steps is one XLA program: several times
    faster where a step is short.
    """

    GRAPH = "graph"
    XLA_STEP = "xla-step"
    XLA_CALL = "xla-call"


def wants_xla(model: Any) -> bool:
    """Whether the model was compiled with `jit_compile=True`.

    Keras takes it back where op determinism is on, which a job turns on by itself; a model that
    says so by its layers (`supports_jit`) stays without.
    """
    if model.jit_compile:
        return True
    config = getattr(model, "_compile_config", None)
    asked = config is not None and config.config.get("jit_compile") is True
    return asked and supports_xla(model)


def supports_xla(model: Any) -> bool:
    """Whether XLA may be tried: no layer says that it cannot, and steps are compiled at all."""
    layers = all(layer.supports_jit for layer in model._flatten_layers())
    return layers and not model.run_eagerly


def xla_program(graph: Any, *, streamed: bool) -> Program:
    """Return XLA's program for the step traced as `graph`, by what is known before it runs.

    XLA's CPU compiler runs convolutions within a loop on one thread without its fast kernels (the
    whole call was measured at a sixth of the speed of Keras' fit), so there each step is a
    program, as it is for data that is not resident.
    """
    if streamed:
        return Program.XLA_STEP
    ops = {node.op for node in graph.node}
    ops.update(node.op for function in graph.library.function for node in function.node_def)
    slow = bool(ops & _CONVOLUTIONS) and not tf.config.list_physical_devices("GPU")
    return Program.XLA_STEP if slow else Program.XLA_CALL
