"""`import outlast_checkpoints` imports nothing heavy and offers every name."""

from __future__ import annotations

import subprocess
import sys

import pytest

import outlast_checkpoints

HEAVY = {"tensorflow", "keras", "h5py", "numpy", "fsspec", "tenacity", "ml_dtypes", "pytest"}


def loaded_after(statement: str) -> set[str]:
    script = f"{statement}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert not loaded_after("import outlast_checkpoints") & HEAVY


def test_reading_a_job_loads_nothing_heavy() -> None:
    statement = (
        "from outlast_checkpoints import CheckpointStore, HistoryReader, Keep, open_storage\n"
        "storage = open_storage('/nonexistent')\n"
        "assert CheckpointStore(storage).latest() == (None, [])\n"
        "assert list(HistoryReader(storage).rows()) == []"
    )
    assert not loaded_after(statement) & HEAVY


@pytest.mark.parametrize("name", outlast_checkpoints.__all__)
def test_every_public_name_is_available(name: str) -> None:
    assert getattr(outlast_checkpoints, name).__module__.startswith("outlast_checkpoints.")


def test_other_names_are_not_available() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        outlast_checkpoints.nonsense  # noqa: B018
