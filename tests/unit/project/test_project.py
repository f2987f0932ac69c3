"""The project around the code: what is tracked, shipped, pinned and linked."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

TOP = Path(__file__).parents[3]
NOT_OURS = {".git", ".nox", ".venv", "build", "dist", "outlast-jobs", "demo-output", "__pycache__"}


def our_files() -> list[Path]:
    """Every file of the project: those in git's index and those that would be added to it."""
    if shutil.which("git") and (TOP / ".git").exists():
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=TOP, capture_output=True, check=True, text=True,
        ).stdout  # fmt: skip
        paths = [TOP / name for name in listed.split("\0") if name]
    else:
        paths = [
            path
            for path in TOP.rglob("*")
            if not NOT_OURS.intersection(path.relative_to(TOP).parts)
            and not any(part.endswith((".egg-info", "_cache")) for part in path.parts)
        ]
    return sorted(path for path in paths if path.is_file())


def relative(path: Path) -> str:
    return path.relative_to(TOP).as_posix()


OUR_FILES = our_files()
MARKDOWN = [path for path in OUR_FILES if path.suffix == ".md"]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())


def test_the_listing_of_our_files_finds_them() -> None:
    names = {relative(path) for path in OUR_FILES}
    assert {
        "pyproject.toml",
        "Makefile",
        "checkpoints/outlast_checkpoints/errors.py",
        ".ci/run",
    } <= names
    assert not any(name.startswith((".venv/", ".git/")) for name in names)


# --- tools that read our files -------------------------------------------------------------------


def test_hadolint_finds_nothing_in_the_dockerfile(require: Callable[[str], str]) -> None:
    done = subprocess.run([require("hadolint"), "Dockerfile"], cwd=TOP, capture_output=True)
    assert (done.returncode, done.stdout.decode()) == (0, "")


def test_shellcheck_finds_nothing_in_our_scripts(require: Callable[[str], str]) -> None:
    scripts = [
        path
        for path in OUR_FILES
        if path.suffix == ".sh" or re.match(rb"#!.*\b(ba|da)?sh\b", path.read_bytes()[:80])
    ]
    assert TOP / ".ci/run" in scripts
    done = subprocess.run([require("shellcheck"), *scripts], cwd=TOP, capture_output=True)
    assert (done.returncode, done.stdout.decode()) == (0, "")


def test_the_layers_hold(require: Callable[[str], str]) -> None:
    done = subprocess.run(
        [require("lint-imports"), "--no-logo", "--no-cache"],
        cwd=TOP, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_script_of_ci_is_executable() -> None:
    assert os.access(TOP / ".ci/run", os.X_OK)


# --- the container image -------------------------------------------------------------------------


def test_the_image_never_runs_as_root_and_installs_dependencies_before_sources() -> None:
    text = (TOP / "Dockerfile").read_text()
    final_stage = text[text.rindex("\nFROM ") :]
    users = re.findall(r"^USER (\S+)", final_stage, re.MULTILINE)
    assert users
    assert users[-1].split(":")[0] not in ("root", "0")
    assert text.index("--require-hashes") < text.index("COPY checkpoints")


def test_files_that_the_image_copies_pass_dockerignore() -> None:
    ignore = (TOP / ".dockerignore").read_text().splitlines()
    assert "*" in ignore
    let_through = {line[1:].rstrip("/") for line in ignore if line.startswith("!")}
    text = (TOP / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
    assert {name for names in copied for name in names.split()} == let_through


def test_files_that_pass_dockerignore_are_the_whole_package(tmp_path: Path) -> None:
    """As the Dockerfile's last step makes it."""
    ignore = (TOP / ".dockerignore").read_text().splitlines()
    let_through = tuple(line[1:] for line in ignore if line.startswith("!"))
    sources = [path for path in OUR_FILES if relative(path).startswith(let_through)]
    for path in sources:
        copy = tmp_path / relative(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    wheel = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "."]
    subprocess.run([sys.executable, "-m", "pip", *wheel], cwd=tmp_path, check=True)
    (made,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(made).namelist())
    ours = {relative(path).partition("/")[2] for path in sources if "/" in relative(path)}
    assert {name for name in packed if ".dist-info/" not in name} == ours
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in packed)


# --- versions ------------------------------------------------------------------------------------


def pins(*, without: Iterable[str] = ()) -> dict[str, str]:
    text = (TOP / "constraints.txt").read_text()
    for extra in without:
        text = re.sub(rf"^# \[{extra}\].*?(?=^# |\Z)", "", text, count=1, flags=re.M | re.S)
    lines = text.splitlines()
    found = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in found.items()}


