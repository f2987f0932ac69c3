"""Each place has one normal form, whatever its spelling, and what means two things is refused."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outlast.cli.job_address import absolute, below, find_job, jobs_below
from outlast_checkpoints.errors import StorageError, UsageError
from outlast_checkpoints.format import layout
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.storage.address import normal
from outlast_checkpoints.storage.fsspec_clients import Client
from outlast_checkpoints.storage.remote import FsspecStorage
from outlast_checkpoints.store.spool import Spool

SPELLINGS = {
    "s3://bkt/p/q": [
        "s3://bkt//p/q", "s3://bkt/p//q", "s3://bkt///p/q", "s3://bkt/p/q/", "s3://bkt/p/q//",
        "s3://bkt/./p/q", "s3://bkt/p/x/../q", "s3://bkt/p/q/.", "S3://bkt/p/q", "s3a://bkt/p/q",
    ],
    "s3://bkt": ["s3://bkt/", "s3://bkt//", "S3A://bkt/.", "s3://bkt/p/.."],
    "s3://bkt/a%20b": ["s3://bkt/a%20b/"],  # in a bucket this is another name than "a b"
    "s3://bkt/a b/#1?x=1&y": ["s3://bkt//a b/#1?x=1&y"],
    "gs://bkt/p": ["gcs://bkt//p/", "GS://bkt/p"],
    "az://box/p": ["AZ://box//p"],
    "abfs://box@account.dfs.core.windows.net/p": ["abfss://box@account.dfs.core.windows.net//p/"],
    "memory://a/b": ["memory:///a/b", "memory://a//b/", "MEMORY://./a/b"],
    "http://host/a%20b/~x": [
        "HTTP://Host/a b/~x", "http://host:80//a%20b/%7Ex/", "http://HOST/a%20b/~x",
    ],
    "https://host:8443/a%2Fb/%C3%BC": ["https://host:8443/a%2fb/ü", "https://HOST:8443//a%2Fb/%c3%bc"],
    "/data/jobs": [
        "/data/jobs/", "//data/jobs", "///data//jobs", "/data/./jobs", "/data/x/../jobs",
        "file:///data/jobs", "file://localhost/data/jobs/", "FILE:///data//jobs", "file:/data/jobs",
        "local:///data/jobs",
    ],
    "/data/a b": ["file:///data/a b", "local:///data/a b"],
    "/data/a%20b": ["/data//a%20b", "file:///data/a%20b", "local:///data/a%20b"],
    "/": ["/", "//", "/.."],
}  # fmt: skip

REFUSED = {
    "": "empty",
    "C:\\jobs\\a": "Windows",
    "c:/jobs": "Windows",
    "\\\\server\\share": "Windows",
    "\\\\?\\C:\\jobs": "Windows",
    "runs\\digits": "Windows",
    "s3://bkt\\p": "backslash",
    "s3:/bkt/p": "one slash",
    str(Path("gs://bkt/p")): "one slash",
    "s3://": "no bucket",
    "s3:///p": "no bucket",
    "s3://bkt/../other": "leaves its bucket",
    "s3://bkt/p\n": "control character",
    "s3://bkt/p\r": "control character",
    "file://server/share": "machine 'server'",
    "file://": "no folder",
    "/a\0b": "NUL",
    "http://host/jobs?x=1": "query",
    "http://host/jobs#x": "query",
    "simplecache::s3://bkt/p": "cache",
    "~no-such-user-here/jobs": "home folder",
}


@pytest.mark.parametrize("form", SPELLINGS)
def test_spellings_of_one_place_become_one_form(form: str) -> None:
    for spelling in [form, *SPELLINGS[form]]:
        assert normal(spelling) == form, spelling
        assert absolute(spelling) == form


@pytest.mark.parametrize("address", REFUSED)
def test_ambiguous_addresses_are_refused_by_name(address: str) -> None:
    for opened in (normal, open_storage):
        with pytest.raises(UsageError, match="storage: ") as caught:
            opened(address)
        assert REFUSED[address] in str(caught.value)


def test_relative_folders_and_home_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for spelling in ("a/b", "./a//b/", "a/./c/../b", "a/b/."):
        assert open_storage(spelling).root == str(tmp_path / "a/b")
    assert open_storage("~/jobs").root == f"{tmp_path}/home/jobs"
    assert open_storage("./~/jobs").root == f"{tmp_path}/~/jobs"
    assert open_storage("./s3:/b").root == f"{tmp_path}/s3:/b"


@given(
    st.text("ab./%~ü ", max_size=12), st.sampled_from(["s3://b/", "http://h/", "/", "memory://"])
)
def test_the_normal_form_of_a_normal_form_is_itself(path: str, start: str) -> None:
    try:
        once = normal(start + path)
    except UsageError:
        return
    assert normal(once) == once
    assert not once.endswith("/") or once in ("/", "memory://")


def test_all_commands_name_a_job_alike(tmp_path: Path) -> None:
    root = f"{tmp_path}//jobs/./"
    place = below(root, "digits")
    place.storage.create(layout.SPEC, b"{}")
    assert place.url == place.storage.root == f"{tmp_path}/jobs/digits"
    assert find_job(root, "digits").url == place.url
    assert find_job("elsewhere", f"{root}/digits/").url == place.url
    assert [found.url for found in jobs_below(f"file://{root}")] == [place.url]


def test_one_job_has_one_spool() -> None:
    pytest.importorskip("s3fs")
    spools = {Spool.of(open_storage(url), "life").path for url in ("s3://b//j", "s3a://b/j/")}  # type: ignore[union-attr]
    assert len(spools) == 1


class _NotListing(fsspec.AbstractFileSystem):
    """A store that writes and reads by key, and lists nothing."""

    protocol = "blind"

    def __init__(self) -> None:
        super().__init__(skip_instance_cache=True)
        self.kept: dict[str, bytes] = {}

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: object) -> None:
        if mode == "create" and path in self.kept:
            raise FileExistsError(path)
        self.kept[path] = value

    def ls(self, path: str, detail: bool = True, **_: object) -> list[str]:
        return []

    def rm_file(self, path: str) -> None:
        self.kept.pop(path, None)


def test_a_store_that_does_not_list_what_was_created_is_refused() -> None:
    files = _NotListing()
    storage = FsspecStorage(Client("blind://b/j", filesystem=files), "b/j", "blind://b/j")
    with pytest.raises(StorageError, match="just created is not listed"):
        storage.create("journal/00000001.json", b"x")
    assert files.kept == {}
