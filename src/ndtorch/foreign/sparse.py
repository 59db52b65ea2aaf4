"""Sparse matrices: scipy's and torch's, part by part."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .._dtypes import from_numpy_dtype
from .._errors import ShapeMismatchError, UnsupportedTypeError
from .._torch_dtypes import BY_TORCH
from .._turns import own_filters
from .forms import Foreign, Inner, Parts, Refused, Restore, Unread
from .indices import common_dtype, coordinate_matrix, index_part, survey, why_coordinates_unsound

AnyArray = npt.NDArray[Any]

INDEX_PARTS = (".indptr", ".indices", ".coords", ".offsets")
"""What the paths of parts begin with that say where values are: a dtype that is asked for is not for them."""

MADE_OF_OBJECTS = ("lil", "dok")
"""Layouts without arrays of their own: parts were made to stand for them."""

_LAYOUTS = {
    torch.sparse_csr: "csr",
    torch.sparse_csc: "csc",
    torch.sparse_bsr: "bsr",
    torch.sparse_coo: "coo",
}
_BUILDERS: dict[str, Any] = {
    "csr": torch.sparse_csr_tensor,
    "csc": torch.sparse_csc_tensor,
    "bsr": torch.sparse_bsr_tensor,
}
_COMPRESSED_PARTS = (".indptr", ".indices", ".data")
_INT32_MAX, _INT64_MAX = 2**31 - 1, 2**63 - 1
_warned = threading.Event()


# --- from scipy


def take(source: Any, inner: Inner) -> Foreign:
    """Take a scipy.sparse matrix or array: the parts of its layout.

    Reads the indices once, since torch and SciPy would follow bad ones out of memory, and never trusts the flags that
    SciPy caches, which are stale once somebody has written into the indices.
    """
    if not _is_number(source.dtype):
        return _refused(source, f"scipy.sparse does not compute on {source.dtype}", "source.astype(dtype)")
    if math.prod(source.shape) > _INT64_MAX:
        fact = "it has more places than torch can count in 64 bits"
        return _refused(source, fact, "to_torch(source.data) converts its values")
    if source.format == "coo":
        return _coordinates(source, source.coords, source.data)
    if source.format in _BUILDERS:
        return _compressed(source, source)
    return _through_csr(source)


def _is_number(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "biufc" or from_numpy_dtype(dtype) is not None


def _text(source: Any) -> str:
    row = from_numpy_dtype(source.dtype)
    return f"{source.format} {row.short if row else source.dtype}"


def _refused(source: Any, fact: str, hint: str = "build it anew from sound arrays") -> Refused:
    return Refused("scipy", _text(source), tuple(source.shape), fact, hint)


def _parts(source: Any, layout: str, parts: Mapping[str, Any], *, note: str = "") -> Parts:
    shape = tuple(map(int, source.shape))
    return Parts("scipy", "sparse", _text(source), shape, parts, layout=layout, original=source, note=note)


def _through_csr(source: Any) -> Foreign:
    """Take a layout that torch lacks: DIA, LIL, DOK."""
    fault = _why_not_csr(source)
    if fault:
        return _refused(source, fault)
    reason = f"torch has no {source.format.upper()} layout: it becomes {'COO' if source.ndim == 1 else 'CSR'}"
    sound = source
    if source.format == "dia":
        sound = copy.copy(source)
        sound.offsets = source.offsets.astype(np.int64)  # in narrow ones SciPy's count of the values overflows
    return _compressed(source, sound.tocsr(), reason)


def _why_not_csr(source: Any) -> str:
    """Say why SciPy, which believes what such a matrix says of itself, must not convert it."""
    if source.format == "dia":
        return _why_dia_unsound(source)
    return _why_lil_unsound(source) if source.format == "lil" else ""


def _why_dia_unsound(source: Any) -> str:
    data, offsets = source.data, source.offsets
    if data.ndim != 2 or offsets.ndim != 1 or len(offsets) != len(data) or offsets.dtype.kind not in "iu":
        return f"its offsets are {offsets.dtype}{list(offsets.shape)} for data of shape {data.shape}"
    reach = max(_INT32_MAX, *source.shape)  # SciPy computes with them and does not look for an overflow
    far = next((offset for offset in offsets.tolist() if abs(offset) > reach), None)
    if far is not None:
        return f"its offset {far} lies outside of any such matrix"
    return "one of its offsets stands twice" if len(np.unique(offsets)) != len(offsets) else ""


def _why_lil_unsound(source: Any) -> str:
    rows, data = source.rows, source.data
    if not rows.shape == data.shape == source.shape[:1]:
        return f"it has rows of shape {rows.shape} and data of shape {data.shape} for {source.shape[0]} rows"
    for i, (places, values) in enumerate(zip(rows, data, strict=True)):
        if not (type(places) is type(values) is list and len(places) == len(values)):
            return f"the indices and the values of row {i} are not two lists of one length"
    return ""


def _compressed(original: Any, source: Any, reason: str = "") -> Foreign:
    """Take CSR, CSC or BSR; with a reason, it was made a moment ago and its arrays belong to nobody else."""
    indptr, indices, data = source.indptr, source.indices, source.data
    fault, major, minor = _sides(source)
    if fault:
        return _refused(original, fault)
    found = survey(indptr, indices, data, major, minor)
    if found.fault:
        return _refused(original, found.fault)
    indices, data = indices[: found.nnz], data[: found.nnz]
    if source.ndim == 1:  # torch has vectors as COO only
        return _coordinates(original, (indices,), data, reason)
    dtype = common_dtype(indptr, indices, source.shape)
    if not found.in_order:
        reason = reason or "its indices are not in order, or one stands twice"
        indptr, indices, data = _in_order(source, dtype, indptr, indices, data)
    elif not reason:
        arrays: tuple[Any, ...] = (index_part(indptr, dtype), index_part(indices, dtype), data)
        return _parts(original, source.format, dict(zip(_COMPRESSED_PARTS, arrays, strict=True)))
    made = {path: _made(part, reason) for path, part in zip(_COMPRESSED_PARTS, (indptr, indices, data), strict=True)}
    return _parts(original, source.format, made)


def _sides(source: Any) -> tuple[str, int, int]:
    """How many compressed rows (or columns) there are and how long they are, in blocks; or why they cannot be told."""
    data, shape = source.data, source.shape
    if data.ndim != (3 if source.format == "bsr" else 1):
        return f"its data has {data.ndim} dimensions", 0, 0
    if source.ndim == 1:
        return "", 1, shape[0]
    if source.format == "bsr":
        block = data.shape[1:]
        if 0 in block or shape[0] % block[0] or shape[1] % block[1]:
            return f"its blocks of shape {block} do not fill its shape {shape}", 0, 0
        return "", shape[0] // block[0], shape[1] // block[1]
    return "", *(reversed(shape) if source.format == "csc" else shape)


def _in_order(source: Any, dtype: np.dtype[Any], *arrays: AnyArray) -> Sequence[AnyArray]:
    """Indices in order, the values that stand at one place added up, all in new memory."""
    indptr, indices, data = arrays
    copies = (indptr.astype(dtype), indices.astype(dtype), data.astype(data.dtype.newbyteorder("=")))
    fresh = build_matrix(source.format, source.shape, dict(zip(_COMPRESSED_PARTS, copies, strict=True)))
    fresh.sum_duplicates()
    return fresh.indptr, fresh.indices, fresh.data


def _made(array: AnyArray, reason: str) -> Unread:
    return Unread("scipy", array.dtype, array.shape, reason, lambda: array)


def _coordinates(source: Any, coords: Sequence[AnyArray], data: AnyArray, reason: str = "") -> Foreign:
    if data.ndim != 1:
        return _refused(source, f"its data has {data.ndim} dimensions")
    fault = why_coordinates_unsound(coords, data.size, source.shape)
    if fault:
        return _refused(source, fault)
    matrix = coordinate_matrix(coords, data.size)
    note = "the tensor counts as uncoalesced: tensor.coalesce() comes before tensor.indices()"
    if not reason:
        return _parts(source, "coo", {".coords": matrix, ".data": data}, note=note)
    made = replace(matrix, reason=reason) if isinstance(matrix, Unread) else _made(matrix, reason)
    return _parts(source, "coo", {".coords": made, ".data": _made(data, reason)}, note=note)


def take_for_numpy(source: Any, inner: Inner) -> Foreign:
    """Take a scipy.sparse object for what it is: NumPy's side has every layout, and no index is followed."""
    data = {".data": source.data} if hasattr(source, "data") else {}
    if source.format in ("csr", "csc", "bsr"):
        return _parts(source, source.format, {".indptr": source.indptr, ".indices": source.indices, **data})
    if source.format == "coo":
        return _parts(source, source.format, _by_axis(source.coords) | data)
    if source.format == "dia":
        return _parts(source, source.format, {".offsets": source.offsets, **data})
    # The others are made of Python objects: arrays stand for them, unused where nothing is to be done.
    fault = _why_not_csr(source)
    if fault:
        return _refused(source, fault)
    made = source.tocoo()
    return _parts(source, source.format, {**_by_axis(made.coords), ".data": made.data})


