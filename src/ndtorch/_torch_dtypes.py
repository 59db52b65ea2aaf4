"""Torch's dtypes in the one table, and what a caller may write as ``dtype=``."""

from __future__ import annotations

import numpy as np
import torch

from ._dtypes import BY_NAME, TABLE, DType, from_numpy_dtype
from ._errors import InvalidOptionError, UnsupportedDtypeError

BY_TORCH: dict[torch.dtype, DType] = {row.torch: row for row in TABLE}


def resolve(dtype: object, *, subject: str, option: str = "dtype") -> DType:
    """Turn what a caller wrote as ``dtype=`` into a row.

    Accepts a torch dtype, a NumPy dtype or scalar type, or a name of either world.

    Raises:
        UnsupportedDtypeError: The dtype exists but torch and NumPy cannot both hold it.
        InvalidOptionError: It is not a dtype at all.
    """
    if isinstance(dtype, torch.dtype):
        row = BY_TORCH.get(dtype)
    elif isinstance(dtype, str) and dtype.removeprefix("torch.") in BY_NAME:
        row = BY_NAME[dtype.removeprefix("torch.")]
    else:
        try:
            row = from_numpy_dtype(np.dtype(dtype))  # type: ignore[call-overload]
        except TypeError:
            raise InvalidOptionError(
                subject,
                f"{option}={dtype!r} is not a dtype",
                hint=f"{option}=torch.float32, {option}=numpy.float32 and {option}='float32' are",
            ) from None
    if row is None:
        raise UnsupportedDtypeError(
            subject,
            f"{option}={dtype} is not a number format that NumPy and torch share",
            hint="one of " + ", ".join(BY_NAME),
        )
    return row
