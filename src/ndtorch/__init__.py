"""The bridge between NumPy and PyTorch.

Shares memory when that is sound, copies once when it is not, says which and why.

To look into a file takes no torch, whose import takes seconds: where nobody has imported it, it comes with the first
name that needs it.
"""

import contextlib
import gc
import importlib
import sys
import typing

from ._errors import (
    CopyRequiredError,
    FormatError,
    InvalidOptionError,
    LossyCastError,
    MissingDependencyError,
    MissingFileError,
    NdtorchError,
    ShapeMismatchError,
    UnsupportedDtypeError,
    UnsupportedTypeError,
)

if typing.TYPE_CHECKING:
    from ._doctor import doctor
    from ._inspect import ArrayInfo, Inspection, inspect
    from ._report import report
    from ._statistics import Statistics
    from .loader import Loader
    from .scale import convert_many


@contextlib.contextmanager
def _without_collections() -> typing.Iterator[None]:
    """Leave the objects of torch alone: to look through them takes as long as imports, and those make no garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


if typing.TYPE_CHECKING or "torch" in sys.modules:
    with _without_collections():
        from ._api import (
            Checkpoint,
            Masked,
            Plan,
            collate,
            convert_file,
            explain,
            image_to_numpy,
            image_to_torch,
            numpy_io,
            read,
            shares_memory,
            stack,
            to_checkpoint,
            to_numpy,
            to_torch,
            torch_io,
            trace,
            write,
        )

__version__ = "0.1.0"
__all__ = [
    "ArrayInfo",
    "Checkpoint",
    "CopyRequiredError",
    "FormatError",
    "Inspection",
    "InvalidOptionError",
    "Loader",
    "LossyCastError",
    "Masked",
    "MissingDependencyError",
    "MissingFileError",
    "NdtorchError",
    "Plan",
    "ShapeMismatchError",
    "Statistics",
    "UnsupportedDtypeError",
    "UnsupportedTypeError",
    "collate",
    "convert_file",
    "convert_many",
    "doctor",
    "explain",
    "image_to_numpy",
    "image_to_torch",
    "inspect",
    "numpy_io",
    "read",
    "report",
    "shares_memory",
    "stack",
    "to_checkpoint",
    "to_numpy",
    "to_torch",
    "torch_io",
    "trace",
    "write",
]

# What is imported when it is asked for: not every user of torch needs it, or it takes no torch.
_LATE = {
    "ArrayInfo": "_inspect",
    "Inspection": "_inspect",
    "Loader": "loader",
    "Statistics": "_statistics",
    "convert_many": "scale",
    "doctor": "_doctor",
    "inspect": "_inspect",
    "report": "_report",
}


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> typing.Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _LATE:
        globals()[name] = getattr(importlib.import_module(f".{_LATE[name]}", __name__), name)
    else:
        with _without_collections():
            from . import _api

        globals().update({each: getattr(_api, each) for each in _api.__all__})
    return globals()[name]
