"""What an audit finds in two checkpoints and two histories, and what it calls it."""

from __future__ import annotations

import json
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from outlast.audit.comparison import Times, compare_rows, compare_states
from outlast.audit.state_leaves import State
from outlast_checkpoints.errors import FormatError

TIMES = Times((1e9, 2e9), (2e9, 3e9))
DOCUMENT: dict[str, Any] = {
    "callbacks": [{"class": "Keeper"}, {"class": "CSVLogger", "rows": 60}, {"class": "Keeper"}],
    "model": {"rest": ["loss/total", "dropout/seed_generator_state"]},
    "fingerprint": {"anything": 1},
    "objects": {"begun": {"known": {}, "new": []}},
    "generators": {"python": {"words": {"$array": "tree/000000", "scalar": False}}, "keras": None},
    "feed": {"taken": [3, 4], "own": {"$tuple": [1, {"$float": "nan"}]}},
    "logs": {"loss": 0.5},
}


def state(*, document: dict[str, Any] | None = None, **changes: Any) -> State:
    """A small checkpoint; `changes` replace arrays, by the last part of their path."""
    arrays = {
        "layers/dense/vars/0": np.arange(6, dtype="float32").reshape(2, 3),
        "layers/dense/vars/1": np.ones(3, ml_dtypes.bfloat16),
        "optimizer/vars/0": np.array(7),
        "variables/000000": np.array(1.5),
        "variables/000001": np.array([3, 4], "uint32"),
        "tree/000000": np.arange(5, dtype="uint32"),
    }
    for name, value in changes.items():
        (path,) = (one for one in arrays if one.replace("/", "_").endswith(name))
        arrays[path] = value
    text = json.dumps(DOCUMENT if document is None else document).encode()
    of_state = {n: a for n, a in arrays.items() if n.startswith(("variables", "tree"))}
    return State(
        {
            "model.weights.h5": {n: a for n, a in arrays.items() if n not in of_state},
            "state.h5": {"document": np.frombuffer(text, np.uint8), **of_state},
        },
        "00-000000000020.0-0001",
    )


def differences(one: State, other: State, ignored: tuple[str, ...] = ()) -> list[str]:
    return [str(found) for found in compare_states(one, other, TIMES, ignored)]


def with_objects(known: dict[str, Any], new: tuple[Any, ...] = (), **more: Any) -> State:
    graph = {"known": known, "new": list(new)}
    return state(document={**DOCUMENT, "objects": {"begun": {**graph, **more}}})


def keeper(**attributes: Any) -> dict[str, Any]:
    return {"Keeper#1": {"kind": "object", "of": "train.Keeper", "attributes": attributes}}


def test_equal_states_have_no_difference() -> None:
    assert differences(state(), state()) == []


def test_each_part_is_named_in_the_order_in_which_it_counts() -> None:
    document = json.loads(json.dumps(DOCUMENT))
    document["feed"]["taken"] = [3, 5]
    document["logs"]["loss"] = 0.25
    document["callbacks"][1]["rows"] = 61
    document["fingerprint"] = {"a resume": "compares it"}
    again = state(
        document=document,
        dense_vars_0=np.array([[0, 1, 2], [3, 4.25, 5]], "float32"),
        dense_vars_1=np.array([1, 2, 1], ml_dtypes.bfloat16),
        optimizer_vars_0=np.array(8),
        variables_000001=np.array([3, 5], "uint32"),
        tree_000000=np.arange(1, 6, dtype="uint32"),
    )
    assert differences(state(), again) == [
        "weights: layers/dense/vars/0: 1 of 6 values, by up to 0.25",
        "weights: layers/dense/vars/1: 1 of 3 values, by up to 1",
        "optimizer: optimizer/vars/0: 1 of 1 values, by up to 1",
        "variables: variables/000001 (dropout/seed_generator_state): 1 of 2 values, by up to 1",
        "callbacks: callbacks[1].rows: 60, again 61",
        "generators: generators.python.words: 5 of 5 values, by up to 1",
        "data: feed.taken[1]: 4, again 5",
        "progress: logs.loss: 0.5, again 0.25",
    ]


