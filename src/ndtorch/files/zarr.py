"""Zarr stores in folders, formats 2 and 3, through zarr-python: every array, by the path of groups that leads to it.

Chunks that are plain, or packed by gzip or zlib, are read by several threads without the library; whatever else there
is the library unpacks. Written is format 3: plain chunks of at most 16 MB, and each of them, also where all is zero.

A chunk that is missing, or within a shard, is an error unless the caller says that it holds ``fill_value``: zarr reads
that there, whether the chunk was never written or lost. bfloat16 and the float8 formats are the data types of these
names, as TensorStore and zarrs have them; zarr-python does not know them yet. Text, bytes, time and records are those
that zarr-python has for them. Links that lead out of the folder are not followed, pickled objects not read.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from .._dtypes import BY_NAME, DType, from_numpy_dtype
from .._errors import FormatError, MissingDependencyError, NdtorchError, UnsupportedDtypeError, UnsupportedTypeError
from .arrays import BLOCK, AnyArray, FileArray, Unreadable
from .chunks import places
from .items import Item
from .names import SEPARATOR, check_tree
from .remote import is_url
from .storage import Storage
from .zarr_arrays import Source, failing, layout_of, packed_by, quiet, why_unreadable
from .zarr_stores import LocalStore, RemoteStore, Store

NODES = ("zarr.json", ".zarray", ".zgroup")
"""One of these is in every folder that is an array or a group."""

_MAX_METADATA = 16 << 20  # bytes of a metadata file
_MAX_DEPTH = 100  # of groups in groups
_MAX_NODES = 100_000
_MAX_DIMS = 64  # of a NumPy array
_MAX_STEP = 255  # bytes of the name of a folder


def library(subject: str) -> Any:
    """zarr-python.

    Raises:
        MissingDependencyError: It is not installed, or is older than version 3.
    """
    try:
        import zarr
    except ImportError:
        raise MissingDependencyError(subject, "zarr is not installed", hint="pip install 'zarr>=3'") from None
    if int(zarr.__version__.partition(".")[0]) < 3:
        raise MissingDependencyError(subject, f"zarr {zarr.__version__} is too old", hint="pip install 'zarr>=3'")
    return zarr


def is_store(path: str | os.PathLike[str]) -> bool:
    """Whether a folder is a zarr store."""
    return any(os.path.isfile(os.path.join(path, node)) for node in NODES)


# --- reading: the folders


def read_headers(path: str | Storage, name: str, *, fills: bool = False) -> list[FileArray]:
    """Read the metadata of every array, and which of its chunks there are.

    Args:
        path: The folder.
        name: What an array is called that has no name of its own.
        fills: Whether chunks that are not there hold the fill value; else they are an error.
    """
    if not isinstance(path, str):
        raise FormatError("read", f"{path.path!r} is a file; a zarr store is a folder")
    store: Store = RemoteStore(path) if is_url(path) else LocalStore(path)
    if not any(store.has(node) for node in NODES):
        raise FormatError("read", f"{store.where} is a folder and no zarr store: it has none of {', '.join(NODES)}")
    return sorted(_Tree(library("read"), store, fills=fills).arrays(name), key=lambda array: array.name)


class _Tree:
    """The groups and arrays of a store."""

    def __init__(self, zarr: Any, store: Store, *, fills: bool) -> None:
        self.zarr = zarr
        self.fills = fills
        self.store = store
        self.where = store.where
        self._count = 0
        self._library_store = store.of_library(zarr)

    def arrays(self, name: str) -> Iterator[FileArray]:
        """The arrays of the root and all below; an array at the root has no name of its own."""
        yield from self._node("", name, 0)

    def open(self, path: str, claims: dict[str, Any]) -> Any:
        """Have the library make an array of its metadata."""
        place = self.zarr.storage.StorePath(self._library_store, path)
        with quiet():
            return self.zarr.Array.from_dict(place, claims)

    def _node(self, path: str, name: str, depth: int) -> Iterator[FileArray]:
        where = f"{self.where} array {name[:200]!r}"
        self._count += 1
        if self._count > _MAX_NODES:
            raise FormatError("read", f"{self.where} has more than {_MAX_NODES} arrays and groups")
        try:
            claims = self._claims(path, where)
            if claims is None:
                yield from self._group(path, where, depth)
            else:
                yield _array(self, path, name, where, claims)
        except NdtorchError as error:
            yield FileArray(name, where, np.dtype(np.uint8), (), Unreadable(error), dtype_name="unreadable")

    def _group(self, path: str, where: str, depth: int) -> Iterator[FileArray]:
        if depth > _MAX_DEPTH:
            raise FormatError("read", f"{where} lies more than {_MAX_DEPTH} groups deep")
        for step, target in self.store.folders(path):
            inner = f"{path}{SEPARATOR}{step}" if path else step
            if target:
                fact = f"{self.where} array {inner[:200]!r} is a link, to {target[:200]!r}: it is not followed"
                yield FileArray(inner, where, np.dtype(np.uint8), (), Unreadable(FormatError("read", fact)))
            elif not step.startswith("."):
                yield from self._node(inner, inner, depth + 1)

    def _claims(self, path: str, where: str) -> dict[str, Any] | None:
        """The metadata of an array, ``None`` of a group."""
        start = f"{path}{SEPARATOR}" if path else ""
        node = next((node for node in NODES if self.store.has(start + node)), None)
        if node is None:
            raise FormatError("read", f"{where} is a folder that has none of {', '.join(NODES)}")
        claims = _read_json(self.store, start + node, f"{where} {node}")
        if node != "zarr.json":
            return claims | {"attributes": {}, "zarr_format": 2} if node == ".zarray" else None
        kind = claims.get("node_type")
        if kind not in ("array", "group"):
            raise FormatError("read", f"{where} claims to be a {str(kind)[:40]!r}", expected="array or group", got=kind)
        return claims | {"attributes": {}} if kind == "array" else None


def _read_json(store: Store, path: str, where: str) -> dict[str, Any]:
    storage = store.open(path)
    if storage.size > _MAX_METADATA:
        raise FormatError("read", f"{where} is absurd", expected=f"at most {_MAX_METADATA} bytes", got=storage.size)
    try:
        claims = json.loads(storage.read(0, storage.size))
    except (ValueError, RecursionError) as error:
        raise FormatError("read", f"{where} is no JSON: {error}") from None
    if not isinstance(claims, dict):
        raise FormatError("read", f"{where} is no JSON object")
    return claims


# --- reading: what an array is


def _array(tree: _Tree, path: str, name: str, where: str, claims: dict[str, Any]) -> FileArray:
    written, (claims, dtype) = claims, _known(claims, where)
    with failing(where):
        array = tree.open(path, claims)
        found = np.dtype(array.dtype) if dtype is None else dtype
        shape, sizes = tuple(array.shape), tuple(array.shards or array.chunks)
    shape_of = f"{where} claims the shape {str(shape)[:80]} in chunks of {str(sizes)[:80]}"
    if (
        len(shape) > _MAX_DIMS
        or any(n < 0 for n in shape)
        or any(n < 1 and m for n, m in zip(sizes, shape, strict=True))
    ):
        raise FormatError("read", shape_of)
    if found.hasobject or found.kind == "T":
        error = UnsupportedTypeError("read", f"{where} holds text or objects of varying length", hint=_OBJECTS)
        return FileArray(name, where, np.dtype(np.uint8), shape, Unreadable(error), dtype_name=str(found)[:40])
    fill = _fill_of(written, array, found, where) if tree.fills and math.prod(shape) else None
    source = Source(tree.store, path, where, array, found, tree.store.sizes(path), fill)
    error_found = why_unreadable(source, claims)
    compression = "+".join(packed_by(claims))
    if error_found is not None:
        return FileArray(name, where, found, shape, Unreadable(error_found), compression)
    return FileArray(name, where, found, shape, layout_of(source, claims, compression), compression)


_OBJECTS = "zarr.open_array(path)[...] reads text as objects; numpy.array(...) gives text of one length"


def _known(claims: dict[str, Any], where: str) -> tuple[dict[str, Any], np.dtype[Any] | None]:
    """Metadata that the library knows, and the dtype that it is meant to be where the library does not know it."""
    if "pickle" in json.dumps([claims.get(key) for key in ("codecs", "filters", "compressor")]).lower():
        raise UnsupportedTypeError("read", f"{where} holds pickled Python objects, which are never unpickled")
    key = "data_type" if claims.get("zarr_format") == 3 else "dtype"
    if claims.get(key) == "|O":
        raise UnsupportedTypeError("read", f"{where} holds Python objects, which are never unpickled", hint=_OBJECTS)
    named = claims.get(key)
    row = BY_NAME.get(named) if isinstance(named, str) else None
    if row is None or row.numpy is None or row.numpy.num < 256:
        return claims, None
    integer = f"uint{row.itemsize * 8}" if key == "data_type" else f"<u{row.itemsize}"
    return claims | {key: integer, "fill_value": _bits_of(claims.get("fill_value"), row)}, row.numpy


def _fill_of(claims: dict[str, Any], array: Any, dtype: np.dtype[Any], where: str) -> AnyArray:
    """The fill value of an array, in its own dtype; the library is told nothing of dtypes that it does not know."""
    claimed = claims.get("fill_value")
    if claimed is None:
        raise FormatError("read", f"{where} has no fill value for the chunks that are not there")
    row = from_numpy_dtype(dtype)
    if row is None or row.numpy is None or row.numpy.num < 256:
        return np.asarray(array.fill_value).astype(dtype, copy=False)
    try:
        return np.asarray(float(claimed)).astype(dtype)
    except (TypeError, ValueError, OverflowError):
        raise FormatError("read", f"{where} claims the fill value {str(claimed)[:40]!r}, which is no number") from None


def _bits_of(fill: Any, row: DType) -> int:
    """The fill value as the integer of the same bits, for a library that has no such dtype; 0 of no number."""
    try:
        bits = np.asarray(float(fill)).astype(row.numpy).view(f"u{row.itemsize}")
    except (TypeError, ValueError, OverflowError):
        return 0
    return int(bits)


# --- writing


def check(items: Sequence[Item]) -> None:
    """Refuse names that no folder can have, and dtypes that zarr has no data type for."""
    library("write")
    check_tree([item.name for item in items])
    for item in items:
        for step in item.name.split(SEPARATOR):
            if "\\" in step or step.startswith("__") or step in NODES or not step.strip("."):
                raise FormatError("write", f"cannot write {item.name!r}: zarr keeps the name {step!r} for itself")
            if len(step.encode()) > _MAX_STEP:
                fact = f"cannot write {item.name[:80]!r}: a step of its name is too long for a folder"
                raise FormatError("write", fact, expected=f"at most {_MAX_STEP} bytes", got=len(step.encode()))
        _metadata(item)


def write(folder: Path, items: Sequence[Item]) -> None:
    """Write the metadata, and every chunk into a file of its own."""
    groups = {""} | {name[:end] for name in (item.name for item in items) for end in _ends(name)}
    for group in sorted(groups):
        place = folder / group if group else folder
        place.mkdir(exist_ok=True)
        _write_json(place, {"zarr_format": 3, "node_type": "group", "attributes": {}})
    for item in items:
        place = folder / item.name
        place.mkdir()
        _write_json(place, _metadata(item))
        _write_chunks(place, item)


def _ends(name: str) -> list[int]:
    return [index for index, letter in enumerate(name) if letter == SEPARATOR]


def _write_json(place: Path, claims: dict[str, Any]) -> None:
    (place / "zarr.json").write_text(json.dumps(claims, indent=2), "utf-8")


def _metadata(item: Item) -> dict[str, Any]:
    data_type, fill = _data_type(item)
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(item.shape),
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk_sizes(item.shape, item.dtype))}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
    }


def _data_type(item: Item) -> tuple[Any, Any]:
    """What zarr calls a dtype, and a value of it; zarr itself is asked for what the table does not have."""
    row, dtype = item.row, item.dtype
    if row is not None:
        fills: dict[str, Any] = {"bool": False, "float": 0.0, "complex": [0.0, 0.0]}
        return row.name, 1.0 if row.name == "float8_e8m0fnu" else fills.get(row.kind, 0)
    if dtype.hasobject or dtype.kind == "T":
        fact = f"cannot write {item.name!r}: Python objects are never pickled"
        raise UnsupportedTypeError("write", fact, hint="array.astype(dtype) with a dtype of numbers or text")
    store: dict[str, Any] = {}
    try:
        if _packed(dtype) != dtype.newbyteorder("<"):
            raise ValueError("its fields are padded, or arrays")
        zarr = library("write")
        with quiet():
            zarr.create_array(store, shape=(1,), chunks=(1,), dtype=_packed(dtype), compressors=None)
        claims = json.loads(store["zarr.json"].to_bytes())
        assert _packed(dtype).itemsize
    except (ValueError, TypeError, AssertionError, KeyError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        fact = f"cannot write {item.name!r}: .zarr has no data type for {dtype} ({reason})"
        raise UnsupportedDtypeError("write", fact, hint=".npz keeps whatever NumPy has", dtype=str(dtype)) from None
    return claims["data_type"], claims["fill_value"]


def _packed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype as zarr keeps it: little-endian, fields without gaps and titles."""
    if dtype.names is None:
        return dtype.newbyteorder("<")
    fields = cast(Any, dtype.fields)
    return np.dtype([(name, _packed(fields[name][0])) for name in dtype.names])


