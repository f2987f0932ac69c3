"""When a save is due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast.job.save_schedule import SaveEvery
from outlast_checkpoints.errors import UsageError


@pytest.mark.parametrize(
    ("text", "steps", "seconds", "epoch"),
    [
        (100, 100, None, False),
        ("100", 100, None, False),
        ("30s", None, 30.0, False),
        ("0.5s", None, 0.5, False),
        ("5m", None, 300.0, False),
        ("2h", None, 7200.0, False),
        ("epoch", None, None, True),
        ("EPOCH , 60s", None, 60.0, True),
        ("100,epoch,1m", 100, 60.0, True),
        ("never", None, None, False),
    ],
)
def test_schedules_are_parsed(
    text: str | int, steps: int | None, seconds: float | None, epoch: bool
) -> None:
    assert SaveEvery.parse(text) == SaveEvery(steps=steps, seconds=seconds, epoch=epoch)


@pytest.mark.parametrize(
    ("text", "overhead"), [("auto", 0.01), ("auto:2.5%", 0.025), ("epoch, auto:10%", 0.1)]
)
def test_the_overhead_of_an_automatic_schedule_is_parsed(text: str, overhead: float) -> None:
    found = SaveEvery.parse(text)
    assert found.overhead == pytest.approx(overhead)
    assert SaveEvery.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-5",
        "1.5",
        "10,20",
        "auto,auto:2%",
        "auto:0%",
        "auto:101%",
        "auto:2",
        "30s,1m",
        "epoch,epoch",
        "never,10",
        "5 m",
        "1d",
        "٣",
        True,
        1.5,
    ],
)
def test_other_texts_are_refused(text: object) -> None:
    with pytest.raises(UsageError) as caught:
        SaveEvery.parse(text)  # type: ignore[arg-type]
    assert caught.value.fields["field"] == "save_every"
    assert str(text) in str(caught.value)


@given(
    st.builds(
        SaveEvery,
        steps=st.none() | st.integers(1, 10**9),
        seconds=st.none() | st.integers(1, 10**6).map(float),
        epoch=st.booleans(),
    )
)
def test_a_schedule_round_trips_as_text(cadence: SaveEvery) -> None:
    assert SaveEvery.parse(str(cadence)) == cadence


@given(every=st.integers(1, 50), step=st.integers(0, 500), limit=st.integers(1, 60))
def test_a_call_ends_where_a_save_is_due(every: int, step: int, limit: int) -> None:
    cadence = SaveEvery(steps=every)
    due = cadence.next_step_due(step)
    assert due is not None
    assert step < due <= step + every
    assert cadence.step_due(due)
    assert not any(cadence.step_due(s) for s in range(step + 1, due))
    assert cadence.steps_until_due(step, limit) == min(limit, due - step)


def test_time_counts_from_the_last_save() -> None:
    assert not SaveEvery.parse("30s").time_due(29.9)
    assert SaveEvery.parse("30s").time_due(30.0)
    assert not SaveEvery.parse("epoch").time_due(1e9)
    assert SaveEvery.parse("epoch").next_step_due(3) is None
