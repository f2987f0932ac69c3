"""Nothing is ever pickled: checked by imports and by calls."""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import outlast
import outlast_checkpoints
from outlast.job.events import Claimed, Submitted
from outlast.job.journal import Journal
from outlast.job.process_identity import here
from outlast_checkpoints.history import HistoryReader, HistoryWriter
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from outlast_checkpoints.testing import sample_snapshot

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {"torch.load", "torch.save", "np.load", "numpy.load", "pd.read_pickle", "pd.to_pickle"}


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for package in (outlast_checkpoints, outlast):
        for path in Path(package.__file__ or "").parent.rglob("*.py"):
            yield path, ast.parse(path.read_text())


def names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func)
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "safe_mode"):
            yield f"{node.arg}={ast.unparse(node.value)}"


def test_no_source_imports_or_calls_pickle() -> None:
    wrong = MODULES | CALLS | {"allow_pickle=True", "safe_mode=False"}
    found = [(path.name, name) for path, tree in sources() for name in names(tree) if name in wrong]
    assert found == []


def test_the_scan_finds_pickle() -> None:
    text = "import pickle\nfrom dill import x\nnp.load(f, allow_pickle=True)\n"
    assert set(names(ast.parse(text))) == {"pickle", "dill", "np.load", "allow_pickle=True"}


def test_a_job_is_written_and_read_without_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("pickled")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    storage = open_storage(tmp_path / "job")
    journal = Journal(storage)
    journal.append(Submitted())
    journal.append(Claimed(attempt=1, owner=here()))
    store = CheckpointStore(storage, attempt=1)
    store.begin()
    history = HistoryWriter(storage, 1)
    history.append({"kind": "step", "step": 1, "logs": {"loss": 1.0}})
    history.close()
    made = store.save(sample_snapshot(1), reason="step")
    loaded = CheckpointStore(storage).load(made.id)
    assert loaded.files.keys() == sample_snapshot(1).files.keys()
    assert len(list(HistoryReader(storage).rows())) == 1
    for path in filter(Path.is_file, (tmp_path / "job").rglob("*")):
        content = path.read_bytes()  # HDF5, or text: nothing else is stored
        if not content.startswith(b"\x89HDF\r\n\x1a\n"):
            assert content.decode().lstrip()[0] == "{", path
