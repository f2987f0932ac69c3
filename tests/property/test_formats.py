"""Every written document reads back equal, and every change to its bytes is detected."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.format.layout import CheckpointId, Stage
from outlast_checkpoints.format.manifest import (
    REASONS,
    FileEntry,
    HistoryMark,
    Manifest,
    decode,
    encode,
)
from outlast_checkpoints.format.snapshot import Progress
from outlast_checkpoints.history import row as rows

numbers = st.integers(0, 10**15)
ids = st.builds(CheckpointId, st.integers(0, 200), numbers, st.sampled_from(Stage), numbers)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}(\.h5)?", fullmatch=True)
digests = st.from_regex(r"xxh3:[0-9a-f]{32}", fullmatch=True)
entries = st.builds(FileEntry, names.filter(lambda name: name != "manifest.json"), numbers, digests)
metrics = st.dictionaries(st.text(max_size=10), st.floats(), max_size=5)

# A busy machine is no failure.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    checkpoint = draw(ids)
    progress = st.builds(
        Progress,
        phase=st.just(checkpoint.phase),
        step=st.just(checkpoint.step),
        stage=st.just(int(checkpoint.stage)),
        epoch=numbers,
        batch=numbers,
        phase_name=st.none() | st.text(max_size=10),
        seed=st.none() | st.integers(0, 2**63 - 1),
    )
    files = draw(st.lists(entries, max_size=4, unique_by=lambda entry: entry.name))
    whole = draw(st.sampled_from(["", *(entry.name for entry in files)]))
    part = []
    if whole.endswith(".h5"):
        part = [FileEntry(f"{'x' * 30}.h5", draw(numbers), draw(digests), whole)]
    return Manifest(
        checkpoint=str(checkpoint),
        progress=draw(progress),
        reason=draw(st.sampled_from(REASONS)),
        parent=draw(st.none() | ids.map(str)),
        format=2 if part else 1,
        files=(*files, *part),
        history=draw(st.none() | st.builds(HistoryMark, numbers, numbers)),
        metrics=draw(metrics),
        created=draw(st.floats(0, 2e9)),
        writer=draw(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2)),
    )


def comparable(manifest: Manifest) -> Manifest:
    """NaN is not equal to itself: spell it."""
    spelled: Any = {name: repr(value) for name, value in manifest.metrics.items()}
    return msgspec.structs.replace(manifest, metrics=spelled)


@given(ids)
def test_checkpoint_names_round_trip(checkpoint: CheckpointId) -> None:
    assert CheckpointId.parse(str(checkpoint)) == checkpoint


@given(st.text() | st.from_regex(r"[0-9]+-[0-9]+\.[0-9]-[0-9]+", fullmatch=True))
def test_what_parses_formats_to_the_same_text(text: str) -> None:
    found = CheckpointId.parse(text)
    assert found is None or str(found) == text


@given(st.lists(ids))
def test_names_sort_as_places_while_they_have_one_width(found: list[CheckpointId]) -> None:
    narrow = [one for one in found if len(str(one)) == len("00-000000000000.0-0000")]
    assert sorted(map(str, narrow)) == list(map(str, sorted(narrow)))


@unhurried
@given(manifests())
def test_manifests_round_trip(manifest: Manifest) -> None:
    assert comparable(decode(encode(manifest), "m")) == comparable(manifest)


@unhurried
@given(manifests(), st.data())
def test_any_change_to_a_manifest_is_found(manifest: Manifest, data: st.DataObject) -> None:
    whole = encode(manifest)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 40)))
    changed = whole[:start] + data.draw(st.binary(max_size=40)) + whole[end:]
    assume(changed != whole)
    with pytest.raises(FormatError):
        decode(changed, "m")


@given(st.binary())
def test_garbage_is_not_a_manifest(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode(data, "m")


values = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
spelled = {"NaN", "Infinity", "-Infinity"}
logs = st.dictionaries(st.text(), st.floats() | st.integers(-(2**53), 2**53))


@given(
    st.dictionaries(st.text(), values.filter(lambda value: value not in spelled), max_size=6), logs
)
def test_rows_round_trip(row: dict[str, Any], logs: dict[str, float]) -> None:
    row["logs"] = logs
    found = rows.decode(rows.encode(row), 1, 0)
    assert _shown(found) == _shown(row)


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shown(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return "nan" if math.isnan(value) else repr(value)
    return value


@given(st.lists(st.dictionaries(st.text(), st.text() | st.floats(), max_size=3), max_size=5))
def test_a_row_is_one_line(found: list[dict[str, Any]]) -> None:
    assert all(b"\n" not in rows.encode(row) for row in found)
