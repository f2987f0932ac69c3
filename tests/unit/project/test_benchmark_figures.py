"""The arithmetic of the benchmarks' table; nothing here depends on how fast anything is."""

from __future__ import annotations

import json

from tests.benchmarks.figure import Figure, Spread, compared, in_turn, table


def test_ratios_are_computed_pair_by_pair() -> None:
    figure = compared("name", "s", [2.0, 9.0, 4.0], [1.0, 3.0, 4.0], "a peer", bar="<= 2 x")
    assert figure.ours == Spread(4.0, 2.0, 9.0)
    assert figure.peer == Spread(3.0, 1.0, 4.0)
    assert figure.ratio == Spread(2.0, 1.0, 3.0)


def test_both_are_measured_equally_often_and_alternate() -> None:
    order: list[str] = []

    def measure(which: str) -> float:
        order.append(which)
        return float(len(order))

    found = in_turn(lambda: measure("ours"), lambda: measure("peer"), 3)
    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert found == ([1.0, 4.0, 5.0], [2.0, 3.0, 6.0])


def test_a_figure_round_trips_as_json() -> None:
    for figure in (
        compared("a", "ms", [1.0], [2.0], "a peer", bar="<= 5 ms", holds=True, detail="d"),
        Figure("b", "s", Spread.of([3.0])),
    ):
        assert Figure.of(json.loads(json.dumps(figure.plain()))) == figure


def test_the_table_shows_met_and_missed_targets() -> None:
    missed = compared("slow", "s", [4.0], [1.0], "a peer", bar="<= 2 x", holds=False)
    held = compared("quick", "s", [1.0], [1.0], "a peer", bar="<= 2 x", holds=True)
    alone = Figure("alone", "MB", Spread.of([1.0, 3.0]), bar="<= 9", detail="why")
    heading, *rows = table([missed, held, alone]).splitlines()
    assert heading.split() == ["ours", "peer", "ratio", "asked", "for"]
    assert "slow [s]" in rows[0] and rows[0].endswith("<= 2 x: MISSED")  # noqa: PT018
    assert rows[1].endswith("<= 2 x: holds")
    assert rows[2].split() == ["alone", "[MB]", "2", "(1", "to", "3)", "-", "-", "<=", "9", "why"]
