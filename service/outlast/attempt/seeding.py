"""Seeds all random generators of an attempt; those of libraries once they are imported."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from outlast.attempt import fresh_seeds
from outlast.job import preload

Hook = Callable[[Any], None]


def seed_everything(seed: int, *, deterministic: bool) -> None:
    """Seed Python now, and numpy and TensorFlow as soon as they are imported.

    Nothing is imported here, because a script may set variables before it imports TensorFlow.

    Args:
        seed: Seed of all generators.
        deterministic: Whether to enable TensorFlow's op determinism.
    """
    random.seed(seed)

    def seed_numpy(module: Any) -> None:
        module.random.seed(seed % 2**32)
        fresh_seeds.begin(seed)

    def seed_tensorflow(module: Any) -> None:
        module.random.set_seed(seed)
        if deterministic:
            module.config.experimental.enable_op_determinism()

    after_import({"numpy": seed_numpy, "tensorflow": seed_tensorflow, "keras": lambda _keras: None})


def after_import(hooks: Mapping[str, Hook]) -> None:
    """Call each hook with its module once that is imported, or now if it already is."""
    later = {}
    for name, hook in hooks.items():
        if name in sys.modules:
            hook(sys.modules[name])
        else:
            later[name] = hook
    if later:
        sys.meta_path.insert(0, _Finder(later))


class _Finder(MetaPathFinder):
    """Finds no module itself, but wraps the loaders of the modules with hooks."""

    def __init__(self, hooks: dict[str, Hook]) -> None:
        self._hooks = hooks

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        hook = self._hooks.pop(fullname, None)
        if hook is None:
            return None
        spec = importlib.util.find_spec(fullname)  # comes back here, without the hook
        if spec is None or spec.loader is None:
            self._hooks[fullname] = hook
            return None
        spec.loader = _HookedLoader(spec.loader, hook)
        return spec


class _HookedLoader(Loader):
    def __init__(self, loader: Loader, hook: Hook) -> None:
        self._loader = loader
        self._hook = hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # restore the original loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        drawn, fresh = random.getstate(), fresh_seeds.drawn()
        # numpy may be imported before the script sets TensorFlow's variables.
        with nullcontext() if module.__name__ == "numpy" else preload.importing():
            self._loader.exec_module(module)
        # TensorFlow draws random numbers during its import. An attempt in a warm spare, which
        # imported it earlier, must not differ from a cold one.
        random.setstate(drawn)
        fresh_seeds.go_on(fresh)
        self._hook(sys.modules[module.__name__])
