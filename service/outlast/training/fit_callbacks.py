"""`FitCallbacks`: the callbacks of one `fit` call, and the hooks that Keras calls before a step."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import keras
from keras.callbacks import CallbackList

from outlast.job import standard_streams
from outlast.job.audit_target import FILES
from outlast.job.log_events import LogEvent
from outlast.training.data.array_batches import ArrayFeed
from outlast.training.data.epoch_batches import Feed
from outlast.training.fit_arguments import Plan, require_same_compile
from outlast.training.history import History
from outlast.training.keras_internals import callbacks as keras_callbacks
from outlast.training.keras_internals import models
from outlast.training.live_plot import MetricsView
from outlast.training.loaded_checkpoint import LoadedCheckpoint
from outlast.training.state.audit_files import redirect
from outlast.training.state.callback_files import appending
from outlast.training.state.callback_state import files_before, wants_batches
from outlast.training.state.hook_effects import HookEffects
from outlast.training.validation import Validation


class FitCallbacks:
    """The callbacks of one `fit` call.

    Attributes:
        all: Keras' list of them, whose hooks call each one.
        progress_bar: The progress bar among them, or `None`.
        view: The live plot, or `None`.
        every_batch: Whether one of them has hooks for batches.
    """

    def __init__(
        self, model: Any, plan: Plan, feed: ArrayFeed | Feed, validation: Validation, ctx: Any
    ) -> None:
        self._model = model
        self._compiled = models.compiled_as(model)
        self._log = ctx.log
        verbose = plan.verbose
        if verbose == "auto":
            verbose = 1 if standard_streams.is_terminal() else 2
        given = keras.tree.flatten(plan.callbacks) if plan.callbacks else []
        if isinstance(plan.callbacks, CallbackList):
            given = plan.callbacks.callbacks
        if ctx.audit is not None:
            redirect(given, ctx.local_dir / FILES)
        if isinstance(plan.callbacks, CallbackList):
            self.all = plan.callbacks
        else:
            if not any(isinstance(c, keras.callbacks.History) for c in given):
                given.append(History())
            self.all = CallbackList(
                given,
                add_history=True,
                add_progbar=verbose != 0,
                verbose=verbose,
                epochs=plan.epochs,
                steps=feed.steps,
                model=model,
            )
        history = keras_callbacks.history_of(self.all)
        self.progress_bar = keras_callbacks.progress_bar_of(self.all)
        self.view = MetricsView(ctx, history) if plan.view_metrics else None
        # Keras may run batch-end hooks in a thread pool, but a snapshot must see them finished.
        keras_callbacks.wait_for_hooks(self.all)
        self.every_batch = any(wants_batches(c) for c in self.all.callbacks)
        self._probe = validation.add_probe(self.all, ctx)

    def with_state(self) -> list[Any]:
        """Return the callbacks with a state. The others belong to the process."""
        shown = (self._probe, self.progress_bar)
        return [c for c in self.all.callbacks if c not in shown]

    def begin(self, stored: LoadedCheckpoint | None) -> None:
        """Call `on_train_begin`. If a training resumes, files continue from the checkpoint."""
        written = []
        if stored is not None:
            written = files_before(stored.plain["callbacks"], self.all.callbacks)
        keeping = appending(self.all, written, self._log)
        with nullcontext() if stored is None else keeping:
            self.all.on_train_begin()
        self.require_same_compile()

    def begin_first_epoch(self, epoch: int, effects: HookEffects) -> None:
        """Call the `on_epoch_begin` that Keras calls before it traces the step."""
        before = effects.changes()["replaced"]
        self._model.reset_metrics()
        self.all.on_epoch_begin(epoch)
        self.require_same_compile()
        replaced = sorted(set(effects.changes()["replaced"]) - set(before))
        if replaced:
            self._log.warning(
                LogEvent.INEXACT_HOOK_FOUND,
                attributes=replaced,
                why="an on_epoch_begin replaced these objects of the model, and no checkpoint can "
                "contain them",
                instead="replace them in on_train_begin, which a resume calls again",
            )

    def name_late(self, attributes: list[str]) -> None:
        """Log what the first `on_train_batch_begin` set on the model, after its step was traced."""
        if attributes:
            self._log.warning(
                LogEvent.INEXACT_HOOK_FOUND,
                attributes=attributes,
                why="the first on_train_batch_begin set these attributes of the model. Keras "
                "traces the step after it, and they would count there; here they do not",
                instead="set them in on_train_begin or on_epoch_begin",
            )

    def continue_epoch(self, epoch: int, batch: int) -> None:
        """Show an epoch that an earlier attempt began."""
        # Only the progress bar begins again, because it belongs to this process.
        if self.progress_bar is not None:
            self.progress_bar.on_epoch_begin(epoch)
            self.progress_bar.seen = batch

    def require_same_compile(self) -> None:
        """Raise `NotSupported` if a hook compiled the model.

        Call it after the hooks that precede a step, and before a save.
        """
        require_same_compile(self._model, self._compiled)

    def begin_skipped(self) -> None:
        """Begin only the history, because the phase is finished."""
        keras_callbacks.history_of(self.all).on_train_begin()

    def remove_probe(self) -> None:
        """Remove the callback that stops a validation."""
        if self._probe in self.all.callbacks:
            self.all.callbacks.remove(self._probe)
