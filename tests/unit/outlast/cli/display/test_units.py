"""How numbers, heartbeats and tables read."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from outlast.cli.display import heartbeat_text, tables, units
from outlast.job.heartbeat import Beat


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (59.6, "1:00"),
        (205, "3:25"),
        (3600, "1:00:00"),
        (7405, "2:03:25"),
        (86400 * 4 + 7380, "4 d 02:03"),
        (math.inf, "?"),
        (math.nan, "?"),
        (-1, "?"),
    ],
)
def test_duration(seconds: float, said: str) -> None:
    assert units.duration(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (3_210_000, "3.21 MB"),
        (2.5e12, "2.5 TB"),
        (4e15, "4 PB"),
    ],
)
def test_size(count: float, said: str) -> None:
    assert units.size(count) == said


@pytest.mark.parametrize(
    ("per_second", "said"),
    [
        (0.0, ""),
        (math.nan, ""),
        (0.25, "4 s/step"),
        (3.14, "3.1 steps/s"),
        (1234.4, "1,234 steps/s"),
    ],
)
def test_rate(per_second: float, said: str) -> None:
    assert units.rate(per_second) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.123456, "0.1235"),
        (1e-7, "1e-07"),
        (math.nan, "nan"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
    ],
)
def test_metric(value: float, said: str) -> None:
    assert units.metric(value) == said


def test_a_moment_is_utc_and_round_trips() -> None:
    assert units.moment(0.25) == "1970-01-01T00:00:00.250Z"
    assert units.local(units.moment(1e9)) == units.when(1e9)


BEAT = Beat(
    attempt=2,
    phase=0,
    step=1200,
    epoch=2,
    epochs=50,
    total_steps=50000,
    logs={"accuracy": 0.98, "loss": 0.12345, "mae": 1.0, "mse": 2.0},
    steps_per_second=512.0,
    last_checkpoint_at_step=1000,
)


def test_a_heartbeat_in_one_line() -> None:
    assert heartbeat_text.line(BEAT) == (
        "epoch 3/50 · step 1,200/50,000 · loss 0.1235 · accuracy 0.98 · mae 1 · 512 steps/s"
        " · ETA 1:35 · saved at 1,000"
    )


def test_a_heartbeat_before_the_first_step_shows_the_activity() -> None:
    assert heartbeat_text.line(Beat(attempt=1, activity="importing")) == "importing"


def test_a_heartbeat_of_unknown_length_omits_unknown_values() -> None:
    beat = Beat(attempt=1, phase=1, step=7, logs={"loss": None})
    assert heartbeat_text.line(beat) == "phase 1: epoch 1 · step 7 · loss not finite"


def test_the_epoch_after_the_last_is_not_counted() -> None:
    assert heartbeat_text.epochs(Beat(attempt=1, phase=0, epoch=50, epochs=50)) == "epoch 50/50"


def test_a_named_phase_shows_its_name() -> None:
    assert (
        heartbeat_text.epochs(Beat(attempt=1, phase=3, phase_name="tune", epochs=2))
        == "tune: epoch 1/2"
    )


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_json_has_names_for_values_that_are_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    value: dict[str, Any] = {"a": [math.nan, math.inf], "b": {"c": -math.inf}, "d": (1, "é")}
    tables.print_json(value)
    told = printed(capsys)
    assert json.loads(told) == {"a": ["NaN", "Infinity"], "b": {"c": "-Infinity"}, "d": [1, "é"]}
    assert told.isascii()


def test_numbers_are_right_aligned_and_text_left_aligned(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tables.print_table(["NAME", "STEP"], [["a", "1,000"], ["longer", "-"]])
    assert printed(capsys).splitlines() == ["NAME     STEP", "a       1,000", "longer      -"]


def test_a_table_without_rows_is_its_headers(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_table(["A", "B"], [])
    assert printed(capsys) == "A  B\n"


def test_fields_without_a_value_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_fields({"job": "a", "reason": "", "state": "running"})
    assert printed(capsys) == "job    a\nstate  running\n"
