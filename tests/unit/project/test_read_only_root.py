"""A pod of deploy/kubernetes trains although its root file system is read-only.

Its folders are laid out in a mount namespace as its Job says: the root read-only, the emptyDirs and
the claim writable. No cluster and no container is needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from outlast.engines.kubernetes import KubernetesEngine
from outlast.job.journal import Journal
from outlast.job.lifecycle import State
from outlast.job.spec import JobSpec
from outlast.job.submission import submit
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.checkpoint_store import CheckpointStore
from tests.acceptance.jobs import PATH, TOP
from tests.support.object_stores import lack

TRAINING = """
import os, pathlib, tempfile
import keras, numpy as np
from outlast import fit

for path in ("/usr/x", "/x", str(pathlib.Path(__file__).with_name("x")), "/etc/x"):
    try:
        open(path, "w")
    except OSError as error:
        assert error.errno == 30, error  # a read-only file system
    else:
        raise SystemExit(f"{path} can be written")
assert tempfile.gettempdir() == "/tmp"
(pathlib.Path.home() / "mine").write_text("in the home folder")
keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
fit(model, np.ones((8, 2), "float32"), np.ones((8, 1), "float32"), epochs=2, verbose=0)
"""

# $1: the new root; $2: the folder of the claim, at the same path inside. Then writable folders,
# "--", more folders that are to be read, "--" and the command. The mounts are of this namespace
# alone and go away with its last process.
ENTER = """
set -eu
root=$1 claim=$2; shift 2
mount --make-rprivate /
mount -t tmpfs tmpfs "$root"
for path in /*; do
  name=${path#/}
  if [ -L "$path" ]; then cp -P "$path" "$root/$name"
  elif [ -d "$path" ] && [ "$path" != /tmp ]; then
    mkdir "$root/$name"
    mount --rbind "$path" "$root/$name"
    case $name in dev|proc|sys) ;; *) mount -o remount,bind,ro "$root/$name" ;; esac
  fi
done
mkdir -p "$root/tmp"
while [ "$1" != -- ]; do
  mkdir -p "$root$1"
  mount -t tmpfs -o mode=1777 tmpfs "$root$1"
  shift
done
shift
while [ "$1" != -- ]; do
  mkdir -p "$root$1"
  mount --bind "$1" "$root$1"
  mount -o remount,bind,ro "$root$1"
  shift
done
shift
mkdir -p "$root$claim"
mount --bind "$claim" "$root$claim"
mount -o remount,ro "$root"
exec chroot "$root" setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


def test_a_pod_trains_with_a_read_only_root(require: Callable[[str], str], tmp_path: Path) -> None:
    for program in ("unshare", "setpriv", "chroot", "mount"):
        require(program)
    if os.geteuid() != 0:
        lack("only root can mount")
    for name in ("root", "claim", "image"):
        (tmp_path / name).mkdir()
    script = tmp_path / "image" / "train.py"
    script.write_text(TRAINING)
    jobs = open_storage(tmp_path / "claim")
    storage = jobs.sub("digits")
    options = {"image": "outlast", "claim": "jobs"}
    spec = JobSpec(
        job="digits", script=str(script), engine="kubernetes", engine_options=options, max_retries=0
    )
    submit(jobs, spec)
    made: dict[str, Any] = yaml.safe_load(KubernetesEngine().plan(spec, storage))
    pod = made["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    places = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    empty = [places[one["name"]] for one in pod["volumes"] if "emptyDir" in one]
    assert places["root"] == str(tmp_path / "claim")
    given = {one["name"]: one.get("value", "digits-1") for one in container["env"]}
    command = [sys.executable, *container["command"][1:]]
    # The emptyDir at /tmp hides what lies below it, as this project may.
    mine = {str(TOP), sys.prefix, sys.base_prefix}
    read = [script.parent, *(path for path in sorted(mine) if path.startswith("/tmp/"))]
    inside = ["unshare", "--mount", "sh", "-c", ENTER, "sh", tmp_path / "root", places["root"],
              *empty, "--", *read, "--"]  # fmt: skip
    probe = subprocess.run([*inside, "true"], capture_output=True, text=True, cwd="/")
    if probe.returncode:  # no package brings this right
        pytest.skip(f"this machine does not let its root make mount namespaces: {probe.stderr}")
    done = subprocess.run(
        [*inside, *command],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": PATH, "TF_CPP_MIN_LOG_LEVEL": "3", **given},
        capture_output=True, text=True, timeout=300, cwd="/",
    )  # fmt: skip
    output = storage.local_path("attempts/0001/output.log")
    said = output.read_text() if output and output.exists() else ""
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:], said[-2000:])
    assert Journal(storage).existing_job().state is State.SUCCEEDED
    assert CheckpointStore(storage).finished_phases()
