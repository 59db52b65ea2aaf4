"""Sound files of every format, and ways to spoil them: what a header says, what lies where, how much there is."""

from __future__ import annotations

import io
import json
import os
import random
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from made_files import Bomb, npy_bytes, npy_with_header, safetensors_bytes

Files = dict[str, bytes]
"""The files of a folder by path; of a format that is one file the key is empty."""

NUMBERS = (
    *(0, 1, 2, 3, 7, 8, 64, 65, 127, 128, 255, 256, 65_535, 65_536, -1, -2, -(2**31), -(2**63)),
    *(2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30),
)
DTYPES = ("<f8", ">i4", "|b1", "|O", "<U3", "|S0", "<V2", "<M8[D]", "<f1", "<U999999999", "spam", None, 3, [], {"a": 1})
RECORDS = ([("bfloat16", "<u2")], [("a", "<i4"), ("a", "<i4")], [("x", "|O")], [("x", "<f8", (2**40,))], [["x"]])
TAGS = ("F32", "F64", "BF16", "BOOL", "U8", "F4", "F8_E4M3", "C64", "F13", "", None, [], 7)


def sound_files(canary: Path) -> dict[str, list[Files]]:
    """Files as the formats' own libraries write them, and some that would run code if they were unpickled."""
    one, two = np.arange(24, dtype=np.float32).reshape(4, 6), np.asfortranarray(np.arange(6).reshape(2, 3))
    bomb = np.array([Bomb(canary)], object)
    return {
        "npy": [*map(_npy, (one, two, np.array(3), np.array(["é", "b"]), np.zeros((0, 2)), bomb)), _npy_record()],
        "npz": [_npz(np.savez, a=one, b=two), _npz(np.savez_compressed, a=one, b=two), _npz(np.savez, a=bomb)],
        "safetensors": [_safetensors()],
        "pt": [_pt({"w": torch.ones(2, 3).T, "deep": [{"b": torch.arange(5)}]}), _pt({"w": Bomb(canary)})],
        "h5": _h5(one),
        "zarr": _zarr(one),
        "picture": [_picture("PNG"), _picture("JPEG"), _picture("TIFF")],
    }


def _npy(array: np.ndarray) -> Files:
    stream = io.BytesIO()
    np.save(stream, array)
    return {"": stream.getvalue()}


def _npy_record() -> Files:
    return {"": npy_bytes([("bfloat16", "<u2")], (3,), bytes(6))}


def _npz(save: Callable[..., Any], **arrays: np.ndarray) -> Files:
    stream = io.BytesIO()
    save(stream, **arrays)
    return {"": stream.getvalue()}


def _safetensors() -> Files:
    header = {
        "__metadata__": {"format": "pt"},
        "layer/weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
        "n": {"dtype": "U8", "shape": [], "data_offsets": [32, 33]},
    }
    return {"": safetensors_bytes(header, bytes(range(33)))}


def _pt(value: Any) -> Files:
    stream = io.BytesIO()
    torch.save(value, stream)
    return {"": stream.getvalue()}


def _h5(array: np.ndarray) -> list[Files]:
    import h5py

    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        file["group/x"] = array
        file.create_dataset("packed", data=array, chunks=(2, 3), compression="gzip")
        file["text"] = ["a", "bc"]
        file["soft"] = h5py.SoftLink("/group")
        file["out"] = h5py.ExternalLink("/etc/passwd", "/")
    return [{"": stream.getvalue()}]


def _zarr(array: np.ndarray) -> list[Files]:
    import zarr

    store: dict[str, Any] = {}
    group = zarr.create_group(store=zarr.storage.MemoryStore(store))
    group.create_array("a/x", shape=array.shape, chunks=(2, 3), dtype=array.dtype)[...] = array
    group.create_array("y", shape=(5,), dtype="int16")[...] = 3
    return [{path: value.to_bytes() for path, value in store.items()}]


def _picture(kind: str) -> Files:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(stream, kind)
    return {"": stream.getvalue()}


# --- spoiling


def spoiled(format: str, sound: dict[str, list[Files]], rng: random.Random) -> Files:
    """A file of a format, spoiled in one to three ways; now and then it stays sound."""
    files = dict(rng.choice(sound[format]))
    if rng.random() < 0.03:
        return files
    path = rng.choice(sorted(files))
    others = [each for kind in sound.values() for one in kind for each in one.values()]
    structured = STRUCTURED.get(format) if path == "" else _spoil_json if path.endswith(".json") else None
    for _ in range(rng.choice((1, 1, 2, 3))):
        if structured is not None and rng.random() < 0.5:
            files[path] = structured(files[path], rng)
        else:
            files[path] = rng.choice(ANY)(files[path], rng, rng.choice(others))
    if path and rng.random() < 0.1:
        del files[path]
    return files


