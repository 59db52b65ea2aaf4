"""What a loader is given, taken apart into columns: one for each leaf of a batch."""

from __future__ import annotations

import warnings
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from .._convert import explain, to_torch
from .._dtypes import from_numpy_dtype
from .._errors import NdtorchError, ShapeMismatchError, UnsupportedTypeError
from .._read import LazyArrays
from .._spec import describe
from .._structures import is_structure, not_convertible, passes_through, take_apart
from ..foreign import Foreign, Memory, Parts, Refused, Unread, recognise
from .arrays import array_sources, form_of, numbers_in, picked_sources, refusal, tensor_sources
from .dataset import SamplesColumn, is_dataset, refuse_stream
from .file_columns import column_of_files, facts_of_files, is_in_files, is_many_files, opened
from .file_rows import FileRows
from .parts import SUBJECT, SourceOptions, Sources, combined, constant, single
from .samples import list_sources, ragged_sources
from .wishes import Wishes

__all__ = ["SourceOptions", "Sources", "sources_of"]

_MOST_COLUMNS = 32  # files of a folder that are hardly samples, however few rows they have


def sources_of(data: Any, options: SourceOptions) -> Sources:
    """Take the data of a loader apart.

    Raises:
        ShapeMismatchError: Two of them are not of one length.
        UnsupportedTypeError: One of them has no rows.
        InvalidOptionError: An option has no such value, or nothing that it applies to.
    """
    refuse_stream(data)
    wishes = Wishes(options)
    try:
        sources = _sources_at(data, wishes, "")
    except RecursionError:
        fact = "the data contains itself or is nested too deeply"
        raise NdtorchError(SUBJECT, fact, hint="give its parts one by one") from None
    _check_lengths(sources, data)
    wishes.check(sources.paths, is_empty=not sources.length)
    _warn_of_samples(wishes, sources, data)
    return sources


def _check_lengths(sources: Sources, data: Any) -> None:
    if not sources.columns:
        raise ShapeMismatchError(SUBJECT, "the data has no arrays", expected="at least one", got="none")
    first = sources.columns[0].length
    for path, column in zip(sources.paths, sources.columns, strict=True):
        if column.length != first:
            fact = f"data{path} has {column.length} rows and data{sources.paths[0]} has {first}"
            hint = "ndtorch.read(folder).values() takes files as samples" if _has_many_files(data) else None
            raise ShapeMismatchError(SUBJECT, fact, expected=first, got=column.length, hint=hint)


def _has_many_files(data: Any) -> bool:
    """Whether a leaf of the data is several files, of which each array is a column."""
    if isinstance(data, str):
        return is_many_files(data)
    structure = take_apart(data, SUBJECT, is_leaf=lambda value: _is_leaf(value) or isinstance(value, LazyArrays))
    return any(not isinstance(leaf, str) and is_many_files(leaf) for leaf in structure.leaves)


def _warn_of_samples(wishes: Wishes, sources: Sources, data: Any) -> None:
    """Say that files were taken for columns where they are more than their rows, all alike: samples, most likely."""
    number, length = len(sources.columns), sources.length
    if number <= max(_MOST_COLUMNS, length) or not _has_many_files(data):
        return
    (leaf, count), *_ = Counter(wishes.leaves.values()).most_common(1)
    if count > max(_MOST_COLUMNS, length) and leaf.endswith("(file)"):
        message = (
            f"Loader: {count} files of one folder, each {leaf}, are taken for as many columns of {length} rows. "
            "ndtorch.read(folder).values() takes each file for one sample, dict(ndtorch.read(folder)) says that they "
            "are columns"
        )
        warnings.warn(message, UserWarning, stacklevel=5)


def _sources_at(data: Any, wishes: Wishes, path: str) -> Sources:
    """Take a structure, or one leaf of it."""
    if _is_leaf(data) or not (is_structure(data) or isinstance(data, tuple)):
        return _leaf_sources(data, wishes, path)
    structure = take_apart(data, SUBJECT, is_leaf=_is_leaf)
    return _together(zip(structure.paths(), structure.leaves, strict=True), wishes, path, structure.rebuilder())


