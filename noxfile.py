"""`make test-versions`: the trainings under every version of Keras, TensorFlow and Python.

Each session makes an environment of its own, of some gigabytes; uv keeps what they share.
One of them: `nox --session "keras(3.13)"`. An interpreter that is not here is skipped by name.
"""

from __future__ import annotations

import nox

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False
nox.options.stop_on_first_error = False

# Each minor version of Keras with a TensorFlow of its time; together they cover both ranges.
PAIRS = {"3.12": "2.18", "3.13": "2.19", "3.14": "2.20", "3.15": "2.21"}
OLDEST, *_, NEWEST = PAIRS

TRAINING = ["tests/unit/outlast/training"]
KERAS_OWN = ["tests/keras_own"]  # skipped by name where the wheel has no tests
KILL_AND_RESUME = ["tests/acceptance/test_cli_training.py"]
# Old releases of other packages warn of what new ones have deprecated.
WARNINGS = [f"-Wdefault::{kind}Warning" for kind in ("Deprecation", "PendingDeprecation", "Future")]


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The lowest version of everything that pyproject.toml allows."""
    session.install("--resolution", "lowest-direct", "--editable", ".[test]")
    check(session)


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


def install(session: nox.Session, minor: str, what: str) -> None:
    session.install(f"keras=={minor}.*", f"tensorflow=={PAIRS[minor]}.*", "--editable", what)


def check(session: nox.Session) -> None:
    session.run("python", "-c", "import keras; print(keras.version())")
    for tests in (TRAINING, KERAS_OWN, KILL_AND_RESUME):
        session.run("python", "-m", "pytest", "-n", "2", *WARNINGS, *tests, *session.posargs)
