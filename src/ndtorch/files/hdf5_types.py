"""Which type of HDF5 a dtype is, and the other way round."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import ml_dtypes
import numpy as np

from .._dtypes import BY_NAME, from_numpy_dtype
from .._errors import FormatError, MissingDependencyError, NdtorchError, UnsupportedDtypeError, UnsupportedTypeError
from .arrays import AnyArray
from .items import Item

FAILURES = (OSError, RuntimeError, ValueError, TypeError, KeyError, OverflowError, NotImplementedError)
"""What h5py raises."""

_FLOATS = {  # sign, exponent and mantissa: where each begins, how many bits; and the bias
    "bfloat16": ((15, 7, 8, 0, 7), 127),
    "float8_e5m2": ((7, 2, 5, 0, 2), 15),
}


def library(subject: str) -> Any:
    """h5py.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise MissingDependencyError(subject, "h5py is not installed", hint="pip install h5py") from None
    return h5py


@contextmanager
def failing(where: str) -> Iterator[None]:
    """What the library says of a file that it cannot read."""
    try:
        yield
    except NdtorchError:
        raise
    except (*FAILURES, MemoryError) as error:
        raise FormatError("read", f"{where} cannot be read by HDF5: {reason_of(error)}") from None


@contextmanager
def refused_by_system() -> Iterator[None]:
    """What the system refuses the library, such as space, as the error that the system has for it."""
    try:
        yield
    except RuntimeError as error:  # h5py's, where a file is closed
        found = re.search(r"errno = (\d+)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from None


def reason_of(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


# --- reading


@dataclass(frozen=True, slots=True)
class Kind:
    """How the elements of a dataset are read.

    Attributes:
        dtype: What they become.
        memory: HDF5's type for what the library reads into.
        raw: NumPy's dtype for that.
        inner: Sizes of an array that is the element.
        is_plain: Whether they lie in the file as in memory.
        decode: What makes of an array of ``raw`` one of ``dtype``; nothing where they are the same bytes.
    """

    dtype: np.dtype[Any]
    memory: Any
    raw: np.dtype[Any]
    inner: tuple[int, ...] = ()
    is_plain: bool = True
    decode: Callable[[AnyArray], AnyArray] | None = None


def is_varying(h5py: Any, dataset: Any) -> bool:
    """Whether a dataset holds text of varying length."""
    found = dataset.get_type()
    return isinstance(found, h5py.h5t.TypeStringID) and bool(found.is_variable_str())


def kind_of(h5py: Any, dataset: Any, where: str) -> Kind:
    """How to read a dataset whose elements are all of one length.

    Raises:
        UnsupportedTypeError: NumPy has no dtype for them.
    """
    h5t = h5py.h5t
    found = dataset.get_type()
    for name in _FLOATS:
        row = BY_NAME[name].numpy
        assert row is not None
        if found == float_type(h5t, name):
            return Kind(row, found, np.dtype(f"u{row.itemsize}"))
    if isinstance(found, h5t.TypeStringID):
        return _text_kind(h5py, dataset, found, where)
    try:
        given = found.dtype
    except (TypeError, ValueError, NotImplementedError) as error:
        fact = f"{where} is of an HDF5 type that NumPy has no dtype for: {reason_of(error)}"
        raise UnsupportedDtypeError("read", fact, dtype="unknown") from None
    if given.hasobject:
        raise _objects(h5py, given, where)
    dtype, inner = _plain(given.base), given.shape
    is_plain = found == h5t.py_create(given, logical=True)
    name = _named(h5py, dataset) if dtype == np.uint8 else ""
    named = BY_NAME.get(name) if name.startswith("float8") else None  # of anything else the type itself has the say
    if named is not None and named.numpy is not None:
        dtype = named.numpy
    return Kind(dtype, h5t.py_create(given), given.base, inner, is_plain)


def _objects(h5py: Any, dtype: np.dtype[Any], where: str) -> NdtorchError:
    what = "references" if h5py.check_ref_dtype(dtype) is not None else "values of varying length"
    what = f"fields with {what} or text of varying length" if dtype.names is not None else what
    fact, hint = f"{where} holds {what}, which NumPy has no dtype for", "h5py.File(path)[name][()] reads it as objects"
    return UnsupportedTypeError("read", fact, hint=hint, dtype="object")


def _plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """A dtype without what h5py notes in it."""
    if dtype.subdtype is not None:
        return np.dtype((_plain(dtype.base), dtype.shape))
    if dtype.names is None:
        return np.dtype(dtype.str)
    fields = cast(Any, dtype.fields)
    formats, offsets = [_plain(fields[name][0]) for name in dtype.names], [fields[name][1] for name in dtype.names]
    plain = np.dtype({"names": dtype.names, "formats": formats, "offsets": offsets, "itemsize": dtype.itemsize})
    packed = np.dtype(list(zip(dtype.names, formats, strict=True)))
    return packed if packed == plain else plain


def _named(h5py: Any, dataset: Any) -> str:
    """The attribute that names a dtype, if that is what it is."""
    try:
        if not h5py.h5a.exists(dataset, b"dtype"):
            return ""
        attribute = h5py.h5a.open(dataset, b"dtype")
        found = attribute.get_type()
        is_short = isinstance(found, h5py.h5t.TypeStringID) and not found.is_variable_str() and found.get_size() < 32
        if not is_short or attribute.get_space().get_simple_extent_npoints() != 1:
            return ""
        value = h5py.Dataset(dataset).attrs["dtype"]
    except FAILURES:
        return ""
    value = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return value if isinstance(value, str) else ""


def _text_kind(h5py: Any, dataset: Any, found: Any, where: str) -> Kind:
    raw, memory = np.dtype(f"S{found.get_size()}"), h5py.h5t.py_create(found.dtype)
    if found.get_cset() != h5py.h5t.CSET_UTF8:
        return Kind(raw, memory, raw, (), found == memory)
    named = _named(h5py, dataset)
    length = int(named[2:]) if named.startswith("<U") and named[2:].isdecimal() else raw.itemsize
    target = np.dtype(f"U{min(length, raw.itemsize)}")
    return Kind(target, memory, raw, (), False, lambda raw: decoded(raw, target, where))


def decoded(raw: AnyArray, dtype: np.dtype[Any], where: str) -> AnyArray:
    """Make text of bytes that are UTF-8."""
    try:
        texts = [bytes(each).decode() for each in raw.reshape(-1).tolist()]
    except UnicodeDecodeError as error:
        raise FormatError("read", f"{where} claims to be UTF-8 and is not: {error}") from None
    longest = max(map(len, texts), default=0)
    if longest * 4 > dtype.itemsize:
        raise FormatError("read", f"{where} has longer text than it says", expected=dtype.itemsize // 4, got=longest)
    return np.array(texts, dtype).reshape(raw.shape)


# --- writing


@dataclass(frozen=True, slots=True)
class Written:
    """How an array is written.

    Attributes:
        type: HDF5's type.
        name: What the attribute ``dtype`` says, where the type does not say it all.
        encode: What makes the bytes of that type, where they are not those of the array.
    """

    type: Any
    name: str = ""
    encode: Callable[[AnyArray], AnyArray] | None = None

    @classmethod
    def of(cls, h5py: Any, item: Item) -> Written:
        """Find it.

        Raises:
            UnsupportedTypeError: HDF5 has no type for it.
        """
        dtype, row, name = item.dtype, item.row, item.name
        if dtype.hasobject or dtype.kind == "T":
            fact = f"cannot write {name!r}: Python objects are never pickled"
            raise UnsupportedTypeError("write", fact, hint="array.astype(dtype) with a dtype of numbers or text")
        if row is not None and row.name in _FLOATS:
            return cls(float_type(h5py.h5t, row.name))
        if row is not None and row.name.startswith("float8"):
            return cls(h5py.h5t.STD_U8LE, row.name)
        if dtype.kind == "U":
            width = dtype.itemsize  # four bytes for each character hold any of them in UTF-8
            return cls(_text_type(h5py.h5t, max(width, 1)), f"<U{width // 4}", lambda block: _encoded(block, name))
        try:
            little = np.dtype(dtype.newbyteorder("<")) if dtype.kind in "mM" else dtype
            found = h5py.h5t.py_create(_with_time(h5py, little, name), logical=True)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise _no_type(name, dtype, reason_of(error)) from None
        return cls(found, "", None if little == dtype else lambda block: block.astype(little))


def _with_time(h5py: Any, dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    """The dtype as h5py writes it, time as it reads it again; in a record what it would not give back is refused."""
    if dtype.subdtype is not None:
        return np.dtype((_with_time(h5py, dtype.base, name), dtype.shape))
    if dtype.names is None:
        if not dtype.itemsize:
            raise ValueError("its elements have no bytes")
        return cast("np.dtype[Any]", h5py.opaque_dtype(dtype)) if dtype.kind in "mM" else dtype
    fields = cast(Any, dtype.fields)
    for field in dtype.names:
        inner = fields[field][0].base
        row = from_numpy_dtype(inner)
        if inner.kind == "U" or (row is not None and row.name.startswith(("bfloat16", "float8"))):
            raise ValueError(f"its field {field!r} is {inner}")
    formats = [_with_time(h5py, fields[field][0], name) for field in dtype.names]
    offsets = [fields[field][1] for field in dtype.names]
    return np.dtype({"names": dtype.names, "formats": formats, "offsets": offsets, "itemsize": dtype.itemsize})


def _no_type(name: str, dtype: np.dtype[Any], reason: str) -> UnsupportedDtypeError:
    fact = f"cannot write {name!r}: .h5 has no type for {dtype} ({reason})"
    return UnsupportedDtypeError("write", fact, hint=".npz keeps whatever NumPy has", dtype=str(dtype))


def _text_type(h5t: Any, nbytes: int) -> Any:
    made = h5t.C_S1.copy()
    made.set_size(nbytes)
    made.set_strpad(h5t.STR_NULLPAD)
    made.set_cset(h5t.CSET_UTF8)
    return made


def _encoded(block: AnyArray, name: str) -> AnyArray:
    width = max(block.dtype.itemsize, 1)
    try:
        texts = [text.encode().ljust(width, b"\0") for text in block.tolist()]
    except UnicodeEncodeError as error:
        raise FormatError("write", f"cannot write {name!r}: it has text that is not Unicode: {error}") from None
    return np.frombuffer(b"".join(texts), np.uint8)


def float_type(h5t: Any, name: str) -> Any:
    """HDF5's type for a float that NumPy has no name for: one of its own layout, which other readers convert."""
    fields, bias = _FLOATS[name]
    made = h5t.IEEE_F16LE.copy()
    made.set_fields(*fields)
    itemsize = np.dtype(getattr(ml_dtypes, name)).itemsize
    made.set_precision(itemsize * 8)
    made.set_size(itemsize)
    made.set_ebias(bias)
    return made
