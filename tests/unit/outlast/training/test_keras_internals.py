"""Only one folder uses private parts of Keras and TensorFlow; untested versions are refused."""

from __future__ import annotations

import ast
import re
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import keras
import pytest
import tensorflow as tf

import outlast.training
from outlast.training.errors import VersionUnsupported
from outlast.training.keras_internals import versions
from outlast_checkpoints.errors import OutlastError

ROOM = Path(outlast.training.__file__).parent
TOP = Path(__file__).parents[4]
PRIVATE_PACKAGES = re.compile(r"(keras\.src|tensorflow\.python)\b")
# Of Python, torch and Optuna: executors, frames, DataLoader iterators, other jobs, trials.
NOT_THEIRS = {"_trial_id", "_processes", "_workers", "_close", "_is_retried", "_getframe"}


def private_uses(source: str) -> Iterator[str]:
    """Yield private parts of other packages in a module: imports, chains, underscored names."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not own and re.match(r"_[a-z]", node.attr) and node.attr not in NOT_THEIRS:
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            names = []
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if re.match(r"_[a-z]", str(name)) and name not in NOT_THEIRS:
                yield ast.unparse(node)
        else:
            continue
        yield from (name for name in names if PRIVATE_PACKAGES.match(name))


def test_private_parts_of_keras_and_tensorflow_are_used_in_keras_internals_only() -> None:
    found = {
        f"{path.relative_to(ROOM)}: {use}"
        for path in ROOM.rglob("*.py")
        if path.parent.name != "keras_internals"
        for use in private_uses(path.read_text())
    }
    assert found == set()


@pytest.mark.parametrize(
    "source",
    [
        "from keras.src.utils import naming",
        "from keras import src",
        "import tensorflow.python.eager.context",
        "def f():\n    from tensorflow.python.eager import context",
        "keras.src.backend.floatx()",
        "model._flatten_layers()",
        "self.model._symbolic_build()",
        'getattr(model, "_compile_config", None)',
    ],
)
def test_the_search_finds_private_parts(source: str) -> None:
    assert list(private_uses(source))


def test_the_search_leaves_public_and_own_parts() -> None:
    source = "import keras\nfrom keras import tree\nself._model.built\ncls._of(keras.__version__)"
    assert list(private_uses(source)) == []


# --- versions ------------------------------------------------------------------------------------


def test_the_supported_ranges_are_those_of_the_project() -> None:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    for package in versions.SUPPORTED:
        assert f"{package}{versions.range_of(package)}" in project["dependencies"]


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("keras", "3.12.1"),
        ("keras", "3.13.2"),
        ("keras", "3.15.99"),
        ("tensorflow", "2.18.0"),
        ("tensorflow", "2.21.0+nv25"),
    ],
)
def test_a_version_in_the_range_is_accepted(
    package: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr({"keras": keras, "tensorflow": tf}[package], "__version__", version)
    monkeypatch.setitem(versions.SUPPORTED, _other(package), ((0,), (99,)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versions.require_supported()


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("keras", "3.12.0"),
        ("keras", "3.9.2"),
        ("keras", "3.13.1"),
        ("keras", "3.16.0rc1"),
        ("keras", "4.0"),
        ("tensorflow", "2.17.1"),
        ("tensorflow", "2.22.0-dev20260901"),
        ("tensorflow", "unknown"),
    ],
)
def test_another_version_is_refused_by_name(
    package: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(versions.ALLOW_UNTESTED, raising=False)
    monkeypatch.setattr({"keras": keras, "tensorflow": tf}[package], "__version__", version)
    monkeypatch.setitem(versions.SUPPORTED, _other(package), ((0,), (99,)))
    with pytest.raises(VersionUnsupported) as refused:
        versions.require_supported()
    assert isinstance(refused.value, OutlastError)
    assert isinstance(refused.value, ImportError)
    for part in (package, version, versions.range_of(package), "pip install", "=1"):
        assert part in str(refused.value)


def test_the_variable_lifts_the_refusal_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(versions.ALLOW_UNTESTED, "1")
    monkeypatch.setattr(keras, "__version__", "3.99.0")
    monkeypatch.setattr(tf, "__version__", "2.99.0")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        versions.require_supported()
    (warning,) = warned
    assert "keras 3.99.0" in str(warning.message)
    assert "tensorflow 2.99.0" in str(warning.message)


def _other(package: str) -> str:
    return "tensorflow" if package == "keras" else "keras"
