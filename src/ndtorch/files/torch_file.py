"""The ``.pt`` format of ``torch.save``: a zip archive with a pickle of the structure and a record for each storage.

Torch is not needed to read it, and nothing in it is executed: `torch_pickle` follows the pickle with stand-ins. Tensors
that are views of one storage have one record, and are read as views of it. Torch itself never looks at the checksums
that it writes; here they are compared.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from isal.isal_zlib import crc32

from .._dtypes import BY_NAME, DType
from .._errors import FormatError, NdtorchError, UnsupportedDtypeError, UnsupportedTypeError
from .archive import MAGIC, ArchiveWriter, Entry, check_crc32, check_directory, check_name, read_directory
from .arrays import Absent, AnyArray, Checksum, FileArray, Packed, Stored, Unreadable
from .indexing import row_major
from .items import Item
from .names import SEPARATOR, nested
from .output import Output
from .storage import Storage
from .torch_pickle import DTYPE_OF_STORAGE, Characters, Name, Nothing, Pairs, Special, StorageRecord, TensorClaim, load

_PICKLE = "data.pkl"
_LEGACY = (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x80\x02ctorch", b"\x80\x02ccollections")
_MAX_PICKLE = 16 << 20  # of what is written: 150,000 names
_MAX_DEPTH = 100
_MAX_MEMBERS = 1_000_000
_FEW = 10_000  # what a pickle may stand for however short it is
_MAX_NAME = 1 << 16
_MAX_DIMS = 64  # of a NumPy array
_MAX_SIZE = 1 << 63
_MAX_EXPANSION = 1032  # as in a packed entry of an archive
_HARMLESS = 1 << 30  # bytes that an expanded tensor may stand for in any case


def is_torch(storage: Storage) -> bool:
    """Whether an archive is one of torch's rather than NumPy's."""
    try:
        return any(entry.name.endswith(f"/{_PICKLE}") for entry in read_directory(storage))
    except FormatError:
        return False


def read_headers(storage: Storage, name: str) -> list[FileArray]:
    """Read the directory and the pickle; a tensor that is alone gets ``name``."""
    where = repr(storage.path)
    _refuse_others(storage, where)
    archive = _Records(storage, where)
    pickle = archive.read(_PICKLE)  # of any length that the file has: no record is packed
    root = load(pickle, where, archive.storages)
    return [_array(value, path, archive) for path, value in _leaves(root, name, where, len(pickle))]


def _refuse_others(storage: Storage, where: str) -> None:
    start = storage.read(0, 24)
    if start.startswith(MAGIC) or not start:
        return
    if start.startswith(_LEGACY):
        hint = "torch.save(torch.load(path, weights_only=True), path) writes it anew"
        raise UnsupportedTypeError("read", f"{where} has the format that torch had before 1.6, one pickle", hint=hint)
    raise FormatError("read", f"{where} does not begin as torch.save does", expected=MAGIC[0], got=start[:4])


class _Records:
    """The records of an archive, by their names behind the archive's own."""

    def __init__(self, storage: Storage, where: str) -> None:
        self.storage = storage
        self.where = where
        entries = read_directory(storage)
        pickles = [entry.name for entry in entries if entry.name.partition("/")[2] == _PICKLE]
        if len(pickles) != 1:
            fact = f"{where} was not written by torch.save: it has {len(pickles)} entries {_PICKLE}"
            raise FormatError("read", fact, expected="1 entry", got=len(pickles))
        prefix = pickles[0].removesuffix(_PICKLE)
        self._entries = {one.name.removeprefix(prefix): one for one in entries if one.name.startswith(prefix)}
        if "constants.pkl" in self._entries or any(name.startswith("code/") for name in self._entries):
            hint = "torch.save(torch.jit.load(path).state_dict(), path) writes its tensors"
            raise UnsupportedTypeError("read", f"{where} is a TorchScript program", hint=hint)
        # Where torch was told to leave checksums out, all of them are 0.
        self._has_checksums = any(entry.crc32 for entry in self._entries.values())
        self._checksums: dict[str, Checksum] = {}
        self.byteorder: Literal["<", ">"] = self._byteorder()

    @property
    def storages(self) -> int:
        """How many records of elements there are."""
        return sum(name.startswith("data/") for name in self._entries)

    def read(self, record: str, limit: int | None = None) -> bytes:
        entry = self.entry(record)
        if limit is not None and entry.size > limit:
            fact = f"{self.where} has an absurd record {record!r}"
            raise FormatError("read", fact, expected=f"at most {limit} bytes", got=entry.size)
        data = self.storage.read(entry.offset, entry.size)
        if self._has_checksums:
            check_crc32(entry, crc32(data), f"{self.where} record {record!r}")
        return data

    def entry(self, record: str) -> Entry:
        entry = self._entries.get(record)
        if entry is None:
            raise FormatError("read", f"{self.where} has no record {record[:80]!r}, which its pickle refers to")
        if entry.method != zipfile.ZIP_STORED:
            hint = "torch.save(torch.load(path), path) writes it as it should be"
            fact = f"{self.where} has a record {record[:80]!r} that is packed, as torch.save never does"
            raise FormatError("read", fact, hint=hint)
        return entry

    def checksum(self, record: str) -> Checksum | None:
        """What the bytes of a record add up to; the same object for all tensors in it."""
        if record not in self._checksums and self._has_checksums:
            entry = self.entry(record)
            self._checksums[record] = Checksum(entry.offset, entry.size, entry.crc32)
        return self._checksums.get(record)

    def _byteorder(self) -> Literal["<", ">"]:
        if "byteorder" not in self._entries:
            return "<"
        text = self.read("byteorder", 16)
        if text not in (b"little", b"big"):
            raise FormatError("read", f"{self.where} has an unknown byte order", expected="little or big", got=text)
        return "<" if text == b"little" else ">"


