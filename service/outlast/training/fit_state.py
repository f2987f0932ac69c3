"""What a checkpoint of a fit holds: taken into snapshots, checked and put back."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import keras

from outlast.job.log_events import LogEvent
from outlast.training.data.array_batches import ArrayFeed
from outlast.training.data.epoch_batches import Feed
from outlast.training.keras_internals import models
from outlast.training.loaded_checkpoint import Stored
from outlast.training.state import document, random_state
from outlast.training.state.callback_state import CallbackStates
from outlast.training.state.hook_effects import Plain as HookPlain
from outlast.training.state.live_variables import LiveState
from outlast.training.validation import Validation
from outlast_checkpoints.format.layout import MODEL_FILE, STATE_FILE, WEIGHTS_FILE, Stage
from outlast_checkpoints.format.snapshot import Progress, Snapshot

Logs = dict[str, Any]


class FitState:
    """The state of a fit outside the model's variables, and the way of both into a checkpoint.

    logs: of the last step. training_logs: of the last epoch. epoch_begun: the present epoch's
    begin is over. epoch_trained: so are its batches; what is left is its end. effects: returns what
    hooks have changed on the model. rehearse: takes a step where no trace has made every variable
    (run_eagerly).
    """

    def __init__(
        self,
        model: Any,
        live: LiveState,
        feed: ArrayFeed | Feed,
        validation: Validation,
        callbacks: CallbackStates,
        program: str,
        effects: Callable[[], HookPlain],
        rehearse: Callable[[], None] | None = None,
    ) -> None:
        self.logs: Logs = {}
        self.training_logs: Logs | None = None
        self.epoch_begun = False
        self.epoch_trained = False
        self._model = model
        self._live = live
        self._feed = feed
        self._validation = validation
        self._callbacks = callbacks
        self._program = program
        self._effects = effects
        self._rehearse = rehearse
        self._documents = describe_model(model)

    def take(self, progress: Progress) -> Snapshot:
        """Hold everything at this place; the variables without a copy."""
        if self._rehearse is not None:
            self._live.refresh()
        plain = {
            "model": self._live.describe(),
            "program": self._program,
            "data": self._feed.describe(),
            "callbacks": self._callbacks.capture(),
            "hook_effects": self._effects(),
            "logs": self.logs,
            "training_logs": self.training_logs,
            "stop_training": bool(self._model.stop_training),
            "epoch_begun": self.epoch_begun,
            "epoch_trained": self.epoch_trained,
            "feed": self._feed.state(),
            "validation": self._validation.state(),
            "generators": random_state.capture(),
        }
        state = document.pack(plain, self._live.others())
        logs = self.logs if progress.stage == Stage.STEP else self.training_logs or {}
        return Snapshot(
            progress=progress,
            files={WEIGHTS_FILE: self._live.weights(), STATE_FILE: state},
            documents=self._documents,
            metrics={k: v for k, v in logs.items() if isinstance(v, float)},
        )

    def restore(self, stored: Stored, log: Any, *, finished: bool) -> None:
        """Put everything back. Raises `StateMismatch` before anything is changed.

        finished: the phase takes no more data; what it took counts as taken all the same.
        """
        plain = stored.plain
        stored.check_data(log, self._feed.describe())
        weights = stored.files[WEIGHTS_FILE]
        with stored.naming_versions():
            if self._rehearse is not None and self._live.lacks(weights, plain["model"]):
                self._rehearsed_check(self._rehearse, stored)
            else:
                self._live.check(stored.checkpoint, weights, stored.variables, plain["model"])
        self._live.assign(weights, stored.variables)
        rate, script = plain["model"]["learning_rate"], self._live.learning_rate
        if rate != script:
            log.warning(
                LogEvent.LEARNING_RATE_KEPT,
                why=f"the script says {_short(script)}, but the training began with {_short(rate)} "
                "and its present value goes on",
                instead="set model.optimizer.learning_rate in a callback",
            )
        lost = self._callbacks.restore(plain["callbacks"])
        if lost:
            log.warning(
                LogEvent.CALLBACK_STATE_IGNORED,
                callbacks=lost,
                why="the script has no such callback there",
            )
        self.logs, self.training_logs = plain["logs"], plain["training_logs"]
        self.epoch_begun, self.epoch_trained = plain["epoch_begun"], plain["epoch_trained"]
        self._model.stop_training = plain["stop_training"]
        if finished:
            self._feed.skip(plain["feed"])
        else:
            self._feed.restore(plain["feed"])
            seconds = self._validation.restore(plain["validation"])
            if seconds is not None:
                log.info(LogEvent.VALIDATION_DATA_REPLAYED, seconds=round(seconds, 3))
        random_state.restore(plain["generators"])

    def _rehearsed_check(self, rehearse: Callable[[], None], stored: Stored) -> None:
        # What the checkpoint has too much may be what the first step makes: an optimizer's slots.
        weights, model = stored.files[WEIGHTS_FILE], stored.plain["model"]
        models.build_optimizer(self._model)
        self._live.refresh()
        self._live.check(stored.checkpoint, weights, stored.variables, model, partly=True)
        before, drawn = self._live.values(), random_state.capture()
        try:
            if self._live.lacks(weights, model):
                rehearse()
                self._live.refresh()
            self._live.check(stored.checkpoint, weights, stored.variables, model)
        except BaseException:
            self._model.reset_metrics()
            for variable, value in before:
                variable.assign(value)
            random_state.restore(drawn)
            raise


def _short(rate: float | None) -> str:
    return "a schedule" if rate is None else f"{rate:g}"


def describe_model(model: Any) -> dict[str, bytes]:
    """Return `model.json`, from which `export` makes a `.keras` file; nothing if Keras cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a lambda is no safe thing to load
            config = keras.saving.serialize_keras_object(model)
        text = json.dumps({"config": config, "keras_version": keras.__version__})
    except Exception:  # noqa: BLE001 - a user's get_config may raise anything; export tells
        return {}
    return {MODEL_FILE: text.encode()}
