"""Write the README's table of what shares memory, from the plans themselves.

Run as ``python docs/readme_table.py`` to rewrite the README in place; a test holds the README to it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import awkward as ak
import dask.array
import h5py
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pandas as pd
import PIL.Image
import polars as pl
import pyarrow as pa
import scipy.sparse
import torch
import xarray as xr
import zarr

import ndtorch as nd

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- memory table: begin -->", "<!-- memory table: end -->"


def to_torch_rows(folder: Path) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, source and options of each row of the first table."""
    a = np.arange(12.0).reshape(3, 4)
    yield "writable array, any non-negative strides", a[:, ::2], {}
    yield "every C alias, such as `np.ulonglong`", np.zeros(3, np.ulonglong), {}
    yield "`ml_dtypes.bfloat16`, `float8_*`", np.zeros(3, ml_dtypes.bfloat16), {}
    yield "axis of one element with any stride", a[:1][::-1], {}
    yield "negative strides", a[::-1], {}
    yield "byte-swapped", a.astype(">f8"), {}
    yield "unaligned", np.zeros(25, np.uint8)[1:].view(np.float64), {}
    record = np.zeros(3, np.dtype([("x", np.int8), ("y", np.float64)]))
    yield "field of a packed record", record["y"], {}
    yield "read-only", _read_only(a.copy()), {}
    yield 'read-only, `readonly="share"`', _read_only(a.copy()), {"readonly": "share"}
    np.save(folder / "a.npy", a)
    yield "read-only `np.memmap`", np.load(folder / "a.npy", mmap_mode="r"), {}
    yield "`np.broadcast_to`", np.broadcast_to(np.arange(4.0), (3, 4)), {}
    yield "`datetime64`, `timedelta64`", np.zeros(3, "datetime64[ns]"), {}
    yield "bytes `S`", np.array([b"abc", b"de"]), {}
    yield "text `U`", np.array(["abc", "de"]), {}
    yield "structured array", np.zeros(3, np.dtype([("x", "f4"), ("y", "i4")])), {}
    yield "masked array", np.ma.masked_equal([1, 9], 9), {}
    yield 'masked array, `masked="split"`', np.ma.masked_equal([1, 9], 9), {"masked": "split"}
    yield "`longdouble`", np.zeros(3, np.longdouble), {}
    yield "`longdouble`, `dtype=`", np.zeros(3, np.longdouble), {"dtype": "float64"}
    yield "object array of numbers", np.array([1, 2.5], dtype=object), {}
    yield "NumPy scalar", np.float32(1.5), {}
    yield "Python number", 1.5, {}
    yield "nested list of numbers", [[1, 2], [3, 4]], {}
    yield "any array, `dtype=` another", a, {"dtype": "float32"}
    yield "any array, `copy=True`", a, {"copy": True}
    yield "tensor", torch.zeros(3), {}


