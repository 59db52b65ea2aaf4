"""torch.compile: what it needs to know of ndtorch, registered when torch._dynamo is imported and not before.

Dynamo cannot look into builtins, so it is given functions in their place, from `_polyfills`. Importing torch._dynamo
takes a second that most programs never spend, so a finder on ``sys.meta_path`` waits for the first import of it,
by whomever, and removes itself. Where torch does not know `_polyfills`, its graph breaks around our calls.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch

from . import _bridge
from . import _collate as _collate  # functions have to be there to be kept out of graphs
from . import _images as _images

_DYNAMO = "torch._dynamo"


def why_not_traced() -> str:
    """Say why torch.compile breaks its graph at our calls; empty where it traces them, or will."""
    if _DYNAMO not in sys.modules and not hasattr(torch.compiler, "substitute_in_graph"):
        return "this torch has no torch.compiler.substitute_in_graph"
    return "; ".join(_notes)


def is_waiting() -> bool:
    """Whether torch._dynamo has not been imported yet."""
    return any(isinstance(finder, _DynamoFinder) for finder in sys.meta_path)


class _DynamoFinder(MetaPathFinder):
    """Finds torch._dynamo where the other finders find it, and registers once it has been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _DYNAMO:
            return None
        others = (getattr(finder, "find_spec", None) for finder in sys.meta_path if finder is not self)
        specs = (find(fullname, path, target) for find in others if find is not None)
        spec: ModuleSpec | None = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _DynamoLoader(spec.loader, self)
        return spec


class _DynamoLoader(Loader):
    """The loader of torch._dynamo for the time of one import; none of it stays behind."""

    def __init__(self, loader: Loader, finder: _DynamoFinder) -> None:
        self.loader, self.finder = loader, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        with contextlib.suppress(ValueError):  # somebody else has cleared sys.meta_path
            sys.meta_path.remove(self.finder)
        _register()


def _register() -> None:
    try:
        _keep_out_of_graphs()
        importlib.import_module("ndtorch._polyfills")
    except Exception as error:  # of a torch that is not known yet: graph breaks give the same results
        _notes.append(f"{type(error).__name__}: {error}")


def _keep_out_of_graphs() -> None:
    """Have dynamo neither inline our functions nor compile their frames, nor those of what they call."""
    from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy

    alone = _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP)
    modules = [(module, name) for name, module in list(sys.modules.items()) if module and name.startswith("ndtorch.")]
    function: Any
    for function in (*_bridge.behind, *(each for module, name in modules for each in _functions_of(module, name))):
        function._torchdynamo_disable = True
        for code in _codes_of(function.__code__):
            set_code_exec_strategy(code, alone)


def _functions_of(owner: ModuleType | type, module: str) -> Iterator[FunctionType]:
    for value in list(vars(owner).values()):
        value = value.fget if isinstance(value, property) else inspect.unwrap(getattr(value, "__func__", value))
        if getattr(value, "__module__", None) != module:
            continue
        if isinstance(value, FunctionType):
            yield value
        elif isinstance(value, type):
            yield from _functions_of(value, module)


def _codes_of(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_of(constant)


_notes: list[str] = []
if _DYNAMO in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _DynamoFinder())
