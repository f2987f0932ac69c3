"""A signed job: what somebody without the key changes in it is refused before it is parsed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest
import xxhash

from outlast.cli import group, main
from outlast.job import heartbeat, process_identity, stop_note
from outlast.job import spec as specs
from outlast.job.events import Claimed, Ended, Launched, Removed, Started
from outlast.job.journal import Journal
from outlast.job.outcome import Outcome
from outlast.job.spec import JobSpec
from outlast.job.submission import request_stop, submit
from outlast_checkpoints.errors import KeyMissing, NotAuthentic
from outlast_checkpoints.format import layout, manifest
from outlast_checkpoints.history import HistoryWriter
from outlast_checkpoints.storage import key_file, open_storage
from outlast_checkpoints.storage.base import Storage
from outlast_checkpoints.storage.documents import read_document, unsigned
from outlast_checkpoints.storage.signed import SignedStorage
from outlast_checkpoints.store import sign_job
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.store.spool import Spool
from outlast_checkpoints.store.spool_sender import Sender
from outlast_checkpoints.testing import sample_snapshot
from tests.unit.outlast.cli.test_hostile_files import make

Call = Callable[..., tuple[int, str]]
MARK = b"planted-by-an-attacker"
REFUSED = "was not written by a holder of the key"


def make_two_attempts(root: Path, name: str) -> None:
    """Make a job whose second attempt has crashed as well. Its owner is this process."""
    make(root, name)
    storage = open_storage(root / name)
    journal = Journal(storage)
    journal.append(Claimed(attempt=2, owner=process_identity.here()))
    journal.append(Launched(attempt=2))
    journal.append(Started(attempt=2))
    store = CheckpointStore(storage, attempt=2)
    store.begin()
    history = HistoryWriter(storage, 2)
    history.append({"kind": "epoch", "phase": 0, "step": 3, "epoch": 1, "time": 2.0, "logs": {}})
    mark = history.mark()
    history.close()
    store.save(sample_snapshot(3), reason="step", history=mark)
    heartbeat.HeartbeatWriter(storage, 2, heartbeat.Status(), 60.0).stop(1)
    journal.append(Ended(attempt=2, outcome=Outcome.CRASHED, advanced=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key and the root of two signed jobs."""
    folder = tmp_path_factory.mktemp("signed")
    key_file.create(folder / "key")
    child = os.fork()  # the process that had the jobs is gone
    if child == 0:
        os.environ[key_file.KEY_FILE] = str(folder / "key")
        for name in ("a", "b"):
            make_two_attempts(folder / "jobs", name)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    return folder


