"""The kernel kills an attempt whose control group has no memory left. Needs root and cgroups."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from outlast.job.lifecycle import State
from outlast.job.outcome import Outcome
from tests.acceptance.plain import Make

pytestmark = pytest.mark.acceptance

LIMIT = 64 << 20  # bytes
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")

# The first attempt joins the group and takes more memory than that has, while it trains.
GREEDY = """
if ctx.attempt == 1:
    (pathlib.Path((here / "group").read_text()) / "cgroup.procs").write_text(str(os.getpid()))
    for _ in range(5):
        step()
    commit(5)
    taken = []
    while True:
        taken.append(bytearray(b"1" * (1 << 20)))
for _ in range(3):
    step()
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with little memory."""
    first = V1 if V1.is_dir() else V2
    files = {V1: "memory.limit_in_bytes", V2: "memory.max"}
    folder = first / f"outlast-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
        (folder / files[first]).write_text(str(LIMIT))
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()
        # No package brings this right.
        pytest.skip(f"control groups for memory cannot be made here: {error}")
    for swap in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
        with suppress(OSError):  # without swap there is nothing to forbid
            (folder / swap).write_text(str(LIMIT if first == V1 else 0))
    yield folder
    folder.rmdir()


def test_an_attempt_that_the_kernel_kills_for_its_memory_is_followed_by_the_next(
    job: Make, group: Path
) -> None:
    plain = job(GREEDY)
    (plain.folder / "group").write_text(str(group))
    assert plain.run() == 0, plain.diagnostics()
    first, second = plain.ends
    assert (first.outcome, first.signal, first.advanced) == (Outcome.KILLED, 9, True)
    assert "perhaps out of memory" in first.reason
    assert second.outcome is Outcome.COMPLETED
    assert plain.job.state is State.SUCCEEDED
