"""What the image is made of: fixed versions with hashes, a base by digest, a bill of materials."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.testbeds.dependencies import advisories
from tests.unit.project.test_project import PROJECT, TOP, pins

# What a target asks docker for by default, and where it is asked: a digest of nothing.
DIGEST = "python:3.11-slim-bookworm@sha256:" + "0" * 64
# Where the image runs: of its architectures, the ones that TensorFlow has wheels for.
LINUX = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}


def image_pins() -> dict[str, list[str]]:
    """Return the lines of requirements-image.txt: pins, each with its hashes."""
    text = (TOP / "requirements-image.txt").read_text().replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {pin: hashes for pin, *hashes in lines}


def image_extras() -> list[str]:
    target = re.search(r"--extra \$\(one\)|foreach one,([\w ]+),", (TOP / "Makefile").read_text())
    assert target is not None
    return target[1].split()


def test_the_image_installs_the_tested_versions_with_hashes() -> None:
    found = image_pins()
    tested = pins()
    for pin, hashes in found.items():
        name, _, version = pin.partition("==")
        assert version == tested[canonicalize_name(name)], pin
        assert hashes, pin
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one) for one in hashes), pin
    assert not re.search(r"//|index-url|find-links", (TOP / "requirements-image.txt").read_text())


def test_the_image_installs_all_that_it_needs_and_nothing_else() -> None:
    """As the installed packages declare it, for the Python of the image."""
    project = PROJECT["project"]
    lists = [PROJECT["build-system"]["requires"], project["dependencies"]]
    lists += [project["optional-dependencies"][extra] for extra in image_extras()]
    todo = [Requirement(text) for texts in lists for text in texts]
    environment = {**LINUX, "python_version": "3.11", "python_full_version": "3.11.9"}
    needed: set[tuple[str, frozenset[str]]] = set()
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        if (name, frozenset(one.extras)) in needed:
            continue
        needed.add((name, frozenset(one.extras)))
        try:
            inner = map(Requirement, metadata.requires(name) or [])
        except metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed (make EXTRAS=test,lint,stores install)")
        todo += [
            other
            for other in inner
            if other.marker is None
            or any(other.marker.evaluate({**environment, "extra": e}) for e in ("", *one.extras))
        ]
    there = {canonicalize_name(pin.partition("==")[0]) for pin in image_pins()}
    assert {name for name, _ in needed} == there


def test_the_dockerfile_installs_only_what_has_a_hash_from_a_base_by_digest() -> None:
    text = (TOP / "Dockerfile").read_text().replace("\\\n", " ")
    assert set(re.findall(r"^FROM (\S+)", text, re.M)) == {"${BASE}"}
    (base,) = re.findall(r"^ARG BASE=(.*)$", text, re.M)
    assert re.fullmatch(r"python:3\.11-slim-bookworm@sha256:[0-9a-f]{64}", base)
    assert len(set(base.rpartition(":")[2])) > 8, "this is the digest of nothing"
    first, second = re.findall(r"^RUN pip install (.+)$", text, re.M)
    for option in ("--require-hashes", "--no-deps", "--only-binary :all:"):
        assert option in first
    assert "--no-deps --no-build-isolation ." in second


@pytest.mark.parametrize(
    ("base", "good"),
    [(DIGEST, True), ("", False), ("python:3.11-slim-bookworm", False), (DIGEST[:-1], False)],
)
def test_the_image_is_built_from_a_digest_alone(base: str, good: bool) -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "image", f"BASE={base}", "DOCKER=echo"],
        cwd=TOP, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode == 0) is good
    assert done.stdout == (f"build --build-arg BASE={base} --tag outlast .\n" if good else "")
    assert ("BASE must name the Python image by digest" in done.stderr) is not good


def test_an_image_is_built_from_the_base_of_the_dockerfile_by_default() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "image", "DOCKER=echo"],
        cwd=TOP, capture_output=True, text=True,
    )  # fmt: skip
    (base,) = re.findall(r"^ARG BASE=(.*)$", (TOP / "Dockerfile").read_text(), re.M)
    assert done.stdout == f"build --build-arg BASE={base} --tag outlast .\n", done.stderr


def test_the_bill_of_materials_lists_what_the_image_installs(
    require: Callable[[str], str], tmp_path: Path
) -> None:
    command = re.search(r"cyclonedx-py (requirements.+?) &&", recipe("sbom"))
    assert command is not None
    arguments = command[1].replace("dist/sbom.cdx.json", str(tmp_path / "made.json"))
    done = subprocess.run(
        [require("cyclonedx-py"), *arguments.split()], cwd=TOP, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "made.json").read_text())
    assert made["bomFormat"] == "CycloneDX"
    assert made["metadata"]["component"]["name"] == "outlast"
    listed = {
        f"{one['name']}=={one['version']}": {
            f"--hash=sha256:{found['content']}"
            for reference in one["externalReferences"]
            for found in reference.get("hashes", ())
        }
        for one in made["components"]
    }
    assert listed == {pin: set(hashes) for pin, hashes in image_pins().items()}


def recipe(target: str) -> str:
    """Return the commands of a target of the Makefile, on one line."""
    text = (TOP / "Makefile").read_text().replace("\\\n", "")
    found = re.search(rf"^{target}: ##.*\n((?:\t.*\n)+)", text, re.M)
    assert found is not None
    return " ".join(found[1].split())


# --- advisories without a network -----------------------------------------------------------------


def advisory(name: str, **affected: object) -> dict[str, object]:
    package = {"ecosystem": "PyPI", "name": "Some.Package"}
    return {"id": name, "summary": "s", "affected": [{"package": package, **affected}]}


def between(*events: dict[str, str]) -> list[dict[str, object]]:
    return [{"type": "ECOSYSTEM", "events": list(events)}]


LISTED = advisory("LISTED", versions=["1.10"])
FIXED = advisory("FIXED", ranges=between({"introduced": "0"}, {"fixed": "1.10.1"}))
LAST = advisory("LAST", ranges=between({"introduced": "1.9"}, {"last_affected": "1.10"}))
AGAIN = advisory(
    "AGAIN",
    ranges=between({"introduced": "0"}, {"fixed": "1.2"}, {"introduced": "1.3"}, {"fixed": "2"}),
)
HARMLESS = [
    {**LISTED, "id": "WITHDRAWN", "withdrawn": "2026-01-01T00:00:00Z"},
    advisory("OTHER-VERSION", versions=["1.1"]),
    advisory("LATER", ranges=between({"introduced": "1.10.1"})),
    advisory("BEFORE", ranges=between({"introduced": "0"}, {"fixed": "1.9"})),  # as a version
    advisory("ENDED", ranges=between({"introduced": "0"}, {"last_affected": "1.9"})),
    advisory("COMMITS", ranges=[{"type": "GIT", "events": [{"introduced": "0"}]}]),
    {"id": "NPM", "affected": [{"package": {"ecosystem": "npm", "name": "some-package"},
     "versions": ["1.10"]}]},
]  # fmt: skip


def test_an_offline_audit_finds_the_versions_that_advisories_name(tmp_path: Path) -> None:
    requirements, archive = tmp_path / "pins.txt", tmp_path / "all.zip"
    requirements.write_text("# [extra]\nsome_package==1.10\nother==2.0\n")
    harmful = [LISTED, FIXED, LAST, AGAIN]

    def audit(documents: list[dict[str, object]]) -> tuple[int, str]:
        with zipfile.ZipFile(archive, "w") as copy:
            for number, document in enumerate(documents):
                copy.writestr(f"{number}.json", json.dumps(document))
        done = subprocess.run(
            [sys.executable, advisories.__file__, archive, requirements],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.stderr == ""
        return done.returncode, done.stdout

    code, text = audit([*HARMLESS, *harmful])
    assert code == 1
    *lines, last = text.splitlines()
    assert [line.split(": ")[1] for line in lines] == ["AGAIN", "FIXED", "LAST", "LISTED"]
    assert last == "2 versions, 10 advisories, 4 affect them"
    assert audit(HARMLESS) == (0, "2 versions, 6 advisories, 0 affect them\n")
    assert audit([])[0] == 1, "an empty copy proves nothing"
