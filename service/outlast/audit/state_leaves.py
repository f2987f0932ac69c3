"""The state in a checkpoint as named values: arrays and plain values by part and path. Pure.

The document in `state.h5` is read as JSON, without Keras and without the classes of the script.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from outlast_checkpoints.errors import FormatError
from outlast_checkpoints.format.layout import KEPT_FILE, STATE_FILE, WEIGHTS_FILE

Arrays = Mapping[str, Any]
Leaf = Any  # an array, or a plain value
Place = tuple[str, str]  # part and path
Unit = tuple[str, str, str | None]  # key of a graph, the path of an object, one of its attributes

# The parts of a state, in the order in which a difference counts as the first one.
PARTS: Final = ("weights", "optimizer", "variables", "attributes", "callbacks", "state",
                "generators", "data", "progress")  # fmt: skip
_OF: Final = {
    "callbacks": "callbacks",
    "hook_effects": "callbacks",
    "state": "state",
    "generators": "generators",
    "data": "data",
    "feed": "data",
    "validation": "data",
}
# A resume compares the script itself, and refuses a different one.
_SCRIPT: Final = {"fingerprint", "script", "model"}
_FEEDS: Final = ("feed", "validation")
_GRAPHS: Final = {"objects", "parts"}
_OBJECTS: Final = "variables/@objects/"
_LISTS: Final = {"$tuple", "$set", "$frozenset", "$deque", "$random", "$generator", "$randomstate"}
_PAIRS: Final = {"$dict", "$ordered", "$counter", "$default"}


class State:
    """The state in one checkpoint.

    Args:
        files: Arrays by file name and path.
        path: Name of the checkpoint, for errors.
    """

    def __init__(self, files: Mapping[str, Arrays], path: str) -> None:
        self._files = files
        self._arrays = files.get(STATE_FILE, {})
        try:
            self.document: dict[str, Any] = json.loads(bytes(self._arrays["document"]))
        except (KeyError, ValueError) as error:
            raise FormatError(path=f"{path}/{STATE_FILE}", reason=str(error)) from error
        # What has changed in objects since the training began.
        self._changes = list(_changes_in(self.document, self._arrays))

    def flag(self, *names: str) -> bool:
        """Return the first of these flags that the document has."""
        return bool(next(self.document[name] for name in names if name in self.document))

    def units(self) -> set[Unit]:
        """Return what has changed in objects since the training began."""
        return {unit for one in self._changes for unit in _units(one.key, one.graph["known"])}

    def leaves(self, units: set[Unit]) -> Iterator[tuple[Place, Leaf]]:
        """Yield every value with its part and path; of objects those in `units`."""
        for name, arrays in self._files.items():
            if name not in (STATE_FILE, KEPT_FILE):  # files may contain times
                yield from _weights("" if name == WEIGHTS_FILE else f"{name}: ", arrays)
        yield from self._variables()
        for key, value in self.document.items():
            if key not in _SCRIPT | _GRAPHS:
                yield from self._part(key, value)
        for changes in self._changes:
            yield from self._of_objects(changes, units)

    def _variables(self) -> Iterator[tuple[Place, Leaf]]:
        models = self.document.get("state", {}).get("models", {})
        names = {f"variables/{name}": facts["rest"] for name, facts in models.items()}
        names["variables"] = self.document.get("model", {}).get("rest", [])
        for path, array in self._arrays.items():
            if not path.startswith("variables/") or path.startswith(_OBJECTS):
                continue
            folder, _, index = path.rpartition("/")
            known = names.get(folder, [])
            at = int(index) if index.isdecimal() else len(known)
            shown = f" ({known[at]})" if at < len(known) else ""
            yield ("variables", path + shown), array

    def _part(self, key: str, value: Any) -> Iterator[tuple[Place, Leaf]]:
        part = _OF.get(key, "progress")
        if key == "state":
            graph = Graph(value["graph"], self._arrays)
            for path, content in value["graph"]["known"].items():
                yield from _in(part, graph.content(content, path))
            value = value["objects"]
            yield from _in(part, (leaf for n in value for leaf in self._flat(value[n], n)))
        elif key in _FEEDS and value is not None:
            # How fast it was written decides whether a pipeline's iterator is stored at all.
            left_out = {"position", "own"} if _is_graph(value.get("own")) else {"position"}
            counted = {name: one for name, one in value.items() if name not in left_out}
            yield from _in(part, self._flat(counted, key))
        else:
            yield from _in(part, self._flat(value, key))

    def _flat(self, value: Any, path: str) -> Iterator[tuple[str, Leaf]]:
        return flatten(value, self._arrays, path)

    def _of_objects(self, changes: Changes, units: set[Unit]) -> Iterator[tuple[Place, Leaf]]:
        shown = self._names_of_callbacks()
        # An audit's attempt also stores what has not changed.
        document = changes.graph.get("all", changes.graph)
        part, graph = _OF.get(changes.key, changes.key), Graph(document, changes.arrays)
        for path, content in document["known"].items():
            root = min((path.find(c) for c in ".[," if c in path), default=len(path))
            name = shown.get(path[:root], path[:root]) + path[root:]
            if content["kind"] != "object":
                if (changes.key, path, None) in units:
                    yield from _in(part, graph.content(content, name))
                continue
            for attribute, item in content["attributes"].items():
                if (changes.key, path, attribute) in units:
                    yield from _in(part, graph.item(item, f"{name}.{attribute}"))

    def _names_of_callbacks(self) -> dict[str, str]:
        """Return the script's names of the callbacks, by those in the document."""
        shown = {}
        counts: Counter[str] = Counter()
        for i, state in enumerate(self.document.get("callbacks", [])):
            shown[f"{state['class']}#{counts[state['class']]}"] = f"callbacks[{i}]"
            counts[state["class"]] += 1
        return shown