def _cut(data: bytes, rng: random.Random, other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip(data: bytes, rng: random.Random, other: bytes) -> bytes:
    changed = bytearray(data or b"\0")
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _splice(data: bytes, rng: random.Random, other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _repeat(data: bytes, rng: random.Random, other: bytes) -> bytes:
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[begin:end] * rng.choice((1, 2, 50)) + data[end:]


def _drop(data: bytes, rng: random.Random, other: bytes) -> bytes:
    begin, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:begin] + data[end:]


def _more(data: bytes, rng: random.Random, other: bytes) -> bytes:
    return data + rng.choice((b"\0", b"\0" * 5000, other, rng.randbytes(9)))


def _number(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """An integer in binary, somewhere, says something else."""
    width = rng.choice((1, 2, 4, 8))
    begin = rng.randrange(max(len(data) - width, 0) + 1)
    value = rng.choice(NUMBERS) % (1 << 8 * width)
    return data[:begin] + value.to_bytes(width, rng.choice(("little", "big"))) + data[begin + width :]


def _digits(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """A number in text says something else."""
    found = list(re.finditer(rb"\d+", data))
    if not found:
        return data
    match = rng.choice(found)
    return data[: match.start()] + str(rng.choice(NUMBERS)).encode() + data[match.end() :]


ANY = (_cut, _flip, _flip, _splice, _repeat, _drop, _more, _number, _number, _digits)


def _spoil_npy(data: bytes, rng: random.Random) -> bytes:
    """A header that claims anything, before the same elements."""
    shape: Any = tuple(rng.choice(NUMBERS) for _ in range(rng.choice((0, 1, 1, 2, 3, 70))))
    text = repr(
        {"descr": rng.choice((*DTYPES, *RECORDS)), "fortran_order": rng.choice((True, False, 0)), "shape": shape}
    )
    kind = rng.randrange(8)
    if kind == 0:
        text = rng.choice(("(", "[", "-", "{1:", "1+")) * rng.choice((3, 300, 9000))
    elif kind == 1:
        text = text.replace(str(rng.choice(NUMBERS)), "0x" + "f" * 9000, 1)
    elif kind == 2:
        text = text.replace("'", rng.choice(('"', "", "'''", "b'")), rng.choice((1, 2, 99)))
    rest = data[rng.choice((0, 64, 128)) :]
    return npy_with_header(text[:60_000], rest, version=rng.choice((1, 1, 2, 3)))


def _spoil_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A header in which one claim, or the form itself, is another."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        header = _spoiled_value(header, rng, 0)
        raw = json.dumps(header, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        raw = b'{"x":' + rng.choice((b"[", b'{"a":')) * rng.choice((3, 5000))
    return struct.pack("<Q", len(raw) + rng.choice((0, 0, 0, 0, 1, -1)) % 2**63) + raw + data[8 + length :]


def _spoil_json(data: bytes, rng: random.Random) -> bytes:
    try:
        return json.dumps(_spoiled_value(json.loads(data), rng, 0)).encode()
    except (ValueError, RecursionError):
        return b"[" * 5000


def _spoiled_value(value: Any, rng: random.Random, depth: int) -> Any:
    """The same value, but for one place in it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.2:
            return value | {rng.choice(("", "..", "/", "x" * 5000, "\ud800", "__metadata__", "a\0b")): value[key]}
        return value | {key: _spoiled_value(value[key], rng, depth + 1)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        return [*value[:place], _spoiled_value(value[place], rng, depth + 1), *value[place + 1 :]]
    return rng.choice(
        (*NUMBERS, *TAGS, [2**62] * 80, [value] * 70, {}, True, 1.5, float("inf"), float("nan"), "x" * 999)
    )


def _spoil_archive(data: bytes, rng: random.Random) -> bytes:
    """An archive whose directory is right, of which an entry, its name or how it is packed is another."""
    stream = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(stream, "w") as target:
            entries = [(info.filename, source.read(info)) for info in source.infolist()]
            place = rng.randrange(len(entries))
            for number, (name, content) in enumerate(entries):
                if number == place:
                    name, content = _spoil_entry(name, content, rng)
                target.writestr(name, content, rng.choice((0, 0, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)))
    except Exception:
        return _flip(data, rng, b"")
    return stream.getvalue()


def _spoil_entry(name: str, content: bytes, rng: random.Random) -> tuple[str, bytes]:
    kind = rng.randrange(6)
    if kind == 0:
        return rng.choice(("../../x.npy", "/etc/x.npy", "", "a" * 300, "x.txt", "\x1b[31m.npy", "a/data.pkl")), content
    if kind == 1:
        return name, content[:200] + bytes(rng.choice((1 << 10, 5 << 20)))
    if name.endswith(".npy") and kind < 4:
        return name, _spoil_npy(content, rng)
    return name, rng.choice(ANY)(content, rng, content)


STRUCTURED: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "npy": _spoil_npy,
    "safetensors": _spoil_safetensors,
    "npz": _spoil_archive,
    "pt": _spoil_archive,
}


def put_files(files: Files, path: Path) -> None:
    """Make a file, or a folder of them."""
    for inner, data in files.items():
        place = path / inner if inner else path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def read_files(path: Path) -> Files:
    """What is there now."""
    if path.is_file():
        return {"": path.read_bytes()}
    found = (Path(root, name) for root, _, names in os.walk(path) for name in names)
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in found}
