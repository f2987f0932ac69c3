"""The verdict of the soak: what counts as growth."""

from __future__ import annotations

import pytest

from tests.testbeds.soak.watch import judge

FLAT = [100.0] * 60
STEPS = [20.0] * 15 + [100.0] * 45  # it fills a cache at first
NOISY = [100.0 + 4 * (i % 7) for i in range(60)]
LEAK = [100.0 + i for i in range(60)]


@pytest.mark.parametrize(
    ("kind", "values", "grows"),
    [
        ("MB", FLAT, False),
        ("MB", STEPS, False),
        ("MB", NOISY, False),
        ("MB", LEAK, True),
        ("descriptors", [20.0 + i // 10 for i in range(60)], False),
        ("descriptors", [20.0 + i // 3 for i in range(60)], True),
        ("B/epoch", [900.0 + 40.0 * i for i in range(60)], True),
    ],
)
def test_what_grows(kind: str, values: list[float], grows: bool) -> None:
    found = judge([(10.0 * i, value) for i, value in enumerate(values)], kind)
    assert found is not None
    assert found[2] is grows


def test_too_few_values_have_no_verdict() -> None:
    assert judge([(float(i), 1.0) for i in range(9)], "MB") is None
