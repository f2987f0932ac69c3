"""A pytest plugin for Keras' tests: it adopts `Model.fit`, unless KEEP_FIT is set.

Left out are tests that never call fit, the XLA twins of those that also run as a graph (tests/unit
compares XLA's programs to the bit), and those of Orbax and JAX where these are not installed. The
outcome of the others is written as JSON, by the test's name, to the file that OUTCOMES names.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import inspect
import json
import os
import re
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import pytest

os.environ["KERAS_BACKEND"] = "tensorflow"
gc.disable()  # until all is imported, as in tests/conftest.py

from keras.src.backend.tensorflow.trainer import TensorFlowTrainer  # noqa: E402

import outlast  # noqa: E402
from outlast.attempt import bare, context  # noqa: E402

if _checkout := os.environ.get("KERAS_CHECKOUT"):  # its tests, as modules of the installed Keras
    for _name in ("callbacks", "trainers"):
        _package = importlib.import_module(f"keras.src.{_name}")
        _package.__path__.append(f"{_checkout}/keras/src/{_name}")

if importlib.util.find_spec("jax") is None:
    # The trainer's tests import jax whatever the backend is; on TensorFlow they do not use it.
    sys.modules["jax"] = types.ModuleType("jax")
    importlib.import_module("keras.src.trainers.trainer_test")
    del sys.modules["jax"]

# What Keras' tests import from the conftest of Keras' repository, which is not installed.
sys.modules["conftest"] = types.ModuleType("conftest")
sys.modules["conftest"].__dict__["skip_if_backend"] = lambda backend, reason: pytest.mark.skipif(
    backend == "tensorflow", reason=reason
)

_outcomes: dict[str, str] = {}


def _as_a_job(model: Any, *args: Any, **kwargs: Any) -> Any:
    """Train with Outlast's fit, which is adopted, each call as a new job."""
    with tempfile.TemporaryDirectory(prefix="outlast-keras-own-") as folder:
        outlast.adopt(f"{folder}/job", strict=True)
        try:
            return _adopted(model, *args, **kwargs)
        finally:
            attempt = context.current()
            if attempt is not None:
                bare.close_bare(attempt)


if "KEEP_FIT" not in os.environ:
    outlast.adopt("replaced by each call")
    _adopted = TensorFlowTrainer.fit
    TensorFlowTrainer.fit = functools.wraps(_adopted)(_as_a_job)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    names = {item.nodeid for item in items}
    kept = [item for item in items if _calls_fit(item) and not _is_left_out(item.nodeid, names)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def _calls_fit(item: pytest.Item) -> bool:
    function = inspect.unwrap(item.function)  # type: ignore[attr-defined]
    return re.search(r"(?<![a-zA-Z])fit\b", inspect.getsource(function)) is not None


def _is_left_out(name: str, names: set[str]) -> bool:
    for package, part in (("orbax", "/orbax_checkpoint_test.py"), ("jax", "_sparse_jax_")):
        if part in name and importlib.util.find_spec(package) is None:
            return True
    stem, _, variant = name.rpartition("_")
    twins = {f"{stem}_non_jit", f"{stem}_graph_fn"} & names
    return variant == "jit" and name not in twins and bool(twins)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        _outcomes[name_of(report.nodeid)] = report.outcome


def name_of(nodeid: str) -> str:
    """Return "trainers/trainer_test.py::…" of any node id."""
    return nodeid.rpartition("keras/src/")[2]


def pytest_sessionfinish() -> None:
    Path(os.environ["OUTCOMES"]).write_text(json.dumps(_outcomes))
