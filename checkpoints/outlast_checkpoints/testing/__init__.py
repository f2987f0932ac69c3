"""Tools for testing storages: faults on demand, sample snapshots and a conformance suite.

The suite needs pytest: `pip install 'outlast[testing]'`. To check a storage that you have written,
subclass `StorageConformance` with a fixture `storage` that returns an empty one:

    class TestMyStorage(StorageConformance):
        @pytest.fixture
        def storage(self, tmp_path):
            return MyStorage(tmp_path)
"""

from outlast_checkpoints.testing.faulty_storage import CHANGING, FAULTS, Died, FaultyStorage
from outlast_checkpoints.testing.samples import sample_snapshot
from outlast_checkpoints.testing.storage_suite import StorageConformance

__all__ = [
    "CHANGING",
    "FAULTS",
    "Died",
    "FaultyStorage",
    "StorageConformance",
    "sample_snapshot",
]
