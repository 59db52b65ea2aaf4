"""Files made byte by byte, which claim whatever they are told to, and small questions about folders and messages."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest


def npy_bytes(descr: Any, shape: Any, data: bytes = b"", *, fortran: Any = False, version: int = 1) -> bytes:
    """An .npy file that claims whatever it is told to."""
    return npy_with_header(repr({"descr": descr, "fortran_order": fortran, "shape": shape}), data, version=version)


def npy_with_header(text: str, data: bytes = b"", *, version: int = 1) -> bytes:
    header = text.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(header)) + header + data


def safetensors_bytes(header: Any, data: bytes = b"") -> bytes:
    """A .safetensors file with this header, which may be bytes that are no JSON."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def message(error: pytest.ExceptionInfo[BaseException], folder: Path) -> str:
    """What an error says, without the folder in the paths."""
    return str(error.value).replace(f"{folder}{os.sep}", "")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)
