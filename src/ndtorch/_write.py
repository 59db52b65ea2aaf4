"""`write` and `convert_file`: structures of arrays, or the arrays of another file, into a file, all or nothing.

Elements go through in blocks: cast on the way where that is asked for, copied by the kernel where they stay.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ._casting import Casting, Part, copy_into
from ._convert import explain, to_numpy
from ._dtypes import BY_NAME
from ._errors import FormatError, NdtorchError, UnsupportedDtypeError, UnsupportedTypeError
from ._options import numpy_options
from ._plan import Plan
from ._read import LazyArray
from .files import AnyPath, Format, MissingChunks, format_to_write, open_file, stem
from .files.arrays import BLOCK, AnyArray, FileArray, Order, Stored, blocks_of
from .files.items import Item
from .files.names import checked, flatten
from .files.remote import is_url, local_path, shown
from .files.target import new_target, why_not_replaced
from .files.upload import check_target, remove
from .foreign import Parts, Unread, recognise

Watch = Callable[[int], None]
"""Told how many bytes more have been written."""


class Converted(NamedTuple):
    """What became of one array on its way into a file.

    Attributes:
        name: Its name in the file.
        plan: What was shared or copied, and why.
        nbytes: Bytes of its elements in the file.
        note: What else was done while it was written.
    """

    name: str
    plan: Plan
    nbytes: int
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Casts:
    """What happens to dtypes on the way, as in `to_torch`."""

    dtype: Any = None
    float_dtype: Any = None
    casting: Casting = "same_kind"

    @property
    def asks_nothing(self) -> bool:
        """Whether dtypes stay what they are; found out by identity, for to NumPy ``dtype("f8") == None``."""
        return self.dtype is None and self.float_dtype is None

    @property
    def options(self) -> dict[str, Any]:
        """The options of a conversion that they are."""
        return {"dtype": self.dtype, "float_dtype": self.float_dtype, "casting": self.casting}

    def check(self, subject: str) -> None:
        """Refuse what no array can be cast to, before one is opened.

        Raises:
            InvalidOptionError: A dtype is none, or no floating one; or a rule is none.
            UnsupportedDtypeError: No file holds it.
        """
        try:
            dtype = numpy_options(**self.options).numpy_dtype
        except NdtorchError as error:
            raise error.renamed(subject) from None
        row = None if dtype is None else BY_NAME.get(dtype.name)
        if row is not None and row.numpy is None:
            hint = "dtype='complex64' (--dtype complex64) holds all its values"
            raise UnsupportedDtypeError(subject, f"dtype={row.name} is none that a file holds", hint=hint)


def write(
    path: AnyPath,
    arrays: Any,
    /,
    *,
    name: str | None = None,
    format: str | None = None,
    dtype: Any = None,
    float_dtype: Any = None,
    casting: Casting = "same_kind",
    overwrite: bool = False,
    verify: bool = False,
) -> list[Converted]:
    """Write a structure of arrays or tensors into a file, all or nothing.

    A killed or failed run leaves what was there: the new file is written beside it, synced, and then renamed.

    Memory:
        Arrays are streamed in blocks of 16 MB, cast on the way: there is never a second copy of all of them. A dask
        array is computed a few chunks at a time, and once more for ``verify``.

    Args:
        path: The file, in a folder that exists. Its suffix says the format.
        arrays: A mapping, list, tuple or dataclass, nested at will, of arrays, tensors, numbers, and of whatever
            `to_numpy` takes; or one of these. Names are the steps to each, joined by ``/``.
        name: What one array alone is called; else the stem of the file's name.
        format: Name of the format, where the suffix does not tell.
        dtype: As in `to_torch`: casts every array of numbers.
        float_dtype: As in `to_torch`: casts floating arrays only.
        casting: As in `to_torch`.
        overwrite: Whether a file that exists is replaced. It keeps its permissions.
        verify: Whether what was written is read back and compared before it takes its name.

    Returns:
        What became of each array: its `name`, `plan` and `nbytes`, and a `note`.

    Raises:
        FormatError: The file cannot be named so, or exists; or two arrays would have one name.
        UnsupportedTypeError: The format cannot hold an array, or what comes first is no path; nothing was written.
        LossyCastError: A cast that ``casting`` does not allow; nothing was written.
        OSError: The system refuses, such as for want of space.

    >>> import os, tempfile, torch, ndtorch as nd
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "a.safetensors")
    ...     written = nd.write(path, {"layer": {"weight": torch.ones(2, 3)}})
    ...     print([one.name for one in written], nd.read(path)["layer"]["weight"].shape)
    ['layer/weight'] torch.Size([2, 3])
    """
    if not isinstance(path, str | os.PathLike):
        raise UnsupportedTypeError(
            "write", f"the first argument is a {type(path).__name__}", hint="write(path, arrays): the path comes first"
        )
    found = format_to_write(path, format)
    _check_target(path, found, overwrite, "write")
    casts = Casts(dtype=dtype, float_dtype=float_dtype, casting=casting)
    casts.check("write")
    prepared = prepare(leaves_of(arrays, name or stem(os.fspath(path))), casts)
    return write_prepared(path, found, prepared, overwrite=overwrite, verify=verify)


def convert_file(
    source: AnyPath,
    target: AnyPath,
    /,
    *,
    name: str | None = None,
    source_format: str | None = None,
    target_format: str | None = None,
    dtype: Any = None,
    float_dtype: Any = None,
    casting: Casting = "same_kind",
    overwrite: bool = False,
    verify: bool = False,
    missing_chunks: MissingChunks = "error",
) -> list[Converted]:
    """Convert a file of arrays into another format, in a stream; the suffixes say which.

    A killed or failed run leaves the target as it was. Nothing is ever unpickled.

    Memory:
        Blocks of 16 MB, of what is compressed or transposed of 64 MB, however large the file is.

    Args:
        source: A file that `read` reads.
        target: Where the result goes, in a folder that exists.
        name: As in `read`.
        source_format: Name of the format of the source, where its suffix does not tell.
        target_format: The same of the target.
        dtype: As in `to_torch`: casts every array of numbers.
        float_dtype: As in `to_torch`: casts floating arrays only.
        casting: As in `to_torch`.
        overwrite: Whether a target that exists is replaced. It keeps its permissions.
        verify: Whether what was written is read back and compared before it takes its name.
        missing_chunks: As in `read`.

    Returns:
        What became of each array, in the order of the source: its `name`, `plan` and `nbytes`, and a `note`.

    Raises:
        FormatError: The source is not what it claims to be, or the target cannot be named so.
        UnsupportedTypeError: The target's format cannot hold an array; nothing was written.
        LossyCastError: A cast that ``casting`` does not allow; the target is as it was.
        OSError: The system refuses to read or to write.

    >>> import os, tempfile, numpy as np, ndtorch as nd
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source, target = os.path.join(folder, "a.npy"), os.path.join(folder, "a.safetensors")
    ...     np.save(source, np.arange(6.0).reshape(2, 3).T)
    ...     [(c.name, c.plan.dtype, c.nbytes) for c in nd.convert_file(source, target, dtype="float32")]
    [('a', 'float32', 24)]
    """
    found = format_to_write(target, target_format)
    _check_target(target, found, overwrite, "convert_file")
    _check_not_the_same(source, target)
    casts = Casts(dtype=dtype, float_dtype=float_dtype, casting=casting)
    casts.check("convert_file")
    prepared = prepare(open_file(source, format=source_format, name=name, missing_chunks=missing_chunks), casts)
    return write_prepared(target, found, prepared, overwrite=overwrite, verify=verify)


def _check_not_the_same(source: AnyPath, target: AnyPath) -> None:
    one, other = (local_path(os.fspath(path)) for path in (source, target))
    if one == other or (os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)):
        raise FormatError("convert_file", f"source and target are the same file, {shown(one)!r}")


# --- what is to be written


class Prepared(NamedTuple):
    """One array as it is going to be written, and what was planned for it."""

    item: Item
    plan: Plan


def leaves_of(tree: Any, name: str) -> Mapping[str, Any]:
    """Take a structure apart, by name; objects of other libraries that are several arrays as well.

    Those of an object that is all there is have its own names for them, else ``/`` joins them to that of the object.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in flatten(tree, name).items():
        # A frame, a sparse matrix or the like may become several arrays.
        plain = leaf if isinstance(leaf, np.ndarray | LazyArray | FileArray) else _as_array(path, leaf)
        if isinstance(plain, Unread):
            inner: Mapping[str, Any] = {checked(path): plain}
        else:
            inner = flatten(plain if leaf is tree or not isinstance(plain, dict) else {path: plain}, path)
        twice = next((each for each in inner if each in leaves), None)
        if twice is not None:
            raise FormatError("write", f"two arrays would have the name {twice!r}", hint="rename one")
        leaves |= inner
    return leaves