@pytest.mark.parametrize(
    ("before", "again", "how"),
    [
        (np.float32([0.0, 1]), np.float32([-0.0, 1]), "1 of 2 values, by up to 0"),
        (np.float32([math.nan, 1]), np.float32([math.nan, 1]), None),
        (np.float32([math.nan, 1]), np.float32([2, 1]), "1 of 2 values"),
        (np.array([True, False]), np.array([True, True]), "1 of 2 values, by up to 1"),
        (np.zeros(3), np.zeros(4), "float64 of shape (3,), again float64 of shape (4,)"),
        (np.zeros(3), np.zeros(3, "float32"), "float64 of shape (3,), again float32 of shape (3,)"),
        (np.zeros((0, 4)), np.zeros((0, 4)), None),
    ],
)
def test_how_much_an_array_differs(before: Any, again: Any, how: str | None) -> None:
    found = differences(state(variables_000000=before), state(variables_000000=again))
    assert found == ([] if how is None else [f"variables: variables/000000 (loss/total): {how}"])


def test_how_a_pipeline_is_found_again_is_no_state() -> None:
    feed = {**DOCUMENT["feed"], "position": {"it.index": {"$array": "tree/000000"}}}
    assert differences(state(), state(document={**DOCUMENT, "feed": feed})) == []


def test_an_object_is_named_as_the_script_would() -> None:
    inner = {"kind": "dict", "keys": ["best", 2], "values": [0.5, {"is": "tuple", "items": [1]}]}
    before = keeper(count=3, kept=[0], same="x")
    again = {"kind": "dict", "keys": ["best", 2], "values": [0.25, {"is": "tuple", "items": [2]}]}
    assert differences(
        with_objects(before, (inner,)), with_objects(keeper(count=4, kept=[0], same="x"), (again,))
    ) == [
        "callbacks: callbacks[2].count: 3, again 4",
        "callbacks: callbacks[2].kept['best']: 0.5, again 0.25",
        "callbacks: callbacks[2].kept[2][0]: 1, again 2",
    ]


def test_objects_that_refer_to_each_other_end() -> None:
    cycle = {"kind": "list", "items": [[0], 5]}
    other = {"kind": "list", "items": [[0], 6]}
    found = differences(
        with_objects(keeper(kept=[0]), (cycle,)), with_objects(keeper(kept=[0]), (other,))
    )
    assert found == ["callbacks: callbacks[2].kept[1]: 5, again 6"]


def test_what_is_back_at_its_first_value_is_no_difference() -> None:
    """A job stores what has changed at some save; the audit sees only whether it has changed."""
    before = with_objects(keeper(wait=0))
    again = with_objects({}, all={"known": keeper(wait=0, patience=3), "new": []})
    assert differences(before, again) == []
    lost = with_objects({}, all={"known": keeper(wait=2, patience=3), "new": []})
    assert differences(before, lost) == ["callbacks: callbacks[2].wait: 0, again 2"]


def test_what_changed_only_in_the_audit_is_a_difference() -> None:
    again = with_objects(keeper(count=1), all={"known": keeper(count=1, other=5), "new": []})
    assert differences(with_objects({}), again) == [
        "callbacks: callbacks[2].count: nothing, again 1"
    ]


def test_attributes_of_layers_are_named_by_their_layer() -> None:
    def parts(rate: float) -> State:
        known = {"Dropout (layer 2)": {"kind": "object", "attributes": {"rate": rate}}}
        graph = {"known": known, "new": []}
        return state(document={**DOCUMENT, "parts": graph})

    assert differences(parts(0.25), parts(0.5)) == [
        "attributes: Dropout (layer 2).rate: 0.25, again 0.5"
    ]
    assert differences(state(document={**DOCUMENT, "parts": None}), state()) == []


def test_clocks_and_ignored_paths_are_left_out() -> None:
    before = with_objects(keeper(began=1.5e9, took=[0], _train_accumulated_time=1.0),
                          ({"kind": "list", "items": [1.0]},))  # fmt: skip
    again = with_objects(keeper(began=2.5e9, took=[0], _train_accumulated_time=2.0),
                         ({"kind": "list", "items": [2.0]},))  # fmt: skip
    assert differences(before, again) == ["callbacks: callbacks[2].took[0]: 1.0, again 2.0"]
    assert differences(before, again, ("callbacks[2].took",)) == []
    assert differences(before, again, ("callbacks[2].too",)) != []
    late = with_objects(keeper(began=9e9, took=[0]), ({"kind": "list", "items": [1.0]},))
    assert differences(before, late, ("callbacks[2]._train_accumulated_time",)) == [
        "callbacks: callbacks[2].began: 1500000000.0, again 9000000000.0"
    ]