def _by_axis(coords: Sequence[AnyArray]) -> dict[str, Any]:
    return {f".coords[{axis}]": indices for axis, indices in enumerate(coords)}


# --- from torch


def is_sparse_tensor(value: object) -> bool:
    """Whether a value is a tensor of a sparse layout that has values."""
    if not isinstance(value, torch.Tensor) or value.layout not in (*_LAYOUTS, torch.sparse_bsc):
        return False
    return not value.is_meta and type(value).__name__ != "FakeTensor"


def take_tensor(tensor: torch.Tensor) -> Foreign:
    """Take a sparse tensor: the parts of its layout."""
    row = BY_TORCH.get(tensor.dtype)
    name = str(tensor.layout).removeprefix("torch.")
    text = f"{name.removeprefix('sparse_')} {row.short if row else str(tensor.dtype).removeprefix('torch.')}"
    shape = tuple(tensor.shape)
    refusal = _why_not_scipy(tensor)
    if refusal is not None:
        fact, hint = refusal
        return Refused("torch", text, shape, f"its layout is {name}{fact}, which scipy.sparse does not have", hint)
    *indices, values = components(tensor)
    layout = _LAYOUTS[tensor.layout]
    paths = (".coords", ".data") if layout == "coo" else _COMPRESSED_PARTS
    if tensor.requires_grad:
        values.requires_grad_()
    return Parts("torch", "sparse", text, shape, dict(zip(paths, (*indices, values), strict=True)), layout=layout)


