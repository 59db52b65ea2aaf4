"""Sparse matrices for tests: made from given parts, taken apart, and added up value by value.

Nothing here knows ndtorch.
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_shares

sp = pytest.importorskip("scipy.sparse", reason="sparse arrays of NumPy are SciPy's")

COMPRESSED = ("csr", "csc", "bsr")
LAYOUTS = (*COMPRESSED, "coo")
BY_CSR = ("dia", "lil", "dok")
ALL = (*LAYOUTS, *BY_CSR)
DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float32", "float64", "complex64", "complex128"),
]
DENSE = np.array([[0, 1, 0, 2], [3, 0, 0, 0], [0, 0, 0, 4]])
TORCH_LAYOUT = {layout: getattr(torch, f"sparse_{layout}") for layout in LAYOUTS}


def matrix(layout: str, dtype: Any = "f8", *, kind: str = "array", dense: Any = DENSE) -> Any:
    return getattr(sp, f"{layout}_{kind}")(np.asarray(dense).astype(dtype))


def with_parts(layout: str, shape: tuple[int, ...], **parts: Any) -> Any:
    """A scipy.sparse array with just these arrays: the constructor would convert, copy and check them."""
    words = {"blocksize": parts["data"].shape[1:]} if layout == "bsr" else {}
    result = getattr(sp, f"{layout}_array")(shape, **words)
    for name, part in parts.items():
        setattr(result, name, part)
    return result


def csr(indptr: Any, indices: Any, data: Any, shape: tuple[int, ...], layout: str = "csr") -> Any:
    parts = {"indptr": np.asarray(indptr), "indices": np.asarray(indices), "data": np.asarray(data)}
    return with_parts(layout, shape, **parts)


def parts_of(value: Any) -> dict[str, Any]:
    """The arrays or tensors that a sparse object is made of."""
    if not isinstance(value, torch.Tensor):
        names = ("indptr", "indices", "offsets", "data")
        parts = {name: getattr(value, name) for name in names if hasattr(value, name)}
        if value.format == "coo":
            parts |= {f"coords{i}": indices for i, indices in enumerate(value.coords)}
        return parts
    plain = value.detach()
    if value.layout == torch.sparse_coo:
        rows = {f"coords{i}": indices for i, indices in enumerate(plain._indices())}
        return {"data": plain._values().detach(), **rows}
    starts, places = ("ccol", "row") if value.layout == torch.sparse_csc else ("crow", "col")
    parts = {"indptr": getattr(plain, f"{starts}_indices")(), "indices": getattr(plain, f"{places}_indices")()}
    return {**parts, "data": plain.values().detach()}


def dense_of(value: Any) -> np.ndarray:
    """The values that a sparse object stands for, added up one by one."""
    parts = parts_of(value)
    data = parts["data"].resolve_conj().numpy() if isinstance(value, torch.Tensor) else parts["data"]
    result = np.zeros(tuple(value.shape), data.dtype)
    is_tensor = isinstance(value, torch.Tensor)
    layout = str(value.layout).removeprefix("torch.sparse_") if is_tensor else value.format
    arrays = {name: np.asarray(part) for name, part in parts.items()}
    if layout == "coo":
        for k, x in enumerate(data):
            result[tuple(int(arrays[f"coords{i}"][k]) for i in range(len(value.shape)))] += x
        return result
    height, width = data.shape[1:] if layout == "bsr" else (1, 1)
    for i in range(len(arrays["indptr"]) - 1):
        for k in range(int(arrays["indptr"][i]), int(arrays["indptr"][i + 1])):
            j = int(arrays["indices"][k])
            row, column = (j, i) if layout == "csc" else (i, j)
            result[row * height : (row + 1) * height, column * width : (column + 1) * width] += data[k]
    return result


def state_of(value: Any) -> bytes:
    """All that a scipy.sparse object is and has cached."""
    return pickle.dumps(value.__dict__)


def assert_all_share(a: Any, b: Any) -> None:
    one, other = parts_of(a), parts_of(b)
    assert one.keys() == other.keys()
    for name, part in one.items():
        assert_shares(part, other[name])


def address_of(x: Any) -> int:
    return x.data_ptr() if isinstance(x, torch.Tensor) else x.__array_interface__["data"][0]


def tensor_of(layout: str, dtype: torch.dtype = torch.float64, index: torch.dtype = torch.int64) -> torch.Tensor:
    if layout == "coo":
        plain = torch.tensor(DENSE).to_sparse_coo()
        return torch.sparse_coo_tensor(plain._indices(), plain._values().to(dtype), DENSE.shape)
    words = {"blocksize": (1, 2)} if layout == "bsr" else {}
    tensor = torch.tensor(DENSE).to_sparse(layout=TORCH_LAYOUT[layout], **words)
    indptr, indices, data = parts_of(tensor).values()
    parts = indptr.to(index), indices.to(index), data.to(dtype)
    return torch.sparse_compressed_tensor(*parts, DENSE.shape, layout=tensor.layout, check_invariants=True)


# ---- the same values, laid out in memory in another way ----


def reversed_copy(part: np.ndarray) -> np.ndarray:
    return part[::-1].copy()[::-1]


def unaligned_copy(part: np.ndarray) -> np.ndarray:
    raw = np.zeros(part.nbytes + 1, np.uint8)
    other = np.ndarray(part.shape, part.dtype, raw, 1)
    other[...] = part
    return other


def scattered_copy(part: np.ndarray) -> np.ndarray:
    return np.repeat(part, 2, axis=0)[::2]


def swapped_copy(part: np.ndarray) -> np.ndarray:
    return part.astype(part.dtype.newbyteorder(">"))
