"""The one table of dtypes; everything else about dtypes is derived from it.

A dtype has one canonical name everywhere: torch's, such as ``float32`` or ``bfloat16``. Each row says what the
dtype is called in NumPy, in torch, in the native bridge and in a safetensors header. A new dtype is one new row.
Nothing here imports torch before somebody asks for its dtypes: to look into a file takes none of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    import torch

Kind = Literal["bool", "uint", "int", "float", "complex"]

KIND_ORDER: dict[str, int] = {"bool": 0, "uint": 1, "int": 2, "float": 3, "complex": 4}
"""NumPy's ladder for ``same_kind``: a value may climb or stay, never descend."""


@dataclass(frozen=True, slots=True, eq=False)
class DType:
    """One row: a number format both worlds can hold.

    Attributes:
        name: Canonical name, the one torch uses.
        short: Name inside a printed spec such as ``f64[3,4](numpy)``.
        kind: Rung on the casting ladder.
        numpy: Native-order NumPy dtype, ``None`` where NumPy has none (complex32).
        scalar_type: torch's ``c10::ScalarType`` number, stable since it is serialized.
        dlpack: DLPack (type code, bits).
        safetensors: Tag in a safetensors header, ``None`` where the format has none.
    """

    name: str
    short: str
    kind: Kind
    numpy: np.dtype[Any] | None
    scalar_type: int
    dlpack: tuple[int, int]
    safetensors: str | None

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.dlpack[1] // 8

    @property
    def torch(self) -> torch.dtype:
        """The torch dtype."""
        return _torch_dtype(self.name)


@cache
def _torch_dtype(name: str) -> torch.dtype:
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _row(
    name: str,
    short: str,
    kind: Kind,
    scalar_type: int,
    dlpack: tuple[int, int],
    safetensors: str | None,
    numpy: type | None,
) -> DType:
    dtype = None if numpy is None else np.dtype(numpy)
    return DType(name, short, kind, dtype, scalar_type, dlpack, safetensors)


# DLPack type codes: 0 int, 1 uint, 2 float, 4 bfloat, 5 complex, 6 bool, 10.. float8 variants.
TABLE: tuple[DType, ...] = (
    _row("bool", "bool", "bool", 11, (6, 8), "BOOL", np.bool_),
    _row("uint8", "u8", "uint", 0, (1, 8), "U8", np.uint8),
    _row("uint16", "u16", "uint", 27, (1, 16), "U16", np.uint16),
    _row("uint32", "u32", "uint", 28, (1, 32), "U32", np.uint32),
    _row("uint64", "u64", "uint", 29, (1, 64), "U64", np.uint64),
    _row("int8", "i8", "int", 1, (0, 8), "I8", np.int8),
    _row("int16", "i16", "int", 2, (0, 16), "I16", np.int16),
    _row("int32", "i32", "int", 3, (0, 32), "I32", np.int32),
    _row("int64", "i64", "int", 4, (0, 64), "I64", np.int64),
    _row("float8_e4m3fn", "f8_e4m3fn", "float", 24, (10, 8), "F8_E4M3", ml_dtypes.float8_e4m3fn),
    _row(
        "float8_e4m3fnuz",
        "f8_e4m3fnuz",
        "float",
        26,
        (11, 8),
        "F8_E4M3FNUZ",
        ml_dtypes.float8_e4m3fnuz,
    ),
    _row("float8_e5m2", "f8_e5m2", "float", 23, (12, 8), "F8_E5M2", ml_dtypes.float8_e5m2),
    _row(
        "float8_e5m2fnuz",
        "f8_e5m2fnuz",
        "float",
        25,
        (13, 8),
        "F8_E5M2FNUZ",
        ml_dtypes.float8_e5m2fnuz,
    ),
    _row("float8_e8m0fnu", "f8_e8m0fnu", "float", 44, (14, 8), "F8_E8M0", ml_dtypes.float8_e8m0fnu),
    _row("bfloat16", "bf16", "float", 15, (4, 16), "BF16", ml_dtypes.bfloat16),
    _row("float16", "f16", "float", 5, (2, 16), "F16", np.float16),
    _row("float32", "f32", "float", 6, (2, 32), "F32", np.float32),
    _row("float64", "f64", "float", 7, (2, 64), "F64", np.float64),
    _row("complex32", "c32", "complex", 8, (5, 32), None, None),
    _row("complex64", "c64", "complex", 9, (5, 64), "C64", np.complex64),
    _row("complex128", "c128", "complex", 10, (5, 128), None, np.complex128),
)

BY_NAME: dict[str, DType] = {row.name: row for row in TABLE}
_FIRST_USER_TYPE = 256  # NumPy numbers registered dtypes, such as those of ml_dtypes, from here
_BY_SCALAR_TYPE: dict[type, DType] = {row.numpy.type: row for row in TABLE if row.numpy is not None}
_BY_KIND_AND_SIZE: dict[tuple[str, int], DType] = {
    (row.numpy.kind, row.numpy.itemsize): row
    for row in TABLE
    if row.numpy is not None and row.numpy.num < _FIRST_USER_TYPE
}


def from_numpy_dtype(dtype: np.dtype[Any]) -> DType | None:
    """Find the row of a NumPy dtype in either byte order, every C alias included.

    >>> from_numpy_dtype(np.dtype(np.ulonglong)).name
    'uint64'
    >>> from_numpy_dtype(np.dtype("datetime64[ns]")) is None
    True
    """
    if dtype.num < _FIRST_USER_TYPE:
        return _BY_KIND_AND_SIZE.get((dtype.kind, dtype.itemsize))
    return _BY_SCALAR_TYPE.get(dtype.type)


def at_matching_width(kind: Kind, float_dtype: DType) -> DType:
    """Say what ``float_dtype`` means for an array of ``kind``: complex follows to the matching width.

    >>> at_matching_width("complex", BY_NAME["float32"]).name
    'complex64'
    """
    if kind != "complex":
        return float_dtype
    return BY_NAME["complex128" if float_dtype.name == "float64" else "complex64"]