# What torch brings on machines with a GPU, in versions that it names itself.
OF_TORCH = re.compile(r"nvidia-|cuda-|triton$")


def extras() -> list[str]:
    """The extras that are tested here: not each environment has torch, supply, bench,
    libraries (`make libraries`) and versions (`make test-versions`)."""
    names = list(PROJECT["project"]["optional-dependencies"])
    if os.environ.get("OUTLAST_REQUIRE") != "all" and find_spec("torch") is None:
        names.remove("torch")
    if find_spec("orbax") is None:
        names.remove("bench")
    if find_spec("keras_hub") is None:
        names.remove("libraries")
    if find_spec("nox") is None:
        names.remove("versions")
    if find_spec("cyclonedx_py") is None:
        names.remove("supply")
    return names


def required(extras: list[str]) -> set[str]:
    """Names of everything that Outlast with these extras brings, however far down."""
    project = PROJECT["project"]
    todo = [Requirement(text) for text in PROJECT["build-system"]["requires"]]
    todo += [Requirement(text) for text in project["dependencies"]]
    for extra in extras:
        todo += [Requirement(text) for text in project["optional-dependencies"][extra]]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement = todo.pop()
        name, wanted = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if name in ("outlast", "pip") or (name, wanted) in seen or OF_TORCH.match(name):
            continue
        seen.add((name, wanted))
        for text in metadata.requires(name) or []:
            inner = Requirement(text)
            marker = inner.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in ("", *wanted)):
                todo.append(inner)
    return {name for name, _ in seen}


def test_everything_installed_is_pinned_and_tested_at_its_pin() -> None:
    names = required(extras())
    assert {"tensorflow", "pytest", "mypy", "matplotlib", "scikit-learn"} <= names
    # A build for one kind of machine says so: 2.13.0+cpu is 2.13.0.
    installed = {name: Version(metadata.version(name)).public for name in names}
    assert {name: pins().get(name) for name in names} == installed


def test_nothing_unneeded_is_pinned() -> None:
    if "torch" not in extras():
        pytest.skip("torch is not installed, so what it brings is not known")
    missing = {"bench", "libraries", "versions", "supply"} - set(extras())
    assert set(pins(without=missing)) <= required(extras())


