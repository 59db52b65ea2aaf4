"""What `ndtorch.read` gives: an array in a file is read in one pass, the arrays of a file become a table."""

from __future__ import annotations

from typing import Any

from .forms import Foreign, Inner, Parts, Refused, Unread

_LIBRARY = "file"


def take(source: Any, inner: Inner) -> Foreign:
    """Take an array in a file, of which nothing is read."""
    stored = source.stored
    error = stored.error
    if error is not None:
        hint = error.hint or "leave it out"
        return Refused(_LIBRARY, stored.dtype_text, stored.shape, error.fact, hint, type(error))
    return Unread(_LIBRARY, stored.dtype, stored.shape, stored.why_not_in_memory, stored.read, stored.read_into)


def take_all(source: Any, inner: Inner) -> Foreign:
    """Take all the arrays of a file; a None among them stays one."""
    parts = {f"[{name!r}]": None if array is None else take(array, inner) for name, array in source.items()}
    return Parts(_LIBRARY, "table", "arrays", (len(parts),), parts, keys=tuple(source))
