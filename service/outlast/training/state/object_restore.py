"""Restores what an `ObjectGraph` captured into the objects that the script created."""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from outlast.training.keras_internals.variables import raw
from outlast.training.state import object_kinds as kinds
from outlast.training.state import plain_values, trees
from outlast.training.state.callback_configuration import why_not_state
from outlast.training.state.object_graph import Content, ObjectGraph
from outlast.training.state.script_code import is_defined_by_script

_MISSING: Any = object()
_MADE = {*kinds.CONTAINERS, "array", "generator", "variable"}  # kinds that a restore can create


class Restore:
    """The restore of one document. `problems` has pairs of a path and why it cannot be restored.

    It creates only objects of the kinds in `_MADE`, never of a class that a file names.
    """

    def __init__(
        self, graph: ObjectGraph, document: Mapping[str, Any], variables: Mapping[str, Any]
    ) -> None:
        self.problems: list[tuple[str, str]] = []
        self._graph = graph
        self._known: dict[str, Content] = document["known"]
        self._new: list[Content] = document["new"]
        self._variables = variables
        self._objects: dict[Any, Any] = {}
        self._unfilled: list[tuple[Content, Any]] = []
        self._attributes: list[tuple[Any, str, Any]] = []
        self._classes: dict[str, Any] | None = None
        referred = set(_references([self._known, self._new]))
        for path, content in self._known.items():
            why = self._unfit(graph.places.get(path, _MISSING), content)
            if why is None:
                self._objects[path] = graph.places[path]
            elif path not in referred or content["kind"] not in _MADE:
                self.problems.append((path, why))

    def apply(self) -> None:
        """Fill all objects. Those with a problem stay as the script created them."""
        self._unfilled = [
            (c, self._objects[p]) for p, c in self._known.items() if p in self._objects
        ]
        while self._unfilled:
            content, target = self._unfilled.pop()
            self._fill(content, target)
        for target, name, child in self._attributes:  # Keras copies a list that is set
            kinds.set_attribute(target, name, child)

    # -- finding and creating ---------------------------------------------------------------

    def _unfit(self, present: Any, content: Content) -> str | None:
        """Return why an object cannot be filled with the content, or None if it can."""
        kind = content["kind"]
        if present is _MISSING:
            return "the script has no object there"
        if kinds.kind_of(type(present)) != kind:
            return f"the checkpoint has a {kind} there, the script has a {type(present).__name__}"
        if "of" in content and kind != "variable":
            name = plain_values.class_name(type(present))
            if name.rpartition(".")[2] != content["of"].rpartition(".")[2]:
                return f"the checkpoint has a {content['of']} there, the script has a {name}"
        if kind == "deque" and present.maxlen != content["maxlen"]:
            was = f"maxlen {content['maxlen']}"
            return f"the checkpoint has {was}, the script has maxlen {present.maxlen}"
        if kind == "array":
            return _difference(present, self._array(content)) or (
                None if present.flags.writeable else "the script's array is read-only"
            )
        if kind == "variable":
            return _difference(raw(present), self._variables[content["array"]])
        if kind == "owner" and len(kinds.variables_of(present)) < len(content["items"]):
            return "its variables do not exist yet; build it in __init__ or on_train_begin"
        if kind == "generator" and not _is_alike(present, content["value"]):
            return "the checkpoint has a different kind of generator there"
        return None

    def _object(self, key: str | int) -> Any:
        found = self._find(key)
        return found.function if isinstance(found, kinds.CODE) else found

    def _find(self, key: str | int) -> Any:
        if key in self._objects:
            return self._objects[key]
        content = self._known.get(key) if isinstance(key, str) else self._new[key]
        if content is None:
            return self._graph.places.get(str(key), _MISSING)
        if content.get("kind") not in _MADE:
            return _MISSING
        made = self._objects[key] = self._make(content)
        self._unfilled.append((content, made))
        return made

    def _make(self, content: Content) -> Any:
        kind = content["kind"]
        if kind == "deque":
            return deque(maxlen=content["maxlen"])
        if kind == "default":
            return defaultdict(trees.FACTORIES.get(content["factory"]))
        if kind in kinds.CONTAINERS:
            return kinds.CONTAINERS[kind]()
        if kind == "array":
            return self._array(content)
        if kind == "generator":
            return content["value"]
        value, trainable = self._variables[content["array"]], content["trainable"]
        if content["of"] == "tf":
            return tf.Variable(value, trainable=trainable)
        return keras.Variable(value, trainable=trainable, dtype=value.dtype.name)

    def _array(self, content: Content) -> Any:
        value, dtype = content["value"], content.get("dtype")
        if dtype is None:
            return value
        if "shape" not in content:
            return value.view(dtype)
        array = np.empty(len(value), dtype)
        array[:] = value
        return array.reshape(content["shape"])

    # -- filling ------------------------------------------------------------------------------

    def _fill(self, content: Content, target: Any) -> None:
        kind = content["kind"]
        if kind in kinds.MAPPINGS:
            self._fill_mapping(content, target)
        elif kind in kinds.CONTAINERS:
            items = self._sequence(content["items"])
            target.clear()
            (target.update if kind == "set" else target.extend)(items)
        elif kind == "array":
            value = self._array(content)
            if value is not target:
                target[...] = value
        elif kind == "generator":
            _set_generator(target, content["value"])
        elif kind == "variable":
            raw(target).assign(self._variables[content["array"]])
        elif kind == "owner":
            for item, present in zip(content["items"], kinds.variables_of(target), strict=False):
                if isinstance(item[0], int):  # created after the training began
                    raw(present).assign(self._variables[self._new[item[0]]["array"]])
        elif kind == "spoken":
            kinds.methods_of(target)[1](content["value"])
        elif kind == "object":
            for name, item in content["attributes"].items():
                child = self._value(item)
                if child is _MISSING:
                    continue
                if (why := why_not_state(target, name, child)) is not None:
                    self.problems.append((f"{self._path_of(target)}.{name}", why))
                else:
                    self._attributes.append((target, name, child))

    def _fill_mapping(self, content: Content, target: Any) -> None:
        found = {}
        for key, item in zip(content["keys"], content["values"], strict=True):
            key = self._value(key)
            child = self._value(item)
            if child is _MISSING:
                child = target.get(key, _MISSING)
            if child is not _MISSING:
                found[key] = child
        target.clear()
        target.update(found)

    def _path_of(self, target: Any) -> str:
        return next((str(key) for key, one in self._objects.items() if one is target), "?")

    def _sequence(self, items: Any) -> list[Any]:
        if isinstance(items, dict):
            return plain_values.unstack(items)
        found = (self._value(item) for item in items)
        return [value for value in found if value is not _MISSING]

    def _value(self, item: Any) -> Any:
        if isinstance(item, list):
            return self._object(item[0])
        if not isinstance(item, dict):
            return item
        kind = item["is"]
        if kind == "lost":
            return _MISSING
        if kind == "tuple":
            return tuple(self._sequence(item["items"]))
        if kind == "frozenset":
            return frozenset(self._sequence(item["items"]))
        try:
            if kind == "named":
                named = self._class(item["of"], tuple)
                return tuple.__new__(named, self._sequence(item["items"]))
            return plain_values.decode(item, lambda name: self._class(name, Enum))
        except LookupError as error:
            self.problems.append(
                (str(item.get("of", kind)), f"the script has no such class ({error})")
            )
            return _MISSING

    def _class(self, name: str, base: type) -> Any:
        """Return a class that the script uses or defines, without importing anything."""
        if self._classes is None:
            values = list(self._graph.places.values())
            modules = {type(v).__module__ for v in values if is_defined_by_script(type(v))}
            defined = [v for m in modules for v in vars(sys.modules[m]).values()]
            attributes = [a for v in values if kinds.kind_of(type(v)) == "object"
                          for a in kinds.attributes_of(v).values()]  # fmt: skip
            found = [v if isinstance(v, type) else type(v) for v in [*attributes, *defined]]
            self._classes = {plain_values.class_name(kind): kind for kind in found}
        kind = self._classes.get(name)
        if kind is None or not issubclass(kind, base):
            raise LookupError(name)
        return kind


