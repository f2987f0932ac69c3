"""A project whose own modules have common names trains, is killed and resumes as any other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.jobs import SITE

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

TRAIN = """
import os, signal, sys
from pathlib import Path

import checkpoints
import service
import training
import utils
import tests

import keras
from outlast import fit

here = Path(__file__).resolve().parent
for module in (checkpoints, service, training, utils, tests):
    assert Path(module.__file__).resolve().is_relative_to(here), module.__file__

class Killed(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == 13 and not Path("died").exists():
            Path("died").touch()
            os.kill(os.getpid(), signal.SIGKILL)

keras.utils.set_random_seed(7)
x, y = service.data()
model = training.model(utils.UNITS)
model.compile(checkpoints.OPTIMIZER, "mse", metrics=[tests.METRIC])
options = {"job_dir": "job", "save_every": 4} if sys.argv[1:] == ["bare"] else {}
history = fit(model, x, y, epochs=3, batch_size=8, callbacks=[Killed()], verbose=0, **options)
keras.utils.set_random_seed(7)
arrays = [v.numpy().tobytes() for v in (*model.weights, *model.optimizer.variables)]
import hashlib
Path("result").write_text(hashlib.sha256(b"".join(arrays)).hexdigest() + repr(history.history))
"""

SERVICE = """
import numpy as np

def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(64, 4)).astype("float32"), rng.normal(size=(64, 1)).astype("float32")
"""

TRAINING = """
import keras

def model(units):
    layers = [keras.Input((4,)), keras.layers.Dense(units), keras.layers.Dropout(0.2),
              keras.layers.Dense(1)]
    return keras.Sequential(layers)
"""

PARTS = {
    "service": SERVICE,
    "checkpoints": 'OPTIMIZER = "adam"\n',
    "training": TRAINING,
    "utils": "UNITS = 6\n",
    "tests": 'METRIC = "mae"\n',
}


def make_project(folder: Path, layout: str) -> None:
    """Write the project: each part as a module, or as a package with the part in its __init__."""
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    for name, source in PARTS.items():
        if layout == "modules":
            (folder / f"{name}.py").write_text(source)
        else:
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(source)


def train(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    """Run the project once, with nothing on its path that has one of the names."""
    command = [sys.executable]
    if how == "supervised":
        options = ["--root", "jobs", "--name", "job", "--seed", "7", "--save-every", "4"]
        command += ["-m", "outlast", "run", *options, "--backoff", "0", "train.py"]
    else:
        command += ["train.py", "bare"]
    env = {**os.environ, "PYTHONPATH": str(SITE)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The end of the project that has trained, bare, without being killed."""
    folder = tmp_path_factory.mktemp("untouched") / "project"
    make_project(folder, "modules")
    (folder / "died").touch()
    done = train(folder, "bare")
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "result").read_text()


@pytest.mark.parametrize("how", ["bare", "supervised"])
@pytest.mark.parametrize("layout", ["modules", "packages"])
def test_modules_of_the_user_may_have_any_name(
    tmp_path: Path, untouched: str, layout: str, how: str
) -> None:
    folder = tmp_path / "killed"
    make_project(folder, layout)
    done = train(folder, how)
    if how == "bare":
        assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
        done = train(folder, how)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "died").exists()
    assert (folder / "result").read_text() == untouched
