"""`FitState`: the state of a `fit` call, taken into snapshots and restored from checkpoints."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import keras

from outlast.job.log_events import LogEvent
from outlast.training.call_site import CallSite
from outlast.training.data.array_batches import ArrayFeed
from outlast.training.data.epoch_batches import Feed
from outlast.training.keras_internals import models
from outlast.training.loaded_checkpoint import LoadedCheckpoint
from outlast.training.phase_exit import PhaseExit
from outlast.training.state import document, random_state, trees
from outlast.training.state.callback_state import CallbackStates
from outlast.training.state.hook_effects import HookEffects
from outlast.training.state.hook_effects import Plain as HookPlain
from outlast.training.state.live_variables import LiveState
from outlast.training.state.part_attributes import PartAttributes
from outlast.training.validation import Validation
from outlast_checkpoints.format.layout import MODEL_FILE, STATE_FILE, WEIGHTS_FILE, Stage
from outlast_checkpoints.format.snapshot import Progress, Snapshot

Logs = dict[str, Any]


class FitState:
    """The state of a `fit` call: the model's variables, and everything besides them.

    `effects` knows what hooks change on the model, and `traced` is what they had changed before the
    trace. `parts` knows what an eager step changes in the layers. `rehearse` takes one step. It is
    given for eager training, where no trace creates every variable.

    Attributes:
        logs: Logs of the last step.
        training_logs: Logs of the last epoch.
        epoch_begun: Whether the current epoch has begun.
        epoch_trained: Whether all batches of the current epoch are trained, so that only its end
            is left.
    """

    def __init__(
        self,
        model: Any,
        live: LiveState,
        feed: ArrayFeed | Feed,
        validation: Validation,
        callbacks: CallbackStates,
        program: str,
        documents: dict[str, bytes],
        fingerprint: dict[str, Any],
        site: CallSite,
        leaving: PhaseExit,
        doubts: list[str],
        effects: HookEffects,
        traced: HookPlain,
        parts: PartAttributes,
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
        self._traced = traced
        self._parts = parts
        self._rehearse = rehearse
        self._documents = documents
        self._fingerprint = fingerprint
        self._constant = trees.Constant(fingerprint)
        self._called = trees.Constant(site.described())
        self._exit = leaving
        self._doubts = doubts
        both = {"x": feed, "validation_data": validation}
        self._contents = {name: data.content() for name, data in both.items()}
        self._drawn = {name: data.drawn() for name, data in both.items()}

    def take(self, progress: Progress) -> Snapshot:
        """Hold the complete state at this progress, without copying variables."""
        if self._rehearse is not None:
            self._live.refresh()
            self._add_elsewhere()
        variables = self._live.others()
        names: dict[int, str] = {}
        finished = progress.stage == Stage.END
        callbacks, objects = self._callbacks.capture(variables, names, finished=finished)
        effects, parts = self._traced, self._parts.capture(variables, names)
        if self._rehearse is not None:
            # An eager step reads the attributes each time, so the current ones count.
            effects = {**self._effects.changes(), "replaced": effects["replaced"]}
            self._callbacks.warn(self._parts.unsaved)
        plain = {
            "fingerprint": self._constant,
            "called": self._called,
            "model": self._live.describe(),
            "program": self._program,
            "data": self._feed.describe(),
            "contents": self._contents,
            "drawn": self._drawn,
            "doubts": self._doubts,
            "callbacks": callbacks,
            "objects": objects,
            "hook_effects": effects,
            "parts": parts,
            "logs": self.logs,
            "training_logs": self.training_logs,
            "left": self._exit.left,
            "stop_training": bool(self._model.stop_training),
            "epoch_begun": self.epoch_begun,
            "epoch_trained": self.epoch_trained,
            "feed": self._feed.state(),
            "validation": self._validation.state(),
            "generators": {**random_state.capture_all(), **self._feed.unread()},
        }
        state = document.pack(plain, variables)
        logs = self.logs if progress.stage == Stage.STEP else self.training_logs or {}
        return Snapshot(
            progress=progress,
            files={WEIGHTS_FILE: self._live.weights(), STATE_FILE: state},
            documents=self._documents,
            metrics={k: v for k, v in logs.items() if isinstance(v, float)},
        )

    def hook_effects(self) -> HookPlain | None:
        """Return what hooks have changed on the model, or None if an eager step reads it anyway."""
        return None if self._rehearse is not None else self._effects.changes()

    def set_since(self, before: HookPlain) -> list[str]:
        """Return the attributes of the model that hooks have set since `hook_effects`."""
        now = self._effects.changes()
        changed = [one for one in now["attributes"] if one not in before["attributes"]]
        names = [f"{part.partition(':')[2]}.{name}" for part, name, _ in changed]
        return names + sorted(set(now["replaced"]) - set(before["replaced"]))

    def restore(self, stored: LoadedCheckpoint, log: Any, *, finished: bool) -> None:
        """Restore the complete state. Raises `StateMismatch` before anything is changed.

        With `finished`, the phase reads no more data; its batches still count as taken.
        """
        plain = stored.plain
        if not finished:
            stored.check_data(log, self._feed.describe())
            stored.check_contents(log, self._contents, self._drawn)
        weights = stored.files[WEIGHTS_FILE]
        with stored.naming_versions():
            if self._rehearse is not None and self._needs_a_step(weights, plain["model"]):
                self._rehearsed_check(self._rehearse, stored)
            else:
                self._live.check(stored.checkpoint, weights, stored.variables, plain["model"])
        if not finished:
            stored.check_fingerprint(log, self._fingerprint)
        self._live.assign(weights, stored.variables)
        rate, script = plain["model"]["learning_rate"], self._live.learning_rate
        if rate != script:
            log.warning(
                LogEvent.LEARNING_RATE_KEPT,
                why=f"the script sets {_short(script)}, but the training began with "
                f"{_short(rate)}; the value in the checkpoint stays in effect",
                instead="set model.optimizer.learning_rate in a callback",
            )
        self._add_elsewhere()
        lost = self._callbacks.restore(
            plain["callbacks"], plain["objects"], stored.variables, finished=finished
        )
        if self._rehearse is not None:
            # Again, now that all variables exist.
            self._effects.apply(plain["hook_effects"], in_place=True)
        parts = self._parts.restoring(plain["parts"], stored.variables)
        parts.apply()
        if self._rehearse is not None:
            lost += [f"{path}: {problem}" for path, problem in parts.problems]
        if lost:
            log.warning(
                LogEvent.CALLBACK_STATE_IGNORED,
                callbacks=lost,
                why="the script has nothing to restore it into",
            )
        self.logs, self.training_logs = plain["logs"], plain["training_logs"]
        self.epoch_begun, self.epoch_trained = plain["epoch_begun"], plain["epoch_trained"]
        self._model.stop_training = plain["stop_training"]
        self._validation.expect(plain["validation"])
        if finished:
            self._feed.skip(plain["feed"], self._validation.catch_up)
        else:
            self._feed.restore(plain["feed"], self._validation.catch_up)
        seconds = self._validation.restore(plain["validation"])
        if seconds is not None:
            log.info(LogEvent.VALIDATION_DATA_REPLAYED, seconds=round(seconds, 3))
        random_state.restore_all(plain["generators"])

    def _add_elsewhere(self) -> None:
        objects = self._live.objects()
        self._callbacks.add_elsewhere(objects)
        self._parts.add_elsewhere(objects)

    def _rehearsed_check(self, rehearse: Callable[[], None], stored: LoadedCheckpoint) -> None:
        # The checkpoint's extra variables may be optimizer slots, which the first step creates.
        weights, model = stored.files[WEIGHTS_FILE], stored.plain["model"]
        models.build_optimizer(self._model)
        self._live.refresh()
        self._live.check(stored.checkpoint, weights, stored.variables, model, partly=True)
        before, drawn = self._live.values(), random_state.capture()
        attributes = self._parts.kept()
        try:
            if self._needs_a_step(weights, model):
                rehearse()
                self._live.refresh()
            self._live.check(stored.checkpoint, weights, stored.variables, model)
        except BaseException:
            self._model.reset_metrics()
            for variable, value in before:
                variable.assign(value)
            random_state.restore(drawn)
            raise
        finally:
            attributes.apply()

    def _needs_a_step(self, weights: Any, model: Any) -> bool:
        """Return whether only an eager step can create what the checkpoint has."""
        built = models.metrics_are_built(self._model)
        return self._live.lacks(weights, model) or (model["metrics_built"] and not built)


def _short(rate: float | None) -> str:
    return "a schedule" if rate is None else f"{rate:g}"


def describe_model(model: Any) -> dict[str, bytes]:
    """Return `model.json`, from which `export` makes a `.keras` file; {} if Keras cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns that loading a lambda is unsafe
            config = keras.saving.serialize_keras_object(model)
        text = json.dumps({"config": config, "keras_version": keras.__version__})
    except Exception:  # noqa: BLE001 - get_config may raise anything; `export` reports it
        return {}
    return {MODEL_FILE: text.encode()}
