"""Runs Keras' own trainer and callback tests with `Model.fit` replaced by ours.

They are those of the installed Keras, or, where it has none, those of the checkout of Keras'
repository, at the same version, that KERAS_CHECKOUT names.

A test that fails with ours has to fail with Keras' own fit as well (for want of torch, Grain,
TensorBoard or Orbax, say).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import keras
import pytest

INSTALLED = Path(keras.__file__).parents[1]
WHOLE = (INSTALLED / "keras/src/trainers/trainer_test.py").exists()  # most wheels have no tests
TOP = INSTALLED if WHOLE else Path(os.environ.get("KERAS_CHECKOUT", INSTALLED))
KERAS = TOP / "keras" / "src"
HERE = Path(__file__).parent

# Keras 3.13's test of Orbax cannot even be collected without Orbax.
LEFT_OUT = () if find_spec("orbax") else ("orbax_checkpoint_test.py",)
PARTS = {
    "trainers": ["trainers/trainer_test.py"],
    "callbacks": sorted(
        str(path.relative_to(KERAS))
        for path in KERAS.glob("callbacks/*_test.py")
        if path.name not in LEFT_OUT
    ),
}


class Run(NamedTuple):
    outcomes: dict[str, str]
    printed: str

    def failed(self) -> set[str]:
        return {name for name, outcome in self.outcomes.items() if outcome == "failed"}


def run_tests(folder: Path, tests: list[str], *options: str, keep_fit: bool = False) -> Run:
    """Run tests of Keras in a separate process."""
    folder.mkdir()
    config = folder / "pytest.ini"
    config.write_text("[pytest]\nmarkers =\n  requires_trainable_backend\n  multi_device\n")
    outcomes = folder / "outcomes.json"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
        "OUTCOMES": str(outcomes),
        "TMPDIR": str(folder),
    }
    if keep_fit:
        environment["KEEP_FIT"] = "1"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-c", str(config), f"--rootdir={TOP}"),
            *("-p", "fit_replaced", "-p", "no:cacheprovider", "-q", "--tb=short", *options),
            *(str(KERAS / test) for test in tests),
        ],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert outcomes.exists(), done.stdout[-5000:]
    return Run(json.loads(outcomes.read_text()), done.stdout)


@pytest.mark.slow
@pytest.mark.longest
@pytest.mark.parametrize("part", PARTS)
def test_tests_of_keras_pass_with_our_fit(part: str, tmp_path: Path) -> None:
    if not (KERAS / PARTS[part][0]).exists():
        pytest.skip("this Keras was installed without its tests")
    ours = run_tests(tmp_path / "ours", PARTS[part])
    passed = [name for name, outcome in ours.outcomes.items() if outcome == "passed"]
    assert len(passed) > 30, ours.printed[-5000:]
    failed = ours.failed()
    if failed:
        # Only their own fit tells whether these can pass here at all.
        failed -= run_tests(tmp_path / "keras", sorted(failed), keep_fit=True).failed()
    assert not failed, ours.printed[-20000:]
