"""Arrays of other libraries that are in files still: datasets of h5py, arrays of zarr and dask, by their chunks."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from .._convert import explain
from .._errors import FormatError, NdtorchError, UnsupportedTypeError
from ..foreign import Refused, recognise
from ..foreign.dask import Chunks
from .arrays import refusal
from .chunk_rows import Piece
from .wishes import Wishes

AnyArray = npt.NDArray[Any]


def _class(module: str, name: str) -> Any:
    """A class of a library, which is there if an object of it is."""
    return getattr(sys.modules.get(module), name, ())


def is_group(value: Any) -> bool:
    """Whether it is a group of HDF5 or zarr, whose members are leaves."""
    return isinstance(value, (_class("h5py", "Group"), _class("zarr", "Group")))


def members_of(group: Any, wishes: Wishes) -> dict[str, Any]:
    """The arrays and groups in a group.

    Raises:
        NdtorchError: It cannot be read, such as that its file is closed.
    """
    planned = explain(group, to="torch", **wishes.casts())
    if planned.error is not None:
        raise refusal(planned.error)
    return {name: group[name] for name in sorted(group) if hasattr(group[name], "shape") or is_group(group[name])}


def piece_of(value: Any, wishes: Wishes) -> Piece | None:
    """An array that is decoded by its library; None for whatever else.

    Raises:
        NdtorchError: It has no tensor form, or not all of it is there.
    """
    if isinstance(value, _class("h5py", "Dataset")):
        if not isinstance(recognise(value), Refused) and value.dtype.hasobject:
            raise _of_varying_length(value)
        _check(value, wishes)
        return _dataset(value)
    if isinstance(value, _class("zarr", "Array")):
        _check(value, wishes)
        sizes = value.shards or value.chunks
        facts = (_named("zarr array", value), tuple(value.shape), np.dtype(value.dtype), *_by_rows(value, sizes))
        return Piece(*facts, is_live=not value.read_only)
    if isinstance(value, _class("dask.array", "Array")):
        return _dask(value, wishes)
    return None


def _of_varying_length(dataset: Any) -> UnsupportedTypeError:
    what, hint = "values", "list(dataset[()]) is a list of arrays"
    if dataset.dtype.names is not None:
        what, hint = (
            "fields with values",
            "{name: list(dataset[name]) for name in dataset.dtype.names} has them by name",
        )
    fact = f"{_named('dataset', dataset)} holds {what} of varying length, which NumPy has no dtype for"
    return UnsupportedTypeError("Loader", fact, hint=hint, dtype="object")


def _check(value: Any, wishes: Wishes) -> None:
    planned = explain(value, to="torch", **wishes.casts())
    if planned.error is not None:
        raise refusal(planned.error)
    if not value.shape:
        fact = f"{_named(type(value).__name__.lower(), value)} has no rows"
        raise UnsupportedTypeError("Loader", fact, expected="an array of at least one dimension", got="()")


def _named(kind: str, value: Any) -> str:
    store = getattr(getattr(value, "file", None), "filename", None) or getattr(value, "store", "")
    return f"{str(store)!r} {kind} {str(value.name).lstrip('/')!r}"


def _by_rows(value: Any, sizes: Any) -> tuple[int, Any]:
    return (sizes[0] if sizes else 1), lambda start, stop: np.asarray(value[start:stop])


def _dataset(dataset: Any) -> Piece:
    where = _named("dataset", dataset)

    def decode(start: int, stop: int) -> AnyArray:
        if not dataset:
            raise FormatError("Loader", f"{where}: its file is closed", hint="keep it open while the loop runs")
        return np.asarray(dataset[start:stop])

    shape = tuple(dataset.shape) + tuple(dataset.dtype.shape)
    per = dataset.chunks[0] if dataset.chunks else 1
    is_live = dataset.file.mode != "r" or dataset.file.swmr_mode
    return Piece(where, shape, dataset.dtype.base, per, decode, is_live=is_live)


def _dask(array: Any, wishes: Wishes) -> Piece:
    planned = explain(array, to="torch", **wishes.casts())
    if planned.error is not None:
        is_masked = planned.source.form == "masked"
        hint = "dask.array.ma.filled(array, value) fills what is missing" if is_masked else None
        raise refusal(planned.error).renamed("Loader", hint=hint)
    where = f"dask array {str(array.name)!r}"
    if not array.shape:
        raise UnsupportedTypeError(
            "Loader", f"{where} has no rows", expected="an array of at least one dimension", got="()"
        )
    chunks = Chunks(array)

    def decode(start: int, stop: int) -> AnyArray:
        # This thread is one of several: those of dask's own would only wait for each other.
        try:
            return chunks.rows(start, stop)
        except NdtorchError as error:
            raise error.renamed("Loader") from error.__cause__

    hint = "array.rechunk({0: 1000}) has fewer rows in a chunk"
    return Piece(where, chunks.shape, chunks.dtype, max(chunks.sizes[0], default=1), decode, hint)