def _is_leaf(value: Any) -> bool:
    """Whether a container is rows, rather than a structure of columns."""
    return isinstance(value, list | deque | Dataset) or is_in_files(value)


def _together(leaves: Iterable[tuple[str, Any]], wishes: Wishes, path: str, rebuild: Any) -> Sources:
    parts = []
    for step, leaf in leaves:
        try:
            parts.append(_leaf_sources(leaf, wishes, path + step))
        except NdtorchError as error:
            raise error.at(step) from None
    return combined(parts, rebuild)


def _leaf_sources(leaf: Any, wishes: Wishes, path: str) -> Sources:
    if leaf is None and path:
        return constant(None)
    if isinstance(leaf, torch.Tensor):
        is_nested = leaf.is_nested
        return list_sources(leaf.unbind(), wishes, path) if is_nested else tensor_sources(leaf, wishes, path)
    # A text inside a structure is more often a label than a path, which can be a pathlib.Path there.
    found = None if path and isinstance(leaf, str) else opened(leaf, wishes)
    if found is not None:
        return _found_sources(found, wishes, path)
    if isinstance(leaf, range):
        leaf = _numbers_of(leaf)
    if isinstance(leaf, np.ndarray) and not _is_list(leaf):
        return array_sources(leaf, wishes, path)
    if isinstance(leaf, list | deque | np.ndarray) and wishes.options.collate_fn is None:
        return list_sources(list(leaf), wishes, path)
    if isinstance(leaf, list | deque | np.ndarray):
        return _dataset_sources(list(leaf), wishes, path)
    if isinstance(leaf, Dataset):
        return _dataset_sources(leaf, wishes, path)
    if passes_through(leaf) or isinstance(leaf, np.generic):
        raise _without_rows(leaf)
    taken = recognise(leaf)
    is_samples = taken is leaf and is_dataset(leaf)
    return _dataset_sources(leaf, wishes, path) if is_samples else _foreign_sources(taken, wishes, path)


def _numbers_of(numbers: range) -> np.ndarray[Any, Any]:
    try:
        return np.arange(numbers.start, numbers.stop, numbers.step, dtype=np.int64)
    except (MemoryError, OverflowError, ValueError):
        fact = f"{numbers} has more or larger numbers than memory can hold as int64"
        raise UnsupportedTypeError(SUBJECT, fact, hint="a loader gives row numbers of up to 2**63 - 1 rows") from None


def _without_rows(leaf: Any) -> UnsupportedTypeError:
    name = type(leaf).__name__
    fact = "None has no rows" if leaf is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name} has no rows"
    hint = "leave it out"
    if isinstance(leaf, str):
        hint = "ndtorch.read(path) opens a file, a list of texts is one for each row"
    elif leaf is not None:
        hint = "a list of numbers is one for each row"
    return UnsupportedTypeError(SUBJECT, fact, expected="an array, a tensor or a list", got=name, hint=hint)


def _is_list(array: np.ndarray[Any, Any]) -> bool:
    """Whether an array of objects is a list of samples, and not numbers in a guise; or one of texts of any length."""
    if array.dtype.kind not in "OT" or array.ndim != 1 or isinstance(array, np.ma.MaskedArray):
        return False
    return array.dtype.kind == "T" or any(
        not isinstance(value, bool | int | float | complex | np.number | np.bool_) for value in array
    )


# --- what is in files


