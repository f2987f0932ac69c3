"""K training steps in one compiled call.

One `tf.function` holds a `tf.while_loop` over K steps; each step gathers its batch from resident
tensors and calls the model's own `train_step`, which is compiled apart, just as Keras' fit compiles
it (with XLA where the model says so). The loop form is the same for K = 1 and for K = 100, so the
results are equal to the bit whatever K is. Every step's logs come back stacked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from service.training import rows
from service.training.source import an_empty_batch, without_optionals

STATEFUL_RANDOM = frozenset(
    {
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
)


@dataclass(frozen=True)
class StepLogs:
    """The logs of K steps: names in order, values of shape (K, …), and each step's own loss.

    own_loss: float64 of shape (K,), or None when the model reports no loss.
    """

    values: dict[str, Any]
    own_loss: Any | None

    def __len__(self) -> int:
        return len(next(iter(self.values.values()))) if self.values else 0

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict of python values a step, as `pythonify_logs` makes them."""
        columns = [
            [float(v) for v in values]
            if values.ndim == 1 and values.dtype.kind in "fiub"
            else list(values)
            for values in self.values.values()
        ]
        return [dict(zip(self.values, row, strict=True)) for row in zip(*columns, strict=True)]

    def own_losses(self) -> list[float | None]:
        """Return each step's own loss, None where the model reports none."""
        if self.own_loss is None:
            return [None] * len(self)
        losses: list[float | None] = self.own_loss.tolist()
        return losses


class OwnLoss:
    """Each batch's own loss, beside Keras' running mean.

    With Keras' own train_step the loss tracker is emptied before the step and the sums are put
    back afterwards: exact, and state and logs stay equal to the bit. With a custom train_step,
    which may read its tracker, nothing is touched: the loss is the difference of the totals, which
    rounds (float32 totals). Where no mean named "loss" exists, the step's own "loss" log is it.
    """

    def __init__(self, model: Any) -> None:
        self.tracker = next(
            (m for m in model.metrics if m.name == "loss" and isinstance(m, keras.metrics.Mean)),
            None,
        )
        kind = type(model)
        stock = all(
            getattr(kind, name) is getattr(keras.Model, name) and name not in vars(model)
            for name in ("train_step", "compute_metrics", "get_metrics_result")
        )
        self.exact = stock and self.tracker is not None

    def before(self) -> tuple[Any, Any] | None:
        if self.tracker is None:
            return None
        sums = (
            tf.identity(_value(self.tracker.total)),
            tf.identity(_value(self.tracker.count)),
        )
        if self.exact:
            self.tracker.total.assign(tf.zeros_like(sums[0]))
            self.tracker.count.assign(tf.zeros_like(sums[1]))
        return sums

    def after(self, sums: tuple[Any, Any] | None, logs: dict[str, Any]) -> Any | None:
        if self.tracker is None or sums is None:
            return tf.cast(logs["loss"], tf.float64) if _is_scalar(logs.get("loss")) else None
        total = _value(self.tracker.total)
        count = _value(self.tracker.count)
        if not self.exact:
            return tf.math.divide_no_nan(
                tf.cast(total, tf.float64) - tf.cast(sums[0], tf.float64),
                tf.cast(count, tf.float64) - tf.cast(sums[1], tf.float64),
            )
        own = tf.cast(tf.math.divide_no_nan(total, count), tf.float64)
        self.tracker.total.assign(sums[0] + total)
        self.tracker.count.assign(sums[1] + count)
        if "loss" in logs:
            logs["loss"] = tf.cast(self.tracker.result(), logs["loss"].dtype)
        return own


