"""xarray: labelled arrays by what holds their values, data sets by variable."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .._errors import NdtorchError, ShapeMismatchError
from .forms import Foreign, Inner, Memory, Parts, Refused, Restore, Unread, table

AnyArray = npt.NDArray[Any]


def take(source: Any, inner: Inner) -> Foreign:
    """Take a DataArray, Variable, Dataset or DataTree. Coordinates and attributes stay behind; like= restores them."""
    if hasattr(source, "children"):
        parts = {name: inner(part) for name, part in _branches(source).items()}
        return table("xarray", "DataTree", len(parts), parts)
    if hasattr(source, "data_vars"):
        coords = set(source.coords)  # and not data_vars, which looks for the coordinates of each
        found = {name: variable for name, variable in source.variables.items() if name not in coords}
        variables = {name: _variable(variable, inner) for name, variable in found.items()}
        paths = {f"[{name!r}]": variable for name, variable in variables.items()}
        return Parts("xarray", "table", "Dataset", (len(variables),), paths, keys=tuple(variables))
    return _variable(getattr(source, "variable", source), inner)


def _branches(tree: Any) -> dict[Any, Any]:
    """Variables and children of a node by name; no two have the same."""
    return {**tree.to_dataset(inherit=False).data_vars, **tree.children}


def _variable(variable: Any, inner: Inner) -> Foreign:
    if variable.chunks is not None:
        return _chunked(variable, inner)
    if isinstance(variable, sys.modules["xarray"].IndexVariable) and variable.dtype.kind not in "SU":
        index: Foreign = inner(variable.to_index())  # the memory is pandas'
        return index
    if _is_lazy(variable):
        return _lazy(variable)
    data = variable.data
    if isinstance(data, np.ndarray | torch.Tensor):
        return Memory("xarray", data)
    taken = inner(data)
    if isinstance(taken, Foreign):
        return taken
    hint = "source.as_numpy() makes it an array of NumPy's"
    name = type(data).__name__
    return Refused("xarray", str(variable.dtype), variable.shape, f"its values are held by a {name}", hint)


def _is_lazy(variable: Any) -> bool:
    """Whether asking for the values would read a file. Nothing public says so without reading it."""
    held = getattr(variable, "_data", None)
    return hasattr(held, "get_duck_array") and not getattr(variable, "_in_memory", True)


def _lazy(variable: Any) -> Foreign:
    def fill(array: AnyArray) -> None:
        array[...] = variable.values

    # A copy, since xarray keeps what it has read.
    reason = "its values are not in memory until xarray loads them"
    note = "xarray keeps what it has read, unless the file was opened with cache=False"
    return _unread(variable, reason, lambda: np.array(variable.values), fill, note)


def _chunked(variable: Any, inner: Inner) -> Foreign:
    chunks = variable.data
    taken = inner(chunks) if isinstance(variable.dtype, np.dtype) and variable.dtype.kind != "O" else None
    if isinstance(taken, Foreign) and taken.library == "dask":
        return replace(taken, library="xarray")

    def fill(array: AnyArray) -> None:
        if hasattr(chunks, "store"):  # each chunk straight to its place
            chunks.store(array, lock=False)
        else:
            array[...] = variable.values

    def read() -> AnyArray:
        array = np.empty(variable.shape, variable.dtype)
        fill(array)
        return array

    library = type(chunks).__module__.partition(".")[0]
    return _unread(variable, f"its values are chunks that {library} has yet to compute", read, fill)


def _unread(variable: Any, reason: str, read: Any, fill: Any, note: str = "") -> Foreign:
    dtype, shape = variable.dtype, tuple(variable.shape)
    if not isinstance(dtype, np.dtype) or dtype.kind == "O":
        fact = "only loading it tells what its objects are"
        return Refused("xarray", str(dtype), shape, fact, "source.load() brings its values into memory")
    return Unread("xarray", dtype, shape, reason, read, fill, note=note)


# --- the way back


def restore(source: Any, like: Any, inner: Restore) -> Any:
    """Give arrays the dimensions, coordinates, attributes and name of an example.

    A dimension of another size than the example's loses its coordinates.
    """
    if hasattr(like, "children"):
        return _tree(source, like, inner)
    if hasattr(like, "data_vars"):
        return _dataset(source, like, inner)
    variable = getattr(like, "variable", like)
    values = _values(source, variable, inner)
    if not hasattr(like, "coords"):
        return _revalued(variable, values)
    return _labelled(values, like)


def _values(source: Any, like: Any, inner: Restore) -> Any:
    """The values of a variable as an array that has as many dimensions."""
    is_numpy = isinstance(like.dtype, np.dtype)
    if not is_numpy:  # pandas' own dtypes
        values = inner(source, like.data)
    elif like.dtype.kind == "O":
        plain = inner(source, None)
        values = inner(plain, np.empty(np.shape(plain), object))
    else:
        values = inner(source, np.empty((0,) * like.ndim, like.dtype))
    if (is_numpy and not isinstance(values, np.ndarray)) or values.ndim != like.ndim:
        got = f"{values.ndim}" if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
        fact = f"like= has the dimensions ({', '.join(map(str, like.dims))})"
        raise ShapeMismatchError("to_numpy", fact, expected=f"{like.ndim} of them", got=got)
    return values


def _revalued(variable: Any, values: Any) -> Any:
    if values.shape == variable.shape:
        return variable.copy(data=values)
    return type(variable)(variable.dims, values, variable.attrs, variable.encoding)


def _labelled(values: Any, like: Any) -> Any:
    if values.shape == like.shape:
        return like.copy(data=values)
    other = {dim for dim, size in zip(like.dims, values.shape, strict=True) if like.sizes[dim] != size}
    coords = _coordinates_without(like, other)
    result = type(like)(values, coords=coords, dims=like.dims, name=like.name, attrs=like.attrs)
    result.encoding = like.encoding
    return result


def _coordinates_without(like: Any, dims: set[Any]) -> Any:
    return (
        like.coords.to_dataset().drop_vars([name for name, coord in like.coords.items() if dims & {*coord.dims}]).coords
    )


def _dataset(source: Any, like: Any, inner: Restore) -> Any:
    source = _checked(source, like.data_vars, "Dataset", inner)
    variables = {}
    sizes: dict[Any, int] = {}
    for name, array in like.data_vars.items():
        variable = array.variable
        try:
            values = _values(source[name], variable, inner)
            for dim, size in zip(variable.dims, values.shape, strict=True):
                if sizes.setdefault(dim, size) != size:
                    fact = f"the dimension {dim!r} has another size in another variable"
                    raise ShapeMismatchError("to_numpy", fact, expected=sizes[dim], got=size)
        except NdtorchError as error:
            raise error.at(f"[{name!r}]") from None
        variables[name] = _revalued(variable, values)
    other = {dim for dim, size in sizes.items() if like.sizes[dim] != size}
    result = type(like)(variables, coords=_coordinates_without(like, other), attrs=like.attrs)
    result.encoding = like.encoding
    return result


def _tree(source: Any, like: Any, inner: Restore) -> Any:
    source = _checked(source, _branches(like), "DataTree", inner)
    dataset = like.to_dataset(inherit=False)
    restored = _dataset({name: source[name] for name in dataset.data_vars}, dataset, inner)
    children = {}
    for name, child in like.children.items():
        try:
            children[name] = _tree(source[name], child, inner)
        except NdtorchError as error:
            raise error.at(f"[{name!r}]") from None
    return type(like)(restored, children=children, name=like.name)


def _checked(source: Any, names: Mapping[Any, Any], kind: str, inner: Restore) -> Mapping[Any, Any]:
    """The source as a mapping that has exactly these names."""
    if not isinstance(source, Mapping) or hasattr(source, "data_vars"):
        source = inner(source, None)
    if not isinstance(source, Mapping) or set(source) != set(names):
        got = list(source) if isinstance(source, Mapping) else type(source).__name__
        hint = "to_torch(source) gives a dict with the same names"
        raise ShapeMismatchError(
            "to_numpy", f"like= is a {kind} of other variables", expected=list(names), got=got, hint=hint
        )
    return source


def wrap(array: AnyArray, like: Any) -> Any:
    """Give an array of the example's shape its dimensions, coordinates, attributes and name."""
    if hasattr(like, "data_vars") or not isinstance(array, np.ndarray) or array.shape != like.shape:
        return array
    return like.copy(data=array)
