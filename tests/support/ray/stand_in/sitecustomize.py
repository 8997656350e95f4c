"""Python imports this file when it starts in a process of the tests' clusters.

It lets services whose `--model` is a folder named `stand-in` run the backend without a model, which
starts several times as fast, because it imports neither torch nor transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

_MODULE = "latentwire_service.engine_factory"


class _Loader(SourceFileLoader):
    """Replaces the function that makes backends."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        from support.ray.stand_in_backend import backend_factory

        untyped: Any = module
        untyped.backend_factory = backend_factory(untyped.backend_factory)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Loader(fullname, spec.origin)
        return spec


sys.meta_path.insert(0, _Finder())
