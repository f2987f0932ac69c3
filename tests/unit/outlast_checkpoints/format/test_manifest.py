"""The manifest's bytes, and what is refused."""

from __future__ import annotations

import json
import math

import msgspec
import pytest

from outlast_checkpoints.errors import FormatError, FormatTooNew
from outlast_checkpoints.format.manifest import (
    FORMAT,
    FileEntry,
    HistoryMark,
    Manifest,
    decode,
    encode,
    format_of,
)
from outlast_checkpoints.format.sealed_json import seal
from outlast_checkpoints.format.snapshot import Progress

DIGEST = "xxh3:" + "0123456789abcdef" * 2
MANIFEST = Manifest(
    checkpoint="01-000000001200.1-0003",
    progress=Progress(phase=1, step=1200, epoch=3, batch=0, stage=1, phase_name="tune", seed=7),
    reason="epoch",
    parent="01-000000001100.0-0002",
    files=(FileEntry("model.weights.h5", 1000, DIGEST), FileEntry("model.json", 2, DIGEST)),
    history=HistoryMark(3, 12345),
    metrics={"loss": 0.5, "nan": math.nan, "up": math.inf, "down": -math.inf},
    created=1.5,
    held_ms=2.25,
    writer={"keras": "3.15.1"},
)


def test_round_trip() -> None:
    found = decode(encode(MANIFEST), "m")
    assert math.isnan(found.metrics["nan"])
    calm = msgspec.structs.replace(MANIFEST, metrics={"loss": 0.5, "up": math.inf})
    assert decode(encode(calm), "m") == calm
    assert found.size == 1002
    assert str(found.id) == MANIFEST.checkpoint


def test_it_is_plain_json() -> None:
    data = encode(MANIFEST)
    found = json.loads(data)
    assert set(found) == {"checksum", "body"}
    assert found["checksum"].startswith("xxh3:")
    body = found["body"]
    assert body["format"] == 1
    assert body["checkpoint"] == MANIFEST.checkpoint
    assert body["metrics"] == {"loss": 0.5, "nan": "NaN", "up": "Infinity", "down": "-Infinity"}
    assert body["history"] == {"attempt": 3, "mark": 12345}
    assert body["files"][0] == {"name": "model.weights.h5", "size": 1000, "hash": DIGEST}
    assert not data.endswith(b"\n")


def test_every_flipped_bit_and_every_cut_is_found() -> None:
    data = encode(MANIFEST)
    for at in range(len(data)):
        for bit in range(8):
            spoilt = bytearray(data)
            spoilt[at] ^= 1 << bit
            with pytest.raises(FormatError):
                decode(bytes(spoilt), "m")
        with pytest.raises(FormatError):
            decode(data[:at], "m")
        with pytest.raises(FormatError):
            decode(data[at + 1 :], "m")
    for more in (b"\n", b" ", b"}"):
        with pytest.raises(FormatError):
            decode(data + more, "m")
        with pytest.raises(FormatError):
            decode(more + data, "m")


def test_a_newer_format_is_distinguished_from_damage() -> None:
    newer = msgspec.structs.replace(MANIFEST, format=FORMAT + 1)
    with pytest.raises(FormatTooNew, match="Install a newer Outlast"):
        decode(encode(newer), "m")


class _Newer(msgspec.Struct):
    format: int = FORMAT + 1
    anything: str = "else"


def test_a_newer_format_may_look_quite_different() -> None:
    with pytest.raises(FormatTooNew):
        decode(seal(_Newer()), "m")


WHOLE = FileEntry("a.h5", 1, DIGEST)
PART = FileEntry("a.frozen.h5", 1, DIGEST, "a.h5")


def test_only_checkpoints_with_parts_need_a_newer_reader() -> None:
    split = msgspec.structs.replace(MANIFEST, format=format_of([WHOLE, PART]), files=(WHOLE, PART))
    assert decode(encode(split), "m") == split
    assert split.format == 2
    assert format_of([WHOLE]) == MANIFEST.format == 1
    assert b"part_of" not in encode(MANIFEST)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"checkpoint": "01-000000001201.1-0003"}, "progress"),
        ({"checkpoint": "x"}, "progress"),
        ({"parent": "before"}, "parent"),
        ({"files": (FileEntry("../x", 1, DIGEST),)}, "../x"),
        ({"files": (FileEntry("a/b", 1, DIGEST),)}, "a/b"),
        ({"files": (FileEntry("manifest.json", 1, DIGEST),)}, "manifest.json"),
        ({"files": (FileEntry("a", 1, DIGEST), FileEntry("a", 1, DIGEST))}, "'a'"),
        ({"files": (FileEntry("a", -1, DIGEST),)}, "size and hash"),
        ({"files": (FileEntry("a", 1, "md5:1"),)}, "size and hash"),
        ({"format": 2, "files": (FileEntry("b.h5", 1, DIGEST, "a.h5"),)}, "'b.h5' cannot be part"),
        ({"format": 2, "files": (FileEntry("a.h5", 1, DIGEST, "a.h5"),)}, "'a.h5' cannot be part"),
        ({"format": 2, "files": (WHOLE, FileEntry("b", 1, DIGEST, "a.h5"))}, "'b' cannot be part"),
        (
            {"format": 2, "files": (WHOLE, PART, FileEntry("c.h5", 1, DIGEST, PART.name))},
            "'c.h5' cannot be part",
        ),
        ({"files": (WHOLE, PART)}, "format 1 does not allow parts"),
    ],
)
def test_inconsistent_manifests_are_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        decode(encode(msgspec.structs.replace(MANIFEST, **change)), "m")


@pytest.mark.timeout(60)
def test_many_names_are_read_in_one_pass() -> None:
    """10^10 comparisons, as of each name with all others, would take minutes."""
    files = tuple(FileEntry(f"f{number}", 1, DIGEST) for number in range(100_000))
    many = msgspec.structs.replace(MANIFEST, files=files)
    assert len(decode(encode(many), "m").files) == 100_000
    twice = msgspec.structs.replace(MANIFEST, files=(*files, files[0]))
    with pytest.raises(FormatError, match="'f0' is named twice"):
        decode(encode(twice), "m")


def test_unknown_fields_are_refused() -> None:
    class Odd(Manifest, frozen=True, kw_only=True):
        surprise: int = 1

    fields = {name: getattr(MANIFEST, name) for name in MANIFEST.__struct_fields__}
    with pytest.raises(FormatError, match="surprise"):
        decode(seal(Odd(**{**fields, "metrics": {}})), "m")