@pytest.fixture
def key(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(key_file.KEY_FILE, str(made / "key"))
    return made / "key"


@pytest.fixture
def root(made: Path, tmp_path: Path, key: Path) -> Path:
    """A copy of the jobs, for one test."""
    return Path(shutil.copytree(made / "jobs", tmp_path / "jobs"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the jobs that are started; start none."""
    names: list[str] = []
    monkeypatch.setattr(
        "outlast.cli.summary.supervise", lambda place, root: names.append(place.name) or 0
    )
    return names


@pytest.fixture
def outlast(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Call:
    monkeypatch.setenv("OUTLAST_ROOT", str(root))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))  # nothing is trusted

    def call(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        with mock.patch.dict(os.environ), pytest.raises(SystemExit) as left:  # --key-file sets it
            main(list(arguments))
        printed = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, printed.out + printed.err

    return call


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytes]]:
    """Record the documents with the attacker's mark that a JSON parser is given."""
    found: list[bytes] = []
    decode = msgspec.json.decode

    def watched(data: Any, **more: Any) -> Any:
        if MARK in bytes(data):
            found.append(bytes(data))
        return decode(data, **more)

    monkeypatch.setattr(msgspec.json, "decode", watched)
    return found


# -- what an attacker does: he can write everything and knows every format, but has no key --------


def resealed(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Return a signed document with another body: its MAC kept, its checksums computed again."""
    at = data.index(b'"body":') + len(b'"body":')
    mac = data[data.index(b'"mac"') : at]
    rest = mac + change(data[at:-1]) + b"}"
    return b'{"checksum":"xxh3:%b",%b' % (xxhash.xxh3_128_hexdigest(rest).encode(), rest)


def marked(body: bytes) -> bytes:
    """Return a document with the attacker's mark in it, sealed if it was sealed."""
    found = json.loads(body)
    if "checksum" in found:
        inner = json.dumps({**found["body"], "evil": MARK.decode()}).encode()
        digest = xxhash.xxh3_128_hexdigest(inner).encode()
        return b'{"checksum":"xxh3:%b","body":%b}' % (digest, inner)
    return json.dumps({**found, "evil": MARK.decode()}).encode()


def edit(path: str) -> Callable[[Path], None]:
    def attack(root: Path) -> None:
        file = root / "a" / path
        file.write_bytes(resealed(file.read_bytes(), marked))

    return attack


def downgrade(path: str) -> Callable[[Path], None]:
    def attack(root: Path) -> None:
        file = root / "a" / path
        data = file.read_bytes()
        file.write_bytes(marked(data[data.index(b'"body":') + len(b'"body":') : -1]))

    return attack


def replay(path: str, source: str) -> Callable[[Path], None]:
    def attack(root: Path) -> None:
        shutil.copyfile(root / source, root / "a" / path)

    return attack


def drop(*seqs: int) -> Callable[[Path], None]:
    def attack(root: Path) -> None:
        for seq in seqs:
            (root / "a" / layout.journal_event(seq)).unlink()

    return attack


CHECKPOINTS = [f"checkpoints/00-00000000000{step}.0-000{attempt}/manifest.json"
               for step, attempt in ((1, 1), (2, 1), (3, 2))]  # fmt: skip
EVENT, ORIGIN, NEWEST = layout.journal_event(3), layout.origin(2), CHECKPOINTS[2]
ATTACKS = {
    **{f"edit {path}": edit(path) for path in (layout.SPEC, EVENT, ORIGIN, NEWEST)},
    **{f"downgrade {path}": downgrade(path) for path in (layout.SPEC, EVENT, ORIGIN, NEWEST)},
    **{f"of job b: {path}": replay(path, f"b/{path}") for path in (layout.SPEC, EVENT, ORIGIN,
                                                                   NEWEST)},
    "an event of another number": replay(EVENT, f"a/{layout.journal_event(4)}"),
    "an origin of another attempt": replay(ORIGIN, f"a/{layout.origin(1)}"),
    "a manifest of another checkpoint": replay(NEWEST, f"a/{CHECKPOINTS[0]}"),
    "an event dropped from the middle": drop(4),
    "the last events dropped, though an attempt has begun": drop(9, 8, 7, 6),
    "all events dropped": drop(*range(1, 10)),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_before_anything_is_parsed(
    outlast: Call, root: Path, started: list[str], parsed: list[bytes], attack: str
) -> None:
    assert len(list((root / "a" / layout.JOURNAL).iterdir())) == 9
    ATTACKS[attack](root)
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    code, text = outlast("verify", "a")
    assert (code, "holder of the key" in text) == (65, True), text
    for verb in ("status", "checkpoints", "history", "export"):
        outlast(verb, "a", *([str(root / "x.keras")] if verb == "export" else []))
    assert outlast("list")[0] == 0
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before
    code, text = outlast("resume", "a")
    if code == 0:  # the attempt refuses it, which reads the checkpoints
        with pytest.raises(NotAuthentic):
            CheckpointStore(open_storage(root / "a"), attempt=3).begin()
    else:
        assert (code, started) == (65, [])
        assert REFUSED in text
    assert parsed == []
    assert outlast("verify", "b")[0] == 0


def test_a_forged_file_is_not_used(outlast: Call, root: Path, tmp_path: Path) -> None:
    """Its xxh3 collides: here the manifest has another MAC, as if the file had been made so."""
    storage = open_storage(root / "a")
    made = manifest.decode(read_document(storage, NEWEST), NEWEST)
    forged = tuple(
        msgspec.structs.replace(entry, mac=str(entry.mac)[:-32] + "0" * 32) for entry in made.files
    )
    storage.replace(NEWEST, manifest.encode(msgspec.structs.replace(made, files=forged)))
    assert "was forged" in outlast("verify", "a")[1]
    dest = tmp_path / "a.weights.h5"
    code, text = outlast("export", "a", str(dest), "--checkpoint", made.checkpoint)
    assert (code, "was forged" in text, dest.exists()) == (65, True, False)
    assert "was forged" in outlast("copy", "a", str(tmp_path / "copy"))[1]
    found, damages = CheckpointStore(storage, attempt=3).begin()
    assert found is not None
    assert found.checkpoint == "00-000000000002.0-0001"
    assert "was forged" in str(damages[0])


def test_changed_rows_of_the_history_are_refused(outlast: Call, root: Path) -> None:
    """Those before the newest checkpoint. Rows after it are not authenticated."""
    rows = root / "a" / layout.history(2)
    text = rows.read_text()
    rows.write_text(text + text)
    assert outlast("verify", "a")[0] == 0
    rows.write_text(text.replace('"epoch":1', '"epoch":7'))
    for verb in ("verify", "history"):
        code, said = outlast(verb, "a")
        assert code == 65
        assert "not those that a checkpoint counted" in said


def test_a_forged_heartbeat_or_request_is_ignored(root: Path, tmp_path: Path) -> None:
    storage = open_storage(root / "a")
    beat = heartbeat.read(storage, 2)
    assert beat is not None
    assert beat.ended == 1
    done = msgspec.json.encode(msgspec.structs.replace(beat, ended=0, count=beat.count + 1))
    unsigned(storage).replace(layout.heartbeat(2), done)
    assert heartbeat.read(storage, 2) is None
    spool = Spool(tmp_path / "spool" / "a" / "life", 0, storage)
    note = stop_note.StopNote(by="me")
    unsigned(spool.storage).replace(layout.stop_note(2), msgspec.json.encode(note))
    assert stop_note.take(spool.storage, 2) is None
    stop_note.leave(spool.storage, 2, note)
    assert stop_note.take(spool.storage, 2) == note


def test_the_spool_is_signed_and_what_is_forged_in_it_is_not_sent(
    root: Path, tmp_path: Path
) -> None:
    job = open_storage(root / "a")
    store = CheckpointStore(job, attempt=3)
    store.begin()
    spool = Spool(tmp_path / "spool" / "a" / "life", 1 << 30, job)
    spool.make()
    aside = store.beside(spool.storage)
    lost: list[str] = []
    sender = Sender(spool, store, 3, on_event=lambda event, fields: lost.append(event))
    first = aside.save(sample_snapshot(4), reason="step")
    assert sender.send_all() == [first.id]
    assert store.verify(first.id) == []
    forged = aside.save(sample_snapshot(5), reason="step")
    place = Path(spool.path) / layout.manifest(forged.id)
    place.write_bytes(resealed(place.read_bytes(), marked))
    assert sender.send_all() == []
    assert lost == ["spool_lost"]
    assert not store.is_committed(forged.id)


def test_a_wrong_key_is_no_damage_and_damage_no_forgery(
    outlast: Call, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(tmp_path / "other")
    assert outlast("key", "new", other)[0] == 0
    code, text = outlast("verify", "a", "--key-file", other)
    assert code == 65
    assert "was signed with key" in text
    assert "Add the missing key" in text
    monkeypatch.setenv(key_file.KEY_FILE, str(tmp_path.parent / "none"))
    assert outlast("verify", "a")[0] == 2


def test_a_flipped_bit_is_damage(outlast: Call, root: Path) -> None:
    file = root / "a" / NEWEST
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    code, text = outlast("verify", "a")
    assert code == 65
    assert "checksum" in text
    assert "holder" not in text
    found, damages = CheckpointStore(open_storage(root / "a"), attempt=3).begin()
    assert found is not None
    assert found.checkpoint == "00-000000000002.0-0001"
    assert len(damages) == 1


def test_the_key_is_the_trust(outlast: Call, root: Path, started: list[str]) -> None:
    """A signed job needs no --trust, and with a key an unsigned one is refused in spite of it."""
    assert outlast("resume", "a")[0] == 0
    assert started == ["a"]
    spec = specs.encode(JobSpec(job="evil", script="t.py"))
    unsigned(open_storage(root / "evil")).create(layout.SPEC, spec)
    code, text = outlast("resume", "evil", "--trust")
    assert code == 65
    assert "it has no MAC" in text
    assert started == ["a"]


def test_without_the_key_it_is_read_but_neither_authenticated_nor_written(
    outlast: Call, root: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = outlast("verify", "a")
    assert (code, "Authenticated with the key" in text) == (0, True)
    assert json.loads(outlast("verify", "a", "--json")[1])["authenticated"] is True
    monkeypatch.delenv(key_file.KEY_FILE)
    code, text = outlast("verify", "a")
    assert code == 0
    assert "They are not authenticated: no key is set" in text
    assert json.loads(outlast("verify", "a", "--json")[1])["authenticated"] is False
    assert outlast("resume", "a")[0] == 3  # not trusted
    with pytest.raises(KeyMissing, match="--key-file"):
        request_stop(open_storage(root / "a"))
    assert len(list((root / "a" / layout.JOURNAL).iterdir())) == 9


@pytest.mark.parametrize("target", ["folder", "bucket"])
def test_a_copy_keeps_what_was_signed(
    outlast: Call, root: Path, tmp_path: Path, target: str
) -> None:
    dest = str(tmp_path / "copy" / "c") if target == "folder" else f"memory://{tmp_path.name}/c"
    assert outlast("copy", "a", dest)[0] == 0
    code, text = outlast("verify", dest)
    assert (code, "Authenticated with the key" in text) == (0, True)
    a, c = (unsigned(open_storage(url)) for url in (str(root / "a"), dest))
    for path in (layout.SPEC, EVENT, ORIGIN, NEWEST, layout.heartbeat(2)):
        assert a.read(path) == c.read(path)
    edit(NEWEST)(root)
    code, text = outlast("copy", "a", str(tmp_path / "again"))
    assert code == 65
    assert REFUSED in text


def test_a_fork_is_signed_as_a_job_of_its_own(outlast: Call, root: Path) -> None:
    assert outlast("fork", "a", "c", "--at", "step:2")[0] == 0
    code, text = outlast("verify", "c")
    assert (code, "Authenticated with the key" in text) == (0, True), text
    found, _ = CheckpointStore(open_storage(root / "c"), attempt=2).begin()
    assert found is not None
    assert found.checkpoint == "00-000000000002.0-0001"
    edit(CHECKPOINTS[1])(root)
    assert outlast("fork", "a", "d", "--at", "step:2")[0] == 65


def test_a_deletion_that_was_cut_short_is_known_without_the_spec(outlast: Call, root: Path) -> None:
    home = open_storage(root)
    submit(home, JobSpec(job="x", script="t.py"))
    request_stop(home.sub("x"))
    Journal(home.sub("x")).append(Removed())
    home.sub("x").delete(layout.SPEC)
    assert outlast("rm", "x")[0] == 0
    assert not (root / "x").exists()


def test_rotation(outlast: Call, root: Path, key: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    shutil.copy(key, keys)
    keys.chmod(0o600)
    assert outlast("key", "rotate", str(keys))[0] == 0
    code, text = outlast("key", "sign", "a", "--key-file", str(keys))
    assert code == 0
    assert "; 0 had been signed with it" in text
    code, text = outlast("key", "sign", "a", "--key-file", str(keys))
    assert "0 documents signed" in text
    keys.write_text(keys.read_text().splitlines()[0] + "\n")  # the old key is gone
    code, text = outlast("verify", "a", "--key-file", str(keys))
    assert (code, "Authenticated with the key" in text) == (0, True)
    assert outlast("verify", "b", "--key-file", str(keys))[0] == 65


def test_a_changed_file_gets_no_mac_of_the_new_key(
    outlast: Call, root: Path, key: Path, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    shutil.copy(key, keys)
    keys.chmod(0o600)
    assert outlast("key", "rotate", str(keys))[0] == 0
    storage = open_storage(root / "a")
    made = manifest.decode(read_document(storage, NEWEST), NEWEST)
    file = root / "a" / layout.checkpoint_file(made.id, made.files[0].name)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    collides = mock.Mock(**{"hexdigest.return_value": made.files[0].hash.removeprefix("xxh3:")})
    assert isinstance(storage, SignedStorage)
    rotated = SignedStorage(storage.inner, key_file.load(keys))
    with mock.patch.object(xxhash, "xxh3_128", return_value=collides):
        done = sign_job.sign_job(rotated)
    assert "was forged" in done.left[NEWEST]


def as_before_macs(root: Path) -> None:
    """Give the manifests of job a SHA-256 in place of MACs, as older versions wrote them."""
    storage = open_storage(root / "a")
    for found in CheckpointStore(storage).ids():
        path = layout.manifest(found)
        made = manifest.decode(read_document(storage, path), path)
        files = tuple(
            msgspec.structs.replace(entry, mac=None, sha256=sha256_of(root, found, entry.name))
            for entry in made.files
        )
        older = msgspec.structs.replace(made, files=files, format=manifest.format_of(files))
        assert older.format == 3
        storage.replace(path, manifest.encode(older))


def sha256_of(root: Path, found: layout.CheckpointId, name: str) -> str:
    path = root / "a" / layout.checkpoint_file(found, name)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_job_of_an_older_version_has_sha256_and_is_still_read(
    outlast: Call, root: Path, tmp_path: Path
) -> None:
    as_before_macs(root)
    code, text = outlast("verify", "a")
    assert (code, "Authenticated with the key" in text) == (0, True), text
    assert outlast("copy", "a", str(tmp_path / "copy"))[0] == 0
    assert outlast("verify", str(tmp_path / "copy"))[0] == 0
    assert "0 documents signed" in outlast("key", "sign", "a")[1]
    storage = open_storage(root / "a")
    made = manifest.decode(read_document(storage, NEWEST), NEWEST)
    forged = tuple(msgspec.structs.replace(entry, sha256="0" * 64) for entry in made.files)
    storage.replace(NEWEST, manifest.encode(msgspec.structs.replace(made, files=forged)))
    assert "was forged (its xxh3 was kept, its SHA-256 differs)" in outlast("verify", "a")[1]
    none = tuple(msgspec.structs.replace(entry, sha256=None) for entry in made.files)
    storage.replace(NEWEST, manifest.encode(msgspec.structs.replace(made, files=none)))
    assert "it has no MAC of a file" in outlast("verify", "a")[1]


def test_a_job_from_before_the_key_is_signed_on_request(
    outlast: Call, root: Path, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(key_file.KEY_FILE, "")
    child = os.fork()
    if child == 0:
        make_two_attempts(root, "old")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    key = root.parent / "new"
    key_file.create(key)
    options = ("--root", str(root), "--key-file", str(key))
    assert outlast("key", "sign", "old", *options)[0] == 65
    assert outlast("key", "sign", "old", "--trust", *options)[0] == 0
    code, text = outlast("verify", "old", *options)
    assert (code, "Authenticated with the key" in text) == (0, True), text
    monkeypatch.setenv(key_file.KEY_FILE, str(key))
    storage = open_storage(root / "old")
    made = CheckpointStore(storage).manifest(CheckpointStore(storage).ids()[-1])
    assert made.format == 4
    assert all(entry.mac for entry in made.files)
    rows = root / "old" / layout.history(1)
    rows.write_bytes(rows.read_bytes().replace(b"1.0", b"2.0"))
    assert outlast("verify", "old", *options)[0] == 65


def test_the_command_line_uses_the_variable_of_the_storage() -> None:
    assert group.KEY_FILE == key_file.KEY_FILE


def test_each_mac_is_that_of_the_file(root: Path) -> None:
    storage: Storage = open_storage(root / "a")
    assert isinstance(storage, SignedStorage)
    store = CheckpointStore(storage)
    for found in store.ids():
        for entry in store.manifest(found).files:
            data = (root / "a" / layout.checkpoint_file(found, entry.name)).read_bytes()
            mac = storage.file_mac(entry.name, entry.mac)
            mac.update(data)
            assert mac.hexdigest() == entry.mac
            assert entry.sha256 is None
        history = store.manifest(found).history
        assert history is not None
        rows = (root / "a" / layout.history(history.attempt)).read_bytes()[: history.mark]
        assert history.sha256 == hashlib.sha256(rows).hexdigest()
