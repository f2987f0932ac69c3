"""Looks up pinned versions in a copy of OSV's advisories for PyPI, without a network.

`python advisories.py ALL.ZIP REQUIREMENTS`: ALL.ZIP is the export of OSV's ecosystem PyPI, one JSON
document an advisory. It ends with 1 if a version is affected, or if the copy has no advisories.
"""

from __future__ import annotations

import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

PIN = re.compile(r"^([\w.-]+)==(\S+)", re.MULTILINE)


def pins(text: str) -> dict[str, str]:
    """Return the versions in a requirements file, by normalized name."""
    return {str(canonicalize_name(name)): version for name, version in PIN.findall(text)}


def advisories(archive: Path) -> Iterator[dict[str, Any]]:
    """Yield the advisories that nobody has withdrawn."""
    with zipfile.ZipFile(archive) as copy:
        for name in copy.namelist():
            if name.endswith(".json"):
                found = json.loads(copy.read(name))
                if "withdrawn" not in found:
                    yield found


def affects(affected: dict[str, Any], version: str) -> bool:
    """Return whether an entry of an advisory names a version, by a list or by a range."""
    if version in affected.get("versions", ()):
        return True
    ranges = [one for one in affected.get("ranges", ()) if one["type"] == "ECOSYSTEM"]
    return any(_within(one["events"], Version(version)) for one in ranges)


def _within(events: list[dict[str, str]], version: Version) -> bool:
    """Follow the events in the order of their versions; the last that applies decides."""
    inside = False
    for event in sorted(events, key=lambda event: _at(next(iter(event.values())))):
        ((kind, text),) = event.items()
        if kind == "introduced" and _at(text) <= version:
            inside = True
        elif (kind == "fixed" and _at(text) <= version) or (
            kind == "last_affected" and _at(text) < version
        ):
            inside = False
    return inside


def _at(text: str) -> Version:
    try:
        return Version(text)
    except InvalidVersion:
        return Version("0")


def found(archive: Path, pinned: dict[str, str]) -> tuple[int, list[str]]:
    """Return the number of advisories, and a line for each that affects a pinned version."""
    count, lines = 0, []
    for one in advisories(archive):
        count += 1
        for affected in one.get("affected", ()):
            package = affected.get("package", {})
            name = canonicalize_name(package.get("name", ""))
            version = pinned.get(name)
            if package.get("ecosystem") == "PyPI" and version and affects(affected, version):
                names = ", ".join([one["id"], *one.get("aliases", ())])
                lines.append(f"{name} {version}: {names}: {one.get('summary', '')}")
    return count, sorted(set(lines))


def main(archive: str, requirements: str) -> int:
    pinned = pins(Path(requirements).read_text())
    count, lines = found(Path(archive), pinned)
    print(
        "\n".join([*lines, f"{len(pinned)} versions, {count} advisories, {len(lines)} affect them"])
    )
    return int(bool(lines) or not count)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
