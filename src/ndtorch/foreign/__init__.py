"""Objects of other libraries: one registry, one row a library.

A row says which classes are meant and where they are taken for one of the forms of `forms.py`. Nothing here imports
those libraries: a class can only arrive when its library is in `sys.modules` already.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import NoneType
from typing import Any

import numpy as np
import torch

from . import sparse
from .forms import Foreign, Inner, Memory, Parts, Refused, Restore, Unread
from .protocols import from_protocol
from .sparse import is_sparse_tensor, take_tensor

__all__ = ["Foreign", "Memory", "Parts", "Refused", "Unread", "library_of", "recognise"]


@dataclass(frozen=True, slots=True)
class Library:
    """One row of the registry.

    Attributes:
        module: Name in `sys.modules` of the module that has the classes.
        classes: Names of the classes there; subclasses count.
        take: Takes an object for one of the forms.
        restore: Converts a source into what an example of these classes is, for ``like=``.
        take_for_numpy: The same for `to_numpy`, of a library whose objects NumPy's side has as they are.
        wrap: Gives an array the class of an example, where it fits, for the results of decorated functions.
    """

    module: str
    classes: tuple[str, ...]
    take: Callable[[Any, Inner], Foreign | None]
    restore: Callable[[Any, Any, Restore], Any] | None = None
    wrap: Callable[[Any, Any], Any] | None = None
    take_for_numpy: Callable[[Any, Inner], Foreign | None] | None = None


def _late(home: str, name: str) -> Callable[..., Any]:
    """A function of a module of this package that is imported when it is first called: most programs need few."""

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f".{home}", __name__), name)(*arguments)

    return call


def _both_ways(home: str, back: str = "") -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    return _late(home, "take"), _late(back or home, "restore"), _late(back or home, "wrap")


_ARROW = ("Array", "ChunkedArray", "Table", "RecordBatch", "Scalar", "Tensor", "RecordBatchReader")
_ARROW_SPARSE = ("SparseCOOTensor", "SparseCSRMatrix", "SparseCSCMatrix", "SparseCSFTensor")

REGISTRY = (
    Library("scipy.sparse", ("sparray", "spmatrix"), sparse.take, sparse.restore, take_for_numpy=sparse.take_for_numpy),
    Library("pandas", ("DataFrame", "Series", "Index"), *_both_ways("pandas", "pandas_like")),
    Library("pandas.api.extensions", ("ExtensionArray",), *_both_ways("pandas", "pandas_like")),
    Library("xarray", ("Dataset", "DataArray", "Variable", "DataTree"), *_both_ways("xarray")),
    Library("pyarrow", _ARROW, *_both_ways("pyarrow")),
    Library("pyarrow", _ARROW_SPARSE, _late("pyarrow", "take_sparse")),
    Library("polars", ("Series", "DataFrame", "LazyFrame"), *_both_ways("polars")),
    Library("awkward", ("Array", "Record", "ArrayBuilder"), *_both_ways("awkward")),
    Library("awkward.contents", ("Content",), *_both_ways("awkward")),
    Library("jax", ("Array",), *_both_ways("jax")),
    Library("jax.core", ("Tracer",), _late("jax", "take_tracer")),
    Library("h5py", ("Dataset", "Group"), _late("h5py", "take"), _late("h5py", "restore")),
    Library("zarr", ("Array", "Group"), _late("zarr", "take"), _late("zarr", "restore")),
    Library("zarr", ("AsyncArray", "AsyncGroup"), _late("zarr", "take_async")),
    Library("dask.array", ("Array",), _late("dask", "take"), _late("dask", "restore")),
    Library("dask.dataframe", ("DataFrame", "Series", "Index", "Scalar"), _late("dask", "take_frame")),
    Library("dask.delayed", ("Delayed",), _late("dask", "take_delayed")),
    Library("tensorflow", ("Tensor", "Variable"), *_both_ways("tensorflow")),
    Library("tensorflow", ("RaggedTensor",), _late("tensorflow", "take_ragged")),
    Library("tensorflow", ("SparseTensor",), _late("tensorflow", "take_sparse")),
    Library("ndtorch._read", ("LazyArray",), _late("lazy", "take")),
    Library("ndtorch._read", ("LazyArrays",), _late("lazy", "take_all")),
    Library("PIL.Image", ("Image",), *_both_ways("pillow")),
)

_OURS = (np.ndarray, np.generic, bool, int, float, complex, str, list, tuple, set, NoneType, Foreign)


def recognise(source: Any, to: str = "torch") -> Any:
    """Take an object of another library for one of the forms; what is NumPy's, torch's or Python's stays itself.

    Reads no values where the library allows that. A sparse tensor is foreign to NumPy.

    >>> recognise(memoryview(b"abc")).library
    'memoryview'
    """
    if isinstance(source, torch.Tensor):
        return take_tensor(source) if to == "numpy" and is_sparse_tensor(source) else source
    if isinstance(source, _OURS):
        return source
    row = library_of(source)
    if row is None:
        return (None if isinstance(source, dict) else from_protocol(source)) or source
    try:
        take = row.take_for_numpy if to == "numpy" and row.take_for_numpy is not None else row.take
        taken = take(source, recognise)
    except MemoryError:
        raise
    except Exception as error:  # a library may raise anything
        name = row.module.partition(".")[0]
        reason = (str(error).splitlines() or [""])[0]
        fact = f"{name} could not hand it out ({type(error).__name__}: {reason})"
        return Refused(name, type(source).__name__, (), fact, "numpy.asarray(source)")
    return taken or from_protocol(source) or source


def library_of(value: Any) -> Library | None:
    """The row of the registry for the class of an object."""
    cls: Any = type(value)
    return _row_of(cls)


@lru_cache(maxsize=1024)
def _row_of(cls: Any) -> Library | None:
    for row in REGISTRY:
        module = sys.modules.get(row.module)
        classes = [getattr(module, name, None) for name in row.classes] if module is not None else []
        if any(isinstance(known, type) and issubclass(cls, known) for known in classes):
            return row
    return None
