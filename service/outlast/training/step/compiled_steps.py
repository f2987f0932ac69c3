"""`CompiledSteps`: K training steps in one compiled call.

One `tf.function` contains a `tf.while_loop` over K steps. Each step gathers its batch from resident
tensors and calls the model's `train_step`, which is compiled separately, as in Keras' fit. Other
batches are stacked, and the loop iterates over the stack. The loop is the same for K = 1 and
K = 100, so the results are equal to the bit for every K. The call returns the stacked logs of all
steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from outlast.training.data import gather as rows
from outlast.training.data.source import empty_batch, without_optionals
from outlast.training.keras_internals import random_streams
from outlast.training.keras_internals.distribution import containers_of
from outlast.training.keras_internals.models import all_layers, build_symbolically
from outlast.training.replicas.shares import size_of
from outlast.training.replicas.strategies import (
    check_last_batch,
    refusing_late_variables,
    replicas_of,
)
from outlast.training.step.batch_loss import BatchLoss
from outlast.training.step.intra_op import NOT_INLINED, OneThreadPerOp, only_computes
from outlast.training.step.program import Program, graph_program, nodes_of, xla_program
from outlast.training.step.stacks import alike, can_be_stacked, stack, stacked_spec

STREAMED_STEPS = 32  # largest number of streamed batches in memory
XLA_STEPS = 128  # steps for which one XLA program has room for logs
# The methods that decide which variables a step has besides the weights.
_STEP = ("train_step", "compute_loss", "compute_metrics", "metrics")


@dataclass(frozen=True)
class StepLogs:
    """The logs of K steps.

    Attributes:
        values: Dict from names, in order, to arrays of shape (K, …).
        batch_loss: Loss of each step's batch, float64 of shape (K,), or None if the model reports
            no loss.
    """

    values: dict[str, Any]
    batch_loss: Any | None

    def __len__(self) -> int:
        return len(next(iter(self.values.values()))) if self.values else 0

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict of Python values per step, as `pythonify_logs` makes them."""
        columns = [
            [float(v) for v in values]
            if values.ndim == 1 and values.dtype.kind in "fiub"
            else list(values)
            for values in self.values.values()
        ]
        return [dict(zip(self.values, row, strict=True)) for row in zip(*columns, strict=True)]

    def batch_losses(self) -> list[float | None]:
        """Return the loss of each step's batch, or None per step if the model reports no loss."""
        if self.batch_loss is None:
            return [None] * len(self)
        losses: list[float | None] = self.batch_loss.tolist()
        return losses