def _as_array(name: str, leaf: Any) -> Any:
    if isinstance(leaf, str | bytes):
        return np.asarray(leaf)
    if leaf is None:
        raise UnsupportedTypeError("write", f"cannot write {name!r}: files hold arrays, not None", hint="leave it out")
    taken = recognise(leaf, "numpy")
    if isinstance(taken, Unread) and taken.blocks is not None:
        return taken
    if isinstance(taken, Parts) and taken.form == "masked" and isinstance(taken.parts[".data"], Unread):
        hint = "dask.array.ma.filled(array, value) fills it"
        raise UnsupportedTypeError("write", f"cannot write {name!r}: no file has masks", hint=hint)
    try:
        array = to_numpy(taken)
    except NdtorchError as error:
        raise error.at(f"[{name!r}]") from error.__cause__
    if not isinstance(array, np.ndarray | dict):
        fact = f"cannot write {name!r}: files hold arrays, not a {type(array).__name__}"
        raise UnsupportedTypeError("write", fact, hint="its parts are arrays; leave it out, or write them")
    return array


def prepare(leaves: Mapping[str, Any], casts: Casts) -> list[Prepared]:
    """Plan every array, and stop at the first that cannot be written or cast."""
    return [_prepared(name, leaf, casts) for name, leaf in leaves.items()]


