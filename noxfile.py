"""`make test-versions`: the trainings under every version of Keras, TensorFlow and Python.

Each session makes an environment of its own, of some gigabytes; uv keeps what they share.
One of them: `nox --session "keras(3.13)"`. An interpreter that is not here is skipped by name.
Most wheels of Keras are without Keras' tests. With KERAS_REPOSITORY, the address of Keras' Git
repository or of a copy, they are taken from there, at the tag of the installed version.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False
nox.options.stop_on_first_error = False

# Each minor version of Keras with a TensorFlow of its time; together they cover both ranges.
PAIRS = {"3.12": "2.18", "3.13": "2.19", "3.14": "2.20", "3.15": "2.21"}
OLDEST, *_, NEWEST = PAIRS

# The training tests, Keras' own, and trainings that are killed and resumed.
TRAININGS = [
    "tests/unit/outlast/training",
    "tests/keras_own",
    "tests/acceptance/test_cli_training.py",
]
# What trains nothing, or little: jobs, command line, storages, clusters.
OTHERS = [
    *("tests/unit", "--ignore", "tests/unit/outlast/training"),
    *("tests/contract", "tests/property"),
]
# Old releases of other packages warn of what new ones have deprecated.
WARNINGS = [f"-Wdefault::{kind}Warning" for kind in ("Deprecation", "PendingDeprecation", "Future")]


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The lowest version of everything that pyproject.toml allows."""
    session.install("--resolution", "lowest-direct", "--editable", ".[test]")
    check(session)


@nox.session(python="3.11")
def lowest_others(session: nox.Session) -> None:
    """The same, with the clients of object stores, under the tests of all that is not training."""
    session.install("--resolution", "lowest-direct", "--editable", ".[test,stores]")
    run_tests(session, OTHERS)


@nox.session(python="3.11")
@nox.parametrize("minor", list(PAIRS), ids=list(PAIRS))
def keras(session: nox.Session, minor: str) -> None:
    """A minor version of Keras, and the newest of everything else."""
    install(session, minor, ".[test]")
    check(session)


@nox.session(python=["3.12", "3.13"])
def python(session: nox.Session) -> None:
    """The pinned versions under other versions of Python."""
    session.install("--constraint", "constraints.txt", "--editable", ".[test]")
    check(session)


@nox.session(python="3.11")
@nox.parametrize("way", [(OLDEST, NEWEST), (NEWEST, OLDEST)], ids=["newer", "older"])
def across(session: nox.Session, way: tuple[str, str]) -> None:
    """A checkpoint of one version is resumed under another."""
    folder = session.create_tmp()
    for verb, minor in zip(("write", "resume"), way, strict=True):
        install(session, minor, ".")
        session.run("python", "tests/testbeds/versions/across.py", verb, folder)


@nox.session(python=["3.12", "3.13"])
def across_python(session: nox.Session) -> None:
    """A checkpoint of this Python is resumed under another one, and back."""
    session.install("--constraint", "constraints.txt", "--editable", ".")
    folder = session.create_tmp()
    for one, other in ((sys.executable, "python"), ("python", sys.executable)):
        for verb, python in (("write", one), ("resume", other)):
            session.run(python, "tests/testbeds/versions/across.py", verb, folder, external=True)


def install(session: nox.Session, minor: str, what: str) -> None:
    session.install(f"keras=={minor}.*", f"tensorflow=={PAIRS[minor]}.*", "--editable", what)


def check(session: nox.Session) -> None:
    keras, tensorflow = version_of(session, "keras"), version_of(session, "tensorflow")
    session.log(f"Keras {keras}, TensorFlow {tensorflow}")
    if repository := os.environ.get("KERAS_REPOSITORY"):
        session.env["KERAS_CHECKOUT"] = checkout(session, repository, f"v{keras}")
    run_tests(session, TRAININGS)


def run_tests(session: nox.Session, tests: list[str]) -> None:
    session.run("python", "-m", "pytest", "-n", "2", *WARNINGS, *tests, *session.posargs)


def version_of(session: nox.Session, package: str) -> str:
    ask = f"from importlib.metadata import version; print(version({package!r}))"
    return str(session.run("python", "-c", ask, silent=True)).strip()


def checkout(session: nox.Session, repository: str, tag: str) -> str:
    folder = Path(session.create_tmp(), tag).resolve()  # a test runs elsewhere
    if not folder.exists():
        options = ["--quiet", "--depth", "1", "--branch", tag]
        session.run("git", "clone", *options, repository, str(folder), external=True)
    return str(folder)
