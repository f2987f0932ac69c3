"""Generators are seeded without importing what the script may not want."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def python(code: str, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def fake_tensorflow(tmp_path: Path) -> Path:
    """A package that writes down what is done to it, with a submodule and a data file."""
    package = tmp_path / "tensorflow"
    package.mkdir()
    (package / "data.txt").write_text("data")
    (package / "sub.py").write_text("VALUE = 7\n")
    (package / "__init__.py").write_text(
        "import importlib.resources as r\n"
        "from types import SimpleNamespace as N\n"
        "from tensorflow import sub\n"
        "told = ['imported', r.files('tensorflow').joinpath('data.txt').read_text()]\n"
        "random = N(set_seed=lambda s: told.append(f'seed {s}'))\n"
        "config = N(experimental=N(enable_op_determinism=lambda: told.append('deterministic')))\n"
    )
    return tmp_path


@pytest.mark.parametrize("deterministic", [True, False])
def test_tensorflow_is_seeded_when_the_script_imports_it(
    fake_tensorflow: Path, deterministic: bool
) -> None:
    out = python(
        "import sys\n"
        "from outlast.attempt.seeding import seed_everything\n"
        f"seed_everything(5, deterministic={deterministic})\n"
        "assert 'tensorflow' not in sys.modules and 'numpy' not in sys.modules\n"
        f"sys.path.insert(0, {str(fake_tensorflow)!r})\n"
        "import tensorflow.sub\n"
        "import tensorflow as tf\n"
        "import inspect\n"
        "assert inspect.getsource(tf)\n"
        "assert type(tf.__loader__).__name__ == 'SourceFileLoader'\n"
        "assert tf.__spec__.loader is tf.__loader__\n"
        "print(tf.told, tf.sub.VALUE)\n"
    )
    last = ", 'deterministic'" if deterministic else ""
    assert out == f"['imported', 'data', 'seed 5'{last}] 7\n"


def test_python_and_numpy_give_the_same_numbers_each_time() -> None:
    code = (
        "from outlast.attempt.seeding import seed_everything\n"
        "seed_everything(2**62 + 1, deterministic=True)\n"
        "import random, numpy\n"
        "print(random.random(), numpy.random.rand())\n"
    )
    first = python(code)
    assert python(code) == first
    assert python(code.replace("2**62 + 1", "3")) != first


def test_unseeded_generators_of_numpy_give_the_same_numbers_each_time() -> None:
    """As Optuna's samplers are by default. They differ among themselves, and in each child."""
    code = (
        "import os, sys\n"
        "from outlast.attempt import fresh_seeds\n"
        "from outlast.attempt.seeding import seed_everything\n"
        "seed_everything(7, deterministic=True)\n"
        "import numpy as np\n"
        "def draw():\n"
        "    return [np.random.default_rng().integers(2**40), np.random.RandomState().rand()]\n"
        "one, two = draw(), draw()\n"
        "assert one != two and fresh_seeds.drawn() == 4\n"
        "fresh_seeds.go_on(2)\n"
        "assert draw() == two\n"
        "print(one, two, flush=True)\n"
        "for _ in range(2):\n"
        "    if os.fork() == 0:\n"
        "        print(draw(), file=sys.stderr, flush=True)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
    )
    done = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert done[0].stdout == done[1].stdout != ""
    assert len({line for one in done for line in one.stderr.splitlines()}) == 4


def test_imported_modules_are_seeded_immediately() -> None:
    out = python(
        "import numpy\n"
        "from outlast.attempt.seeding import seed_everything\n"
        "seed_everything(9, deterministic=True)\n"
        "a = numpy.random.rand()\n"
        "numpy.random.seed(9)\n"
        "print(a == numpy.random.rand())\n"
    )
    assert out == "True\n"


def test_a_module_that_is_not_there_stays_an_import_error(tmp_path: Path) -> None:
    out = python(
        "import sys\n"
        "from outlast.attempt.seeding import after_import\n"
        "after_import({'not_there_at_all': print})\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        import not_there_at_all\n"
        "    except ModuleNotFoundError as error:\n"
        "        print(error.name)\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        f"open({str(tmp_path / 'not_there_at_all.py')!r}, 'w').write('X = 1')\n"
        "import importlib; importlib.invalidate_caches()\n"
        "import not_there_at_all\n"
    )
    lines = out.splitlines()
    assert lines[:2] == ["not_there_at_all"] * 2
    assert lines[2].startswith("<module 'not_there_at_all'")  # the hook waited for it
