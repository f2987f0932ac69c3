"""Fixtures of all tests: job roots, required tools, and the check that no process stays behind."""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.support.object_stores"]

# A developer's own settings do not reach the tests.
for _name in [name for name in os.environ if name.startswith("OUTLAST_")]:
    if _name != "OUTLAST_REQUIRE":
        del os.environ[_name]
os.environ["MPLBACKEND"] = "agg"
# Nor do the tests reach the developer's own cache.
os.environ["OUTLAST_SPOOL"] = tempfile.mkdtemp(prefix="outlast-tests-")
atexit.register(shutil.rmtree, os.environ["OUTLAST_SPOOL"], ignore_errors=True)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# No test depends on speed, and a busy machine generates examples slowly.
settings.register_profile("outlast", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("outlast")

# Whoever starts the tests in the background, or under nohup, has them inherit ignored signals; the
# processes under test would inherit them in turn.
for _signum, _handler in {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGTERM: signal.SIG_DFL,
}.items():
    if signal.getsignal(_signum) is signal.SIG_IGN:
        signal.signal(_signum, _handler)

# Every process started from here inherits this, so that also one that has left our process tree
# (a detached supervisor) is known to be ours.
_MARK = f"TESTS_OF_OUTLAST={uuid.uuid4().hex}"
os.environ.update([_MARK.split("=")])

# Helpers of multiprocessing live as long as the test process itself.
_LASTING = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
# How long an ending process may take until it is gone; no test waits for it when all is well.
_PARTING_SECONDS = 20


def pytest_configure() -> None:
    gc.disable()  # until all is imported: TensorFlow is a million objects, looked at over and over


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("longest") is None)


def pytest_collection_finish() -> None:
    gc.freeze()  # and they stay: nobody need look at them again
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _own_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the list of trusted jobs out of the home of who runs the tests."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture
def job_root(tmp_path: Path) -> Path:
    """An empty folder for jobs."""
    root = tmp_path / "jobs"
    root.mkdir()
    return root


@pytest.fixture
def weird_root(tmp_path: Path) -> Path:
    """An empty folder for jobs whose path has what careless code trips over."""
    root = tmp_path / 'it\'s a "wéird" $(path) #1%20 ☂ 数' / "-jobs*"
    root.mkdir(parents=True)
    return root


@pytest.fixture(scope="session")
def require() -> Callable[[str], str]:
    """Return a function that finds a tool's path by its name.

    Without the tool the test is skipped; with OUTLAST_REQUIRE=all it fails instead.
    """

    def require(tool: str) -> str:
        beside_python = Path(sys.executable).parent / tool
        found = str(beside_python) if beside_python.exists() else shutil.which(tool)
        if found is None:
            _lack(f"{tool} is not installed (.ci/run installs what the tests need)")
        return str(found)

    return require


@pytest.fixture(scope="session")
def require_package() -> Callable[[str], None]:
    """Return a function that asks for an optional package, as `require` asks for a tool."""

    def require_package(package: str) -> None:
        if importlib.util.find_spec(package) is None:
            _lack(f"{package} is not installed (make EXTRAS=test,lint,torch test installs all)")

    return require_package


def _lack(reason: str) -> None:
    if os.environ.get("OUTLAST_REQUIRE") == "all":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _tensorflow_is_seeded() -> None:
    """Seed TensorFlow where it is loaded and nobody has.

    Some test modules turn on op determinism for the whole process, with which unseeded random ops
    raise; whether an earlier test has seeded must not decide about a later one.
    """
    tensorflow = sys.modules.get("tensorflow")
    context = sys.modules.get("tensorflow.python.eager.context")
    if tensorflow is not None and context is not None and context.global_seed() is None:
        tensorflow.random.set_seed(1)


def _is_ours(process: psutil.Process, descendants: set[int]) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False  # it has ended
        lasting = any(name in part for part in process.cmdline() for name in _LASTING)
        if lasting and process.ppid() == os.getpid():  # not what the fork server has forked
            return False
        if process.pid in descendants:
            return True
        name, value = _MARK.split("=")
        return process.environ().get(name) == value
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid}: {' '.join(process.cmdline())[:200]}"
    except psutil.Error:
        return str(process.pid)


@pytest.fixture(autouse=True)
def no_process_left_behind() -> Iterator[None]:
    """Fail a test that leaves a process running, and end that process."""
    before = set(psutil.pids())
    yield
    new = set(psutil.pids()) - before
    if not new:
        return
    descendants = {child.pid for child in psutil.Process().children(recursive=True)}
    left = []
    for pid in new:
        try:
            process = psutil.Process(pid)
        except psutil.NoSuchProcess:
            continue
        if _is_ours(process, descendants):
            left.append(process)
    _, alive = psutil.wait_procs(left, timeout=_PARTING_SECONDS)
    alive = [process for process in alive if _is_ours(process, descendants)]
    if not alive:
        return
    stories = [_describe(process) for process in alive]
    for process in alive:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    pytest.fail("processes left behind:\n  " + "\n  ".join(stories), pytrace=False)
