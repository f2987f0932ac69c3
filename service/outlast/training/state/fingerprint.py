"""Fingerprints: short descriptions of models and optimizers, by which a phase is recognized.

They contain only what decides the result. They leave out names that Keras numbers by order, shapes
that depend on the batch size, seeds (their generators are part of the state) and addresses of
objects.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import keras
import xxhash

from outlast.training.keras_internals.models import to_snake_case

Plain = dict[str, Any]

RATE = "learning_rate"
OF_KERAS = {"model", "optimizer", "compiled"}  # may differ across versions of Keras
_LEFT_OUT = {"build_config", "build_input_shape", "compile_config", "registered_name", "seed"}
_LEFT_OUT |= {"shared_object_id", "quantization_config"}
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def of_model(model: Any, document: bytes | None) -> Plain:
    """Return a model's class and a digest of each layer's configuration.

    `document` is the content of `model.json`, or `None` if Keras cannot write one.
    """
    found: Plain = {"class": type(model).__name__}
    if document is None:
        return found
    config = json.loads(document)["config"].get("config")
    if not isinstance(config, dict):
        return found
    names = _names_in(config, {})
    layers = config.get("layers")
    if isinstance(layers, list):
        if isinstance(model, keras.Sequential):  # a call adds an InputLayer where there was none
            layers = [one for one in layers if one.get("class_name") != "InputLayer"]
        for i, layer in enumerate(layers):
            kind = layer.get("class_name", "layer") if isinstance(layer, dict) else "layer"
            found[f"layer {i}"] = f"{kind} {digest(_plain(layer, names))}"
        config = {key: value for key, value in config.items() if key != "layers"}
    found["config"] = digest(_plain(config, names))
    return found


def of_optimizer(optimizer: Any) -> Plain:
    """Return an optimizer's class, configuration and current learning rate."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        return {}
    found: Plain = {"class": to_snake_case(type(optimizer).__name__).replace("_", "")}
    with suppress(Exception):  # get_config may raise anything
        for key, value in optimizer.get_config().items():
            if key == "learning_rate":
                schedule = isinstance(value, dict)
                found[RATE] = _plain(value, {}) if schedule else float(f"{float(value):.6g}")
            elif key != "name":
                found[key] = _plain(without(value, {RATE, "name"}), {})
    return found


def of_compiled(model: Any, document: bytes | None) -> Plain:
    """Return the configurations of losses and metrics; for losses, only what is not default."""
    losses = keras.tree.flatten(getattr(model, "loss", None))
    found: Plain = {f"loss {i}": _unusual(loss) for i, loss in enumerate(losses)}
    compiled = None if document is None else json.loads(document)["config"].get("compile_config")
    if isinstance(compiled, dict):
        for key in ("loss_weights", "metrics", "weighted_metrics"):
            found[key] = digest(_plain(compiled.get(key), {}))
    return found


def of_training(model: Any, document: bytes | None) -> Plain:
    """Return the fingerprint of a model, including the arguments of `compile` if it is compiled."""
    return {
        "model": of_model(model, document),
        "optimizer": of_optimizer(getattr(model, "optimizer", None)),
        "compiled": of_compiled(model, document),
    }


def without(value: Any, keys: set[str]) -> Any:
    """Return a copy of nested dicts without these keys, at any depth."""
    if isinstance(value, Mapping):
        return {k: without(v, keys) for k, v in value.items() if k not in keys}
    return value


def first_difference(stored: Any, here: Any, what: str = "") -> tuple[str, Any, Any] | None:
    """Return the first difference of two fingerprints, with both values; `None` if equal."""
    if isinstance(stored, Mapping) and isinstance(here, Mapping):
        for key in [*stored, *(key for key in here if key not in stored)]:
            name = f"{what}, {key}" if what else str(key)
            found = first_difference(stored.get(key), here.get(key), name)
            if found is not None:
                return found
        return None
    return None if stored == here else (what, stored, here)


def digest(value: Any) -> str:
    """Return a hash of plain data, as 16 hex digits."""
    text = json.dumps(value, sort_keys=True, default=str)
    return xxhash.xxh3_64_hexdigest(text.encode())


def _unusual(loss: Any) -> Any:
    if not isinstance(loss, keras.losses.Loss):
        return None
    with suppress(Exception):  # a class may need arguments or lack get_config
        usual: Mapping[str, Any] = {}
        with suppress(Exception):
            usual = type(loss)().get_config()
        config = loss.get_config()
        return {
            key: _plain(value, {})
            for key, value in config.items()
            if key != "name" and value != usual.get(key, ...)
        } or None
    return None


def _names_in(config: Any, names: dict[str, str]) -> dict[str, str]:
    """Number layers' names by order, because Keras' numbers depend on earlier models."""
    if isinstance(config, list):
        for value in config:
            _names_in(value, names)
    elif isinstance(config, dict):
        inner = config.get("config")
        name = inner.get("name") if isinstance(inner, dict) else None
        if isinstance(name, str) and "class_name" in config:
            names.setdefault(name, f"#{len(names)}")
        for value in config.values():
            _names_in(value, names)
    return names


def _plain(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        if value.get("class_name") == "__lambda__":
            return "lambda"  # its code contains line numbers of the file
        kept = {k: _plain(v, names) for k, v in value.items() if k not in _LEFT_OUT}
        shape = kept.get("batch_shape")
        if isinstance(shape, list) and shape:
            kept["batch_shape"] = [None, *shape[1:]]
        if "config" not in value and isinstance(value.get("name"), str):
            kept.pop("name")
        return {str(key): one for key, one in kept.items()}
    if isinstance(value, list | tuple):
        return [_plain(one, names) for one in value]
    if isinstance(value, str):
        return names.get(value, _ADDRESS.sub("", value))
    if value is None or isinstance(value, bool | int | float):
        return value
    return _ADDRESS.sub("", str(value))