def test_requirements_are_package_names_only() -> None:
    project = PROJECT["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    for text in [text for texts in lists for text in texts]:
        assert Requirement(text).url is None
    for name, version in pins().items():
        assert re.fullmatch(r"[\w.]+", version), name


# Packages whose import name differs from the name they are installed by.
INSTALLED_AS = {"sklearn": "scikit-learn", "yaml": "PyYAML"}
# Imported only inside a process that has loaded it already: a notebook.
HOSTS = {"IPython"}


def third_party_imports() -> dict[str, set[str]]:
    """The top-level third-party modules that the two packages import, each with its files."""
    found: dict[str, set[str]] = {}
    for path in OUR_FILES:
        if path.suffix != ".py" or not relative(path).startswith(("checkpoints/", "service/")):
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [node.module]
            for name in {name.partition(".")[0] for name in names}:
                found.setdefault(name, set()).add(relative(path))
    ours = {"outlast", "outlast_checkpoints"}
    return {name: found[name] for name in found.keys() - sys.stdlib_module_names - ours}


def test_every_import_is_a_declared_dependency_or_extra() -> None:
    project = PROJECT["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {canonicalize_name(Requirement(text).name) for texts in lists for text in texts}
    imports = third_party_imports()
    assert {"numpy", "ml_dtypes", "pytest", "torch"} <= imports.keys()
    undeclared = {
        name: files
        for name, files in imports.items()
        if name not in HOSTS and canonicalize_name(INSTALLED_AS.get(name, name)) not in declared
    }
    assert undeclared == {}


def test_every_extra_that_an_error_tells_to_install_exists() -> None:
    told = {
        extra
        for name, text in texts()
        if name.startswith(("checkpoints/", "service/"))
        for extra in re.findall(r"\bextra=\"([^\"]+)\"", text)
    }
    assert told
    assert told <= set(PROJECT["project"]["optional-dependencies"])


def test_the_version_is_the_changelogs_newest() -> None:
    changelog = (TOP / "CHANGELOG.md").read_text()
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest is not None
    assert newest.group(1) == PROJECT["project"]["version"]


def test_the_version_in_the_code_is_that_of_the_project() -> None:
    assert metadata.version("outlast") == PROJECT["project"]["version"]


# --- what is written in our files ----------------------------------------------------------------

# Spelled in pieces, so that this file does not find itself.
REGISTRIES = ["py" + "pi.org", "python" + "hosted.org", "docker" + ".io", "gh" + "cr.io",
              "qu" + "ay.io", "npm" + "js.org", "deb.deb" + "ian.org"]  # fmt: skip
# An absolute path below one of these, in text: nothing but somebody's own machine has it.
PRIVATE = re.compile(r"(?<![\w.$}~/])/(?:home|Users|root)/\w")


def texts() -> Iterator[tuple[str, str]]:
    for path in OUR_FILES:
        try:
            yield relative(path), path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # a picture or a golden binary; deleted, but not yet in the index


def test_no_file_names_a_registry_host() -> None:
    found = {name: host for name, text in texts() for host in REGISTRIES if host in text}
    assert found == {}


def test_no_file_contains_a_path_of_a_machine() -> None:
    here = [TOP] if len(TOP.parts) > 2 else []  # a top like /app is no machine's own
    found = {
        name: match.group()
        for name, text in texts()
        for match in [PRIVATE.search(text), *(re.search(re.escape(str(top)), text) for top in here)]
        if match
    }
    assert found == {}


@pytest.mark.parametrize("text", ["see /home/" + "ann/x", "cd /ro" + "ot/x", '"/Users/' + 'x"'])
def test_the_pattern_of_private_paths_finds_them(text: str) -> None:
    assert PRIVATE.search(text)


@pytest.mark.parametrize("text", ["COPY . /work/", "$HOME/x/y", "docs/home/x", "~/home/x"])
def test_the_pattern_of_private_paths_ignores_others(text: str) -> None:
    assert not PRIVATE.search(text)


# --- links and commands in the documentation -----------------------------------------------------


def prose(text: str) -> str:
    """The text without its code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def anchors(text: str) -> set[str]:
    """The anchors that the headings of a page give, as code hosts spell them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("page", MARKDOWN, ids=relative)
def test_relative_links_exist(page: Path) -> None:
    text = page.read_text()
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (
            anchor and file.suffix == ".md" and anchor not in anchors(file.read_text())
        ):
            dead.append(link)
    assert dead == []


def outlast_commands(page: Path) -> list[list[str]]:
    """Command lines of `outlast` in a page's code blocks, split into words."""
    blocks = re.findall(r"^```(?:\w*)\n(.*?)^```$", page.read_text(), re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    plain = (line.split("#")[0].removeprefix("$ ").split() for line in lines)
    return [words for words in plain if len(words) > 1 and words[0] == "outlast"]


@pytest.mark.parametrize("page", MARKDOWN, ids=relative)
def test_commands_and_options_in_the_documentation_exist(page: Path) -> None:
    import click

    from outlast.cli import main

    unknown = []
    for words in outlast_commands(page):
        command = main.get_command(click.Context(main), words[1])
        if command is None:
            if not words[1].startswith("-"):
                unknown.append(" ".join(words[:2]))
            continue
        known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
        known.add("--help")
        for word in words[2:]:
            if word.endswith(".py"):
                break  # what follows belongs to the script
            if word.startswith("-") and word.split("=")[0] not in known:
                unknown.append(" ".join([*words[:2], word]))
    assert unknown == []
