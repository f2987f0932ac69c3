"""A script learns its job, attempt and run id; other jobs do not inherit them."""

from __future__ import annotations

from pathlib import Path

from outlast.attempt import script_environment
from outlast.job import spec as specs
from outlast.job.spec import JobSpec
from outlast_checkpoints.format.layout import SPEC
from outlast_checkpoints.storage import open_storage
from outlast_checkpoints.store.copy_job import copy_job


def told(folder: Path, attempt: int) -> dict[str, str]:
    environ: dict[str, str] = {}
    script_environment.tell(open_storage(folder), attempt, environ)
    return environ


def test_the_run_id_is_that_of_the_job(tmp_path: Path) -> None:
    for name in ("one", "two"):
        spec = JobSpec(job="digits", created=1.0, seed={"one": 1, "two": 2}[name])
        open_storage(tmp_path / name).create(SPEC, specs.encode(spec))
    copy_job(open_storage(tmp_path / "one"), open_storage(tmp_path / "copy"))
    first, second = told(tmp_path / "one", 1), told(tmp_path / "one", 2)
    assert first["OUTLAST_JOB"] == str(tmp_path / "one")
    assert (first["OUTLAST_ATTEMPT"], second["OUTLAST_ATTEMPT"]) == ("1", "2")
    ids = {told(tmp_path / name, 3)["OUTLAST_RUN_ID"] for name in ("one", "copy")}
    assert ids == {first["OUTLAST_RUN_ID"]} == {second["OUTLAST_RUN_ID"]}
    assert told(tmp_path / "two", 1)["OUTLAST_RUN_ID"] not in ids
    assert all(len(one) == 16 and one.isalnum() for one in ids)


def test_another_job_does_not_inherit_them(tmp_path: Path) -> None:
    open_storage(tmp_path).create(SPEC, specs.encode(JobSpec(job="digits")))
    environ = {**told(tmp_path, 1), "OUTLAST_JOB_LIKE": "kept"}
    assert specs.spec_env({}, environ) == {"OUTLAST_JOB_LIKE": "kept"}
