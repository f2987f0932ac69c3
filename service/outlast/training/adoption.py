"""The `fit` that models inherit while it is adopted: it trains by Outlast's, or else by Keras'.

It is also what a model's own `fit` ends in. `outlast.fit` of such a model calls that method, so
that the part before `super().fit` (a preprocessor, for example) is not passed over.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras

from outlast.attempt import adoption, context
from outlast.attempt.adoption import Adoption
from outlast.training.errors import NotSupported
from outlast.training.fit_arguments import Plan, check_model
from outlast.training.fit_call import train
from outlast.training.job import TrainingJob
from outlast.training.keras_internals import trainer
from outlast_checkpoints.errors import UsageError

_SKIPPED = ("x", "y")


@dataclass
class _OwnCall:
    """A call of a model's own `fit`. `plan` and `job_dir` are those given to `outlast.fit`."""

    plan: Plan
    job_dir: Any
    reached: int = 0  # how often it has called the fit of Keras


_keras_fit: Callable[..., Any] | None = None
_own_calls: dict[int, _OwnCall] = {}  # by the model's id


def install() -> None:
    """Replace the `fit` that models inherit. It is Keras' own until calls are adopted."""
    global _keras_fit
    if _keras_fit is None:
        _keras_fit = trainer.fit_of_keras()
        trainer.replace_fit(functools.wraps(_keras_fit)(_fit))


def fit_through_own(model: Any, plan: Plan, job_dir: Any) -> Any:
    """Call the model's own `fit`, and train where that calls the `fit` of Keras.

    Raises `NotSupported` if it never does.
    """
    install()
    if (own := _own_calls.get(id(model))) is not None:
        return _train(own, model, plan)  # it calls outlast.fit itself
    if not trainer.mentions_fit(model):
        raise _never_reached(model)
    _own_calls[id(model)] = own = _OwnCall(plan, job_dir)
    try:
        result = model.fit(*_data_of(plan), **_differing(plan))
    finally:
        del _own_calls[id(model)]
    if not own.reached:
        raise _never_reached(model)
    return result


def _fit(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Train by Outlast's `fit` if this call is adopted, otherwise by Keras'."""
    assert _keras_fit is not None
    own, adopted = _own_calls.get(id(model)), adoption.current()
    arguments = _bound(model, args, kwargs)
    if arguments is not None and own is not None:
        ours = ("max_queue_size", "jit_compile", "view_metrics", "seed", "save_every", "keep")
        plan = Plan(**arguments, **{name: getattr(own.plan, name) for name in ours})
        return _train(own, model, plan)
    if arguments is not None and adopted is not None:
        try:
            _require_adoptable(adopted)
            plan = Plan(**arguments, save_every=adopted.save_every, keep=adopted.keep)
            check_model(model)
        except UsageError as error:
            field, problem = error.fields["field"], error.fields["problem"]
            why = problem if field == "fit" else f"{field}: {problem}"
            adoption.refuse_or_say(why, error.fields["hint"], error)
        else:
            return train(model, plan, adopted.job_dir)
        if not isinstance(arguments["callbacks"], keras.callbacks.CallbackList):
            given = keras.tree.flatten(arguments["callbacks"] or [])
            arguments["callbacks"] = [*given, _Progress()]
        return _keras_fit(model, **arguments)
    return _keras_fit(model, *args, **kwargs)


class _Progress(keras.callbacks.Callback):  # type: ignore[misc]
    """Shows the supervisor that Keras' own `fit` is alive; it would be killed as stalled."""

    async_safe = True

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        ctx = context.current()
        if ctx is not None:
            ctx.status.tick()

    on_test_batch_end = on_train_batch_end


def _bound(model: Any, args: Any, kwargs: Any) -> dict[str, Any] | None:
    """Return all arguments by name; `None` for a call that Keras refuses."""
    assert _keras_fit is not None
    try:
        bound = inspect.signature(_keras_fit).bind(model, *args, **kwargs)
    except TypeError:
        return None
    bound.apply_defaults()
    return dict(list(bound.arguments.items())[1:])


def _train(own: _OwnCall, model: Any, plan: Plan) -> Any:
    own.reached += 1
    name = own.plan.name
    if name is not None and own.reached > 1:  # each of its calls is a phase
        name = f"{name} {own.reached}"
    check_model(model)
    return train(model, replace(plan, name=name), own.job_dir)


def _require_adoptable(adopted: Adoption) -> None:
    """Raise `NotSupported` if a phase cannot begin here."""
    if os.getpid() != adopted.pid:
        problem = "a process that the script has started calls it"
        hint = "Call fit in the script's own process, or start each training as its own job."
    elif threading.current_thread() is not threading.main_thread():
        problem = "a thread calls it"
        hint = "Call fit in the main thread; a stop request could not end it elsewhere."
    elif TrainingJob.is_training():
        problem = "it is called within another fit or Loop, which a checkpoint belongs to"
        hint = "Call it before or after that one, if its result must survive a restart exactly."
    else:
        return
    raise NotSupported(field="fit", problem=problem, hint=hint)


def _data_of(plan: Plan) -> list[Any]:
    return [plan.x] if plan.y is None else [plan.x, plan.y]


def _differing(plan: Plan) -> dict[str, Any]:
    """Return Keras' arguments that are not at their defaults; an own `fit` may lack the others."""
    assert _keras_fit is not None
    found = {}
    for name, parameter in inspect.signature(_keras_fit).parameters.items():
        if name in ("self", *_SKIPPED):
            continue
        value = getattr(plan, name)
        default = parameter.default
        same = value is default or (isinstance(value, int | float | str) and value == default)
        if not same:
            found[name] = value
    return found


def _never_reached(model: Any) -> NotSupported:
    return NotSupported(
        field="model",
        problem=f"the fit of {type(model).__name__} does not call the fit of keras.Model, so "
        "nothing of the training is saved",
        hint="Let it end in super().fit(…), or train with outlast.Loop.",
    )