# --- the structure


def _leaves(root: Any, name: str, where: str, nbytes: int) -> Iterator[tuple[str, Any]]:
    """What is no container, by name, in order; the root itself is called ``name``.

    What a pickle refers to again and again can be far larger than the pickle, which has ``nbytes``.
    """
    room, characters = _FEW + min(nbytes, _MAX_MEMBERS), 100 * (_FEW + nbytes)
    todo: list[tuple[str, Any, int]] = [("", root, 0)]
    while todo:
        path, value, depth = todo.pop()
        start = path + SEPARATOR if depth else ""
        members = _members(value, where)
        room -= _cost(value) if members is None else len(members)
        characters -= sum(len(start) + len(key) for key, _ in members or ())
        if room < 0 or characters < 0 or depth > _MAX_DEPTH or len(path) > _MAX_NAME:
            raise FormatError("read", f"{where} holds a structure that is endless or absurd, at {path[:80]!r}")
        if members is not None:
            todo.extend((start + key, member, depth + 1) for key, member in reversed(members))
        else:
            yield (path if depth else name), value


def _cost(leaf: Any) -> int:
    return len(leaf) // 16 if isinstance(leaf, list | tuple) else 0


def _members(value: Any, where: str) -> list[tuple[str, Any]] | None:
    if isinstance(value, Pairs):
        return [(_key(key, where), member) for key, member in value.pairs]
    if isinstance(value, list | tuple) and not _is_array(value):
        return [(str(index), member) for index, member in enumerate(value)]
    return None


def _is_array(values: Sequence[Any]) -> bool:
    """Whether they are numbers of one class: such a list is one array, as it is when it is written."""
    first = type(values[0]) if values else None
    if first not in (bool, int, float, complex) or any(type(value) is not first for value in values):
        return False
    return first is not int or _integers_of(values) is not None


def _integers_of(values: Sequence[int]) -> np.dtype[Any] | None:
    low, high = min(values), max(values)
    if low >= -(1 << 63) and high < 1 << 63:
        return np.dtype(np.int64)
    return np.dtype(np.uint64) if low >= 0 and high < 1 << 64 else None


def _key(key: Any, where: str) -> str:
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool | int | float):
        return str(key)
    is_short = isinstance(key, tuple) and len(key) < 10
    if is_short and all(isinstance(part, str | int | float) and len(str(part)) < 100 for part in key):
        return str(key)
    hint = "text or numbers as keys"
    raise UnsupportedTypeError("read", f"{where} has a dict whose keys are no names: {type(key).__name__}", hint=hint)