class Changes(NamedTuple):
    """What has changed in some objects of a script since the training began."""

    key: str
    """"callbacks", "attributes" (of layers), "feed" or "validation"."""
    graph: Mapping[str, Any]
    """The objects; see `object_graph` in training."""
    arrays: Arrays
    """Arrays that the graph names."""


class Graph:
    """The objects of a script in a document; see `object_graph` in training."""

    def __init__(self, document: Mapping[str, Any], arrays: Arrays) -> None:
        self._new: list[Any] = document["new"]
        self._arrays = arrays
        self._seen: set[int] = set()

    def content(self, content: Mapping[str, Any], path: str) -> Iterator[tuple[str, Leaf]]:
        """Yield the values in the content of an object."""
        if content["kind"] == "object":
            for name, item in content["attributes"].items():
                yield from self.item(item, f"{path}.{name}")
        elif content["kind"] == "variable":
            yield path, self._arrays[content["array"]]
        elif "keys" in content:
            keys = [text for _, text in flatten(content["keys"], self._arrays, "")]
            yield from self._each(content["values"], [f"{path}[{key!r}]" for key in keys], path)
        elif "items" in content:
            items = content["items"]
            yield from self._each(items, [f"{path}[{i}]" for i in range(len(items))], path)
        else:
            rest = {key: value for key, value in content.items() if key not in ("kind", "of")}
            yield from flatten(rest.get("value", rest), self._arrays, path)

    def item(self, item: Any, path: str) -> Iterator[tuple[str, Leaf]]:
        """Yield the values in an attribute of an object, or in an item of a container."""
        if isinstance(item, list):  # a reference
            (key,) = item
            if isinstance(key, str) or key in self._seen:
                yield path, f"object {key}"
            else:
                self._seen.add(key)
                yield from self.content(self._new[key], path)
        elif isinstance(item, dict) and isinstance(item.get("items"), list):
            for i, child in enumerate(item["items"]):
                yield from self.item(child, f"{path}[{i}]")
        else:
            yield from flatten(item, self._arrays, path)

    def _each(self, items: Any, paths: list[str], path: str) -> Iterator[tuple[str, Leaf]]:
        if not isinstance(items, list):  # many numbers as one array
            yield from flatten(items, self._arrays, path)
            return
        yield f"len({path})", len(items)
        for child, at in zip(items, paths, strict=False):
            yield from self.item(child, at)


def flatten(value: Any, arrays: Arrays, path: str) -> Iterator[tuple[str, Leaf]]:
    """Yield the values in plain data as training's `trees` encodes it, with their paths."""
    if isinstance(value, list):
        for i, child in enumerate(value):
            yield from flatten(child, arrays, f"{path}[{i}]")
        return
    if not isinstance(value, dict):
        yield path, value
        return
    kind = next(iter(value), "")
    inner: Any = value.get(kind)
    if kind in ("$array", "$floats"):
        yield path, arrays[inner]
    elif kind == "$int":
        yield path, int(inner)
    elif kind == "$float":
        yield path, float(inner)
    elif kind == "$bytes":
        yield path, inner
    elif kind in _LISTS:
        yield from flatten(inner, arrays, path)
    elif kind in _PAIRS:
        for key, child in inner:
            yield from flatten(child, arrays, f"{path}[{key!r}]")
    else:
        for name, child in value.items():
            yield from flatten(child, arrays, f"{path}.{name}")


def _changes_in(document: Mapping[str, Any], arrays: Arrays) -> Iterator[Changes]:
    parts = document.get("state", document).get("parts")
    callbacks = document.get("objects", {}).get("begun")
    for key, graph in (("callbacks", callbacks), ("attributes", parts)):
        if graph:
            yield Changes(key, graph, arrays)
    for key in _FEEDS:
        own: Any = (document.get(key) or {}).get("own")
        if _is_graph(own):  # of a PyDataset, with variables of its own
            variables = {name: arrays[one["$array"]] for name, one in own["variables"].items()}
            yield Changes(key, own["objects"], {**arrays, **variables})


def _is_graph(own: Any) -> bool:
    return isinstance(own, dict) and own.keys() == {"objects", "variables"}


def _weights(file: str, arrays: Arrays) -> Iterator[tuple[Place, Leaf]]:
    for path, array in arrays.items():
        part = "optimizer" if path.startswith("optimizer/") else "weights"
        yield (part, file + path), array


def _in(part: str, leaves: Iterator[tuple[str, Leaf]]) -> Iterator[tuple[Place, Leaf]]:
    for path, leaf in leaves:
        yield (part, path), leaf


def _units(key: str, known: Mapping[str, Any]) -> Iterator[Unit]:
    for path, content in known.items():
        if content["kind"] == "object":
            for name in content["attributes"]:
                yield key, path, name
        else:
            yield key, path, None
