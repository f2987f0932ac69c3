"""`FitCall`: one call of `fit`. It makes the parts of a training and starts or resumes it."""

from __future__ import annotations

import warnings
import weakref
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import keras

from outlast.job.log_events import LogEvent
from outlast.training.call_site import CallSite
from outlast.training.data import arrays, make_feed
from outlast.training.data.array_batches import ArrayFeed
from outlast.training.data.epoch_batches import Feed
from outlast.training.data.tfdata import contents_of
from outlast.training.data_warnings import name_doubts, remove_locks
from outlast.training.fit_arguments import Plan
from outlast.training.fit_callbacks import FitCallbacks
from outlast.training.fit_state import FitState, describe_model
from outlast.training.history import History
from outlast.training.job import TrainingJob
from outlast.training.keras_internals import models
from outlast.training.keras_internals.data_adapters import unpack
from outlast.training.loaded_checkpoint import LoadedCheckpoint, choose_seed
from outlast.training.phase import Phase
from outlast.training.phase_choice import choose_phase
from outlast.training.phase_exit import PhaseExit
from outlast.training.phase_order import Call
from outlast.training.replicas.strategies import check_strategy, check_validation, replicas_of
from outlast.training.state import fingerprint
from outlast.training.state.callback_state import CallbackStates
from outlast.training.state.hook_effects import HookEffects, Plain
from outlast.training.state.live_variables import LiveState, learning_rate_of
from outlast.training.state.part_attributes import PartAttributes
from outlast.training.state.unsaved_warnings import warn_of_hidden_ops
from outlast.training.step.compiled_steps import CompiledSteps
from outlast.training.step.program_choice import ProgramChoice
from outlast.training.step.races import ordered_functions
from outlast.training.trainer import Trainer
from outlast.training.validation import Validation
from outlast_checkpoints.format.layout import MODEL_FILE


@dataclass(frozen=True)
class _FirstHooks:
    """The result of the hooks that Keras calls before it traces the step."""

    first_epoch: int
    epoch_begun: bool  # whether on_epoch_begin was called for it
    states: CallbackStates
    effects: HookEffects
    changed: Plain  # what they changed on the model
    parts: PartAttributes


