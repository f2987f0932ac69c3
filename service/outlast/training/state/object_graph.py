"""What changed in named objects, and in all objects that they refer to, as plain data.

Each object that can change is identified by its path at the beginning ("Keeper#0.ema[2]"). If its
content differs later, a capture stores the content under that path. Objects that were not there at
the beginning have numbers. A reference to an object is a list with one element: its path or its
number. So shared and cyclic references are kept, and a restore fills the same objects that the
script created.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from outlast.attempt import context
from outlast.training.keras_internals.variables import raw
from outlast.training.state import object_kinds as kinds
from outlast.training.state import plain_values, trees
from outlast.training.state.code_state import is_code
from outlast.training.state.foreign_objects import ForeignObjects
from outlast.training.state.held_values import Holder, hold
from outlast.training.state.script_code import is_defined_by_script

PREFIX = "variables/@objects"  # of arrays in state.h5; no part of a Loop's state can have this name
MAX_DEPTH = 200
_SHOWN = plain_values.SCALARS | {list}  # types whose repr says all: numbers, text, references
_LOST: Any = {"is": "lost"}
_CHANGED = object()  # in place of a mark: no longer compared

Content = dict[str, Any]


@dataclass(frozen=True)
class Unsaved:
    """An object that cannot be stored."""

    path: str
    """Where it is."""
    kind: str
    """Name of its class."""
    hint: str
    """What to do."""
    of_process: bool = False
    """Whether nobody needs it after the training, such as a file, a lock or an iterator."""


class ObjectGraph:
    """The objects of a script at the beginning, for later comparison and for a restore.

    `roots` are objects by name. `elsewhere` are objects by name that are saved elsewhere (the model
    and its variables); references to them are kept. With `everything`, a capture also stores what
    has not changed; with `in_code`, also that of what code holds.
    """

    def __init__(
        self,
        roots: Mapping[str, Any],
        elsewhere: Mapping[str, Any] | None = None,
        *,
        everything: bool = False,
        in_code: bool = False,
    ) -> None:
        self.places: dict[str, Any] = {}
        self.paths: dict[int, str] = {}
        self.marks: dict[str, Any] = {}
        self.elsewhere = {id(value) for value in (elsewhere or {}).values()}
        self.everything = everything
        self.in_code = in_code
        self.changed: set[str] = set()  # paths that are no longer compared
        self.unsaved: list[Unsaved] = []
        self.code: dict[Any, Any] = {}  # what code holds, by the function, class, …
        self.foreign = ForeignObjects()
        self.parts: dict[int, tuple[Any, kinds.Part]] = {}  # the attributes of owners of variables
        self._roots = dict(roots)
        for path, value in (elsewhere or {}).items():
            self.enter(path, value)
        Walk(self, {}, {}, beginning=True).run(self._roots)

    def enter(self, path: str, value: Any) -> None:
        self.places[path] = value
        self.paths.setdefault(id(value), path)

    def add_root(self, path: str, value: Any) -> None:
        """Add an object that the first step created. All that it holds counts as changed."""
        if path not in self._roots:
            self._roots[path] = value
            self.enter(path, value)

    def add_elsewhere(self, objects: Mapping[str, Any]) -> None:
        """Add objects by name that are saved elsewhere, those of the first step."""
        for path, value in objects.items():
            if id(value) not in self.elsewhere and id(value) not in self.paths:
                self.elsewhere.add(id(value))
                self.enter(f"made/{path}", value)

    def capture(
        self, variables: MutableMapping[str, Any], names: dict[int, str] | None = None
    ) -> dict[str, Any]:
        """Return what has changed, as plain data, and hold the variables in `variables`.

        `names` has the names of variables by id, for two graphs in one checkpoint. What could not
        be stored is in `unsaved`. In an audit, "all" has what has not changed, too: the checkpoint
        that it is compared with may have values that changed and are back.
        """
        names = {} if names is None else names
        found = self._walk(variables, names)
        attempt = context.current()
        if attempt is not None and attempt.audit is not None and not self.everything:
            self.everything = self.in_code = True
            found["all"] = self._walk(variables, names)
            self.everything = self.in_code = False
        return found

    def _walk(self, variables: MutableMapping[str, Any], names: dict[int, str]) -> dict[str, Any]:
        walk = Walk(self, variables, names)
        walk.run(self._roots)
        walk.hold()
        self.unsaved = walk.unsaved
        return {"known": walk.known, "new": walk.new}


class Walk:
    """One walk through all objects."""

    def __init__(
        self,
        graph: ObjectGraph,
        variables: MutableMapping[str, Any],
        names: dict[int, str],
        *,
        beginning: bool = False,
    ) -> None:
        self.graph = graph
        self.known: dict[str, Content] = {}
        self.new: list[Content] = []
        self.unsaved: list[Unsaved] = []
        self._beginning = beginning
        self._variables = variables
        self._names = names
        self._held: dict[str, Any] = {}
        self._items: dict[int, Any] = {}
        self._alive: list[Any] = []  # because another object may get the id of a dead one
        self._taken: set[str] = set()
        self._depth = 0
        self._code = 0  # depth in what code holds

    def run(self, roots: Mapping[str, Any]) -> None:
        for path, value in roots.items():
            self._reference(value, path)

    def hold(self) -> None:
        """Hold all variables that were found, at the same time."""
        if self._held:
            held = Holder(self._held.values()).hold()
            self._variables.update(zip(self._held, held, strict=True))

    # -- values and references --------------------------------------------------------------

    def _item(self, value: Any, path: str) -> Any:
        kind = type(value)
        if kind in plain_values.SCALARS:
            return value
        if kind is tuple or kind is frozenset:
            items = self._sequence(list(value), path)
            return _LOST if items is _LOST else {"is": kind.__name__, "items": items}
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            items = self._sequence(list(value), path)
            name = plain_values.class_name(kind)
            return _LOST if items is _LOST else {"is": "named", "of": name, "items": items}
        if isinstance(value, np.generic):
            return value if plain_values.can_store(value) else self._lose(value, path)
        inline = plain_values.encode(value)
        return self._reference(value, path) if inline is None else inline

    def _sequence(self, values: list[Any], path: str) -> Any:
        if set(map(type, values)) <= plain_values.SCALARS:
            return values
        stacked = plain_values.stack(values)
        if stacked is not None:
            return stacked
        items = [self._item(value, f"{path}[{i}]") for i, value in enumerate(values)]
        return _LOST if any(item is _LOST for item in items) else items

    def _reference(self, value: Any, path: str) -> Any:
        graph = self.graph
        if is_code(value):
            if value not in graph.code:
                graph.code[value] = kinds.code_in(value)
            value = graph.code[value]
        key = id(value)
        if key in self._items:
            return self._items[key]
        kind = kinds.kind_of(type(value))
        place = self._place(value, path, kind)
        self._alive.append(value)
        reference: Any = [place] if place is not None else [len(self.new)]
        self._items[key] = reference
        if key in graph.elsewhere:
            return reference
        if kind in ("settled", "opaque") or self._depth > MAX_DEPTH:
            if place is None or kind == "opaque":
                self._lose(value, path)
            if place is None:
                reference = self._items[key] = _LOST
            return reference
        slot: Content = {}
        if place is None:
            self.new.append(slot)
        holds = isinstance(value, kinds.CODE)  # what code holds
        self._depth, self._code = self._depth + 1, self._code + holds
        content = self._content(kind, value, place or path, made=place is None)
        self._depth, self._code = self._depth - 1, self._code - holds
        if content is _LOST:
            if place is None:
                reference = self._items[key] = _LOST
        elif place is None:
            slot.update(content)
        else:
            self._keep(place, kind, value, content)
        return reference

    def _place(self, value: Any, path: str, kind: str) -> str | None:
        """Return the path of an object that was there at the beginning, or None for a new one."""
        graph = self.graph
        place = graph.paths.get(id(value))
        if place is None and self._beginning and path not in graph.places:
            graph.enter(path, value)
            place = path
        replaceable = kind in ("object", "owner", "spoken")
        if place is None and replaceable and not isinstance(value, kinds.CODE):
            # A resume cannot create such an object. It restores into the one that was replaced.
            place = path if type(graph.places.get(path)) is type(value) else None
        if place is None or place in self._taken:
            return None
        self._taken.add(place)
        return place

    def _lose(self, value: Any, path: str) -> Any:
        kind = kinds.kind_of(type(value))
        if kind in ("object", "owner", "spoken", "settled"):
            hint = "create it in __init__ or on_train_begin, so that a resume finds it there"
        else:
            hint = "keep plain data, or give the object get_state and set_state methods"
        of_process = kind == "settled" or isinstance(value, io.IOBase | Iterator)
        self.unsaved.append(Unsaved(path, type(value).__name__, hint, of_process))
        return _LOST

    def _keep(self, place: str, kind: str, value: Any, content: Content) -> None:
        graph = self.graph
        within = self._code > 0 or isinstance(value, kinds.CODE)
        if (graph.everything and (graph.in_code or not within)) or place in graph.changed:
            self.known[place] = content
        elif kind == "object":
            marks = graph.marks.setdefault(place, {})
            attributes = content["attributes"]
            if self._beginning:
                marks.update({name: _mark(item) for name, item in attributes.items()})
            else:
                changed = {}
                for name, item in attributes.items():
                    mark = marks.get(name)
                    if mark is not _CHANGED and _mark(item) != mark:
                        mark = marks[name] = _CHANGED
                    if mark is _CHANGED:
                        changed[name] = item
                if changed:
                    self.known[place] = {**content, "attributes": changed}
            return
        else:
            mark = _mark(np.asarray(hold(value)) if kind == "variable" else content)
            if self._beginning:
                graph.marks[place] = mark
                return
            if mark == graph.marks.get(place):
                return
            graph.changed.add(place)
            self.known[place] = content
        if kind == "variable" and not self._beginning:
            self._held[content["array"]] = value

    # -- contents of objects ---------------------------------------------------------------

    def _content(self, kind: str, value: Any, path: str, *, made: bool) -> Any:
        if kind in kinds.MAPPINGS:
            return self._mapping(kind, value, path, made=made)
        if kind in kinds.CONTAINERS:
            items = self._sequence(sorted(value, key=repr) if kind == "set" else list(value), path)
            if items is _LOST or (kind == "set" and _refers(items)):
                return _LOST if items is _LOST else self._lose(value, path)
            more = {"maxlen": value.maxlen} if kind == "deque" else {}
            return {"kind": kind, "items": items, **more}
        if kind == "array":
            return self._array(value, path)
        if kind == "generator":
            good = plain_values.can_store(value)
            return {"kind": kind, "value": value} if good else self._lose(value, path)
        if kind == "variable":
            return self._variable(value, path, made=made)
        if made:
            return self._lose(value, path)  # because a resume could not create it
        name = plain_values.class_name(type(value))
        if kind == "owner":
            variables = kinds.variables_of(value)
            items = [self._reference(v, f"{path}.variables[{i}]") for i, v in enumerate(variables)]
            self._attributes(value, path)
            return {"kind": kind, "of": name, "items": [i for i in items if i is not _LOST]}
        if kind == "spoken":
            state = kinds.methods_of(value)[0]()
            good = plain_values.can_store(state)
            return {"kind": kind, "of": name, "value": state} if good else self._lose(value, path)
        children = kinds.attributes_of(value)
        if isinstance(value, kinds.CODE):
            is_new = path not in self.graph.marks
            children, changed = self.graph.foreign.sort_out(children, path, is_new=is_new)
            for name, child in changed.items():
                self._lose(child, f"{path}.{name}")
        found = {n: self._item(child, f"{path}.{n}") for n, child in children.items()}
        attributes = {n: item for n, item in found.items() if item is not _LOST}
        return {"kind": "object", "of": name, "attributes": attributes}

    def _attributes(self, owner: Any, path: str) -> None:
        """Walk through the attributes of an owner of variables, if the script defines its class."""
        if is_defined_by_script(type(owner)):
            _, part = self.graph.parts.setdefault(id(owner), (owner, kinds.Part(owner)))
            self._reference(part, f"{path}.__dict__")

    def _mapping(self, kind: str, value: Any, path: str, *, made: bool) -> Any:
        keys, values = list(value), list(value.values())
        if not set(map(type, keys)) <= plain_values.SCALARS:
            keys = [self._item(key, f"{path}, a key") for key in keys]
            if _refers(keys) or any(key is _LOST for key in keys):
                return self._lose(value, path)
        if set(map(type, values)) <= plain_values.SCALARS:
            items = values
        else:
            pairs = zip(value.items(), strict=True)
            items = [self._item(v, f"{path}[{k!r}]") for ((k, v),) in pairs]
        more = {}
        if kind == "default":
            factory = getattr(value.default_factory, "__name__", None)
            known = value.default_factory is None or trees.FACTORIES.get(str(factory))
            if made and value.default_factory is not known and value.default_factory is not None:
                return self._lose(value, path)
            more = {"factory": factory if known is not None else None}
        return {"kind": kind, "keys": keys, "values": items, **more}

    def _array(self, value: Any, path: str) -> Any:
        if plain_values.can_store(value):
            return {"kind": "array", "value": value}
        shape = list(value.shape)
        if value.dtype.kind in "mM":
            return {"kind": "array", "value": value.view(np.int64), "dtype": str(value.dtype)}
        listed = value.ravel().tolist()
        if value.dtype.kind in "USO" and set(map(type, listed)) <= plain_values.SCALARS:
            return {"kind": "array", "value": listed, "dtype": str(value.dtype), "shape": shape}
        return self._lose(value, path)

    def _variable(self, value: Any, path: str, *, made: bool) -> Any:
        source = raw(value)
        if not hasattr(source, "handle") or source.dtype.name in ("string", "variant", "resource"):
            return self._lose(value, path)
        name = self._names.setdefault(id(value), f"{PREFIX}/{len(self._names):06d}")
        if made:
            self._held[name] = value
        return {
            "kind": "variable",
            "of": "tf" if source is value else "keras",
            "array": name,
            "trainable": bool(value.trainable),
        }


def _refers(items: Any) -> bool:
    return isinstance(items, list) and any(isinstance(item, list) for item in items)


def _mark(content: Any) -> Any:
    """Return a mark that differs for different plain data."""
    kind = type(content)
    if kind in plain_values.SCALARS or kind is list:  # a reference
        return repr(content)
    if kind is dict and content.get("kind") == "owner":
        return repr(content["items"])
    if kind is dict and content.get("kind") in kinds.CONTAINERS:
        parts = [content.get(name, []) for name in ("items", "keys", "values")]
        short = all(type(part) is list and len(part) < trees.MANY for part in parts)
        if short and all(set(map(type, part)) <= _SHOWN for part in parts):
            return repr(content)
    return trees.fingerprint(content)
