"""The documentation agrees with the code, and every error has a complete message."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import string
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import outlast
import outlast_checkpoints
from outlast import exit_codes
from outlast.job import events, lifecycle, outcome, spec
from outlast.job.log_events import LogEvent
from outlast.job.logs import LEVELS
from outlast_checkpoints.errors import OutlastError
from outlast_checkpoints.format import layout, manifest

TOP = Path(__file__).parents[3]
PACKAGES: tuple[ModuleType, ...] = (outlast_checkpoints, outlast)
# An ordinary training script that the demonstration runs: importing it would train.
SCRIPT = "outlast.demo.digits"


def page(name: str) -> str:
    return (TOP / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """The part of a page below a heading, up to the next one of any rank."""
    found = re.search(rf"^#+ {re.escape(heading)}$\n(.*?)(?=^#|\Z)", text, re.M | re.S)
    assert found is not None, heading
    return found.group(1)


def table(text: str) -> list[list[str]]:
    """The cells of the first table in a text, without its head."""
    rows = re.search(r"(?:^\|.*\n)+", text, re.M)
    assert rows is not None
    lines = rows.group().splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def codes(cells: list[list[str]], column: int = 0) -> list[str]:
    """What stands as code in a column."""
    return [word for row in cells for word in re.findall(r"`([^`]+)`", row[column])]


# --- docs/operations.md --------------------------------------------------------------------------


def test_the_table_of_exit_codes_is_the_codes_of_the_code() -> None:
    rows = table(section(page("docs/operations.md"), "Exit codes"))
    written = {int(row[0]): row[1] for row in rows}
    assert len(written) == len(rows)
    assert written == exit_codes.MEANINGS


def test_every_exit_code_has_a_meaning() -> None:
    constants = {value for value in vars(exit_codes).values() if type(value) is int}
    assert constants == set(exit_codes.MEANINGS)


def test_the_tables_of_states_and_outcomes_are_complete() -> None:
    text = page("docs/operations.md")
    assert codes(table(section(text, "States"))) == [state.value for state in lifecycle.State]
    outcomes = table(section(text, "Outcomes of an attempt"))
    assert codes(outcomes) == [one.value for one in outcome.Outcome]


def test_the_fatal_and_free_outcomes_are_the_documented_ones() -> None:
    rows = table(section(page("docs/operations.md"), "Outcomes of an attempt"))
    marked = {
        mark: {outcome.Outcome(codes([row])[0]) for row in rows if row[2].startswith(mark)}
        for mark in ("free", "fatal")
    }
    assert marked == {"free": outcome.FREE, "fatal": outcome.FATAL}


def test_the_table_of_the_spec_has_every_policy_and_its_default() -> None:
    rows = table(section(page("docs/operations.md"), "Policies of a job"))
    job = spec.JobSpec(job="x")
    not_policies = {"job", "format", "script", "module", "args", "cwd", "python", "env", "seed",
                    "engine", "engine_options", "backend", "tags", "created",
                    "outlast"}  # fmt: skip
    assert set(codes(rows)) == set(spec.JobSpec.__struct_fields__) - not_policies
    for row in rows:
        for field, told in zip(codes([row]), row[1].split(", "), strict=True):
            assert told.strip("`") == str(getattr(job, field)).lower(), field


def test_the_table_of_log_events_lists_every_event_with_its_meaning() -> None:
    rows = table(section(page("docs/operations.md"), "Log events"))
    assert sorted(codes(rows)) == sorted(LogEvent)
    source = (TOP / "service/outlast/job/log_events.py").read_text(encoding="utf-8")
    told = dict(re.findall(r'^    [A-Z_]+ = "(\w+)"\n    """(.*)"""$', source, re.M))
    assert {codes([row])[0]: row[2] for row in rows} == told
    levels = {codes([row])[0]: row[1].split(", ") for row in rows}
    assert {level for some in levels.values() for level in some} <= set(LEVELS)
    call = re.compile(r"log\.(\w+)\(\s*LogEvent\.([A-Z_]+)")
    for path in (TOP / "service/outlast").rglob("*.py"):
        for level, name in call.findall(path.read_text(encoding="utf-8")):
            assert level in levels[LogEvent[name]], (path, name)


def test_every_log_call_uses_a_member_and_every_member_is_used() -> None:
    literal = re.compile(r"(?:\blog\.\w+|\b_?tell(?:_once)?)\(\s*[rf]*[\"'](\w+)")
    told = re.compile(r'_report\(\s*"(\w+)"(?: if \w+ is None else "(\w+)")?')
    used = set()
    for path in (TOP / "service/outlast").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert literal.findall(text) == [], path
        used |= {LogEvent[name] for name in re.findall(r"LogEvent\.([A-Z_]+)", text)}
    for path in (TOP / "checkpoints").rglob("*.py"):
        for names in told.findall(path.read_text(encoding="utf-8")):
            used |= {LogEvent(name) for name in names if name}
    assert used == set(LogEvent)


# --- docs/format.md ------------------------------------------------------------------------------


def test_the_page_of_the_format_names_every_path_of_the_layout() -> None:
    text = page("docs/format.md")
    checkpoint = layout.CheckpointId(0, 1200, layout.Stage.STEP, 3)
    whole = [
        layout.SPEC,
        layout.MACHINE,
        layout.SUPERVISOR_OUTPUT,
        layout.METRICS_PLOT,
        layout.journal_event(7),
        layout.attempt_dir(3),
        layout.checkpoint_dir(checkpoint),
    ]
    base = [
        layout.origin(3),
        layout.heartbeat(3),
        layout.deadline(3),
        layout.history(3),
        layout.attempt_log(3),
        layout.supervisor_log(3),
        layout.output_log(3),
        layout.history_segment(3, 0),
        layout.checkpoint_file(checkpoint, layout.WEIGHTS_FILE),
        layout.checkpoint_file(checkpoint, layout.STATE_FILE),
        layout.checkpoint_file(checkpoint, layout.MODEL_FILE),
        layout.manifest(checkpoint),
    ]
    for path in [*whole, *(path.rpartition("/")[2] for path in base)]:
        assert path in text, path


def test_the_page_of_the_format_names_every_field_of_a_manifest() -> None:
    rows = table(section(page("docs/format.md"), "manifest.json"))
    assert set(codes(rows)) == set(manifest.Manifest.__struct_fields__)
    progress = codes([r for r in rows if codes([r]) == ["progress"]], 1)
    assert set(progress) == set(manifest.Progress.__struct_fields__)
    reasons = codes([r for r in rows if codes([r]) == ["reason"]], 1)
    assert reasons == list(manifest.REASONS)


def test_the_page_of_the_format_names_every_part_of_the_state() -> None:
    text = (TOP / "service/outlast/training/fit_state.py").read_text(encoding="utf-8")
    take = re.search(r"def take\(.*?\n        \}\n", text, re.S)
    assert take is not None
    rows = table(section(page("docs/format.md"), "The files of a checkpoint"))
    assert sorted(codes(rows)) == sorted(re.findall(r'^            "(\w+)":', take.group(), re.M))


def test_the_page_of_the_format_names_every_event() -> None:
    rows = table(section(page("docs/format.md"), "The journal"))
    kinds = [kind.__struct_config__.tag for kind in events.Event.__args__]
    assert sorted(codes(rows)) == sorted(kinds)


# --- errors --------------------------------------------------------------------------------------


def modules() -> Iterator[ModuleType]:
    for package in PACKAGES:
        yield package
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__") and found.name != SCRIPT:
                yield importlib.import_module(found.name)


def errors(kind: type[OutlastError] = OutlastError) -> Iterator[type[OutlastError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from errors(child)


@pytest.fixture(scope="module")
def all_errors() -> dict[str, type[OutlastError]]:
    """Every error class of our own packages, by name."""
    list(modules())
    ours = tuple(f"{package.__name__}." for package in PACKAGES)
    found = {kind for kind in errors() if kind.__module__.startswith(ours)}
    by_name = {kind.__name__: kind for kind in found}
    assert len(by_name) == len(found), "two errors have the same name"
    return by_name


def template(kind: type[OutlastError]) -> str:
    return " ".join((inspect.getdoc(kind) or "").split())


def fields(kind: type[OutlastError]) -> set[str]:
    names = {name for _, name, _, _ in string.Formatter().parse(template(kind)) if name}
    return {re.split(r"[.\[]", name)[0] for name in names}


def test_every_error_has_its_own_message_that_formats(
    all_errors: dict[str, type[OutlastError]],
) -> None:
    assert len(all_errors) > 15
    for kind in all_errors.values():
        assert "__doc__" in vars(kind), f"{kind.__name__} inherits its message"
        assert vars(kind)["__doc__"], f"{kind.__name__} has no message"
        values = {name: f"<{name}>" for name in fields(kind)}
        message = str(kind(**values))
        assert all(value in message or repr(value) in message for value in values.values())
        assert not re.search(r"[{}]", message), message


def test_every_error_exits_with_a_documented_code(
    all_errors: dict[str, type[OutlastError]],
) -> None:
    strange = {
        name: kind.exit_code
        for name, kind in all_errors.items()
        if kind.exit_code not in exit_codes.MEANINGS
    }
    assert strange == {}


def called(
    func: ast.expr, module: ModuleType, known: dict[str, type[OutlastError]]
) -> type[OutlastError] | None:
    """The error class that an expression names, where it names one of ours."""
    if isinstance(func, ast.Name):
        return known.get(func.id)
    if isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name):
        home = getattr(module, func.value.id, None)
        found = getattr(home, func.attr, None)  # click has a UsageError as well
        return found if found in known.values() else None
    return None


def test_every_raised_error_gets_all_fields_of_its_message(
    all_errors: dict[str, type[OutlastError]],
) -> None:
    seen = 0
    missing = []
    for module in modules():
        path = Path(module.__file__ or "")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            kind = called(node.func, module, all_errors)
            if kind is None or any(keyword.arg is None for keyword in node.keywords):
                continue
            seen += 1
            given = {keyword.arg for keyword in node.keywords}
            lacks = sorted(fields(kind) - given)
            if lacks or node.args:
                missing.append(f"{path.name}:{node.lineno}: {kind.__name__} lacks {lacks}")
    assert seen > 30
    assert missing == []


# --- ARCHITECTURE.md -----------------------------------------------------------------------------


def rooms() -> str:
    """The table of rooms: every package with the first sentence of its docstring."""
    lines = ["| room | what stands there |", "|---|---|"]
    for source in ("checkpoints/outlast_checkpoints", "service/outlast"):
        for path in sorted((TOP / source).rglob("__init__.py")):
            told = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            assert told, path
            first = " ".join(told.split("\n\n")[0].split())
            lines.append(f"| `{path.parent.relative_to(TOP).as_posix()}/` | {first} |")
    return "\n".join(lines)


def test_the_table_of_rooms_is_generated_from_docstrings() -> None:
    text = page("ARCHITECTURE.md")
    if rooms() not in text:
        pytest.fail(f"ARCHITECTURE.md, Rooms: put this table there\n{rooms()}", pytrace=False)


def layers() -> str:
    """The layers of import-linter's contracts, a line each, as ARCHITECTURE.md shows them."""
    project = tomllib.loads(page("pyproject.toml"))
    blocks = []
    for contract in project["tool"]["importlinter"]["contracts"]:
        if contract["type"] == "layers":
            (room,) = contract["containers"]
            blocks.append("\n".join([room, *(f"    {line}" for line in contract["layers"])]))
    return "\n\n".join(blocks)


def test_the_layers_are_generated_from_the_contracts() -> None:
    assert "outlast.training\n    fit | loop" in layers()
    if f"```\n{layers()}\n```" not in page("ARCHITECTURE.md"):
        pytest.fail(f"ARCHITECTURE.md, Rooms: put these layers there\n{layers()}", pytrace=False)


def test_every_file_and_room_that_architecture_names_exists() -> None:
    named = re.findall(
        r"`((?:service|checkpoints|tests|docs|deploy)/[\w./-]+)`", page("ARCHITECTURE.md")
    )
    assert len(named) > 20
    assert [name for name in named if not (TOP / name).exists()] == []
