"""Adoption waits until the script imports Keras, and says what it cannot adopt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def fake_keras(tmp_path: Path) -> Path:
    """A Keras of another backend than TensorFlow."""
    package = tmp_path / "keras"
    package.mkdir()
    (package / "__init__.py").write_text("from keras import backend\n")
    (package / "backend.py").write_text("def backend():\n    return 'jax'\n")
    return tmp_path


@pytest.mark.parametrize("strict", [False, True])
def test_another_backend_is_named_when_keras_is_imported(fake_keras: Path, strict: bool) -> None:
    code = (
        "import sys, outlast\n"
        f"outlast.adopt('job', strict={strict})\n"
        "outlast.adopt('job')\n"
        "assert not {'tensorflow', 'keras', 'numpy'} & set(sys.modules)\n"
        "import keras\n"
        "print('trains as in plain Keras')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=fake_keras
    )
    assert done.stderr.count("Keras uses the backend jax, and Outlast trains with TensorFlow") == 1
    assert "set KERAS_BACKEND=tensorflow" in done.stderr
    if strict:
        assert "UsageError: fit: it cannot be adopted: " in done.stderr
    else:
        assert (done.returncode, done.stdout) == (0, "trains as in plain Keras\n")
    assert not (fake_keras / "job").exists()
