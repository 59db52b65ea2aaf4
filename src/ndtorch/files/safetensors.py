"""The ``.safetensors`` format: a JSON header and the tensors' bytes, row by row, little-endian, without gaps.

Files are read through the safetensors library, which checks every claim of the header against the file. They are
written here: the library wants the whole file in memory, and believes whatever strides an array has
(safetensors#825).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from .._convert import to_numpy
from .._dtypes import BY_TORCH
from .._errors import FormatError, UnsupportedDtypeError, UnsupportedTypeError
from .._options import World
from .._plan import Plan

WORLD: World = "torch"

_METADATA = "__metadata__"
_ALIGNMENT = 8
_MAX_HEADER = 100_000_000  # more than that no reader accepts


def read(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read every tensor, by name.

    Memory:
        Memory of its own. If ``mapped``, a private mapping of the file, which reads a page when it is touched.
    """
    where = repr(os.fspath(path))
    if not path.stat().st_size:
        raise FormatError("read", f"{where} is empty")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no mapping
            return tensors if mapped else {name: tensor.clone() for name, tensor in tensors.items()}
    except SafetensorError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise FormatError("read", f"{where} is not a sound safetensors file: {reason}") from None


def check(values: Mapping[str, Any], plans: Mapping[str, Plan]) -> None:
    """Refuse what would lose its meaning as a plain tensor, and dtypes that the format has no tag for."""
    for name, value in values.items():
        if name == _METADATA:
            raise FormatError("write", f"cannot write {name!r}: .safetensors keeps that name for itself")
        _check_form(name, plans[name])
        _check_dtype(name, value)
    length = len(_header(values))
    if length > _MAX_HEADER:
        raise FormatError(
            "write", f"{len(values)} names and shapes are too long", expected=f"at most {_MAX_HEADER} bytes", got=length
        )


_HINTS = {
    "time": "array.view('int64') is the number of units; .npz keeps time",
    "bytes": "array.view('uint8') is the characters; .npz keeps text",
    "text": "array.view('int32') is the code points; .npz keeps text",
    "struct": "array['field'] is an array of its own; .npz keeps fields",
    "masked": "array.filled(value) fills it; .data and .mask are arrays",
}


def _check_form(name: str, planned: Plan) -> None:
    form = planned.source.form
    if form not in ("number", "foreign number", "object", "python"):
        raise UnsupportedTypeError(
            "write",
            f"cannot write {name!r}: .safetensors holds numbers only and it is {planned.source}",
            hint=_HINTS.get(form, "a plain tensor of numbers"),
        )


def _check_dtype(name: str, value: Any) -> None:
    if not isinstance(value, torch.Tensor):
        raise UnsupportedTypeError(
            "write", f"cannot write {name!r}: .safetensors holds tensors, not a {type(value).__name__}"
        )
    row = BY_TORCH.get(value.dtype)
    if row is None or row.safetensors is None:
        dtype = str(value.dtype).removeprefix("torch.")
        hint = "float_dtype='float32' (--float-dtype float32) makes it complex64, .npz keeps it"
        raise UnsupportedDtypeError(
            "write",
            f"cannot write {name!r}: .safetensors has no {dtype}",
            hint=hint if value.is_complex() else "dtype= (--dtype) casts it",
            dtype=dtype,
        )


def write(stream: BinaryIO, values: Mapping[str, Any]) -> None:
    """Write the header and each tensor's bytes, laid out row by row."""
    header = _header(values)
    stream.write(len(header).to_bytes(8, "little") + header)
    for name in _in_order(values):
        stream.write(_bytes(values[name]))


def _in_order(values: Mapping[str, Any]) -> list[str]:
    """Wide elements first, so that each tensor begins at a multiple of its element; as the library does it."""
    return sorted(values, key=lambda name: (-values[name].itemsize, name))


def _header(values: Mapping[str, Any]) -> bytes:
    header: dict[str, Any] = {_METADATA: {"format": "pt"}}
    offset = 0
    for name in _in_order(values):
        tensor = values[name]
        end = offset + tensor.nbytes
        tag = BY_TORCH[tensor.dtype].safetensors
        header[name] = {"dtype": tag, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return raw + b" " * (-len(raw) % _ALIGNMENT)


def _bytes(tensor: torch.Tensor) -> memoryview:
    array = to_numpy(tensor.detach().contiguous())
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return memoryview(little.reshape(-1).view(np.uint8))
