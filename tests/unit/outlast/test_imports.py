"""What must be quick to import loads nothing heavy, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("tensorflow", "keras", "h5py", "numpy", "fsspec", "matplotlib", "pandas", "sklearn")

REPORT = f"""
print()
print(*[name for name in {HEAVY!r} if name in sys.modules], sep=",")
"""


def loaded_after(code: str) -> set[str]:
    """Return which heavy packages a fresh process has loaded after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{REPORT}"],
        capture_output=True,
        check=True,
        text=True,
    )
    return set(done.stdout.splitlines()[-1].split(",")) - {""}


def command(*arguments: str) -> str:
    return f"""
from outlast.cli import main
try:
    main({list(arguments)!r})
except SystemExit as left:
    assert not left.code, left.code
"""


def test_the_check_finds_loaded_modules() -> None:
    assert loaded_after("import numpy, fsspec") == {"numpy", "fsspec"}


@pytest.mark.parametrize(
    "code",
    [
        "import outlast_checkpoints",
        "import outlast",
        "import outlast_checkpoints.storage.base, outlast_checkpoints.store.spool_sender",
        "import outlast_checkpoints.history, outlast_checkpoints.store.background_writer",
        "import outlast.job.spec, outlast.job.lifecycle, outlast.job.journal",
        "import outlast.supervisor.supervisor",
    ],
)
def test_importing_loads_nothing_heavy(code: str) -> None:
    assert loaded_after(code) == set()


def test_help_loads_nothing_heavy() -> None:
    assert loaded_after(command("--help")) == set()


def test_help_loads_no_verb() -> None:
    code = command("--help") + "\nassert 'outlast.cli.commands.run' not in sys.modules"
    code += "\nassert not {'outlast.supervisor.supervisor', 'structlog', 'rich'} & set(sys.modules)"
    loaded_after(code)


def test_help_of_every_verb_loads_nothing_heavy() -> None:
    from outlast.cli.group import VERBS

    verbs = [verb for section in VERBS.values() for verb in section]
    code = "\n".join(command(verb, "--help") for verb in verbs)
    assert loaded_after(code) == set()


def test_looking_at_local_jobs_loads_nothing_heavy(tmp_path: object) -> None:
    assert loaded_after(command("list", "--root", str(tmp_path))) == set()


def test_all_public_names_can_be_imported() -> None:
    loaded_after(
        "import outlast_checkpoints as ours\nfor name in ours.__all__: getattr(ours, name)"
    )