# --- the arrays


def _array(value: Any, name: str, archive: _Records) -> FileArray:
    where = f"{archive.where} array {name[:80]!r}"
    if value is None:
        hint = "leave it out: ndtorch.write(target, {k: v for k, v in ndtorch.read(source).items() if v is not None})"
        error: NdtorchError = UnsupportedTypeError("read", f"{where} is None: no array", hint=hint)
        return FileArray(name, where, np.dtype(np.uint8), (), Absent(error), dtype_name="None")
    if isinstance(value, Nothing | Name):
        kind = value.text if isinstance(value, Name) else "a device or a layout"
        error = UnsupportedTypeError("read", f"{where} is {kind}: no array", hint="leave it out")
        return _unreadable(name, where, error, (), kind)
    if isinstance(value, StorageRecord):
        value = TensorClaim(value, 0, (value.numel,), (1,), None if value.dtype else Name("torch.uint8"))
    if isinstance(value, TensorClaim):
        return _tensor(value, name, where, archive)
    if isinstance(value, Special):
        hint = "torch.load(path, weights_only=True) reads it"
        error = UnsupportedTypeError("read", f"{where} is {value.kind}: no plain array", hint=hint)
        return _unreadable(name, where, error, _sizes(value.size, where), value.kind.partition(",")[0])
    return _value(value, name, where)


def _unreadable(name: str, where: str, error: NdtorchError, shape: tuple[int, ...], dtype_name: str) -> FileArray:
    return FileArray(name, where, np.dtype(np.uint8), shape, Unreadable(error), dtype_name=dtype_name)


def _sizes(sizes: Any, where: str) -> tuple[int, ...]:
    """Check that they are sizes, or strides."""
    if not isinstance(sizes, tuple) or len(sizes) > _MAX_DIMS:
        raise FormatError("read", f"{where} claims sizes that are none, or more than {_MAX_DIMS}")
    if any(type(n) is not int or not 0 <= n < _MAX_SIZE for n in sizes):
        raise FormatError("read", f"{where} claims sizes or strides that are no counts: {str(sizes)[:80]}")
    return sizes


def _tensor(claim: TensorClaim, name: str, where: str, archive: _Records) -> FileArray:
    shape, strides = _sizes(claim.size, where), _sizes(claim.stride, where)
    (offset,) = _sizes((claim.offset,), where)
    stored = claim.storage
    if not isinstance(stored, StorageRecord) or len(strides) != len(shape) or not isinstance(stored.key, str):
        raise FormatError("read", f"{where} is not made of a storage, sizes and strides")
    dtype_name = claim.dtype.text.removeprefix("torch.") if isinstance(claim.dtype, Name) else stored.dtype
    row = BY_NAME.get(dtype_name)
    error = _why_unreadable(claim, row, dtype_name, where, archive)
    if row is None or row.numpy is None or error is not None:
        assert error is not None
        return _unreadable(name, where, error, shape, dtype_name)
    record = f"data/{stored.key}"
    entry = archive.entry(record)
    (numel,) = _sizes((stored.numel,), where)
    room = min(numel * (row.itemsize if stored.dtype else 1), entry.size)
    end = 0 if 0 in shape else offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
    if end * row.itemsize > room:
        fact = f"{where} reaches outside its storage, the record {record[:80]!r}"
        raise FormatError("read", fact, expected=f"{end * row.itemsize} bytes", got=room)
    nbytes = math.prod(shape) * row.itemsize
    if nbytes > max(_HARMLESS, _MAX_EXPANSION * entry.size) or nbytes >= _MAX_SIZE:
        bomb = FormatError("read", f"{where} claims {nbytes} bytes, expanded from {entry.size}")
        return _unreadable(name, where, bomb, shape, dtype_name)
    steps = tuple(step * row.itemsize for step in strides) if nbytes else row_major(shape, row.itemsize)
    begin = entry.offset + (offset * row.itemsize if nbytes else 0)
    layout = Stored(archive.storage, begin, steps, archive.checksum(record))
    return FileArray(name, where, row.numpy.newbyteorder(archive.byteorder), shape, layout)