def foreign_rows(folder: Path) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The same for objects of other libraries."""
    yield "bytes, `bytearray`, any buffer", bytearray(b"abc"), {}
    share, split = {"readonly": "share"}, {"masked": "split"}
    matrix = scipy.sparse.eye_array(3, format="csr")
    yield "scipy CSR, CSC, BSR", matrix, {}
    yield "scipy COO", matrix.tocoo(), {}
    yield "scipy DIA, LIL, DOK", matrix.tolil(), {}
    frame = pd.DataFrame({"x": [1.5, 2.5], "n": [1, 2]})
    yield "pandas frame", frame, {}
    yield 'pandas series, `readonly="share"`', frame["x"], share
    yield "pandas nullable, missing values", pd.Series([1, None], dtype="Int64"), {}
    yield 'the same, `masked="split"`', pd.array([1, None], dtype="Int64"), split
    yield 'the same, `masked="nan"`', pd.array([1, None], dtype="Int64"), {"masked": "nan"}
    yield "pandas category", pd.Series(["a", "b"], dtype="category"), {}
    yield "xarray array", xr.DataArray(np.zeros((2, 3)), dims=("y", "x")), {}
    yield "Arrow array", pa.array([1.0, 2.0]), {}
    yield 'Arrow nulls, `masked="split"`', pa.array([1, None]), split
    yield 'Arrow lists, `readonly="share"`', pa.array([[1], [2, 3]]), share
    yield 'polars frame, `readonly="share"`', pl.DataFrame({"x": [1.5], "ok": [True]}), share
    yield "awkward ragged array", ak.Array([[1.0], [2.0, 3.0]]), {}
    yield "JAX array", jnp.ones(3), {}
    yield 'JAX array, `readonly="share"`', jnp.ones(3), share
    yield "Pillow picture", PIL.Image.new("RGB", (4, 3)), {}
    with h5py.File(folder / "a.h5", "w") as file:
        file["x"] = np.arange(3.0)
        yield "HDF5 dataset", file["x"], {}
    array = zarr.create_array(folder / "a.zarr", data=np.arange(3.0))
    yield "Zarr array", array, {}
    yield "dask array", dask.array.ones((4, 3), chunks=2), {}
    yield "anything with `__dlpack__`", _Dlpack(), {}


class _Dlpack:
    """An object that another library could have made."""

    def __init__(self) -> None:
        self._memory = np.ones(3)

    def __dlpack__(self, **words: Any) -> Any:
        return self._memory.__dlpack__(**words)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._memory.__dlpack_device__()


def to_numpy_rows() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, source and options of each row of the second table."""
    yield "CPU tensor, same strides", torch.zeros(3, 4)[:, ::2], {}
    yield "tensor of `to_torch`", nd.to_torch(np.zeros(3)), {}
    yield "bfloat16, float8", torch.zeros(3, dtype=torch.bfloat16), {}
    yield "requires grad", torch.zeros(3, requires_grad=True), {}
    yield "expanded", torch.zeros(3, 1).expand(3, 4), {}
    yield "conj bit", torch.zeros(3, dtype=torch.complex64).conj(), {}
    yield "neg bit", torch.zeros(3, dtype=torch.complex64).conj().imag, {}
    yield 'int64, `dtype="datetime64[ns]"`', torch.zeros(3, dtype=torch.int64), {"dtype": "datetime64[ns]"}
    yield "any tensor, `dtype=` another", torch.zeros(3), {"dtype": "float64"}
    yield "sparse", torch.zeros(3).to_sparse(), {}
    yield "meta, fake", torch.zeros(3, device="meta"), {}
    yield "array", np.zeros(3), {}


def table() -> str:
    """The tables as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        first = _rows("torch", to_torch_rows(path))
        foreign = _rows("torch", foreign_rows(path))
        second = _rows("numpy", to_numpy_rows())
    head = "| {} | result | memory | why |\n| --- | --- | --- | --- |\n"
    titles = ("`to_torch` of", "`to_torch` of other libraries' objects", "`to_numpy` of")
    tables = zip(titles, (first, foreign, second), strict=True)
    return "\n\n".join(head.format(title) + "\n".join(rows) for title, rows in tables)


def _rows(to: str, sources: Iterable[tuple[str, Any, dict[str, Any]]]) -> list[str]:
    """One line for each source, with its first note; what a line above says is not said again."""
    rows, said = [], set()
    for name, source, options in sources:
        plan = nd.explain(source, to=to, **options)
        note = plan.notes[0].split(";")[0] if plan.notes else ""
        why = plan.reason or ("" if note in said else note)
        said.add(note)
        why = why.replace("[", r"\[")  # "i64[2](numpy)" is no link
        rows.append(f"| {name} | {_result(plan)} | {_memory(plan)} | {why} |")
    return rows


def _result(plan: nd.Plan) -> str:
    if plan.error is not None:
        return f"`{type(plan.error).__name__}`"
    if plan.source.form == "sparse":
        layout = plan.source.text.split()[0].upper()
        return f"sparse {'CSR' if layout in ('DIA', 'LIL', 'DOK') else layout}"
    if plan.source.form == "ragged":
        return f"list of `{plan.leaves['.content'].dtype}`"
    if plan.leaves:
        inside = ", ".join(path.strip("[]'.") for path in plan.leaves)
        return f"`Masked({inside})`" if plan.source.form == "masked" else f"dict of `{inside}`"
    return f"`{plan.dtype}`"


def _memory(plan: nd.Plan) -> str:
    if plan.error is not None:
        return "refused"
    if plan.shares:
        return "**shared**"
    shared = [leaf.shares for leaf in plan.leaves.values()]
    if any(shared):
        return f"{sum(shared)} of {len(shared)} shared"
    return {"map": "private mapping", "copy distinct": "compact copy"}.get(plan.action, "one copy")


def _read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def with_table(readme: str) -> str:
    """The README with the tables between the markers made anew."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
    sys.stdout.write(f"wrote the table into {README.name}\n")