def _references(value: Any) -> Iterator[Any]:
    """Yield the key of each reference in the contents of objects."""
    known, new = value
    for content in [*known.values(), *new]:
        items = content.get("attributes", {}).values()
        for part in (items, content.get("items", ()), content.get("values", ())):
            if not isinstance(part, dict):
                yield from _keys(part)


def _keys(items: Any) -> Iterator[Any]:
    for item in items:
        if isinstance(item, list):
            yield item[0]
        elif isinstance(item, dict) and isinstance(item.get("items"), list):
            yield from _keys(item["items"])


def _difference(present: Any, stored: Any) -> str | None:
    dtype = getattr(present.dtype, "as_numpy_dtype", present.dtype)
    if tuple(present.shape) == tuple(stored.shape) and dtype == stored.dtype:
        return None
    was = f"shape {tuple(stored.shape)} of {stored.dtype}"
    now = f"shape {tuple(present.shape)} of {np.dtype(dtype)}"
    return f"the checkpoint has {was}, the script has {now}"


def _is_alike(present: Any, value: Any) -> bool:
    if type(present) is not type(value):
        return False
    if isinstance(value, np.random.Generator):
        return type(present.bit_generator) is type(value.bit_generator)
    return True


def _set_generator(present: Any, value: Any) -> None:
    if present is value:
        return
    if isinstance(value, np.random.Generator):
        present.bit_generator.state = value.bit_generator.state
    elif isinstance(value, np.random.RandomState):
        present.set_state(value.get_state(legacy=False))
    else:
        present.setstate(value.getstate())