class CompiledSteps:
    """Calls of K steps on resident arrays, or of one step on a batch.

    model: compiled. arrays: a structure of tensors (None where a part is missing), all with the
    same first dimension; None when batches come from elsewhere. size: samples in every batch of
    them, None when the last one is shorter (train_step sees a static shape where Keras' fit shows
    it one). spec: without arrays, the structure of tf.TypeSpec of a batch. Raises whatever the
    model's train_step raises.
    """

    def __init__(
        self, model: Any, arrays: Any = None, size: int | None = None, *, spec: Any = None
    ) -> None:
        self.model = model
        self.arrays = arrays
        self.size = size
        self.spec = without_optionals(spec) if arrays is None else rows.spec_of_rows(arrays, size)
        self._optionals = arrays is None and tree.flatten(self.spec) != tree.flatten(spec)
        self.eager = bool(model.run_eagerly)
        self._names: list[str] = []
        self._call: Any = None
        self._graph: Any = None
        self._summaries = False

    def trace(self) -> None:
        """Build and trace the step, so that every variable that it touches exists."""
        if self.eager:
            self.model._symbolic_build(data_batch=self.spec)
            self.own_loss = OwnLoss(self.model)
            return
        inner = tf.function(
            self.model.train_step, jit_compile=bool(self.model.jit_compile), autograph=False
        )
        self._summaries = tf.summary.should_record_summaries()
        concrete = inner.get_concrete_function(self.spec)
        self.own_loss = OwnLoss(self.model)
        logs = concrete.structured_outputs
        self._names = list(_flat(logs))
        if self.arrays is None:
            self._call = tf.function(self._single(inner), reduce_retracing=True, autograph=False)
            self._graph = self._call.get_concrete_function(self.spec).graph
            return
        self._call = tf.function(
            self._looped(inner, _flat(logs)),
            input_signature=[tf.TensorSpec([None, self.size], tf.int64)],
            autograph=False,
        )
        self._graph = self._call.get_concrete_function().graph

    def rehearse(self) -> None:
        """Take an eager step for the sake of the variables that it makes; the caller undoes it."""
        if self.arrays is None:
            batch = an_empty_batch(self.spec)
        else:
            batch = self._gather(tf.zeros([1], tf.int64))
        self.model.train_step(batch)

    def touched_variables(self) -> list[Any]:
        """The variables that the traced step reads or writes, in the order it captured them."""
        if self._graph is None:
            return []
        by_handle = {id(v.handle): v for v in self._graph.variables}
        captures = (id(external) for external, _ in self._graph.captures)
        return [by_handle[key] for key in captures if key in by_handle]

    def stateful_random_ops(self) -> list[str]:
        """Names of random ops whose hidden state no checkpoint can hold."""
        if self._graph is None:
            return []
        definition = self._graph.as_graph_def()
        nodes = [*definition.node, *(n for f in definition.library.function for n in f.node_def)]
        return sorted({f"{n.op} ({n.name})" for n in nodes if n.op in STATEFUL_RANDOM})

    def run(self, lot: Any) -> StepLogs:
        """Train K batches of the arrays, `lot` being int64 indices of shape (K, batch); or, where
        there are no arrays, the one batch `lot`."""
        if self._optionals:
            lot = without_optionals(lot)
        if self.eager:
            return self._run_eagerly(lot)
        if tf.summary.should_record_summaries() and not self._summaries:
            self.trace()  # a callback has set a writer since: the model's own summaries go there
        if self.arrays is None:
            values, own = self._call(lot)
            values = [tf.expand_dims(v, 0) for v in values]
            own = None if own is None else tf.expand_dims(own, 0)
        else:
            values, own = self._call(tf.constant(lot, tf.int64))
        return StepLogs(
            dict(zip(self._names, (v.numpy() for v in values), strict=True)),
            None if own is None else own.numpy(),
        )

    def _run_eagerly(self, lot: Any) -> StepLogs:
        stack, owns = [], []
        for part in [lot] if self.arrays is None else lot:
            batch = part if self.arrays is None else self._gather(tf.constant(part, tf.int64))
            sums = self.own_loss.before()
            logs = _flat(self.model.train_step(batch))
            owns.append(self.own_loss.after(sums, logs))
            stack.append({k: np.asarray(v) for k, v in logs.items()})
        values = {name: np.stack([row[name] for row in stack]) for name in stack[0]}
        own = np.array([float(o) for o in owns if o is not None]) if None not in owns else None
        return StepLogs(values, own)

    def _gather(self, indices: Any) -> Any:
        return rows.gather(self.arrays, indices)

    def _single(self, inner: Any) -> Callable[[Any], Any]:
        def step(batch: Any) -> Any:
            sums = self.own_loss.before()
            logs = _flat(inner(batch))
            own = self.own_loss.after(sums, logs)
            return [logs[name] for name in self._names], own

        return step

    def _looped(self, inner: Any, example: dict[str, Any]) -> Callable[[Any], Any]:
        def steps(indices: Any) -> Any:
            count = tf.shape(indices)[0]
            names = list(example)
            dtypes = [example[n].dtype for n in names] + [tf.float64]
            arrays = [tf.TensorArray(d, size=count) for d in dtypes]
            known: dict[str, bool] = {}

            def body(i: Any, stacked: list[Any]) -> tuple[Any, list[Any]]:
                batch = self._gather(indices[i])
                sums = self.own_loss.before()
                logs = _flat(inner(batch))
                own = self.own_loss.after(sums, logs)
                known["own"] = own is not None
                values = [logs[n] for n in names]
                values.append(own if own is not None else tf.zeros([], tf.float64))
                return i + 1, [a.write(i, v) for a, v in zip(stacked, values, strict=True)]

            _, stacked = tf.while_loop(
                lambda i, _: i < count,
                body,
                (tf.constant(0), arrays),
                parallel_iterations=1,
            )
            *values, own = (a.stack() for a in stacked)
            return values, own if known["own"] else None

        return steps


def _flat(logs: Any) -> dict[str, Any]:
    """Flatten nested logs as `keras.src.utils.python_utils.pythonify_logs` does."""
    flat: dict[str, Any] = {}
    for key, value in sorted((logs or {}).items()):
        if isinstance(value, dict):
            flat.update(_flat(value))
        elif value is not None:
            flat[key] = tf.convert_to_tensor(value)
    return flat


def _value(variable: Any) -> Any:
    return getattr(variable, "_value", variable).read_value()


def _is_scalar(value: Any) -> bool:
    return value is not None and value.shape.rank == 0