def _why_not_scipy(tensor: torch.Tensor) -> tuple[str, str] | None:
    """What of a sparse tensor scipy.sparse does not have, and what to call instead."""
    dense = "tensor.to_dense() gives a plain tensor"
    if tensor.layout not in _LAYOUTS:
        return "", dense
    if tensor.dense_dim():
        return " and each of its values is an array", dense
    if tensor.layout != torch.sparse_coo and tensor.dim() != 2:
        return " and it is a batch", "tensor.to_dense() gives a plain tensor, tensor.unbind() its matrices"
    return (" and it has no dimension", dense) if tensor.dim() == 0 else None


def components(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The plain tensors that a sparse tensor is made of, values last; they share its memory and know no gradient."""
    plain = tensor.detach()
    if plain.layout == torch.sparse_coo:
        return plain._indices(), plain._values().detach()
    if plain.layout in (torch.sparse_csr, torch.sparse_bsr):
        starts, places = plain.crow_indices(), plain.col_indices()
    else:
        starts, places = plain.ccol_indices(), plain.row_indices()
    # Some views of complex values fail unless detached: torch takes them for views of the sparse tensor.
    return starts, places, plain.values().detach()


# --- put together


def build_tensor(layout: str, shape: tuple[int, ...], parts: Mapping[str, Any]) -> torch.Tensor:
    """Make a sparse tensor over the memory of parts that `take` has found sound.

    Torch's own check of the indices reads them several times and is left to those who have switched it on with
    ``torch.sparse.check_sparse_tensor_invariants``.

    Raises:
        ShapeMismatchError: Torch does not take them.
    """
    _quieten_beta_warning()
    checks = torch.sparse.check_sparse_tensor_invariants.is_enabled()  # type: ignore[no-untyped-call]
    try:
        if layout == "coo":
            return torch.sparse_coo_tensor(parts[".coords"], parts[".data"], shape, check_invariants=checks)
        arrays = [parts[path] for path in _COMPRESSED_PARTS]
        result: torch.Tensor = _BUILDERS[layout](*arrays, shape, check_invariants=checks)
        return result
    except RuntimeError as error:
        sizes = ",".join(map(str, shape))
        fact = f"cannot convert {layout}[{sizes}](scipy): {str(error).splitlines()[0]}"
        raise ShapeMismatchError("to_torch", fact, hint="build it anew from sound arrays") from None


def _quieten_beta_warning() -> None:
    """Torch warns once a process that these layouts are beta; that is for torch's own callers."""
    if _warned.is_set():
        return
    with own_filters():
        warnings.simplefilter("ignore")
        torch.eye(1).to_sparse_csr()
    _warned.set()


def is_scipy_installed() -> bool:
    """Whether a sparse tensor can become anything on NumPy's side."""
    return "scipy.sparse" in sys.modules or importlib.util.find_spec("scipy") is not None


def build_matrix(layout: str, shape: tuple[int, ...], parts: Mapping[str, Any], *, is_matrix: bool = False) -> Any:
    """Make a scipy.sparse array (or matrix) over the memory of its parts."""
    sparse = importlib.import_module("scipy.sparse")
    cls = getattr(sparse, f"{layout}_{'matrix' if is_matrix else 'array'}")
    values = parts[".data"]
    # Given to the constructor, the indices would be copied to the width that SciPy finds best.
    result = cls(shape, **({"blocksize": values.shape[1:]} if layout == "bsr" else {}))
    if layout == "coo":
        result.has_canonical_format = False  # it says yes while it is empty, and would not be asked again
    return _given(result, parts)


def rebuild(original: Any, parts: Mapping[str, Any]) -> Any:
    """Make a scipy.sparse object of the class and layout of another over the memory of other parts."""
    if original.format not in MADE_OF_OBJECTS:
        return _given(copy.copy(original), parts)
    coo = build_matrix("coo", original.shape, parts, is_matrix=_is_matrix(original))
    return coo.asformat(original.format)


def _given(result: Any, parts: Mapping[str, Any]) -> Any:
    """Put the parts in their places."""
    coords = [part for path, part in parts.items() if path.startswith(".coords")]
    if coords:
        result.coords = tuple(coords[0]) if coords[0].ndim == 2 else tuple(coords)
    for path, part in parts.items():
        if not path.startswith(".coords"):
            setattr(result, path[1:], part)
    return result


def _is_matrix(value: Any) -> bool:
    return isinstance(value, sys.modules["scipy.sparse"].spmatrix)


# --- the way back


def restore(source: Any, like: Any, inner: Restore) -> Any:
    """Give a sparse (or dense) tensor the layout and dtype of a scipy.sparse object, as array or matrix as it is one.

    Raises:
        ShapeMismatchError: That layout cannot have so many dimensions.
    """
    result = inner(source, np.empty(0, like.dtype))
    sparse = sys.modules["scipy.sparse"]
    if not isinstance(result, np.ndarray) and not sparse.issparse(result):
        fact = f"like= is a {type(like).__name__} but the source is a {type(source).__name__}"
        raise UnsupportedTypeError("to_numpy", fact, hint="like= takes what to_torch was given")
    is_matrix = _is_matrix(like)
    if result.ndim != 2 and (is_matrix or like.format in ("csc", "bsr", "dia", "lil")):
        name = f"{like.format}_{'matrix' if is_matrix else 'array'}"
        raise ShapeMismatchError("to_numpy", f"like= is a {name}", expected="2 dimensions", got=result.ndim)
    if isinstance(result, np.ndarray) or result.format != like.format:
        result = _in_layout(result, like, inner)
    return result if _is_matrix(result) == is_matrix else _as_kind(result, is_matrix)


def _in_layout(result: Any, like: Any, inner: Restore) -> Any:
    """Convert to the layout of the example, or raise where a copy is forbidden."""
    is_dense = isinstance(result, np.ndarray)
    values = result if is_dense else result.data
    was = "dense" if is_dense else result.format
    taken = None if is_dense else take(result, _itself)
    if isinstance(taken, Refused):  # SciPy would follow its indices
        fact = f"cannot convert {was}{list(result.shape)} to {like.format}: {taken.fact}"
        raise UnsupportedTypeError("to_numpy", fact, hint=taken.hint)
    reason = f"like= has another layout: {was} becomes {like.format}"
    inner(Unread("torch", values.dtype, values.shape, reason, lambda: values), None, ".data")
    try:
        if is_dense:
            result = sys.modules["scipy.sparse"].coo_array(result)
        if like.format == "bsr" and not any(n % b for n, b in zip(result.shape, like.blocksize, strict=True)):
            return result.tobsr(blocksize=like.blocksize)
        return result.asformat(like.format)
    except ValueError as error:
        raise ShapeMismatchError("to_numpy", f"like= has another layout: {str(error).splitlines()[0]}") from None


def _as_kind(result: Any, is_matrix: bool) -> Any:
    """An array as a matrix, or a matrix as an array, over the same memory."""
    if result.format in MADE_OF_OBJECTS:
        sparse = sys.modules["scipy.sparse"]
        return getattr(sparse, f"{result.format}_{'matrix' if is_matrix else 'array'}")(result)
    parts = take_for_numpy(result, _itself)
    assert isinstance(parts, Parts)
    return build_matrix(result.format, result.shape, parts.parts, is_matrix=is_matrix)


def _itself(part: Any) -> Any:
    return part


def wrap(array: AnyArray, like: Any) -> Any:
    """A dense result of a sparse argument stays dense."""
    return array
