"""Every backend passes the one suite."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outlast import backends
from outlast.backends.base import Backend
from outlast.backends.local import LocalBackend
from outlast.backends.testing import BackendConformance, Launched
from outlast.errors import BackendFailed, PluginUnknown, SpecInvalid
from outlast.job.spec import JobSpec
from outlast_checkpoints.storage import open_storage

PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def first_process() -> Iterator[None]:
    """Be to orphans what a container's first process is: they become children of this one."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    yield
    libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class TestLocalBackend(BackendConformance):
    def make(self) -> Backend:
        return LocalBackend()

    def test_a_missing_working_directory_is_named(self, tmp_path: Path) -> None:
        spec = JobSpec(job="j", script="a.py", cwd=str(tmp_path / "gone"))
        with pytest.raises(BackendFailed, match="gone"):
            LocalBackend().launch(spec, open_storage(tmp_path / "j"), 1)

    def test_a_storage_that_others_cannot_see_is_refused(self, tmp_path: Path) -> None:
        spec = JobSpec(job="j", script="a.py", cwd=str(tmp_path))
        with pytest.raises(SpecInvalid, match="one process only"):
            LocalBackend().launch(spec, open_storage("memory://j"), 1)

    @pytest.mark.usefixtures("first_process")
    def test_as_first_process_of_a_container_it_reaps_all_children(
        self, launch: Callable[..., Launched]
    ) -> None:
        launched = launch(
            "import os, signal, subprocess\n"
            "ready(str(subprocess.Popen(['sleep', '1000']).pid))\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        orphan = Path("/proc") / launched.ready()
        launched.end()
        launched.until(lambda: launched.end() and not orphan.exists())


def test_backends_are_known_by_name() -> None:
    assert "local" in backends.names()
    assert isinstance(backends.get("local"), LocalBackend)
    with pytest.raises(PluginUnknown, match="local"):
        backends.get("abacus")
