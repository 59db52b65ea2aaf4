"""Sizes as people write them."""

from __future__ import annotations

import math
import re

from .._errors import InvalidOptionError

_UNITS = {"": 1, "B": 1, **{f"{letter}B": 1000**i for i, letter in enumerate("KMGT", 1)}}
_UNITS |= {f"{letter}iB": 1024**i for i, letter in enumerate("KMGT", 1)}
_BY_NAME = {name.upper(): size for name, size in _UNITS.items()}


def nbytes_of(text: int | str) -> int:
    """Bytes that a size means.

    >>> nbytes_of("256MB"), nbytes_of("1.5 GiB"), nbytes_of(4096)
    (256000000, 1610612736, 4096)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text))
    unit = None if match is None else _BY_NAME.get(match[2].upper())
    if match is None or unit is None or not 1 <= float(match[1]) * unit < math.inf:
        raise InvalidOptionError("convert", f"{text!r} is no size", expected="a size such as 256MB", got=repr(text))
    return int(float(match[1]) * unit)
