"""Index arrays of sparse matrices: whether they are sound and in order, and the form that torch wants them in.

Torch and SciPy both follow indices without looking where they lead, so a bad one reads foreign memory. Their own
checks read the indices several times; these read them once, block by block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from .._casting import copy_into
from .forms import Unread

AnyArray = npt.NDArray[Any]

_BLOCK = 1 << 17  # indices looked at together: a block stays in the cache
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Survey:
    """What one look at the indices of a compressed matrix tells.

    Attributes:
        fault: Why they must not be followed, in words that finish "cannot convert it: ..."; ``""`` when they may be.
        nnz: How many values there are; the arrays may be longer.
        in_order: Whether the indices of each row ascend and none stands twice.
    """

    fault: str = ""
    nnz: int = 0
    in_order: bool = True


def survey(indptr: AnyArray, indices: AnyArray, data: AnyArray, major: int, minor: int) -> Survey:
    """Look at the indices of ``major`` compressed rows (or columns) of ``minor`` elements (or blocks)."""
    fault = _why_not_index("indptr", indptr) or _why_not_index("indices", indices) or _why_not_starts(indptr, major)
    if fault:
        return Survey(fault)
    nnz = int(indptr[-1])
    if nnz > min(len(indices), len(data)):
        return Survey(f"its indptr ends at {nnz}, but it has {len(indices)} indices and {len(data)} values")
    places = indices[:nnz]
    highest, falls = _course(places)
    fault = _why_outside("indices", highest, places, minor)
    if fault:
        return Survey(fault)
    firsts = indptr[1:-1]
    firsts = firsts[(firsts > 0) & (firsts < nnz)]
    firsts = firsts[np.diff(firsts, prepend=0) > 0]  # an empty row begins where the next one does
    return Survey("", nnz, in_order=falls == int(np.count_nonzero(places[firsts] <= places[firsts - 1])))


def why_coordinates_unsound(coords: Sequence[AnyArray], count: int, shape: tuple[int, ...]) -> str:
    """Say why coordinates must not be followed; ``""`` means that they may be."""
    if len(coords) != len(shape):
        return f"it has {len(shape)} dimensions, but coords for {len(coords)}"
    for axis, (indices, n) in enumerate(zip(coords, shape, strict=True)):
        name = f"coords[{axis}]"
        fault = _why_not_index(name, indices)
        if fault:
            return fault
        if len(indices) != count:
            return f"its {name} has {len(indices)} indices for {count} values"
        fault = _why_outside(name, int(_unsigned(indices).max()) if count else -1, indices, n)
        if fault:
            return fault
    return ""


def _why_not_index(name: str, indices: Any) -> str:
    if not isinstance(indices, np.ndarray):
        return f"its {name} is a {type(indices).__name__}, not an array"
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        return f"its {name} is {indices.dtype}{list(indices.shape)}, not one row of integers"
    return ""


def _why_not_starts(indptr: AnyArray, major: int) -> str:
    if len(indptr) != major + 1:
        return f"its indptr has {len(indptr)} entries instead of {major + 1}"
    if indptr[0] != 0:
        return f"its indptr begins with {int(indptr[0])} instead of 0"
    falls = indptr[1:] < indptr[:-1]
    return f"its indptr decreases at index {int(np.argmax(falls)) + 1}" if falls.any() else ""


def _why_outside(name: str, highest: int, indices: AnyArray, n: int) -> str:
    if highest < n:
        return ""
    lowest = int(indices.min())
    return f"its {name} has {lowest if lowest < 0 else int(indices.max())}, outside of 0 to {n - 1}"


def _unsigned(indices: AnyArray) -> AnyArray:
    """The same bits, in which a negative index is a huge one: one bound is then enough."""
    return indices.view(indices.dtype.str.replace("i", "u"))


def _course(indices: AnyArray) -> tuple[int, int]:
    """The highest index, -1 when there is none, and how many are no higher than the one before."""
    highest, falls = -1, 0
    unsigned = _unsigned(indices)
    ascends = np.empty(_BLOCK, bool)
    for start in range(0, indices.size, _BLOCK):
        block = indices[start : start + _BLOCK + 1]  # with the first of the next, to be compared with
        highest = max(highest, int(unsigned[start : start + _BLOCK].max()))
        after = np.greater(block[1:], block[:-1], out=ascends[: block.size - 1])
        falls += after.size - int(np.count_nonzero(after))
    return highest, falls


# --- what torch wants


def common_dtype(indptr: AnyArray, indices: AnyArray, shape: tuple[int, ...]) -> np.dtype[Any]:
    """The dtype that torch can hold both in: int32 where both have it and it reaches, else int64."""
    are_short = indptr.dtype.newbyteorder("=") == indices.dtype.newbyteorder("=") == np.int32
    return np.dtype(np.int32 if are_short and max(shape) <= _INT32_MAX else np.int64)


def index_part(indices: AnyArray, dtype: np.dtype[Any]) -> AnyArray | Unread:
    """Indices as torch can hold them: themselves, or to be copied, since torch wants one dtype and no gaps."""
    flags = indices.flags
    if indices.dtype == dtype and flags.c_contiguous and flags.aligned:
        return indices
    reason = "torch wants indices side by side in memory"
    if indices.dtype.newbyteorder("=") != dtype:
        reason = f"torch wants all indices of this matrix as {dtype}"
    return Unread(
        "scipy",
        dtype,
        indices.shape,
        reason,
        lambda: indices.astype(dtype),
        lambda fresh: _fill_row(fresh, indices),
    )


def coordinate_matrix(coords: Sequence[AnyArray], count: int) -> AnyArray | Unread:
    """The rows of indices as the one int64 matrix that torch wants: a view where they are one already."""
    joined = _joined(coords)
    if joined is not None:
        return joined
    shape = (len(coords), count)

    def fill(matrix: AnyArray) -> None:
        for row, indices in zip(matrix, coords, strict=True):
            _fill_row(row, indices)

    def read() -> AnyArray:
        matrix = np.empty(shape, np.int64)
        fill(matrix)
        return matrix

    reason = "torch keeps the indices of a COO tensor in one int64 matrix"
    return Unread("scipy", np.dtype(np.int64), shape, reason, read, fill)


def _fill_row(fresh: AnyArray, indices: AnyArray) -> None:
    copy_into(fresh, indices, casting="unsafe", subject="to_torch", what="indices")


def _joined(coords: Sequence[AnyArray]) -> AnyArray | None:
    """View rows of one array that lie at equal distances as a matrix; ``None`` when they do not."""
    first = coords[0]
    if any(row.dtype != np.int64 or row.strides != first.strides for row in coords):
        return None
    if len(coords) == 1:
        return first[np.newaxis]
    if not isinstance(first.base, np.ndarray) or any(row.base is not first.base for row in coords):
        return None
    addresses = [row.__array_interface__["data"][0] for row in coords]
    step = addresses[1] - addresses[0]
    if any(address != addresses[0] + i * step for i, address in enumerate(addresses)):
        return None
    matrix = as_strided(first, (len(coords), first.size), (step, first.strides[0]))
    if not all(row.flags.writeable for row in coords):
        matrix.flags.writeable = False
    return matrix