class CompiledSteps:
    """Runs K steps per call, on resident arrays or on given batches.

    Its methods raise the errors of the model's train_step.

    Args:
        model: Compiled model.
        arrays: Structure of tensors with the same first dimension, a missing part being None. Leave
            it out to pass batches to `run`.
        size: Samples in every batch of `arrays`, or None if the last batch is shorter. With it,
            train_step sees a static shape, as it does in Keras' fit.
        spec: Structure of `tf.TypeSpec` of a batch, if there are no `arrays`.
    """

    def __init__(
        self, model: Any, arrays: Any = None, size: int | None = None, *, spec: Any = None
    ) -> None:
        self.model = model
        self.arrays = arrays
        self.size = size
        self.spec = without_optionals(spec) if arrays is None else rows.spec_of_rows(arrays, size)
        self._optionals = arrays is None and tree.flatten(self.spec) != tree.flatten(spec)
        self._stacked = arrays is None and can_be_stacked(self.spec)
        self.eager = bool(model.run_eagerly)
        self.program = Program.GRAPH
        self.replicas = replicas_of(model)
        self._example: dict[str, Any] = {}
        self._call: Any = None
        self._uneven_call: Any = None  # for batches that the replicas cannot share evenly
        self._graph: Any = None
        self._summaries = False

    def trace(self) -> None:
        """Build and trace the step, so that every variable that it uses exists.

        An eager step cannot be traced. It creates its variables when it first runs.
        """
        if self.eager:
            return
        self._summaries = tf.summary.should_record_summaries()
        if self.replicas is None and self._makes_plain_variables():
            build_symbolically(self.model, self.spec)
        self._inner = tf.function(self._train_step(), autograph=False)
        with refusing_late_variables(self.replicas):
            concrete = self._inner.get_concrete_function(self.spec)
        self._graph = concrete.graph
        self.batch_loss = BatchLoss(self.model)
        self._example = _flat(concrete.structured_outputs)
        self.use(self.program)

    def _makes_plain_variables(self) -> bool:
        """Return whether the variables of metrics and optimizer can be created before the trace.

        TensorFlow repeats a trace that creates variables, which is most of the time until a
        process's first step. If custom code may decide on the variables, their order or their
        names, the trace creates them, as it does in Keras.
        """
        model, own = self.model, type(self.model)
        return (
            all(getattr(own, name) is getattr(keras.Model, name) for name in _STEP)
            and not any(name in vars(model) for name in _STEP)
            and type(model.optimizer).__module__.startswith("keras.")
            and not isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
            and all(layer.built for layer in all_layers(model))
            and bool(model.trainable_weights)
            and all(type(part) is tf.TensorSpec for part in tree.flatten(self.spec))
        )

    def use(self, program: Program) -> None:
        """Compile further calls as this program. Call it after `trace`."""
        self.program = program
        inner = self._inner
        if program in (Program.XLA_STEP, Program.XLA_CALL):
            jit = True if program == Program.XLA_STEP else None
            inner = tf.function(self._train_step(), jit_compile=jit, autograph=False)
        self._call = self._compiled(inner, program)
        self._uneven_call = None

    def _compiled(self, inner: Any, program: Program) -> Any:
        whole = program == Program.XLA_CALL
        if self.arrays is None and not self._stacked:
            return tf.function(self._single(inner), reduce_retracing=True, autograph=False)
        if self.arrays is None:
            inputs = tree.map_structure(stacked_spec, self.spec)
        else:
            inputs = tf.TensorSpec([None, self.size], tf.int64)
        # XLA needs the batch size to compile nested loops, such as an LSTM's. A shorter last batch
        # takes another trace.
        signature = None if whole else [inputs, tf.TensorSpec([], tf.int32)]
        call: Any = tf.function(
            self._looped(inner),
            input_signature=signature,
            jit_compile=whole or None,
            autograph=False,
            experimental_attributes=NOT_INLINED if program == Program.ONE_THREAD else None,
        )
        return OneThreadPerOp(call, self.size) if program == Program.ONE_THREAD else call

    def _train_step(self, *, even: bool = True) -> Callable[[Any], Any]:
        """Return the model's train_step, on all replicas if it has several."""
        step: Callable[[Any], Any] = self.model.train_step
        return step if self.replicas is None else self.replicas.step(step, even=even)

    def _call_for(self, inputs: Any, *, stacked: bool = False) -> Any:
        """Return the compiled call for a batch of this size, or for a stack of such batches."""
        if self.replicas is None:
            return self._call
        size = size_of(tree.map_structure(lambda part: part[0], inputs) if stacked else inputs)
        if self.replicas.is_even(int(size)):
            return self._call
        check_last_batch(self.model, self.replicas.count, int(size))
        if self._uneven_call is None:
            inner = tf.function(self._train_step(even=False), autograph=False)
            self._uneven_call = self._compiled(inner, self.program)
        return self._uneven_call

    def xla_program(self) -> Program:
        """Return the program with XLA for this step. Call it after `trace`."""
        return xla_program(self._definition(), streamed=self.arrays is None)

    def can_run_one_thread(self) -> bool:
        """Return whether `use` accepts `Program.ONE_THREAD`. Call it after `trace`."""
        resident = self.arrays is not None and not tf.config.list_physical_devices("GPU")
        return resident and self.replicas is None and only_computes(self._definition())

    def graph_program(self, batch: int) -> Program:
        """Return the program without XLA for batches of `batch` samples. Call it after `trace`."""
        if not self.can_run_one_thread():
            return Program.GRAPH
        sizes = [variable.value.shape.num_elements() for variable in self.model.trainable_variables]
        return graph_program(self._definition(), sizes, batch)

    def _definition(self) -> Any:
        return self._graph.as_graph_def()

    @property
    def max_steps(self) -> int:
        """Largest number of steps in a call."""
        if self.arrays is None:
            return STREAMED_STEPS
        return XLA_STEPS if self.program == Program.XLA_CALL else 1000

    def rehearse(self, batch: Any = None) -> None:
        """Run an eager step to create its variables. The caller restores their values.

        `batch` is a batch of the training. Without it, the step trains zeros.
        """
        try:
            self._train_step()(empty_batch(self.spec) if batch is None else batch)
        except Exception:
            if batch is not None:
                raise
            build_symbolically(self.model, self.spec)  # not every step accepts zeros

    def touched_variables(self) -> list[Any]:
        """Return the variables that the traced step reads or writes, in the order of capture.

        The state of random ops is not among them (see `random_streams`).
        """
        if self._graph is None:
            return []
        by_handle = {id(v.handle): v for v in self._graph.variables}
        captures = (id(external) for external, _ in self._graph.captures)
        found = [by_handle[key] for key in captures if key in by_handle]
        found = [variable for variable in found if not random_streams.is_stream(variable)]
        return found if self.replicas is None else containers_of(found)

    def stateful_random_ops(self) -> list[str]:
        """Return the names of random ops whose hidden state no checkpoint contains."""
        if self._graph is None:
            return []
        nodes = nodes_of(self._definition())
        return sorted({f"{n.op} ({n.name})" for n in nodes if n.op in random_streams.HIDDEN})

    def run(self, batches: Any) -> StepLogs:
        """Train K batches and return their logs.

        `batches` contains int64 indices into the arrays, of shape (K, batch). Without arrays, it is
        a list of K batches.
        """
        if self._optionals:
            batches = [without_optionals(batch) for batch in batches]
        if self.eager:
            return self._run_eagerly(batches)
        if tf.summary.should_record_summaries() and not self._summaries:
            self.trace()  # a callback has set a writer since, and the model writes summaries to it
        if self.arrays is not None:
            return self._run(tf.constant(self._padded(batches), tf.int64), len(batches))
        if self._stacked:
            parts = [self._run(stack(some), len(some)) for some in alike(batches)]
        else:
            parts = [self._run_single(batch) for batch in batches]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _padded(self, indices: Any) -> Any:
        """Pad the indices for XLA, which compiles again for each shape, to one shape for all K."""
        if self.program != Program.XLA_CALL:
            return indices
        padded = np.zeros((XLA_STEPS, indices.shape[1]), np.int64)
        padded[: len(indices)] = indices
        return padded

    def _run(self, inputs: Any, count: int) -> StepLogs:
        values, loss = self._call_for(inputs, stacked=True)(inputs, tf.constant(count, tf.int32))
        return StepLogs(
            {n: v.numpy()[:count] for n, v in zip(self._example, values, strict=True)},
            None if loss is None else loss.numpy()[:count],
        )

    def _run_single(self, batch: Any) -> StepLogs:
        values, loss = self._call_for(batch)(batch)
        return StepLogs(
            {n: v.numpy()[None] for n, v in zip(self._example, values, strict=True)},
            None if loss is None else loss.numpy()[None],
        )

    def _run_eagerly(self, batches: Any) -> StepLogs:
        stack, losses = [], []
        for part in batches:
            batch = part if self.arrays is None else self._gather(tf.constant(part, tf.int64))
            self.batch_loss = BatchLoss(self.model)
            even = self.replicas is None or self.replicas.is_even(int(size_of(batch)))
            logs, loss = self._one(self._train_step(even=even), batch)
            losses.append(loss)
            stack.append({k: np.asarray(v) for k, v in logs.items()})
        values = {name: np.stack([row[name] for row in stack]) for name in stack[0]}
        loss = np.array([float(o) for o in losses if o is not None]) if None not in losses else None
        return StepLogs(values, loss)

    def _gather(self, indices: Any) -> Any:
        return rows.gather(self.arrays, indices)

    def _one(self, step: Any, batch: Any) -> tuple[dict[str, Any], Any | None]:
        """Return the logs of one step and the loss of its batch."""
        if self.replicas is not None:
            sums = self.replicas.before(self.batch_loss)
            logs = _flat(step(batch))
            return logs, self.replicas.after(self.batch_loss, sums, logs)
        sums = self.batch_loss.before()
        logs = _flat(step(batch))
        return logs, self.batch_loss.after(sums, logs)

    def _single(self, inner: Any) -> Callable[[Any], Any]:
        def step(batch: Any) -> Any:
            logs, loss = self._one(inner, batch)
            return [logs[name] for name in self._example], loss

        return step

    def _looped(self, inner: Any) -> Callable[[Any, Any], Any]:
        names = list(self._example)
        dtypes = [self._example[n].dtype for n in names] + [tf.float64]

        def steps(inputs: Any, count: Any) -> Any:
            room = tf.shape(tree.flatten(inputs)[0])[0]
            arrays = [tf.TensorArray(d, size=room) for d in dtypes]
            known: dict[str, bool] = {}

            def body(i: Any, stacked: list[Any]) -> tuple[Any, list[Any]]:
                if self.arrays is None:
                    batch = tree.map_structure(lambda part: part[i], inputs)
                else:
                    batch = self._gather(inputs[i])
                logs, loss = self._one(inner, batch)
                known["loss"] = loss is not None
                values = [logs[n] for n in names]
                values.append(loss if loss is not None else tf.zeros([], tf.float64))
                return i + 1, [a.write(i, v) for a, v in zip(stacked, values, strict=True)]

            _, stacked = tf.while_loop(
                lambda i, _: i < count,
                body,
                (tf.constant(0), arrays),
                parallel_iterations=1,
            )
            *values, loss = (a.stack() for a in stacked)
            return values, loss if known["loss"] else None

        return steps


def _joined(parts: list[StepLogs]) -> StepLogs:
    names = parts[0].values
    losses = [part.batch_loss for part in parts if part.batch_loss is not None]
    return StepLogs(
        {name: np.concatenate([part.values[name] for part in parts]) for name in names},
        np.concatenate(losses) if losses else None,
    )


def _flat(logs: Any) -> dict[str, Any]:
    """Flatten nested logs as Keras' `pythonify_logs` does."""
    flat: dict[str, Any] = {}
    for key, value in sorted((logs or {}).items()):
        if isinstance(value, dict):
            flat.update(_flat(value))
        elif value is not None:
            flat[key] = tf.convert_to_tensor(value)
    return flat
