"""Other versions of Keras and TensorFlow resume a checkpoint, or an error names the versions.

Here the versions are only faked. tests/testbeds/versions resumes with other versions for real.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from outlast import Loop
from outlast.training.errors import CheckpointTooOld, StateMismatch, VersionMismatch
from outlast.training.keras_internals import versions
from outlast.training.state import document
from tests.support.training_harness import (
    Death,
    Script,
    assert_same_end,
    begin_process,
    dying_at,
    process,
    train,
)

RNG = np.random.default_rng(5)
X = RNG.normal(size=(20, 4)).astype("float32")
Y = RNG.integers(0, 2, 20)
DATA = {"x": X, "y": Y, "batch_size": 8, "epochs": 2, "save_every": 2}


def net(units: int = 3) -> Any:
    parts = [layers.Input((4,)), layers.Dense(units), layers.Dense(1)]
    model = keras.Sequential(parts)
    model.compile("adam", "mse")
    return model


def larger_net() -> Any:
    return net(5)


SCRIPT = Script(net, DATA)


@pytest.fixture
def died_elsewhere(tmp_path: Path) -> Path:
    """A job that crashed under Keras 3.12.9 and TensorFlow 2.18.9."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras, "__version__", "3.12.9")
        patch.setattr(tf, "__version__", "2.18.9")
        with pytest.raises(Death), dying_at(3):
            train(SCRIPT, tmp_path / "job")
    return tmp_path / "job"


def logs_of(folder: Path) -> str:
    return "".join(path.read_text() for path in sorted(folder.rglob("*.jsonl")))


def test_it_resumes_and_the_log_names_both_versions(died_elsewhere: Path, tmp_path: Path) -> None:
    untouched = train(SCRIPT, tmp_path / "untouched")
    assert_same_end(untouched, train(SCRIPT, died_elsewhere))
    log = logs_of(died_elsewhere)
    assert "versions_changed" in log
    assert "keras 3.12.9 and tensorflow 2.18.9" in log
    assert keras.__version__ in log
    assert "versions_changed" not in logs_of(tmp_path / "untouched")


@pytest.mark.parametrize("name", ["python", "numpy"])
def test_another_python_or_numpy_is_named_and_resumes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = versions.recorded()
    older = {"python": "3.10", "numpy": "1.25.9"}[name]
    monkeypatch.setattr(versions, "recorded", lambda: {**found, name: older})
    with pytest.raises(Death), dying_at(3):
        train(SCRIPT, tmp_path / "job")
    monkeypatch.setattr(versions, "recorded", lambda: found)
    assert_same_end(train(SCRIPT, tmp_path / "untouched"), train(SCRIPT, tmp_path / "job"))
    rows = map(json.loads, logs_of(tmp_path / "job").splitlines())
    (told,) = [row for row in rows if row.get("event") == "versions_changed"]
    assert told["written_with"] == f"{name} {older}"
    assert told["here"] == f"{name} {found[name]}"


def test_another_python_does_not_explain_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = versions.recorded()
    monkeypatch.setattr(versions, "recorded", lambda: {**found, "python": "3.10"})
    with pytest.raises(Death), dying_at(3):
        train(SCRIPT, tmp_path)
    monkeypatch.setattr(versions, "recorded", lambda: found)
    with pytest.raises(StateMismatch) as refused:
        train(Script(larger_net, DATA), tmp_path)
    assert not isinstance(refused.value, VersionMismatch)


def test_a_difference_in_the_state_names_both_versions(died_elsewhere: Path) -> None:
    with pytest.raises(VersionMismatch, match="layers/dense/vars/0") as refused:
        train(Script(larger_net, DATA), died_elsewhere)
    present = " and ".join(f"{name} {version}" for name, version in versions.installed().items())
    assert "written with keras 3.12.9 and tensorflow 2.18.9" in str(refused.value)
    assert f"this is {present}" in str(refused.value)
    assert isinstance(refused.value, StateMismatch)


def test_under_the_same_versions_the_error_names_none(tmp_path: Path) -> None:
    with pytest.raises(Death), dying_at(3):
        train(SCRIPT, tmp_path)
    with pytest.raises(StateMismatch) as refused:
        train(Script(larger_net, DATA), tmp_path)
    assert not isinstance(refused.value, VersionMismatch)
    assert keras.__version__ not in str(refused.value)


def test_a_loop_names_both_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(units: int, version: str) -> None:
        monkeypatch.setattr(keras, "__version__", version)
        begin_process()
        model = net(units)
        with process(tmp_path):
            for x, y in Loop(model, (X, Y), batch_size=8, job_dir=tmp_path, verbose=0):
                model.train_on_batch(x, y)

    here = keras.__version__
    with pytest.raises(Death), dying_at(2):
        run(3, "3.12.9")
    with pytest.raises(VersionMismatch, match=r"keras 3\.12\.9; this is keras \d"):
        run(5, here)


def test_a_document_that_lacks_what_a_resume_needs_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Death), dying_at(3):
        train(SCRIPT, tmp_path)
    unpack = document.unpack

    def of_an_earlier_build(*given: Any) -> Any:
        plain, variables = unpack(*given)
        return {k: v for k, v in plain.items() if k not in ("doubts", "parts")}, variables

    with monkeypatch.context() as patch:
        patch.setattr(document, "unpack", of_an_earlier_build)
        with pytest.raises(CheckpointTooOld, match="lacks doubts, parts") as refused:
            train(SCRIPT, tmp_path)
    assert refused.value.exit_code == 3
    train(SCRIPT, tmp_path)
