"""Phases without a name are known by the loops around them, and a cell may be run again."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import pytest

from outlast.training import call_site
from outlast.training.errors import PhaseMismatch, PhaseUnfinished
from outlast.training.turn_watch import TurnWatch
from tests.support.phase_scripts import dying_in, finished, net, run, script_file, trained
from tests.support.training_harness import (
    Death,
    all_state,
    begin_process,
    generators,
    process,
    rows,
)


def values(model: Any) -> list[bytes]:
    """Return the values of all variables without their names, which Keras numbers."""
    return list(all_state(model).values())


ENSEMBLE = """
for member in range(3):
    if member in book:
        continue
    seed(member)
    model = net()
    book[member] = trained(folder, model).history, all_state(model), generators()
    after(member)
"""
WHILE = """
member = len(book)
while member < 3:
    seed(member)
    model = net()
    book[member] = trained(folder, model).history, all_state(model), generators()
    after(member)
    member += 1
"""
MAP = """
def one(member):
    if member not in book:
        seed(member)
        model = net()
        book[member] = trained(folder, model).history, all_state(model), generators()
        after(member)
list(map(one, range(3)))
"""
FUNCTIONS = """
def one(fold):
    seed(fold)
    model = net()
    for part in ("first", "second"):
        history = trained(folder, model).history
        book[fold, part] = history, all_state(model), generators()
        after((fold, part))
for fold, _ in enumerate([object(), object()]):
    if (fold, "second") not in book:
        one(fold)
"""


@pytest.mark.parametrize(
    ("source", "deaths"),
    [(ENSEMBLE, [0, 1]), (WHILE, [1]), (MAP, [0]), (FUNCTIONS, [(0, "second")])],
    ids=["ensemble", "while", "map", "functions"],
)
def test_members_that_differ_in_nothing_are_never_mixed_up(
    tmp_path: Path, source: str, deaths: list[Any]
) -> None:
    """Each run skips what is in its book; the members differ by their seeds alone."""

    def ensemble(folder: Path, book: dict[Any, Any], after: Callable[[Any], None]) -> None:
        begin_process()
        seed = keras.utils.set_random_seed
        names = {"net": net, "trained": trained, "all_state": values, "generators": generators}
        file = str(script_file(source, tmp_path))
        with process(folder), mock.patch.object(call_site, "main_file", return_value=file):
            run(source, tmp_path, folder=folder, book=book, after=after, seed=seed, **names)

    whole: dict[Any, Any] = {}
    ensemble(tmp_path / "whole", whole, lambda _: None)
    assert len({repr(each) for each in whole.values()}) == len(whole)

    def die(member: Any) -> None:
        if member in deaths:
            raise Death

    parts: dict[Any, Any] = {}
    with pytest.raises(Death), dying_in(0, 3):
        ensemble(tmp_path / "parts", parts, die)
    for _ in deaths:
        with pytest.raises(Death):
            ensemble(tmp_path / "parts", parts, die)
    ensemble(tmp_path / "parts", parts, die)
    assert parts == whole
    assert len(finished(tmp_path / "parts")) == len(whole)


def test_passing_over_is_said_and_an_unfinished_turn_comes_first(tmp_path: Path) -> None:
    source = "for rate in rates: trained(folder, net(rate))"

    def search(rates: list[float]) -> None:
        begin_process()
        with process(tmp_path / "job"):
            run(source, tmp_path, folder=tmp_path / "job", rates=rates, net=net, trained=trained)

    with pytest.raises(Death), dying_in(1, 1):
        search([0.1, 0.01])
    with pytest.raises(PhaseUnfinished, match=r"at rate=0\.001.*phase 1 \(rate=0\.01\)"):
        search([0.001])
    search([0.01, 0.001])  # it has called the last of them
    search([0.5])
    (warned,) = [line for line in logged(tmp_path / "job") if "phases_passed_over" in line]
    assert '"phases":[0,1,2]' in warned.replace(" ", "")
    assert '"level":"warning"' in warned.replace(" ", "")


def logged(folder: Path) -> list[str]:
    paths = sorted(folder.glob("attempts/*/log.jsonl"))
    return [line for path in paths for line in path.read_text().splitlines()]


SEARCH = """
def one(rate):
    result[rate] = trained(folder, net(rate)).history
list(map(one, queue))
"""


def test_without_a_loop_a_phase_is_known_by_its_training(tmp_path: Path) -> None:
    """KerasTuner and Optuna call from a loop of their own, with objects."""

    def search(*queue: float) -> dict[float, Any]:
        begin_process()
        result: dict[float, Any] = {}
        names = {"folder": tmp_path / "job", "net": net, "trained": trained}
        with process(tmp_path / "job"):
            run(SEARCH, tmp_path, queue=list(queue), result=result, **names)
        return result

    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("one")
    two.write_text("two")
    with mock.patch.object(call_site, "main_file", return_value=str(one)):
        with pytest.raises(Death), dying_in(2, 3):
            search(0.1, 0.01, 0.001)
        last = search(0.001)  # the third, which is unfinished
        assert search(0.1, 0.01, 0.001)[0.001] == last[0.001]
        assert len(finished(tmp_path / "job")) == 3
        search(0.7)  # the same script has another fit here, so it passes over three
        assert "phase_ambiguous" not in "".join(logged(tmp_path / "job"))
        assert search(0.01)[0.01] is not None  # passes over one, and is alike to the second
        assert "phase_ambiguous" in "".join(logged(tmp_path / "job"))
    with (
        mock.patch.object(call_site, "main_file", return_value=str(two)),
        pytest.raises(PhaseMismatch, match=r"learning_rate.*0\.1.*0\.9"),
    ):
        search(0.9)  # the script was changed
    assert len(finished(tmp_path / "job")) == 4


SECTIONS = """
def one():
    model = net()
    return trained(folder, model).history, all_state(model)