def chunk_sizes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
    """Chunks of whole rows, all about as large and none above 16 MB, that lie one after the other in the array.

    >>> chunk_sizes((4000, 1000), np.dtype(np.float64))
    (2000, 1000)
    """
    limit = max(BLOCK // max(dtype.itemsize, 1), 1)
    if not math.prod(shape):
        return (1,) * len(shape)
    axis = next((axis for axis in range(len(shape)) if math.prod(shape[axis + 1 :]) <= limit), 0)
    if not shape:
        return ()
    rows = max(limit // math.prod(shape[axis + 1 :]), 1)
    rows = -(-shape[axis] // -(-shape[axis] // rows))
    return (*(1,) * axis, rows, *shape[axis + 1 :])


def _write_chunks(place: Path, item: Item) -> None:
    row = from_numpy_dtype(item.dtype)
    little = row.numpy if row is not None and row.numpy is not None else _packed(item.dtype)
    if not item.nbytes:
        return
    sizes = chunk_sizes(item.shape, little)
    parts = _Parts(block.astype(little, copy=False) for block in item.blocks("C"))
    whole = math.prod(sizes) * little.itemsize
    for where in places(item.shape, sizes):
        path = place.joinpath("c", *map(str, where))
        path.parent.mkdir(parents=True, exist_ok=True)
        filled = math.prod(min(size, n - at * size) for at, size, n in zip(where, sizes, item.shape, strict=True))
        with path.open("xb", buffering=0) as stream:
            for part in parts.take(filled * little.itemsize):
                _write_all(stream, part)
            stream.truncate(whole)  # what lies past the end of the array is zero


def _write_all(stream: Any, part: memoryview) -> None:
    done = 0
    while done < len(part):
        done += stream.write(part[done:])


class _Parts:
    """Blocks of elements, taken again in parts of other sizes."""

    def __init__(self, blocks: Iterator[AnyArray]) -> None:
        self._blocks = blocks
        self._left = memoryview(b"")

    def take(self, nbytes: int) -> Iterator[memoryview]:
        """Give so many bytes, each part valid until the next is asked for."""
        while nbytes:
            if not len(self._left):
                self._left = memoryview(cast(Any, np.ascontiguousarray(next(self._blocks)).reshape(-1).view(np.uint8)))
            part, self._left = self._left[:nbytes], self._left[nbytes:]
            nbytes -= len(part)
            yield part
