"""Options from command line, environment and file: precedence and invalid values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from outlast.cli.commands.run import run
from outlast.cli.commands.submit import submit
from outlast.cli.config import read_config
from outlast.cli.new_job import ScriptVerb
from outlast.cli.values import duration
from outlast_checkpoints.errors import UsageError

Parsed = dict[str, Any]


def parse(*arguments: str) -> Parsed:
    """Return what `outlast run` would be called with."""
    with run.make_context("run", list(arguments)) as ctx:
        return {**ctx.params, "defaults": dict(ctx.default_map or {})}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "job.toml"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("OUTLAST_")]:
        monkeypatch.delenv(name)


def test_the_command_line_overrides_environment_file_and_default(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = [parse("train.py")["keep"]]
    config.write_text('keep = "last:1"\n')
    file = ("--config", str(config))
    seen.append(parse(*file, "train.py")["keep"])
    monkeypatch.setenv("OUTLAST_KEEP", "last:2")
    seen.append(parse(*file, "train.py")["keep"])
    seen.append(parse(*file, "--keep", "last:5", "train.py")["keep"])
    assert seen == ["last:3", "last:1", "last:2", "last:5"]


@pytest.mark.parametrize(
    ("arguments", "adopt", "command"),
    [
        (["train.py"], "no", ("train.py",)),
        (["--adopt", "train.py"], "yes", ("train.py",)),
        (["--adopt=strict", "train.py", "--adopt"], "strict", ("train.py", "--adopt")),
        (["--keep", "all", "--adopt", "--", "train.py", "--adopt"], "yes", ("train.py", "--adopt")),
        (["--adopt", "--name", "strict", "-m", "strict"], "yes", ("strict",)),
    ],
)
def test_the_value_of_adopt_is_optional(
    arguments: list[str], adopt: str, command: tuple[str, ...]
) -> None:
    found = parse(*arguments)
    assert (found["adopt"], found["command"]) == (adopt, command)


def test_adopt_can_be_in_a_file_and_in_the_environment(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("adopt = 'yes'")
    assert parse("--config", str(config), "train.py")["adopt"] == "yes"
    for said, adopt in (("strict", "strict"), ("1", "yes"), ("false", "no")):
        monkeypatch.setenv("OUTLAST_ADOPT", said)
        assert parse("train.py")["adopt"] == adopt
    with pytest.raises(click.BadParameter, match="Use --adopt, or --adopt=strict"):
        parse("--adopt=most", "train.py")


@pytest.mark.parametrize("head", ["", "[job]\n"])
def test_every_kind_of_option_can_be_in_a_file(config: Path, head: str) -> None:
    config.write_text(
        f"{head}save-every = 100\nmax_retries = 7\ndeterministic = false\nstall-timeout = '5m'\n"
        "seed = 4\nscript = 'train.py'\nargs = ['--lr', 0.1]\nenv = {A = 'x', B = 2}\n"
    )
    found = parse("--config", str(config))
    picked = ("save_every", "max_retries", "deterministic", "stall_timeout", "seed", "env")
    assert [found[name] for name in picked] == [
        "100", 7, False, 300.0, 4, (("A", "x"), ("B", "2")),
    ]  # fmt: skip
    assert found["defaults"]["script"] == "train.py"
    assert found["defaults"]["args"] == ["--lr", "0.1"]


def test_pairs_can_be_a_list(config: Path) -> None:
    config.write_text("engine-option = ['partition=low', 'account=a=b']")
    assert parse("--config", str(config), "x")["engine_option"] == (
        ("partition", "low"),
        ("account", "a=b"),
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("save_evry = 5", "unknown option 'save_evry'. Did you mean 'save_every'"),
        ("[job]\nkepe = 5", "unknown option 'kepe'. Did you mean 'keep'?"),
        ("zzz = 1", "unknown option 'zzz'. Use the option names of `outlast run --help`"),
        ("config = 'a'", "unknown option 'config'"),
        ("debug = true", "unknown option 'debug'"),
        ("root = 'x'\n[job]\nkeep = 1", "'root' is outside the table [job]"),
        ("keep = 'none'", "'keep': unknown rule 'none'"),
        ("max_retries = true", "'max_retries' must be a single value"),
        ("max_retries = 'a'", "'max_retries': 'a' is not a valid integer"),
        ("max_retries = -1", "'max_retries': -1 is not in the range x>=0"),
        ("on_nan = 'maybe'", "'on_nan': 'maybe' is not one of"),
        ("deterministic = 'yes'", "'deterministic' must be true or false"),
        ("env = 'A'", "'env' must be a table, or a list of 'NAME=VALUE'"),
        ("env = ['A']", "'env': Invalid pair 'A'. Use NAME=VALUE. Correct the file."),
        ("args = 'x'", "'args' must be a list of strings"),
        ("script = 3", "'script' must be a string"),
        ("script = 'a'\nmodule = 'b'", "'script' and 'module' exclude each other"),
        ("keep = [1", "the file is not valid TOML"),
    ],
)
def test_invalid_files_are_refused(config: Path, content: str, said: str) -> None:
    config.write_text(content)
    with pytest.raises(UsageError) as caught:
        parse("--config", str(config), "train.py")
    assert said in str(caught.value)
    assert str(config) in str(caught.value)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read_config(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not UTF-8"):
        read_config(tmp_path / "binary.toml")
    with pytest.raises(UsageError, match="directory"):
        read_config(tmp_path)


def test_everything_after_the_script_belongs_to_the_script() -> None:
    found = parse("--keep", "2", "train.py", "--keep", "9", "--", "-m", "--help")
    assert found["keep"] == "2"
    assert found["command"] == ("train.py", "--keep", "9", "--", "-m", "--help")


def test_a_module_replaces_the_script() -> None:
    found = parse("-m", "package.train", "--lr", "1")
    assert found["module"] is True
    assert found["command"] == ("package.train", "--lr", "1")


def test_an_unknown_option_before_the_script_is_refused() -> None:
    with pytest.raises(click.NoSuchOption, match="--save-evry"):
        parse("--save-evry", "3", "train.py")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90.0), ("90s", 90.0), ("1.5h", 5400.0), ("30m", 1800.0), ("1d", 86400.0), ("off", 0.0)],
)
def test_valid_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "-1", "1 hour", "1e3", "nan", "inf", "5ms"])
def test_invalid_durations(text: str) -> None:
    with pytest.raises(click.BadParameter, match="Invalid duration"):
        duration(text)


@pytest.mark.parametrize("verb", [run, submit])
def test_every_option_is_explained(verb: ScriptVerb) -> None:
    found = [param for param in verb.params if isinstance(param, click.Option)]
    assert len(found) > 20
    assert [param.name for param in found if not param.help] == []


def test_every_variable_is_named_after_its_option() -> None:
    named = {
        param.envvar: param.name
        for param in run.params
        if isinstance(param, click.Option) and param.envvar
    }
    assert named["OUTLAST_SAVE_EVERY"] == "save_every"
    assert all(variable == f"OUTLAST_{name}".upper() for variable, name in named.items())


@pytest.mark.parametrize(
    "given", [["--gpus", "1"], ["--partition", "low"], ["--sbatch", "account=a"]]
)
def test_an_option_of_slurm_needs_the_engine_slurm(tmp_path: Path, given: list[str]) -> None:
    (tmp_path / "train.py").touch()
    command = ["--root", str(tmp_path / "jobs"), *given, str(tmp_path / "train.py")]
    with (
        submit.make_context("submit", command) as ctx,
        pytest.raises(UsageError, match=rf"^{given[0]}: .* Add --engine slurm\.$"),
    ):
        submit.invoke(ctx)
    assert not (tmp_path / "jobs").exists()


@pytest.mark.parametrize("name", ["--audit", "--audit-every"])
def test_how_often_to_audit(name: str) -> None:
    assert run.make_context("run", [name, "30m", "train.py"]).params["audit_every"] == "30m"
    with pytest.raises(click.BadParameter, match="'often' is not understood"):
        run.make_context("run", [name, "often", "train.py"])