def test_a_loops_state_is_named_by_the_users_names() -> None:
    def loop(count: int, own: int) -> State:
        graph = {"known": {"counts": {"kind": "list", "items": [count]}}, "new": []}
        rest = {"kinds": {}, "models": {"net": {"rest": []}}, "objects": {"noise": {"seed": own}}}
        return state(document={"state": {"graph": graph, **rest}, "logs": {}})

    assert differences(loop(1, 5), loop(2, 6)) == [
        "state: counts[0]: 1, again 2",
        "state: noise.seed: 5, again 6",
    ]


def test_a_document_that_is_no_json_is_damage() -> None:
    with pytest.raises(FormatError, match=r"state\.h5"):
        State({"state.h5": {"document": np.frombuffer(b"{", np.uint8)}}, "c")


# --- histories -----------------------------------------------------------------------------------


def fed(key: str, known: dict[str, Any], **more: Any) -> State:
    """A checkpoint of a training whose data is a PyDataset with an array and a variable."""
    name = "variables/@objects/000000"
    own = {
        "objects": {"known": known, "new": [], **more},
        "variables": {name: {"$array": "tree/000000"}},
    }
    return state(document={**DOCUMENT, key: {"taken": [3, 4], "own": own}})


@pytest.mark.parametrize(("key", "root"), [("feed", "dataset"), ("validation", "validation_data")])
def test_what_a_dataset_changes_in_itself_is_compared(key: str, root: str) -> None:
    def of(count: int) -> dict[str, Any]:
        attributes = {"count": count, "scale": [f"{root}.scale"]}
        return {root: {"kind": "object", "of": "train.Data", "attributes": attributes}}

    variable = {"kind": "variable", "of": "tf", "array": "variables/@objects/000000"}
    scale = {f"{root}.scale": variable}
    before = fed(key, {**of(3), **scale})
    code = {f"{root}.__class__.__len__": {"kind": "object", "of": "train", "attributes": {"n": 12}}}
    everything = {"known": {**of(3), **scale, **code}, "new": []}
    assert differences(before, fed(key, {**of(3), **scale}, all=everything)) == []
    # One that the repetition has not changed, and one that it has changed to another value.
    everything = {"known": {**of(4), **scale, **code}, "new": []}
    assert differences(before, fed(key, {}, all=everything)) == [f"data: {root}.count: 3, again 4"]
    assert differences(before, fed(key, of(4), all=everything)) == [
        f"data: {root}.count: 3, again 4"
    ]


def row(step: int, **logs: float) -> dict[str, Any]:
    return {"kind": "step", "phase": 0, "step": step, "epoch": 0, "time": step + 0.5, "logs": logs}


def test_the_first_row_that_differs_is_named() -> None:
    mine = [row(1, loss=0.5), row(2, loss=0.4), row(3, loss=0.3)]
    again = [{**row(1, loss=0.5), "time": 9.0}, row(2, loss=0.41), row(3, loss=0.2)]
    assert str(compare_rows(mine, again)) == "history: step 2: loss 0.4, again 0.41"
    assert compare_rows(mine, again, ("loss",)) is None


def test_a_missing_row_and_a_missing_metric_are_named() -> None:
    epoch = {"kind": "epoch", "phase": 0, "step": 2, "epoch": 0, "logs": {"loss": math.nan}}
    assert str(compare_rows([row(1), epoch], [row(1)])) == (
        "history: epoch 0: the repetition has no such row"
    )
    assert str(compare_rows([row(1)], [row(1), row(2)])) == (
        "history: step 2: the checkpoint has no such row"
    )
    assert str(compare_rows([row(1, a=1.0)], [row(1, b=1.0)])) == (
        "history: step 1: a 1.0, again nothing"
    )
    assert compare_rows([epoch], [{**epoch, "logs": {"loss": math.nan}}]) is None