def _prepared(name: str, leaf: Any, casts: Casts) -> Prepared:
    stored = leaf.stored if isinstance(leaf, LazyArray) else leaf if isinstance(leaf, FileArray) else None
    source: Any = leaf if stored is None else LazyArray(stored, "numpy")
    planned = explain(source, to="numpy", **casts.options)
    if planned.error is not None:
        raise planned.error.at(f"[{name!r}]")
    if isinstance(leaf, np.ma.MaskedArray):
        hint = "array.filled(value) fills it; .data and .mask are arrays"
        raise UnsupportedTypeError("write", f"cannot write {name!r}: no file has masks", hint=hint)
    if isinstance(leaf, np.ndarray) and leaf.dtype.hasobject and not casts.asks_nothing:
        leaf = to_numpy(leaf, **casts.options)
    item = _item_of(name, stored or leaf)
    row = BY_NAME.get(planned.dtype)
    if row is None or row.numpy is None or row.numpy == item.dtype.newbyteorder("="):
        return Prepared(item, planned)
    return Prepared(cast_item(item, row.numpy, casts.casting), planned)


def _item_of(name: str, source: Any) -> Item:
    if isinstance(source, Unread):
        return item_of_pieces(name, source)
    return item_of_file(name, source) if isinstance(source, FileArray) else item_of_memory(name, source)


def item_of_pieces(name: str, source: Unread) -> Item:
    """An array that is made a few pieces at a time."""

    def blocks(order: Order) -> Iterator[AnyArray]:
        assert source.blocks is not None
        try:
            yield from source.blocks()
        except NdtorchError as error:
            raise error.renamed("write").at(f"[{name!r}]") from error.__cause__

    return Item(name, source.dtype, source.shape, "C", blocks)


def item_of_file(name: str, array: FileArray) -> Item:
    """An array of a file as it is."""
    array.require()
    order: Order = "F" if array.order == "F" else "C"
    stored = array.layout if isinstance(array.layout, Stored) and array.order in ("C", "F") else None
    return Item(name, array.dtype, array.shape, order, array.blocks, stored)


def item_of_memory(name: str, array: AnyArray) -> Item:
    """An array in memory as it is."""
    array = np.asarray(array)
    order: Order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    return Item(name, array.dtype, array.shape, order, lambda order: blocks_of(array, order))


def cast_item(item: Item, dtype: np.dtype[Any], casting: str) -> Item:
    """The same, cast on its way."""

    def blocks(order: Order) -> Iterator[AnyArray]:
        start = 0
        for block in _in_pieces(item.blocks(order)):
            target = np.empty(block.shape, dtype)
            part = Part(start, item.shape, order)
            try:
                copy_into(target, block, casting=casting, subject="write", what=item.dtype.name, part=part)
            except NdtorchError as error:
                raise error.at(f"[{item.name!r}]") from None
            yield target
            start += block.size

    return replace(item, dtype=dtype, blocks=blocks, stored=None)


