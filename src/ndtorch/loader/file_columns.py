"""What of a loader's data is in files: opened, and made columns of."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np

from .._file_rows import FileRows as Samples
from .._file_rows import rows_in_files
from .._read import LazyArray, LazyArrays, read
from .chunk_rows import rows_of_piece
from .columns import Column
from .file_rows import FileRows, Form, fields_of
from .live_arrays import is_group, members_of, piece_of
from .sample_files import column_of_samples, opened_at
from .stored_rows import rows_of_array
from .wishes import Wishes


def opened(data: Any, wishes: Wishes) -> Any:
    """What something stands for that is in files: a dict, rows or samples; None for whatever is not.

    A path is what `read` makes of it; the arrays of a file or a group are a dict by name.

    Raises:
        FormatError: The file is not what it claims to be.
        UnsupportedTypeError: An array in it has no rows.
    """
    if is_in_files(data):
        return data
    if isinstance(data, str | os.PathLike):
        return dict(read(data))
    if isinstance(data, LazyArrays):
        return dict(data)
    if isinstance(data, LazyArray):
        return fields_of(rows_of_array(data.stored))
    if is_group(data):
        return members_of(data, wishes)
    samples = rows_in_files(data)
    if samples is not None:
        return samples
    piece = piece_of(data, wishes)
    return None if piece is None else fields_of(rows_of_piece(piece))


def is_in_files(data: Any) -> bool:
    """Whether it is rows or samples that `opened` gave, of which `column_of_files` makes a column."""
    return isinstance(data, FileRows | Samples)


def is_many_files(data: Any) -> bool:
    """Whether it is several files: a folder or a pattern, or what `read` makes of it."""
    if isinstance(data, str | os.PathLike):
        data = read(data)
    return isinstance(data, LazyArrays) and len({data.local_path(name) for name in data}) > 1


def facts_of_files(rows: FileRows | Samples) -> tuple[int, np.dtype[Any], tuple[int, ...]]:
    """How many rows or samples there are, and the dtype and the shape of one; of samples those of the first."""
    if isinstance(rows, FileRows):
        return rows.length, rows.dtype, rows.shape
    first = opened_at(rows, 0)
    return rows.number, first.dtype, first.shape


def column_of_files(rows: FileRows | Samples, form: Form, pad_value: Any) -> Column:
    """The column of rows, or of samples, in files.

    Args:
        rows: Where they are.
        form: Makes the column of an array in memory.
        pad_value: What fills samples up that are of different lengths.
    """
    return column_of_samples(rows, form, pad_value) if isinstance(rows, Samples) else rows.column(form)


def warn_of_scattered(columns: Iterable[Column], *, stacklevel: int) -> None:
    """Say which columns are slow in an order that jumps about, before a loop takes hours."""
    for column in columns:
        if column.scattered:
            advice = "shuffle='window' decodes each about once, nd.convert_file(path, 'file.npy') needs no decoding"
            warnings.warn(f"Loader: {column.scattered} in random order. {advice}", UserWarning, stacklevel=stacklevel)
