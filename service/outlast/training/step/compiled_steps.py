"""`CompiledSteps`: K training steps in one compiled call.

One `tf.function` contains a `tf.while_loop` over K steps. Each step gathers its batch from resident
tensors and calls the model's `train_step`, which is compiled separately, as in Keras' fit. Other
batches are stacked, and the loop iterates over the stack. The loop is the same for K = 1 and
K = 100, so the results are equal to the bit for every K. The call returns the stacked logs of all
steps.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import tree

from outlast.training.data import gather as rows
from outlast.training.data.source import an_empty_batch, without_optionals
from outlast.training.keras_internals.models import all_layers, build_symbolically
from outlast.training.keras_internals.summation import one_by_one
from outlast.training.step.batch_loss import OwnLoss
from outlast.training.step.intra_op import APART, OneThreadAnOp, only_computes
from outlast.training.step.program import Program, graph_program, nodes_of, xla_program
from outlast.training.step.sums import racy_sums

STREAMED_STEPS = 32  # largest number of streamed batches in memory
XLA_STEPS = 128  # steps for which one XLA program has room for logs
# The methods that decide which variables a step has besides the weights.
_STEP = ("train_step", "compute_loss", "compute_metrics", "metrics")

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
    """The logs of K steps.

    Attributes:
        values: Dict from names, in order, to arrays of shape (K, …).
        own_loss: Loss of each step's batch, float64 of shape (K,), or None if the model reports
            no loss.
    """

    values: dict[str, Any]
    own_loss: Any | None

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

    def own_losses(self) -> list[float | None]:
        """Return the loss of each step's batch, or None per step if the model reports no loss."""
        if self.own_loss is None:
            return [None] * len(self)
        losses: list[float | None] = self.own_loss.tolist()
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
        self._stacked = arrays is None and _can_be_stacked(self.spec)
        self.eager = bool(model.run_eagerly)
        self.program = Program.GRAPH
        self._example: dict[str, Any] = {}
        self._call: Any = None
        self._graph: Any = None
        self._summaries = False
        # In this context what the steps call, and what is like them, adds in one order.
        self.summing: Callable[[], AbstractContextManager[None]] = nullcontext

    def trace(self) -> None:
        """Build and trace the step, so that every variable that it uses exists.

        An eager step cannot be traced. It creates its variables when it first runs.
        """
        if self.eager:
            return
        self._summaries = tf.summary.should_record_summaries()
        if self._makes_plain_variables():
            build_symbolically(self.model, self.spec)
        concrete = self._trace_inner()
        if racy_sums(concrete.graph.as_graph_def()):
            self.summing = one_by_one
            with self.summing():
                concrete = self._trace_inner()
        self._graph = concrete.graph
        self.own_loss = OwnLoss(self.model)
        self._example = _flat(concrete.structured_outputs)
        self.use(self.program)

    def _trace_inner(self) -> Any:
        self._inner = tf.function(self.model.train_step, autograph=False)
        return self._inner.get_concrete_function(self.spec)

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
        with self.summing():
            self._use(program)

    def _use(self, program: Program) -> None:
        self.program = program
        inner, whole = self._inner, program == Program.XLA_CALL
        if program in (Program.XLA_STEP, Program.XLA_CALL):
            jit = True if program == Program.XLA_STEP else None
            inner = tf.function(self.model.train_step, jit_compile=jit, autograph=False)
        if self.arrays is None and not self._stacked:
            self._call = tf.function(self._single(inner), reduce_retracing=True, autograph=False)
            return
        if self.arrays is None:
            lots = tree.map_structure(_stacked_spec, self.spec)
        else:
            lots = tf.TensorSpec([None, self.size], tf.int64)
        # XLA needs the batch size to compile nested loops, such as an LSTM's. A shorter last batch
        # takes another trace.
        signature = None if whole else [lots, tf.TensorSpec([], tf.int32)]
        self._call = tf.function(
            self._looped(inner),
            input_signature=signature,
            jit_compile=whole or None,
            autograph=False,
            experimental_attributes=APART if program == Program.ONE_THREAD else None,
        )
        if program == Program.ONE_THREAD:
            self._call = OneThreadAnOp(self._call, self.size)

    def xla_program(self) -> Program:
        """Return the program with XLA for this step. Call it after `trace`."""
        return xla_program(self._definition(), streamed=self.arrays is None)

    def may_take_one_thread(self) -> bool:
        """Return whether `use` accepts `Program.ONE_THREAD`. Call it after `trace`."""
        resident = self.arrays is not None and not tf.config.list_physical_devices("GPU")
        return resident and only_computes(self._definition())

    def graph_program(self, batch: int) -> Program:
        """Return the program without XLA for batches of `batch` samples. Call it after `trace`."""
        if not self.may_take_one_thread():
            return Program.GRAPH
        sizes = [variable.value.shape.num_elements() for variable in self.model.trainable_variables]
        return graph_program(self._definition(), sizes, batch)

    def _definition(self) -> Any:
        return self._graph.as_graph_def()

    @property
    def most(self) -> int:
        """Largest number of steps in a call."""
        if self.arrays is None:
            return STREAMED_STEPS
        return XLA_STEPS if self.program == Program.XLA_CALL else 1000

    def rehearse(self, batch: Any = None) -> None:
        """Run an eager step to create its variables. The caller restores their values.

        `batch` is a batch of the training. Without it, the step trains zeros.
        """
        try:
            self.model.train_step(an_empty_batch(self.spec) if batch is None else batch)
        except Exception:
            if batch is not None:
                raise
            build_symbolically(self.model, self.spec)  # not every step accepts zeros

    def touched_variables(self) -> list[Any]:
        """Return the variables that the traced step reads or writes, in the order of capture."""
        if self._graph is None:
            return []
        by_handle = {id(v.handle): v for v in self._graph.variables}
        captures = (id(external) for external, _ in self._graph.captures)
        return [by_handle[key] for key in captures if key in by_handle]

    def stateful_random_ops(self) -> list[str]:
        """Return the names of random ops whose hidden state no checkpoint contains."""
        if self._graph is None:
            return []
        nodes = nodes_of(self._definition())
        return sorted({f"{n.op} ({n.name})" for n in nodes if n.op in STATEFUL_RANDOM})

    def run(self, lot: Any) -> StepLogs:
        """Train K batches and return their logs.

        `lot` contains int64 indices into the arrays, of shape (K, batch). Without arrays, it is a
        list of K batches.
        """
        if self._optionals:
            lot = [without_optionals(batch) for batch in lot]
        if self.eager:
            return self._run_eagerly(lot)
        if tf.summary.should_record_summaries() and not self._summaries:
            self.trace()  # a callback has set a writer since, and the model writes summaries to it
        with self.summing():
            return self._run_compiled(lot)

    def _run_compiled(self, lot: Any) -> StepLogs:
        if self.arrays is not None:
            return self._run(tf.constant(self._padded(lot), tf.int64), len(lot))
        if self._stacked:
            parts = [self._run(_stack(alike), len(alike)) for alike in _alike(lot)]
        else:
            parts = [self._run_single(batch) for batch in lot]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _padded(self, indices: Any) -> Any:
        """Pad the indices for XLA, which compiles again for each shape, to one shape for all K."""
        if self.program != Program.XLA_CALL:
            return indices
        padded = np.zeros((XLA_STEPS, indices.shape[1]), np.int64)
        padded[: len(indices)] = indices
        return padded

    def _run(self, lots: Any, count: int) -> StepLogs:
        values, own = self._call(lots, tf.constant(count, tf.int32))
        return StepLogs(
            {n: v.numpy()[:count] for n, v in zip(self._example, values, strict=True)},
            None if own is None else own.numpy()[:count],
        )

    def _run_single(self, batch: Any) -> StepLogs:
        values, own = self._call(batch)
        return StepLogs(
            {n: v.numpy()[None] for n, v in zip(self._example, values, strict=True)},
            None if own is None else own.numpy()[None],
        )

    def _run_eagerly(self, lot: Any) -> StepLogs:
        stack, owns = [], []
        for part in lot:
            batch = part if self.arrays is None else self._gather(tf.constant(part, tf.int64))
            own_loss = OwnLoss(self.model)
            sums = own_loss.before()
            logs = _flat(self.model.train_step(batch))
            owns.append(own_loss.after(sums, logs))
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
            return [logs[name] for name in self._example], own

        return step

    def _looped(self, inner: Any) -> Callable[[Any, Any], Any]:
        names = list(self._example)
        dtypes = [self._example[n].dtype for n in names] + [tf.float64]

        def steps(lots: Any, count: Any) -> Any:
            room = tf.shape(tree.flatten(lots)[0])[0]
            arrays = [tf.TensorArray(d, size=room) for d in dtypes]
            known: dict[str, bool] = {}

            def body(i: Any, stacked: list[Any]) -> tuple[Any, list[Any]]:
                if self.arrays is None:
                    batch = tree.map_structure(lambda lot: lot[i], lots)
                else:
                    batch = self._gather(lots[i])
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


def _can_be_stacked(spec: Any) -> bool:
    """Return whether batches of this spec can be stacked: all parts are dense tensors."""
    return all(isinstance(part, tf.TensorSpec) for part in tree.flatten(spec))


def _stacked_spec(part: Any) -> Any:
    return tf.TensorSpec([None, *part.shape], part.dtype)


def _alike(lot: list[Any]) -> list[list[Any]]:
    """Group consecutive batches of equal shapes. The last batch may be shorter."""
    parts: list[list[Any]] = []
    before: Any = None
    for batch in lot:
        shapes = [tensor.shape for tensor in tree.flatten(batch)]
        if shapes != before:
            parts.append([])
        parts[-1].append(batch)
        before = shapes
    return parts


def _stack(batches: list[Any]) -> Any:
    if len(batches) == 1:
        return tree.map_structure(lambda tensor: tensor[None], batches[0])
    return tree.map_structure(lambda *tensors: tf.stack(tensors), *batches)


def _joined(parts: list[StepLogs]) -> StepLogs:
    names = parts[0].values
    owns = [part.own_loss for part in parts if part.own_loss is not None]
    return StepLogs(
        {name: np.concatenate([part.values[name] for part in parts]) for name in names},
        np.concatenate(owns) if owns else None,
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
