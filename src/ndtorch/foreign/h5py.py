"""HDF5 files through h5py: a dataset is read in one pass, a group becomes a table of its members."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from .._errors import FormatError
from ..files.hdf5 import MAX_MEMBERS
from .forms import Foreign, Inner, Parts, Refused, Restore, Unread, restore_members

AnyArray = npt.NDArray[Any]

_CLOSED = "its file is closed"
_OPEN = "h5py.File(path) opens it"


def take(source: Any, inner: Inner) -> Foreign:
    """Take a dataset, or a group with all that is in it, from metadata alone."""
    h5py: Any = sys.modules["h5py"]
    if not source:
        return Refused("h5py", type(source).__name__.lower(), (), _CLOSED, _OPEN)
    if isinstance(source, h5py.Dataset):
        return _take_dataset(source, h5py)
    return _take_group(source, h5py, (), [0])


# --- datasets


def _take_dataset(source: Any, h5py: Any) -> Foreign:
    if source.shape is None:
        fact = "it is an HDF5 null dataspace, which has no shape"
        return Refused("h5py", str(source.dtype), (), fact, "a dataset of shape (0,) is an empty array")
    dtype, shape = _read_as(source)
    refused = _why_no_numbers(source, dtype, shape, h5py)
    if refused is not None:
        return refused
    missing = _missing_file(source)
    if missing:
        fact = f"part of it is in {missing}: HDF5 would read its fill value there"
        hint = f"dataset[...] reads it all the same, {source.fillvalue!r} where nothing is"
        return Refused("h5py", str(dtype), shape, fact, hint, FormatError)

    def fill(array: AnyArray) -> None:
        if array.size:
            source.read_direct(array)

    def read() -> AnyArray:
        return np.asarray(source[()]).reshape(shape).astype(dtype, copy=False)

    codes = h5py.check_enum_dtype(source.dtype)
    note = "its numbers are codes: h5py.check_enum_dtype(dataset.dtype) has their names" if codes else ""
    return Unread("h5py", dtype, shape, _reason(source), read, None if source.dtype.subdtype else fill, note=note)


def _read_as(source: Any) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Dtype and shape that reading gives: an array as the element becomes dimensions."""
    return source.dtype.base, tuple(source.shape) + tuple(source.dtype.shape)


def _why_no_numbers(source: Any, dtype: np.dtype[Any], shape: tuple[int, ...], h5py: Any) -> Refused | None:
    if dtype.names is not None:
        for name in dtype.names:
            inner = dtype[name].base
            refused = _why_no_numbers(source, inner, shape, h5py)
            if refused is not None:
                fact, hint = (
                    f"in its field {name!r} {refused.fact}",
                    f"dataset.fields([...])[...] reads {_others(name)}",
                )
                return Refused("h5py", "struct", shape, fact, hint)
        return None
    if h5py.check_string_dtype(dtype) is not None and dtype.kind == "O":
        fact = "text of varying length has no tensor form"
        return Refused("h5py", "text", shape, fact, "dataset.asstr()[()].astype('U') gives code points")
    if h5py.check_ref_dtype(dtype) is not None:
        return Refused(
            "h5py", "reference", shape, "references are no numbers", "file[reference] is what each stands for"
        )
    if dtype.kind == "V":
        fact = "opaque bytes have no meaning as numbers"
        hint = "dataset[()].view(dtype) says what they mean, such as .view(ml_dtypes.bfloat16)"
        return Refused("h5py", f"V{dtype.itemsize}", shape, fact, hint)
    return None


def _others(name: str) -> str:
    return f"the fields without {name!r}"


def _reason(source: Any) -> str:
    if source.is_virtual:
        return "its values are in other datasets"
    if source.chunks is None:
        return "its values are in a file"
    filters = source.id.get_create_plist().get_nfilters()
    return "its values are compressed chunks of a file" if filters else "its values are chunks of a file"


def _missing_file(source: Any) -> str:
    """Name a file that part of a dataset should be in and is not; HDF5 reads fill values without a word."""
    folder = os.path.dirname(source.file.filename)
    for name, start, size in source.external or ():
        path = os.path.join(folder, name) if not os.path.exists(name) else name
        if not os.path.exists(path) or os.path.getsize(path) < start + size:
            return f"{name!r}, which is missing or too short"
    for name in {place.file_name for place in source.virtual_sources()} if source.is_virtual else ():
        if name != "." and "%b" not in name and not _is_found(name, folder):
            return f"{name!r}, which is missing"
    return ""


def _is_found(name: str, folder: str) -> bool:
    """Whether HDF5 finds a file that a virtual dataset names: as such, by its prefix, or beside its own file."""
    prefix = os.environ.get("HDF5_VDS_PREFIX", "").replace("${ORIGIN}", folder)
    names = (name, os.path.basename(name))
    return any(os.path.exists(os.path.join(place, each)) for place in ("", prefix, folder) for each in names)


# --- groups


def _take_group(group: Any, h5py: Any, above: tuple[Any, ...], count: list[int]) -> Foreign:
    """Take all members, those of groups inside as well.

    Args:
        group: The group.
        h5py: The library.
        above: The groups that it lies in, the file first.
        count: How many members were taken so far.
    """
    if group in above:
        fact = f"it is the group {group.name!r} again, which it lies in"
        return Refused("h5py", "group", (), fact, "convert its members one by one")
    parts: dict[str, Any] = {}
    keys = []
    for name in group:
        count[0] += 1
        if count[0] > MAX_MEMBERS:
            fact = f"it has more than {MAX_MEMBERS} members"
            return Refused("h5py", "group", (), fact, "convert its members one by one")
        member = _member(group, name, h5py, above, count)
        if member is not None:
            keys.append(name)
            parts[f"[{name!r}]"] = member
    return Parts("h5py", "table", "group", (len(keys),), parts, keys=tuple(keys))


def _member(group: Any, name: str, h5py: Any, above: tuple[Any, ...], count: list[int]) -> Foreign | None:
    member = group.get(name)
    if member is None:
        link = group.get(name, getlink=True)
        where = f"{getattr(link, 'filename', '')}{getattr(link, 'path', '')}"
        return Refused("h5py", "link", (), f"its link leads to {where!r}, where nothing is", "del group[name]")
    if isinstance(member, h5py.Dataset):
        return _take_dataset(member, h5py)
    if isinstance(member, h5py.Group):
        return _take_group(member, h5py, (*above, group), count)
    return None  # a named type has no values


# --- the way back


def restore(source: Any, like: Any, inner: Restore) -> Any:
    """Give what came from a dataset its dtype, as an array, and what came from a group a dict of such arrays."""
    if hasattr(like, "dtype"):
        dtype, shape = _read_as(like)
        return inner(source, np.broadcast_to(np.empty((), dtype), shape))
    h5py: Any = sys.modules["h5py"]
    members = {name: like[name] for name in like if isinstance(like[name], (h5py.Dataset, h5py.Group))}
    return restore_members(source, members, inner)
