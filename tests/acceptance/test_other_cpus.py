"""A job that resumes on a machine with another number of CPUs ends with the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.jobs import PATH

pytestmark = [pytest.mark.acceptance, pytest.mark.slow]

# Large enough for TensorFlow to split its products between threads.
TRAIN = """
import hashlib, os, signal, sys
from pathlib import Path
import numpy as np, keras
from outlast import fit

class Killed(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == 7 and not Path("died").exists():
            Path("died").touch()
            for pid in (os.environ.get("OUTLAST_SUPERVISOR_PID"), os.getpid()):
                if pid is not None:
                    os.kill(int(pid), signal.SIGKILL)

keras.utils.set_random_seed(9)
x = np.random.default_rng(0).standard_normal((320, 1024)).astype("f")
dense = keras.layers.Dense
model = keras.Sequential([keras.Input((1024,)), dense(1024, "relu"), dense(1024, "relu"), dense(1)])
model.compile(keras.optimizers.Adam(1e-3), "mse")
options = {"job_dir": "job", "save_every": 4} if "bare" in sys.argv else {}
y = x.sum(1, keepdims=True)
fit(model, x, y, batch_size=64, epochs=3, verbose=0, callbacks=[Killed()], **options)
digest = hashlib.sha256(b"".join(v.numpy().tobytes() for v in model.variables))
Path("digest").write_text(digest.hexdigest())
"""


def one_cpu() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


class Folder:
    """A folder with the script; `died` is there where it must not kill itself."""

    def __init__(self, path: Path, *, untouched: bool) -> None:
        self.path = path
        path.mkdir()
        (path / "train.py").write_text(TRAIN)
        if untouched:
            (path / "died").touch()

    def call(
        self, *command: str, before: Callable[[], None] | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.path, env={**os.environ, "PYTHONPATH": PATH, **variables}, preexec_fn=before,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def run(self, *options: str) -> None:
        job = ["--root", ".", "--name", "job", "--seed", "1", "--save-every", "4"]
        self.call("-m", "outlast", "run", *job, *options, "train.py")

    def digest(self) -> str:
        return (self.path / "digest").read_text()


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the training with two threads, not killed."""
    folder = Folder(tmp_path_factory.mktemp("cpus") / "untouched", untouched=True)
    folder.run("--intra-op-threads", "2")
    return folder.digest()


def test_the_number_of_threads_decides_the_bytes(tmp_path: Path, untouched: str) -> None:
    folder = Folder(tmp_path / "one", untouched=True)
    folder.run("--intra-op-threads", "1")
    assert folder.digest() != untouched


def test_a_job_keeps_its_threads_on_a_machine_with_one_cpu(tmp_path: Path, untouched: str) -> None:
    folder = Folder(tmp_path / "killed", untouched=False)
    folder.run("--intra-op-threads", "2")
    assert not (folder.path / "digest").exists()
    stored = json.loads((folder.path / "job/machine.json").read_text())["body"]
    assert stored["intra_op_threads"] == 2
    done = folder.call("-m", "outlast", "resume", "--root", ".", "job", before=one_cpu)
    assert done.returncode == 0, done.stdout + done.stderr
    assert folder.digest() == untouched
    assert "machine_changed" not in (folder.path / "job/attempts/0002/log.jsonl").read_text()


def test_a_bare_script_with_other_threads_is_refused_and_the_variable_is_named(
    tmp_path: Path, untouched: str
) -> None:
    folder = Folder(tmp_path / "bare", untouched=False)
    folder.call("train.py", "bare", TF_NUM_INTRAOP_THREADS="2")
    assert (folder.path / "died").exists()
    done = folder.call("train.py", "bare", before=one_cpu)
    assert done.returncode == 1
    assert "Start the script with TF_NUM_INTRAOP_THREADS=2 in its environment." in done.stderr
    done = folder.call("train.py", "bare", before=one_cpu, TF_NUM_INTRAOP_THREADS="2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert folder.digest() == untouched