@dataclass(frozen=True)
class FitCall:
    """One call of `fit`. `run` performs it from start to end."""

    model: Any
    plan: Plan
    job: TrainingJob
    site: CallSite

    def run(self) -> History:
        """Train or resume the phase, and return its complete history."""
        leaving = PhaseExit(self.job)
        try:
            # The script may catch an error that ends the training, so everything is closed then
            # too.
            with self.job.ctx.stop.read_by_loop(), ExitStack() as made:
                made.enter_context(ordered_functions(self.job.reporter.log))
                self._run(leaving, made)
        except BaseException as error:
            leaving.note(error)
            raise
        history: History = self.model.history
        return history

    def _run(self, leaving: PhaseExit, made: ExitStack) -> None:
        model, plan = self.model, self.plan
        # This must precede all hooks of callbacks, because a finished phase calls none.
        document = describe_model(model).get(MODEL_FILE)
        trained = {**fingerprint.of_training(model, document), "arguments": plan.decisive()}
        call = Call(plan.name, self.site, (weakref.ref(model),))
        validated = None if plan.validation_data is None else unpack(plan.validation_data)[0]
        index, stored = choose_phase(
            self.job,
            call,
            "fit",
            fingerprint=trained,
            contents=lambda: contents_of(
                {"x": plan.x, "validation_data": validated}, plan.class_weight
            ),
            epochs=plan.epochs,
            seed=plan.seed,
        )
        leaving.enter(index)
        made.enter_context(models.random_streams_of(model, index))
        over = stored is not None and stored.is_over(self.job, plan.epochs)
        self.job.make_deterministic()
        seed = choose_seed(stored, plan.seed)
        feed, validation = self._open_data(seed, made, stored)
        rate = learning_rate_of(model)
        self._build(feed)
        callbacks = FitCallbacks(model, plan, feed, validation, self.job.ctx)
        made.callback(callbacks.remove_probe)
        # Keras traces the step after these hooks, so what they set on the model counts.
        hooks = self._call_first_hooks(callbacks, stored, over=over)
        steps, live = self._compile(feed, stored, rate)
        for attributes in (hooks.states, hooks.parts):
            attributes.add_elsewhere(live.objects())
        state = FitState(
            model,
            live,
            feed,
            validation,
            hooks.states,
            str(steps.program),
            describe_model(model),
            trained,
            self.site,
            leaving,
            self.job.named_doubts,
            hooks.effects,
            hooks.changed,
            hooks.parts,
            rehearse=(lambda: _rehearse(steps, feed)) if steps.eager else None,
        )
        state.epoch_begun = hooks.epoch_begun
        phase = Phase(
            self.job,
            index,
            plan.name,
            place=self.job.order.known[index][1],
            epochs=plan.epochs,
            steps_per_epoch=feed.steps,
            seed=seed,
            take=state.take,
        )
        trainer = Trainer(
            model=model,
            plan=plan,
            feed=feed,
            validation=validation,
            callbacks=callbacks,
            steps=steps,
            state=state,
            phase=phase,
            exit=leaving,
            reporter=self.job.reporter,
            name_doubts=lambda: name_doubts(self.job, None, feed, validation),
            stop=self.job.ctx.stop,
        )
        if stored is None:
            trainer.start(hooks.first_epoch)
            return
        left = stored.plain["left"]
        with hooks.effects.undone_by_error():
            trainer.restore(stored, finished=over)
        if over:
            phase.log.info(LogEvent.PHASE_SKIPPED, name=plan.name)
            leaving.repeat(left)
            return
        trainer.resume(stored.progress.epoch, stored.progress.batch)

    def _open_data(
        self, seed: int, made: ExitStack, stored: LoadedCheckpoint | None
    ) -> tuple[ArrayFeed | Feed, Validation]:
        plan = self.plan
        train = (plan.x, plan.y, plan.sample_weight)
        validation_data = plan.validation_data
        if plan.validation_split and validation_data is None:
            train, validation_data = arrays.split_validation(*train, plan.validation_split)
        feed = make_feed(
            *train,
            batch_size=plan.batch_size,
            steps_per_epoch=plan.steps_per_epoch,
            class_weight=plan.class_weight,
            shuffle=plan.shuffle,
            seed=seed,
            max_queue_size=plan.max_queue_size,
            steps_per_execution=self.model.steps_per_execution,
        )
        made.callback(feed.close)
        validation = Validation(
            self.model,
            validation_data,
            batch_size=plan.validation_batch_size or plan.batch_size,
            steps=plan.validation_steps,
            freq=plan.validation_freq,
            beside=train[0],
        )
        made.callback(validation.close)
        name_doubts(self.job, stored, feed, validation)
        if stored is not None:
            remove_locks(self.job, feed, validation)
        return feed, validation

    def _build(self, feed: ArrayFeed | Feed) -> None:
        """Under a strategy, create the variables before the hooks and in its scope, like Keras."""
        replicas = replicas_of(self.model)
        if replicas is not None:
            if isinstance(feed, Feed):
                feed.extra_pass = feed.source.kind == "tf.data"
            with replicas.strategy.scope():
                models.build_symbolically(self.model, replicas.spec_of_share(_spec_of(feed)))

    def _call_first_hooks(
        self, callbacks: FitCallbacks, stored: LoadedCheckpoint | None, *, over: bool
    ) -> _FirstHooks:
        """Call `on_train_begin`, and in a new training the first `on_epoch_begin`."""
        model = self.model
        effects = HookEffects(model)
        before = None if stored is None else stored.plain.get("hook_effects")
        objects = LiveState(model).objects()
        states = CallbackStates(callbacks.with_state(), objects, self.job.reporter.log)
        compiled = not model.run_eagerly
        parts = PartAttributes({"": model}, objects, without_data=compiled)
        if over and not (before or {}).get("replaced"):
            callbacks.begin_skipped()
        else:
            model.stop_training = False
            callbacks.begin(stored)
            states.begin(LiveState(model).objects())
        # In a new job, Keras' BackupAndRestore may choose the first epoch.
        first = models.initial_epoch(model) or self.plan.initial_epoch
        begun = stored is None and first < self.plan.epochs
        if begun:
            callbacks.begin_first_epoch(first, effects)
        elif before is not None:
            effects.apply(before, in_place=not compiled)
        return _FirstHooks(first, begun, states, effects, effects.changes(), parts)

    def _compile(
        self, feed: ArrayFeed | Feed, stored: LoadedCheckpoint | None, rate: float | None
    ) -> tuple[CompiledSteps, LiveState]:
        """Trace the step, so that every variable exists, and return both."""
        reporter = self.job.reporter
        reporter.activity("compiling")
        if isinstance(feed, ArrayFeed):
            data = feed.data
            steps = CompiledSteps(self.model, data.tensors, data.fixed_batch, spec=_spec_of(feed))
        else:
            steps = CompiledSteps(self.model, spec=_spec_of(feed))
        steps.trace()
        touched, traced = steps.touched_variables(), not steps.eager
        live = LiveState(self.model, touched, traced=traced, learning_rate=rate)
        stateful = steps.stateful_random_ops()
        if not steps.eager:
            choice = ProgramChoice(self.model, steps, live, feed, reporter.log)
            before = None if stored is None else stored.plain["program"]
            steps.use(choice.choose(self.plan.jit_compile, before))
        warn_of_hidden_ops(reporter.log, stateful)
        reporter.tick()
        return steps, live


def _spec_of(feed: ArrayFeed | Feed) -> Any:
    """Return the spec of a batch, with its size if all batches have the same."""
    return feed.data.spec(feed.data.fixed_batch) if isinstance(feed, ArrayFeed) else feed.spec


def train(model: Any, plan: Plan, job_dir: Any) -> History:
    """Train the model as a phase of the job of this process, or of the one in `job_dir`."""
    check_strategy(model, jit_compile=plan.jit_compile)
    check_validation(model, plan.validation_data, plan.validation_steps)
    most = keras.config.max_epochs()
    if most and most < plan.epochs:
        warnings.warn(f"Limiting epochs to {most}", stacklevel=3)
        plan = replace(plan, epochs=most)
    job = TrainingJob.current(
        job_dir, save_every=plan.save_every, keep=plan.keep, seed=plan.seed, name=plan.name
    )
    return FitCall(model, plan, job, CallSite.here()).run()


def _rehearse(steps: CompiledSteps, feed: ArrayFeed | Feed) -> None:
    if isinstance(feed, ArrayFeed):
        steps.rehearse(feed.data.batch(feed.data.indices(0, 0, 1)[0]))
    else:
        steps.rehearse()
