"""What a callback reports to a trial of Optuna is state; here with a twin of that class."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from outlast.training.state import document
from outlast.training.state.object_graph import ObjectGraph
from outlast.training.state.object_restore import Restore


class Trial:
    """As much of a trial as is used, stored in a dict."""

    def __init__(self) -> None:
        self.frozen = SimpleNamespace(intermediate_values={}, user_attrs={}, system_attrs={})
        self.reports: list[int] = []
        self.storage, self._trial_id = self, 7

    def get_trial(self, trial_id: int) -> Any:
        assert trial_id == self._trial_id
        return self.frozen

    def report(self, value: float, step: int) -> None:
        self.reports.append(step)
        self.frozen.intermediate_values[step] = value

    def set_user_attr(self, key: str, value: Any) -> None:
        self.frozen.user_attrs[key] = value

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        assert trial_id == self._trial_id
        self.frozen.system_attrs[key] = value


Trial.__module__ = "optuna.trial._trial"


class Pruning:
    def __init__(self) -> None:
        self.trial = Trial()


def test_reports_and_notes_are_repeated() -> None:
    pruning = Pruning()
    graph = ObjectGraph({"Pruning#0": pruning})
    assert graph.capture({}) == {"known": {}, "new": []}
    pruning.trial.report(0.5, 0)
    pruning.trial.report(float("nan"), 1)
    pruning.trial.set_user_attr("lr", [0.1, 0.2])
    pruning.trial.set_trial_system_attr(7, "completed_rung_0", 0.5)
    file = document.pack({"objects": graph.capture({})}, {})
    stored, variables = document.unpack(file.arrays, "state.h5")

    again = Pruning()
    graph = ObjectGraph({"Pruning#0": again})
    again.trial.report(0.5, 0)  # as the script may have done
    restore = Restore(graph, stored["objects"], variables)
    restore.apply()
    assert restore.problems == []
    assert repr(vars(again.trial.frozen)) == repr(vars(pruning.trial.frozen))
    assert again.trial.reports == [0, 1]
