"""The state of a trial of Optuna that a callback reports to.

A finished or resumed phase calls no hook for the steps that are trained already. So what hooks have
reported and noted in the trial is reported again, wherever the study is stored.
"""

from __future__ import annotations

from typing import Any

Plain = dict[str, Any]


def is_trial(kind: type) -> bool:
    """Return whether objects of this class are running trials."""
    return kind.__name__ == "Trial" and kind.__module__.startswith("optuna.trial")


def get_state(trial: Any) -> Plain:
    """Return what was reported and noted so far, as plain data."""
    stored = trial.storage.get_trial(trial._trial_id)
    return {
        "reported": dict(stored.intermediate_values),
        "noted": dict(stored.user_attrs),
        "system": dict(stored.system_attrs),
    }


def set_state(trial: Any, state: Plain) -> None:
    """Report and note what `get_state` returned, as far as the trial lacks it."""
    stored = get_state(trial)
    for step, value in state["reported"].items():
        if step not in stored["reported"]:
            trial.report(value, step)
    for key, value in state["noted"].items():
        if stored["noted"].get(key, stored) != value:
            trial.set_user_attr(key, value)
    for key, value in state["system"].items():  # of pruners
        if stored["system"].get(key, stored) != value:
            trial.storage.set_trial_system_attr(trial._trial_id, key, value)
