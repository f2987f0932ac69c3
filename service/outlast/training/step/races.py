"""Races in what a phase traces: sums get one order, and other ops that race are named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from outlast.job.log_events import LogEvent
from outlast.training.keras_internals import tracing
from outlast.training.step import sums

# Ops whose kernel for the CPU adds floating-point numbers in the order of a race, although op
# determinism is on. TensorFlow refuses most of such ops then; it does not know of these.
# - Bincount adds up the weights by thread, and threads take what is left to do
#   (tensorflow/core/kernels/bincount_op.cc, BincountFunctor; about the GPU, where TensorFlow
#   refuses it: https://github.com/tensorflow/tensorflow/pull/56905).
# - AccumulateNV2 adds up its inputs as they come
#   (tensorflow/core/common_runtime/accumulate_n_optimizer.cc).
RACING_OPS: Final = frozenset({"AccumulateNV2", "Bincount", "DenseBincount", "RaggedBincount"})


@contextmanager
def ordered_functions(log: Any) -> Iterator[None]:
    """Within the block, functions that are traced do not race, or the log names what does.

    These are all functions: those of steps, validation, callbacks and of a Loop's body.
    """
    named: set[str] = set()

    def order(graph: Any) -> None:
        sums.put_in_order(graph)
        found = set(racing_ops(graph)) - named
        if found:
            named.update(found)
            log.warning(
                LogEvent.RACING_OPS_FOUND,
                ops=sorted(found),
                why="TensorFlow adds up their floating-point numbers in the order of a race, so "
                "two runs may differ in the last digits",
                instead="use tf.math.unsorted_segment_sum or tf.math.add_n",
            )

    with tracing.changing_graphs(order):
        yield


def racing_ops(graph: Any) -> Iterator[str]:
    """Yield the ops of a traced graph that race, with their names."""
    for op in graph.get_operations():
        if op.type in RACING_OPS and op.get_attr("T").is_floating:
            yield f"{op.type} ({op.name})"
