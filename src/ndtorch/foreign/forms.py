"""The few forms that every foreign object is taken for: memory, something unread, parts, or a refusal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from .._errors import NdtorchError, ShapeMismatchError, UnsupportedTypeError

AnyArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Foreign:
    """What an object of another library holds, in terms that describe, plan and act know.

    Attributes:
        library: Its name as printed, such as ``pandas``.
        note: What else the caller may want to know.
    """

    library: str
    note: str = field(default="", kw_only=True)


@dataclass(frozen=True, slots=True)
class Memory(Foreign):
    """An array or tensor in memory that the other library owns.

    Attributes:
        array: A view of that memory. An array's own flag says whether it may be written.
        readonly: That it must not be written, for tensors, which have no flag.
    """

    array: AnyArray | torch.Tensor
    readonly: bool = False


@dataclass(frozen=True, slots=True)
class Unread(Foreign):
    """An array that has to be made: it is packed, compressed, scattered, in a file, or made anew when asked for.

    Attributes:
        dtype: Dtype that reading gives.
        shape: Sizes that reading gives.
        reason: Why there is no memory to share, in words that finish "cannot share memory with it: ...".
        read: Makes the array, in new memory that nobody else holds.
        fill: Reads into a row-major array of that dtype and shape instead, where the library can.
        pieces: Gives it in pieces instead, each with the index of its first element, where it comes in such.
        blocks: Gives its elements row by row, flat, in blocks of no more than some memory, where it comes in pieces.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    reason: str
    read: Callable[[], AnyArray]
    fill: Callable[[AnyArray], None] | None = None
    pieces: Callable[[], Iterator[tuple[tuple[int, ...], AnyArray]]] | None = None
    blocks: Callable[[], Iterator[AnyArray]] | None = None


@dataclass(frozen=True, slots=True)
class Parts(Foreign):
    """Several arrays that make one object.

    ========  ===================  ==============================  ===============================
    form      parts                to a tensor                     to an array
    ========  ===================  ==============================  ===============================
    table     columns              dict of tensors                 dict of arrays
    ragged    ``.content``         list of tensors                 list of arrays
    masked    ``.data`` ``.mask``  `Masked`, or NaN, or an error   `numpy.ma.MaskedArray`
    sparse    as its layout has    sparse tensor, same layout      scipy.sparse array, same layout
    ========  ===================  ==============================  ===============================

    Attributes:
        form: Which of these it is.
        text: Its dtype or class as printed.
        shape: Its sizes.
        parts: By path, such as ``['age']`` or ``.mask``; values are arrays or foreign forms, in a table also None.
        keys: Keys of the dict that a table becomes, in the order of the parts.
        offsets: Where the elements of a ragged one begin and end in its content: one more than there are.
        layout: ``csr``, ``csc``, ``coo`` or ``bsr``, of a sparse one.
        nulls: How many values are missing and where the first is, of a masked one; empty where none is.
        missing: The same as numbers: how many, and the index of the first.
        remedy: What gives it a value for each missing one, in words; empty where nothing of its library is known to.
        original: The object itself, for the conversion that has nothing to do.
    """

    form: Literal["table", "ragged", "masked", "sparse"]
    text: str
    shape: tuple[int, ...]
    parts: Mapping[str, Any]
    keys: tuple[Any, ...] = ()
    offsets: AnyArray | None = None
    layout: str = ""
    nulls: str = ""
    missing: tuple[int, tuple[int, ...]] = (0, ())
    remedy: str = ""
    original: Any = None


@dataclass(frozen=True, slots=True)
class Refused(Foreign):
    """Something that has no form on the other side.

    Attributes:
        text: Its dtype or class as printed.
        shape: Its sizes.
        fact: Why it has none, in words that finish "cannot convert it: ...".
        hint: What to call instead.
        error: What is raised.
    """

    text: str
    shape: tuple[int, ...]
    fact: str
    hint: str
    error: type[NdtorchError] = UnsupportedTypeError


Inner = Callable[[Any], Any]
"""Takes what lies inside a foreign object for one of the forms; arrays stay arrays."""

Restore = Callable[..., Any]
"""``restore(source, example, path="")``: converts what lies inside into what the example, an array or a foreign object,
is; without an example (None) into a plain array. The path is for the error's note."""


def masked(
    library: str,
    data: AnyArray | Foreign,
    mask: AnyArray | Unread,
    *,
    missing: tuple[int, tuple[int, ...]] | None = None,
    note: str = "",
) -> Parts:
    """Take values and the mask of the missing ones for one object.

    Args:
        library: Its name as printed.
        data: The values; what stands behind a missing one has no meaning.
        mask: True where a value is missing.
        missing: How many are missing and the index of the first, where that is known; else the mask is read for it.
        note: What else the caller may want to know.
    """
    if missing is None:
        missing = _count_missing(mask.read() if isinstance(mask, Unread) else mask)
    count, first = missing
    nulls = ""
    if count:
        place = first[0] if len(first) == 1 else first
        verb = "is" if count == 1 else "are"
        nulls = f"{count} of its {math.prod(mask.shape)} values {verb} missing, the first at index {place}"
    parts = {".data": data, ".mask": mask}
    shape = tuple(mask.shape)
    return Parts(library, "masked", "masked", shape, parts, nulls=nulls, missing=missing, note=note)


def with_remedy(form: Foreign, remedy: str) -> Foreign:
    """The same; where it is masked, with the words of its library that give it a value for each missing one."""
    return replace(form, remedy=remedy) if isinstance(form, Parts) and form.form == "masked" else form


def _count_missing(mask: AnyArray) -> tuple[int, tuple[int, ...]]:
    count = int(np.count_nonzero(mask))
    first = np.unravel_index(int(np.argmax(mask)), mask.shape) if count else ()
    return count, tuple(map(int, first))


def table(library: str, text: str, length: int, columns: Mapping[Any, Any], *, note: str = "") -> Parts:
    """Take named columns, already taken for one of the forms each, for one object."""
    parts = {f"[{name!r}]": column for name, column in columns.items()}
    return Parts(library, "table", text, (length, len(columns)), parts, keys=tuple(columns), note=note)


def ragged(library: str, text: str, content: AnyArray | Foreign, offsets: AnyArray, *, note: str = "") -> Parts:
    """Take slices of one content, of different lengths, for one object.

    Args:
        library: Its name as printed.
        text: Its class or dtype as printed.
        content: All elements one after the other.
        offsets: Element i is ``content[offsets[i]:offsets[i + 1]]``.
        note: What else the caller may want to know.
    """
    shape = (max(len(offsets) - 1, 0),)
    return Parts(library, "ragged", text, shape, {".content": content}, offsets=offsets, note=note)


def restore_members(source: Any, members: Mapping[str, Any], inner: Restore) -> dict[str, Any]:
    """Give a dict that came from a group of a file its members' dtypes.

    Raises:
        ShapeMismatchError: The source has other members.
    """
    if not isinstance(source, dict) or set(source) != set(members):
        got = list(source) if isinstance(source, dict) else type(source).__name__
        raise ShapeMismatchError("to_numpy", "like= is a group of other members", expected=list(members), got=got)
    return {name: inner(source[name], member, f"[{name!r}]") for name, member in members.items()}
