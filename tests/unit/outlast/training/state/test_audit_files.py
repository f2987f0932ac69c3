"""Where Keras' callbacks write in an audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import pytest

from outlast.training.state.audit_files import redirect


class Mine(keras.callbacks.ModelCheckpoint):
    """A user's subclass, with an attribute below the same path."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.best_path = f"{path}.best"
        self.other = "somewhere/else"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


def test_paths_move_below_the_audits_folder(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "out" / "log.csv"
    log.parent.mkdir()
    log.write_text("epoch,loss\n0,1.0\n")
    logger = keras.callbacks.CSVLogger(str(log))
    mine = Mine("models/{epoch:02d}-{loss:.2f}.keras")
    backup = keras.callbacks.BackupAndRestore("gs://bucket/backup")
    redirect([logger, mine, backup, keras.callbacks.History()], folder)
    assert logger.filename == f"{folder}{log}"
    assert Path(logger.filename).read_text() == log.read_text()
    assert mine.filepath == f"{folder}/models/{{epoch:02d}}-{{loss:.2f}}.keras"
    assert mine.best_path == f"{mine.filepath}.best"
    assert mine.other == "somewhere/else"
    assert backup.backup_dir == f"{folder}/gs/bucket/backup"
    assert backup._weights_path.startswith(f"{backup.backup_dir}/")
    assert backup._training_metadata_path.startswith(f"{backup.backup_dir}/")


def test_a_board_is_written_there(folder: Path, tmp_path: Path) -> None:
    board = keras.callbacks.TensorBoard(str(tmp_path / "board"), write_graph=False)
    redirect([board], folder)
    board.set_model(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    assert board._train_dir.startswith(str(folder))
    assert not (tmp_path / "board").exists()


def test_a_remote_monitor_sends_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def send(*_: Any, **__: Any) -> None:
        raise AssertionError("it was sent")

    monitor = keras.callbacks.RemoteMonitor()
    sender = __import__(type(monitor).__module__, fromlist=["requests"])
    monkeypatch.setattr(sender, "requests", type("Requests", (), {"post": staticmethod(send)}))
    redirect([monitor], folder)
    monitor.on_epoch_end(0, {"loss": 1.0})