def _why_unreadable(
    claim: TensorClaim, row: DType | None, dtype_name: str, where: str, archive: _Records
) -> NdtorchError | None:
    if row is None or row.numpy is None:
        fact = f"{where} is {dtype_name or 'of no dtype'}, which NumPy has no dtype for"
        return UnsupportedDtypeError("read", fact, dtype=dtype_name)
    if isinstance(claim.storage, StorageRecord) and claim.storage.dtype not in ("", dtype_name):
        return FormatError("read", f"{where} is {dtype_name} in a storage of {claim.storage.dtype}")
    if isinstance(claim.metadata, Pairs) and any(bit is True for _, bit in claim.metadata.pairs[:10]):
        hint = "tensor.resolve_conj().resolve_neg() before torch.save"
        return UnsupportedTypeError("read", f"{where} was saved with a conjugate or negative bit", hint=hint)
    is_other = row.numpy.kind == "V" or row.numpy.num >= 256
    if archive.byteorder == ">" and is_other and row.itemsize > 1:
        return UnsupportedDtypeError("read", f"{where} is {dtype_name} of the other byte order", dtype=dtype_name)
    return None


def _value(value: Any, name: str, where: str) -> FileArray:
    """A number, text, bytes or a list of numbers of one class: an array that is in the pickle itself."""
    if isinstance(value, str | bytes | bytearray | Characters):
        return _text(value, name, where)
    values = value if isinstance(value, list | tuple) else (value,)
    dtype = _integers_of(values) if type(values[0]) is int else np.dtype(type(values[0]))
    if dtype is None:
        error = UnsupportedTypeError("read", f"{where} is an integer of {value.bit_length()} bits, more than 64")
        return _unreadable(name, where, error, (), "int")
    return _from_pickle(name, where, dtype, (len(values),) if values is value else (), value)


def _text(value: Any, name: str, where: str) -> FileArray:
    if isinstance(value, str):
        if value.endswith("\0"):
            return _unreadable(name, where, FormatError("read", f"{where} is text that ends in NUL"), (), "text")
        return _from_pickle(name, where, np.dtype(f"U{max(len(value), 1)}"), (), value)
    length = len(value.text if isinstance(value, Characters) else value)
    return _from_pickle(name, where, np.dtype(np.uint8), (length,), value)


def _from_pickle(name: str, where: str, dtype: np.dtype[Any], shape: tuple[int, ...], value: Any) -> FileArray:
    def read(slices: tuple[slice, ...]) -> AnyArray:
        source = value
        if isinstance(source, Characters):
            if not all(ord(character) < 256 for character in source.text):
                raise FormatError("read", f"{where} is damaged: it has characters that are no bytes")
            source = source.text.encode("latin1")
        if isinstance(source, bytes | bytearray):
            source = np.frombuffer(source, np.uint8)
        key: Any = (*slices, ...)  # with dots what has no dimensions stays an array
        part: AnyArray = np.array(source, dtype)[key]
        return part

    return FileArray(name, where, dtype, shape, Packed(read, reason="in a pickle"))


# --- writing


_HINTS = {
    "M": "array.view('int64') is the number of units; .npz keeps time",
    "m": "array.view('int64') is the number of units; .npz keeps time",
    "S": "array.view('uint8') is the characters; .npz keeps text",
    "U": "leave it out, .npz keeps text; numpy.atleast_1d(array).view('int32') is the code points",
    "V": "array['field'] is an array of its own; .npz keeps fields",
    "O": "array.astype(dtype) with a dtype of numbers",
}
_STORAGE_OF = {dtype: name for name, dtype in DTYPE_OF_STORAGE.items()}
_PREFIX = "archive/"