def _in_pieces(blocks: Iterator[AnyArray]) -> Iterator[AnyArray]:
    """Cut what is decoded or transposed in larger blocks: its cast would be another of these."""
    for block in blocks:
        step = max(BLOCK // block.itemsize, 1)
        yield from (block[start : start + step] for start in range(0, block.size, step))


# --- writing it


def write_prepared(
    path: AnyPath,
    format: Format,
    prepared: Sequence[Prepared],
    *,
    overwrite: bool = True,
    verify: bool = False,
    watch: Watch | None = None,
) -> list[Converted]:
    """Write what was prepared under its name, or leave there what is there."""
    items = [one.item for one in prepared]
    for item in () if format.is_of_one else items:
        checked(item.name)  # those of another file may be anything
    format.writer.check(items)
    with new_target(path, format, watch, sum(item.nbytes for item in items), overwrite=overwrite) as target:
        is_watched = watch is None or format.target == "stream"  # which watches itself
        format.writer.write(target.place, items if is_watched else _watched(items, watch))
        if verify and target.path is not None:
            verify_written(target.path, format, items)
    if verify and is_url(local_path(os.fspath(path))):
        _verify_uploaded(os.fspath(path), format, items)
    return [Converted(one.item.name, one.plan, one.item.nbytes, _note(one.item, format)) for one in prepared]


def _watched(items: Sequence[Item], watch: Watch | None) -> list[Item]:
    """The same items; whoever takes a block of one tells how many bytes it has."""

    def watched(item: Item) -> Item:
        def blocks(order: Order) -> Iterator[AnyArray]:
            for block in item.blocks(order):
                yield block
                if watch is not None:
                    watch(block.nbytes)

        return replace(item, blocks=blocks, stored=None)

    return [watched(item) for item in items]


def _note(item: Item, format: Format) -> str:
    return "laid out row by row in the file" if item.order == "F" and not format.keeps_columns else ""


def verify_written(path: str, format: Format, items: Sequence[Item]) -> None:
    """Read back what was written, and compare it with its source, byte by byte.

    Raises:
        FormatError: Names the first array that differs.
    """
    written = open_file(path, format=format.name, name=items[0].name if items else None)
    for item in items:
        found = written.get(item.name)
        if found is None or found.shape != item.shape or not _are_equal(item, found):
            hint = "the disk or the memory is faulty, or the source has changed"
            raise FormatError("write", f"{item.name!r} reads back different from what was written", hint=hint)


def _verify_uploaded(url: str, format: Format, items: Sequence[Item]) -> None:
    """The same of what has been uploaded, which cannot be read before it has its name: what differs is removed."""
    try:
        verify_written(url, format, items)
    except BaseException:
        if format.target != "folder":
            remove(url)
        raise


def _are_equal(item: Item, found: FileArray) -> bool:
    if found.dtype.newbyteorder("=") != item.dtype.newbyteorder("="):
        return False
    from numpy.lib.recfunctions import repack_fields  # not at the top: it takes an eighth of our import

    # What is between fields has no meaning, and a library may have left there what it liked.
    dtype = repack_fields(found.dtype, recurse=True)
    both = ((block.astype(dtype, copy=False) for block in each.blocks("C")) for each in (item, found))
    return all(np.array_equal(*pair) for pair in _in_step(*both))


def _in_step(first: Iterator[AnyArray], second: Iterator[AnyArray]) -> Iterator[tuple[AnyArray, AnyArray]]:
    """Cut two streams of blocks into pairs of equally many bytes."""
    one, other = (np.empty(0, np.uint8),) * 2
    while True:
        one = next((block.view(np.uint8) for block in first), one) if not one.size else one
        other = next((block.view(np.uint8) for block in second), other) if not other.size else other
        count = min(one.size, other.size)
        if not count:
            if one.size or other.size:
                yield one, other
            return
        yield one[:count], other[:count]
        one, other = one[count:], other[count:]


def _check_target(path: AnyPath, format: Format, overwrite: bool, subject: str) -> None:
    text = local_path(os.fspath(path))
    if is_url(text):
        check_target(text, is_folder=format.target == "folder", overwrite=overwrite, subject=subject)
        return
    if "\0" in text:
        raise FormatError(subject, f"{text!r} is no name of a file: it has a NUL character", hint="leave it out")
    target = Path(text)
    folder = Path(os.path.realpath(target)).parent
    if not folder.is_dir():
        fact = f"cannot write {os.fspath(path)!r}: no folder {os.fspath(folder)!r}"
        raise FormatError(subject, fact, hint=f"os.makedirs({os.fspath(folder)!r}) makes it")
    if target.is_dir() and format.target != "folder":
        raise FormatError(subject, f"cannot write {os.fspath(path)!r}: it is a folder")
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise FormatError(subject, f"cannot write {os.fspath(path)!r}: it is a device, a pipe or a socket")
    if target.exists() and not overwrite:
        hint = "overwrite=True (--overwrite) replaces it, all or nothing"
        raise FormatError(subject, f"{os.fspath(path)!r} exists", hint=hint)
    why = why_not_replaced(target, is_folder=format.target == "folder")
    if why:
        raise FormatError(subject, f"cannot write {os.fspath(path)!r}: {why}", hint="move it away first")
