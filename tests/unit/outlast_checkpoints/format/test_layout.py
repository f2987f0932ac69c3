"""Names of checkpoints, attempts and events."""

from __future__ import annotations

import pytest

from outlast_checkpoints.errors import InvalidName
from outlast_checkpoints.format import layout
from outlast_checkpoints.format.layout import CheckpointId, Stage


def test_a_checkpoint_name_has_place_and_attempt() -> None:
    found = CheckpointId(1, 1200, Stage.EPOCH, 3)
    assert str(found) == "01-000000001200.1-0003"
    assert CheckpointId.parse("01-000000001200.1-0003") == found
    assert layout.manifest(found) == "checkpoints/01-000000001200.1-0003/manifest.json"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1-000000001200.1-0003",
        "01-00000001200.1-0003",
        "01-000000001200.3-0003",
        "01-000000001200.1-003",
        "01-000000001200.1-0003 ",
        "001-000000001200.1-0003",
        "01-000000001200-0003",
        "01-000000001200.1-0003/..",
        "٠١-000000001200.1-0003",
    ],
)
def test_other_texts_are_not_checkpoint_names(text: str) -> None:
    assert CheckpointId.parse(text) is None


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "0", "x" * 100])
def test_good_names(name: str) -> None:
    assert layout.check_name("name", name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\n", "x" * 101])
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidName, match="name is"):
        layout.check_name("name", name)


def test_events_and_attempts() -> None:
    assert layout.parse_journal_event("00000007.json") == 7
    assert layout.journal_event(7) == "journal/00000007.json"
    assert layout.parse_journal_event("7.json") is None
    assert layout.parse_attempt("0003") == 3
    assert layout.parse_attempt("12345") == 12345
    assert layout.parse_attempt("3") is None