if "a" not in book:
    seed(1)
    book["a"] = one()
    after("a")
if "b" not in book:
    seed(2)
    book["b"] = one()
"""


def test_sections_that_are_alike_are_told_apart_by_their_lines(tmp_path: Path) -> None:
    """The script skips a section whose result it has; its training equals the next one's."""

    def sections(folder: Path, book: dict[Any, Any], after: Callable[[Any], None]) -> None:
        begin_process()
        names = {"net": net, "trained": trained, "all_state": values, "after": after}
        file = script_file(SECTIONS, tmp_path)
        seed = keras.utils.set_random_seed
        with process(folder), mock.patch.object(call_site, "main_file", return_value=str(file)):
            run(SECTIONS, tmp_path, folder=folder, book=book, seed=seed, **names)

    def die(_section: str) -> None:
        raise Death

    whole: dict[Any, Any] = {}
    sections(tmp_path / "whole", whole, lambda _: None)
    parts: dict[Any, Any] = {}
    with pytest.raises(Death):
        sections(tmp_path / "parts", parts, die)
    with pytest.raises(Death), dying_in(1, 3):
        sections(tmp_path / "parts", parts, die)
    sections(tmp_path / "parts", parts, die)
    assert parts == whole


def test_configurations_are_values_of_a_loop(tmp_path: Path) -> None:
    source = """
import dataclasses, types
@dataclasses.dataclass
class Config:
    seed: int
def place():
    places.append(here())
for config in (Config(1), types.SimpleNamespace(seed=2), {"seed": [3, 4]}, object(), len):
    place()
while len(places) < 7 and time > 0:
    place()
"""
    places: list[str | None] = []
    run(source, tmp_path, here=lambda: call_site.CallSite.here().place, places=places, time=0.5)
    assert places == [
        'config={"seed":1}',
        'config={"seed":2}',
        'config={"seed":[3,4]}',
        None,
        'config="len"',
        "places=5",
        "places=6",
    ]


CELL = """
model = net()
first = trained(folder, model).history
second = trained(folder, model, name=name).history
state = all_state(model), generators()
"""


@pytest.mark.parametrize("name", [None, "second"])
def test_a_cell_that_is_run_again_gives_its_result(tmp_path: Path, name: str | None) -> None:
    def cell(source: str, **more: Any) -> dict[str, Any]:
        names = {"net": net, "trained": trained, "all_state": values, "generators": generators}
        found = run(source, tmp_path, folder=tmp_path / "job", name=name, **names, **more)
        return {key: found.get(key) for key in ("first", "second", "state", "model")}

    begin_process()
    with process(tmp_path / "job"):
        one = cell(CELL)
        steps = rows(tmp_path / "job")
        again = cell(CELL)
        model = again.pop("model")
        one.pop("model")
        assert again == one
        assert rows(tmp_path / "job") == steps
        more = "trained(folder, model, name=name and 'more')"
        cell(more, model=model)
        if name is None:
            cell(more, model=model)  # goes on with the model, as Keras does
    assert len(finished(tmp_path / "job")) == (4 if name is None else 3)


def note(turns: list[Any], seen: list[int]) -> None:
    seen.append(len(turns))


def test_a_watch_sees_the_first_turn_that_is_not_known(tmp_path: Path) -> None:
    source = """
def run(fold):
    for rate in (1, 2):
        turns.append((fold, rate))
for path in "ab":
    watch.begin()
for fold in range(3):
    turns.append(fold)
    run(fold)
    run(fold)
"""
    for places, expected in (
        ([], None),
        (["fold=0, rate=1"], (0, 2)),
        (["fold=0, rate=1", "fold=0, rate=2"], 1),
        (["fold=0, rate=1", "fold=0, rate=2", "fold=1, rate=1"], (1, 2)),
        (["other=1"], None),
        (["fold=7, rate=1"], 0),
    ):
        turns: list[Any] = []
        seen: list[int] = []
        watch = TurnWatch(places, functools.partial(note, turns, seen))
        before = sys.gettrace()
        sys.settrace(None)
        try:
            run(source, tmp_path, turns=turns, watch=watch)
        finally:
            watch.end()
            sys.settrace(before)
        assert watch.seen is (expected is not None)
        assert [turns[at] for at in seen] == ([] if expected is None else [expected])
