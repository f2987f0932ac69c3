"""How TensorFlow adds up three tensors or more: AddN by default, one by one where we ask for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import rewriter_config_pb2
from tensorflow.python._pywrap_tfe import TFE_Py_RegisterVSpace
from tensorflow.python.eager import backprop, context


@contextmanager
def one_by_one() -> Iterator[None]:
    """Within the block, functions that are traced and called add without AddN.

    Grappler's arithmetic optimiser, which makes AddN out of nested additions, is off for them.
    GradientTape adds up three or more gradients of one tensor by a chain of additions, in the order
    in which AddN takes them.
    """
    here = context.context()
    before = here.function_call_options
    config = here.config
    config.graph_options.rewrite_options.arithmetic_optimization = (
        rewriter_config_pb2.RewriterConfig.OFF
    )
    here.function_call_options = context.FunctionCallOptions(config_proto=config)
    space = backprop._default_vspace
    TFE_Py_RegisterVSpace(space._replace(aggregate_fn=_chained(space.aggregate_fn)))
    try:
        yield
    finally:
        TFE_Py_RegisterVSpace(space)
        here.function_call_options = before


def _chained(aggregate: Callable[[Sequence[Any]], Any]) -> Callable[[Sequence[Any]], Any]:
    def add_up(gradients: Sequence[Any]) -> Any:
        if len(gradients) > 2 and all(isinstance(one, tf.Tensor) for one in gradients):
            return functools.reduce(tf.math.add, gradients)
        return aggregate(gradients)

    return add_up