def check(items: Sequence[Item]) -> None:
    """Refuse what is no tensor, and names of which one is that of an array and of a dict at once."""
    for item in items:
        row = item.row
        if row is None or row.numpy is None:
            hint = _HINTS.get(item.dtype.kind, "dtype= (--dtype) casts it")
            fact = f"cannot write {item.name!r}: .pt holds numbers only and it is {item.dtype}"
            if item.dtype.kind not in _HINTS:
                fact = f"cannot write {item.name!r}: torch has no {item.dtype}"
            raise UnsupportedTypeError("write", fact, hint=hint)
        check_name(item.name, "")
        if item.name.count(SEPARATOR) >= _MAX_DEPTH:
            fact = f"cannot write {item.name[:80]!r}: its name has more than {_MAX_DEPTH} steps"
            raise FormatError("write", fact, hint="rename it; .npz and .safetensors keep the name as it is")
    try:
        nested({item.name: item for item in items})
    except NdtorchError as error:
        raise error.renamed("write") from None
    check_directory(f"{_PREFIX}data/{key}" for key in range(len(items)))
    length = sum(map(len, _pickled(items)))
    if length > _MAX_PICKLE:
        fact = f"the names of {len(items)} arrays are too long for a .pt file"
        hint = ".safetensors holds them"
        raise FormatError("write", fact, expected=f"at most {_MAX_PICKLE} bytes", got=length, hint=hint)


def write(output: Output, items: Sequence[Item]) -> None:
    """Write what ``torch.load(path, weights_only=True)`` reads as dicts of tensors, mapped where that is asked for."""
    archive = ArchiveWriter(output)

    def put(record: str, *parts: bytes) -> None:
        archive.write(_PREFIX + record, parts, sum(map(len, parts)))

    put(_PICKLE, *_pickled(items))
    put("byteorder", b"little")  # without .format_version, by which torch may guess where records are
    for key, item in enumerate(items):
        archive.write(f"{_PREFIX}data/{key}", _little(item), item.nbytes)
    put("version", b"3\n")
    archive.close()


def _little(item: Item) -> Iterator[AnyArray]:
    little = item.dtype.newbyteorder("<")
    return (block.astype(little, copy=False) for block in item.blocks(item.order))


def _pickled(items: Sequence[Item]) -> Iterator[bytes]:
    """The structure, in the steps that torch.save takes and ``weights_only`` allows."""
    yield b"\x80\x02"
    yield from _pickled_dict(nested({item.name: (key, item) for key, item in enumerate(items)}))
    yield b"."


def _pickled_dict(tree: dict[str, Any]) -> Iterator[bytes]:
    yield b"}("
    for key, member in tree.items():
        yield _pickled_text(key)
        if isinstance(member, dict):
            yield from _pickled_dict(member)
        else:
            yield _pickled_tensor(*member)
    yield b"u"


def _pickled_tensor(key: int, item: Item) -> bytes:
    row = item.row
    assert row is not None
    count = math.prod(item.shape)
    strides = row_major(item.shape[::-1], 1)[::-1] if item.order == "F" else row_major(item.shape, 1)
    legacy = _STORAGE_OF.get(row.name)  # of other dtypes the tensor says its own, and the storage is bytes
    storage = f"ctorch\n{legacy}\n" if legacy else "ctorch.storage\nUntypedStorage\n"
    numel = count if legacy else item.nbytes
    parts = [
        f"ctorch._utils\n_rebuild_tensor_v{2 if legacy else 3}\n((".encode(),
        *(_pickled_text("storage"), storage.encode(), _pickled_text(str(key)), _pickled_text("cpu")),
        *(_pickled_int(numel), b"tQ"),
        *(_pickled_int(0), _pickled_sizes(item.shape), _pickled_sizes(strides)),
        b"\x89ccollections\nOrderedDict\n)R",  # needs no gradient, has no hooks
        b"" if legacy else f"ctorch\n{row.name}\n".encode(),
        b"tR",
    ]
    return b"".join(parts)


def _pickled_text(text: str) -> bytes:
    raw = text.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def _pickled_int(number: int) -> bytes:
    if number < 1 << 31:
        return b"J" + struct.pack("<i", number)
    raw = number.to_bytes(number.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes((len(raw),)) + raw


def _pickled_sizes(sizes: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_pickled_int, sizes)) + b"t"
