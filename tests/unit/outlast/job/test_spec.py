"""The spec of a job: an invalid value is refused, and its field is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from outlast.errors import SpecInvalid
from outlast.job import spec as specs
from outlast.job.spec import JobSpec, new_job_id, spec_env
from outlast_checkpoints.errors import FormatTooNew
from outlast_checkpoints.format.layout import check_name


def test_a_spec_round_trips() -> None:
    spec = JobSpec(
        job="train-1",
        script="weird name ☂.py",
        args=["--lr", "1e-3", "it's"],
        cwd="/tmp",
        env={"OUTLAST_X": "1"},
        save_every="100,epoch",
        keep="last:3,best:val_loss:min:2",
        seed=7,
        on_nan="stop",
        engine_options={"partition": ["a", 1]},
    )
    assert specs.decode(specs.encode(spec)) == spec


def test_two_specs_get_two_seeds() -> None:
    seeds = {JobSpec(job="a").seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("job", "../up"),
        ("job", ""),
        ("save_every", "sometimes"),
        ("keep", "the best"),
        ("max_retries", -1),
        ("backoff", float("nan")),
        ("backoff_max", -0.1),
        ("stall_timeout", float("inf")),
        ("heartbeat_every", 0.0),
        ("replicas", 0),
        ("intra_op_threads", 0),
        ("grace", -1.0),
        ("lost_after", 3.0),
        ("seed", -1),
        ("seed", 2**63),
        ("on_nan", "explode"),
        ("on_save_error", "shrug"),
        ("env", {"1X": "a"}),
        ("env", {"X": "a\0b"}),
        ("script", ""),
    ],
)
def test_a_bad_value_is_refused_with_its_field(field: str, value: object) -> None:
    with pytest.raises(SpecInvalid) as caught:
        JobSpec(**{"job": "a", field: value})
    assert caught.value.fields["field"] == field
    assert caught.value.exit_code == 3


def test_script_and_module_exclude_each_other() -> None:
    with pytest.raises(SpecInvalid, match="script"):
        JobSpec(job="a", script="a.py", module="a")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"max_retries": "three"}, "max_retries"),
        ({"args": ["a", 1]}, "args[1]"),
        ({"on_nan": "explode"}, "on_nan"),
        ({"save_every": "x"}, "save_every"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_damaged_file_is_refused_with_its_field(change: dict[str, object], field: str) -> None:
    data = json.loads(specs.encode(JobSpec(job="a")))
    with pytest.raises(SpecInvalid) as caught:
        specs.decode(json.dumps({**data, **change}).encode())
    assert field in str(caught.value)


def test_a_newer_format_says_that_it_is_newer() -> None:
    with pytest.raises(FormatTooNew, match="format 99"):
        specs.decode(b'{"format": 99, "job": 1, "what": {}}')


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff"])
def test_an_invalid_spec_is_refused(data: bytes) -> None:
    with pytest.raises(SpecInvalid):
        specs.decode(data)


def test_secrets_are_never_stored() -> None:
    environ = {
        "OUTLAST_ROOT": "/jobs",
        "OUTLAST_API_TOKEN": "s3cret",
        "AWS_SECRET_ACCESS_KEY": "s3cret",
        "HOME": "/root",
    }
    assert spec_env({"LR": "1"}, environ) == {"OUTLAST_ROOT": "/jobs", "LR": "1"}
    for name in ("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "DB_PASSWORD", "hf_token"):
        with pytest.raises(SpecInvalid, match=name):
            spec_env({name: "x"}, {})
        with pytest.raises(SpecInvalid, match=name):
            JobSpec(job="a", env={name: "x"})
    harmless = {"TOKENIZERS_PARALLELISM": "false", "MAX_TOKENS": "9", "KEYBOARD": "de"}
    assert spec_env(harmless, {}) == harmless


@pytest.mark.parametrize(
    ("script", "stem"),
    [
        ("train.py", "train"),
        ("/a/b/my model ☂.py", "my-model"),
        ("---.py", "job"),
        (None, "job"),
        ("x" * 300 + ".py", "x" * 80),
    ],
)
def test_a_new_id_is_a_valid_and_unique_name(script: str | None, stem: str) -> None:
    ids = {new_job_id(script) for _ in range(50)}
    assert len(ids) == 50
    for name in ids:
        assert check_name("job", name) == name
        assert name.rpartition("-")[0] == stem
        assert len(name.rpartition("-")[2]) == 8


def test_the_script_is_found_from_its_working_directory() -> None:
    assert specs.script_path(JobSpec(job="a", script="t.py", cwd="/w")) == Path("/w/t.py")
    assert specs.script_path(JobSpec(job="a", script="/s/t.py", cwd="/w")) == Path("/s/t.py")
    assert specs.script_path(JobSpec(job="a", module="m")) is None


def test_secrets_among_the_arguments_are_not_shown() -> None:
    job = JobSpec(
        job="a",
        script="train.py",
        args=["--lr", "1e-3", "--api-key", "abc", "--hf_token=def", "--data", "s3://u:pw@host/x"],
    )
    assert job.runs == "train.py --lr 1e-3 --api-key *** --hf_token=*** --data s3://***@host/x"
    assert JobSpec(job="a", script="t.py", args=["--password", "--fast"]).runs.endswith("--fast")


def test_values_that_carry_credentials_are_not_stored() -> None:
    url = "https://user:geheim@host/data"
    with pytest.raises(SpecInvalid, match="DATA contains credentials") as caught:
        spec_env({"DATA": url}, {})
    assert "geheim" not in str(caught.value)
    assert spec_env({}, {"OUTLAST_ROOT": url, "OUTLAST_KEEP": "3"}) == {"OUTLAST_KEEP": "3"}
