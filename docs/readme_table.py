"""Write the README's table of what shares memory, from the plans themselves.

Run as ``python docs/readme_table.py`` to rewrite the README in place; a test holds the README to it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import torch

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


def to_numpy_rows() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Name, source and options of each row of the second table."""
    yield "CPU tensor, same strides", torch.zeros(3, 4)[:, ::2], {}
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
    """Both tables as Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        first = [_row(name, source, "torch", options) for name, source, options in to_torch_rows(Path(folder))]
        second = [_row(name, source, "numpy", options) for name, source, options in to_numpy_rows()]
    head = "| {} | result | memory | why |\n| --- | --- | --- | --- |\n"
    return head.format("`to_torch` of") + "\n".join(first) + "\n\n" + head.format("`to_numpy` of") + "\n".join(second)


def _row(name: str, source: Any, to: str, options: dict[str, Any]) -> str:
    plan = nd.explain(source, to=to, **options)
    return f"| {name} | {_result(plan)} | {_memory(plan)} | {plan.reason or '; '.join(_notes(plan))} |"


def _result(plan: nd.Plan) -> str:
    if plan.error is not None:
        return f"`{type(plan.error).__name__}`"
    if plan.leaves:
        inside = ", ".join(path.strip("[]'.") for path in plan.leaves)
        return f"`Masked({inside})`" if plan.source.form == "masked" else f"dict of `{inside}`"
    return f"`{plan.dtype}`"


def _memory(plan: nd.Plan) -> str:
    if plan.error is not None:
        return "refused"
    if plan.shares:
        return "**shared**"
    return {"map": "private mapping", "copy distinct": "compact copy"}.get(plan.action, "one copy")


def _notes(plan: nd.Plan) -> list[str]:
    return [note.split(";")[0] for note in plan.notes]


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