def _found_sources(found: Any, wishes: Wishes, path: str) -> Sources:
    if not is_in_files(found):
        return _sources_at(found, wishes, path)
    length, dtype, shape = facts_of_files(found)
    known = from_numpy_dtype(dtype)
    wishes.leaves[path] = f"{dtype if known is None else known.name}[{','.join(map(str, (length, *shape)))}](file)"
    if known is None:
        return single(column_of_files(found, lambda array: array_sources(array, wishes, path).columns[0], None), path)
    pad_value = None if isinstance(found, FileRows) else wishes.padding_at(path)
    return single(column_of_files(found, form_of(dtype, shape, wishes, path).column, pad_value), path)


# --- objects of other libraries


def _foreign_sources(taken: Any, wishes: Wishes, path: str) -> Sources:
    if isinstance(taken, Memory):
        return _leaf_sources(taken.array, wishes, path)
    if isinstance(taken, Refused):
        raise refusal(explain(taken).error)
    if isinstance(taken, Parts):
        return _parts_sources(taken, wishes, path)
    if isinstance(taken, Unread):
        return _read_sources(taken, wishes, path)
    if isinstance(taken, np.ndarray | torch.Tensor):
        return _leaf_sources(taken, wishes, path)
    raise not_convertible(taken, SUBJECT)


def _parts_sources(taken: Parts, wishes: Wishes, path: str) -> Sources:
    if taken.form == "table":
        leaves = zip((f"[{key!r}]" for key in taken.keys), taken.parts.values(), strict=True)
        return _together(leaves, wishes, path, lambda batch: dict(zip(taken.keys, batch, strict=True)))
    if taken.form == "masked" and not taken.nulls:
        return _leaf_sources(taken.parts[".data"], wishes, path)
    if taken.form == "sparse":
        fact = f"cannot take rows of {describe(taken)}: it is sparse"
        raise UnsupportedTypeError(SUBJECT, fact, hint="matrix.toarray() gives a dense one")
    if taken.form == "ragged" and taken.offsets is not None:
        content = numbers_in(taken.parts[".content"])
        if content is not None:
            return ragged_sources(content, taken.offsets, wishes, path)
    return _read_sources(taken, wishes, path)


def _read_sources(taken: Foreign, wishes: Wishes, path: str) -> Sources:
    """Take what `to_torch` makes of it, all at once."""
    try:
        made = to_torch(taken, readonly="share")
    except NdtorchError as error:
        raise refusal(error) from None
    return _sources_at(made, wishes, path)


# --- datasets


def _dataset_sources(dataset: Any, wishes: Wishes, path: str) -> Sources:
    """Take a dataset; of tensors, and some samples of such a one, by their columns."""
    if wishes.options.collate_fn is None:
        if type(dataset) is TensorDataset:
            return _together(((f"[{i}]", each) for i, each in enumerate(dataset.tensors)), wishes, path, tuple)
        if type(dataset) is Subset:
            sources = _subset_sources(dataset, wishes, path)
            if sources is not None:
                return sources
    wishes.datasets.append(path)
    return single(SamplesColumn(dataset, wishes, path), path)


def _subset_sources(subset: Any, wishes: Wishes, path: str) -> Sources | None:
    inner = subset
    while type(inner) is Subset:
        inner = inner.dataset
    if type(inner) is not TensorDataset:
        return None
    sources = _dataset_sources(subset.dataset, wishes, path)
    length = sources.length
    indices = _indices_of(subset)
    odd = np.flatnonzero((indices < -length) | (indices >= length))
    if odd.size:
        fact = f"the Subset has the index {indices[odd[0]]} at {odd[0]}, of {length} samples"
        raise ShapeMismatchError(SUBJECT, fact, expected=f"below {length}", got=int(indices[odd[0]]))
    indices = indices.astype(np.int64)
    return picked_sources(sources, np.where(indices < 0, indices + length, indices))


def _indices_of(subset: Any) -> np.ndarray[Any, Any]:
    indices = np.asarray(subset.indices)
    if not indices.size:
        return np.empty(0, np.int64)
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        fact = f"the Subset has the indices {describe(indices)}"
        raise ShapeMismatchError(SUBJECT, fact, expected="one row of integers", got=describe(indices))
    return indices
