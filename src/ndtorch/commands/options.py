"""Options that several commands have, and what may be said with them; known before torch is imported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .._errors import InvalidOptionError

if TYPE_CHECKING:
    import numpy as np

    from .._write import Casts

Dtype = Annotated[str | None, typer.Option(metavar="DTYPE", help="Cast every array of numbers, such as float32.")]
FloatDtype = Annotated[str | None, typer.Option(metavar="DTYPE", help="Cast floating arrays only, such as bfloat16.")]
Casting = Annotated[
    str,
    typer.Option(
        metavar="RULE",
        help="Casts that are allowed: no, equiv, safe, same_kind, unsafe, or exact (no value changes).",
    ),
]
Name = Annotated[str | None, typer.Option(metavar="NAME", help="What an array is called that has no name in its file.")]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="FORMAT", help="The format that is read, where the suffix does not tell, or lies."),
]


def checked_casts(dtype: str | None, float_dtype: str | None, casting: str) -> Casts:
    """What happens to dtypes.

    Raises:
        InvalidOptionError: An option says nothing that there is, or two exclude each other.
    """
    from .._casting import CASTINGS
    from .._dtypes import BY_NAME

    if dtype is not None and float_dtype is not None:
        fact = f"--dtype {dtype} and --float-dtype {float_dtype} were both given"
        hint = "--float-dtype casts floating arrays only, --dtype every array of numbers: use one"
        raise InvalidOptionError("convert", fact, hint=hint)
    if casting not in CASTINGS:
        raise InvalidOptionError("convert", f"--casting {casting} is no rule; {', '.join(CASTINGS)} are")
    if dtype is not None and not _is_dtype(dtype):
        raise InvalidOptionError("convert", f"--dtype {dtype} is not a dtype; {', '.join(BY_NAME)} are")
    if float_dtype is not None and not _is_float(float_dtype):
        floats = (name for name, row in BY_NAME.items() if row.kind == "float")
        fact = f"--float-dtype {float_dtype} is not a floating dtype; {', '.join(floats)} are"
        raise InvalidOptionError("convert", fact, hint=None if not _is_dtype(float_dtype) else "--dtype casts to any")
    from .._write import Casts

    # Every value of the option was found to be one.
    return Casts(dtype=dtype, float_dtype=float_dtype, casting=casting)  # type: ignore[arg-type]


def _is_dtype(text: str) -> bool:
    from .._dtypes import BY_NAME

    return text.removeprefix("torch.") in BY_NAME or _numpy_dtype(text) is not None


def _is_float(text: str) -> bool:
    from .._dtypes import BY_NAME, from_numpy_dtype

    row = BY_NAME.get(text.removeprefix("torch."))
    dtype = _numpy_dtype(text)
    if row is None and dtype is not None:
        row = from_numpy_dtype(dtype)
    return row is not None and row.kind == "float"


def _numpy_dtype(text: str) -> np.dtype[np.generic] | None:
    import numpy as np

    try:
        return np.dtype(text)
    except (TypeError, ValueError, SyntaxError):
        return None


def checked_format(option: str, format: str | None) -> str | None:
    """The name of a format.

    Raises:
        InvalidOptionError: There is none of that name.
    """
    from ..files import FORMATS

    known = [row.name for row in FORMATS if row.target or option == "--from"]
    suffixes = [suffix.removeprefix(".") for row in FORMATS for suffix in row.suffixes]
    if format is None or format.lower().removeprefix(".") in (*(row.name for row in FORMATS), *suffixes):
        return format
    raise InvalidOptionError("convert", f"{option} {format} is no format; {', '.join(known)} are")
