"""The page for people who know Keras: a row for everything, and every test that it names exists."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import NamedTuple

import keras
import pytest

from outlast.job.log_events import LogEvent
from outlast.training.data.tfdata_ops import OPS, Promise
from tests.support.data_kinds import BEYOND_KERAS, KINDS

TOP = Path(__file__).parents[3]
PAGE = (TOP / "docs/keras.md").read_text(encoding="utf-8")
TESTS = sorted((TOP / "tests").rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in TESTS}


def section(heading: str) -> str:
    found = re.search(rf"^## {re.escape(heading)}$\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    assert found is not None, heading
    return found.group(1)


def table(heading: str) -> list[list[str]]:
    """The cells of the one table of a section, without its head."""
    lines = [line for line in section(heading).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines[2:]]


def codes(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def functions(path: Path) -> set[str]:
    return {node.name for node in TREES[path].body if isinstance(node, ast.FunctionDef)}


def keys(name: str) -> set[str]:
    """The keys of the dict of that name at the top of a file of the tests."""
    if name == "KINDS":
        return set(KINDS)
    for tree in TREES.values():
        for node in tree.body:
            if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == name:
                assert isinstance(node.value, ast.Dict)
                return {ast.literal_eval(key) for key in node.value.keys if key is not None}
    raise AssertionError(f"there is no table {name}")


class Shared(NamedTuple):
    """A test that many rows are cases of."""

    path: Path
    function: str
    cases: set[str]


def legend() -> dict[str, Shared]:
    found = {}
    for word, test, cases in table("What is the same"):
        path, function = codes(test)[0].split("::")
        of_all = set().union(*(keys(name) for name in codes(cases)))
        found[codes(word)[0]] = Shared(TOP / path, function, of_all)
    return found


LEGEND = legend()
TABLES = ["Arguments of fit", "What the model is compiled with", "Callbacks", "Kinds of data"]


def names_a_test(code: str) -> bool:
    of_its_own = code.startswith("test_") and code != "test_step"  # which is Keras' own method
    return of_its_own or code.partition("[")[0] in LEGEND


def test_the_shared_tests_exist() -> None:
    for shared in LEGEND.values():
        assert shared.function in functions(shared.path), shared.function
        assert len(shared.cases) > 10


def test_every_test_that_is_named_exists() -> None:
    everywhere = set().union(*(functions(path) for path in TESTS))
    named = {code for code in codes(PAGE) if names_a_test(code)}
    assert len(named) > 100
    for code in named:
        word, _, case = code.partition("[")
        if word in LEGEND:
            assert not case or case.removesuffix("]") in LEGEND[word].cases, code
        else:
            assert code in everywhere, code


def test_every_architecture_that_is_named_exists() -> None:
    folder = TOP / "tests/testbeds/repeatability"
    trees = [tree for path, tree in TREES.items() if path.parent == folder]
    texts = {n.value for t in trees for n in ast.walk(t) if isinstance(n, ast.Constant)}
    named = re.findall(r"`repeatability\[([^`]+)\]`", PAGE)
    assert len(named) > 7
    assert [name for name in named if name not in texts] == []


@pytest.mark.parametrize("heading", TABLES)
def test_every_row_names_a_test_that_compares_and_one_that_kills(heading: str) -> None:
    without = []
    for row in table(heading):
        for cell in row[-2:]:
            if not codes(cell) or not all(map(names_a_test, codes(cell))):
                assert cell.startswith("–"), row
                without.append(row[0])
    allowed = {"Callbacks": ["`OrbaxCheckpoint`"] * 2, "Kinds of data": sorted(BEYOND_KERAS)}
    assert sorted(without) == allowed.get(heading, [])


def test_every_argument_of_fit_has_a_row() -> None:
    arguments = list(inspect.signature(keras.Model.fit).parameters)[1:]
    assert [codes(row[0])[0] for row in table("Arguments of fit")] == arguments


def test_every_argument_of_compile_has_a_row() -> None:
    arguments = list(inspect.signature(keras.Model.compile).parameters)[1:]
    told = [code for row in table("What the model is compiled with") for code in codes(row[0])]
    assert [code for code in told if code in arguments] == arguments


def test_every_callback_of_keras_has_a_row() -> None:
    there = {name for name, value in vars(keras.callbacks).items() if inspect.isclass(value)}
    told = [codes(row[0])[0] for row in table("Callbacks")]
    assert set(told) == there
    assert len(told) == len(there)


def test_every_kind_of_data_has_a_row_with_its_way_of_resuming() -> None:
    rows = table("Kinds of data")
    assert [row[0] for row in rows] == list(KINDS)
    for (name, _, way, trains, resumes), kind in zip(rows, KINDS.values(), strict=True):
        assert way == kind.way, name
        assert codes(resumes) == [f"resumes[{name}]"]
        assert codes(trains) in ([], [f"trains[{name}]"])
    ways = {row[0] for row in table("How a resume finds its batch")}
    assert {kind.way for kind in KINDS.values()} == ways


def test_every_operation_of_tf_data_has_a_row_with_its_promise() -> None:
    assert section("Operations of tf.data").strip().split("\n\n")[-1] == operations()


def operations() -> str:
    """The table of the operations of tf.data, as it stands in the page."""
    rows = [
        f"| {op.written} | {op.promise}{': ' + op.why if op.why else ''} |"
        for op in sorted(OPS.values(), key=lambda op: (list(Promise).index(op.promise), op.written))
    ]
    return "\n".join(["| operation | a resume is |", "|---|---|", *dict.fromkeys(rows)])


def test_every_kind_of_validation_data_has_a_row() -> None:
    rows = table("Validation data")
    assert {row[0] for row in rows} == LEGEND["validation"].cases
    assert all(codes(row[-1]) == [f"validation[{row[0]}]"] for row in rows)


def test_documented_log_events_are_logged() -> None:
    training = (TOP / "service/outlast/training").rglob("*.py")
    source = "".join(path.read_text(encoding="utf-8") for path in training)
    events = [
        code for row in table("What is not exact, and what the log says") for code in codes(row[1])
    ]
    assert len(events) > 8
    for event in events:
        assert f"LogEvent.{LogEvent(event).name}" in source, event


def test_the_contents_are_the_headings() -> None:
    headings = re.findall(r"^## (.+)$", PAGE, re.M)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\(#([\w-]+)\)", PAGE)) == anchors
