"""The dtype of the result: what the caller's ``dtype=`` and ``float_dtype=`` mean for one source."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._casting import kind_of
from ._dtypes import BY_NAME, DType, at_matching_width
from ._options import Options
from ._spec import Spec


def target_dtype(spec: Spec, options: Options) -> np.dtype[Any] | DType | None:
    """The dtype that was asked for; ``None`` when this leaf keeps its own.

    A row of the table when the result is a tensor, a NumPy dtype when it is an array.
    """
    if options.to == "torch":
        return options.dtype if options.dtype is not None else _float_target(spec, options)
    if options.numpy_dtype is not None:
        same_kind = spec.own_dtype is not None and spec.own_dtype.kind == options.numpy_dtype.kind
        # "S" and "U" without a length keep the length there is.
        return spec.own_dtype if same_kind and options.numpy_dtype.itemsize == 0 else options.numpy_dtype
    row = _float_target(spec, options)
    if row is None and spec.library == "torch" and spec.dtype is not None and spec.dtype.numpy is None:
        row = BY_NAME["complex64"]  # NumPy has no complex32; every value of it fits
    return None if row is None else row.numpy


def _float_target(spec: Spec, options: Options) -> DType | None:
    if options.float_dtype is None or spec.form not in ("number", "foreign number"):
        return None
    kind = spec.dtype.kind if spec.dtype is not None else spec.numpy_dtype and kind_of(spec.numpy_dtype)
    if kind not in ("float", "complex"):
        return None
    return at_matching_width(kind, options.float_dtype)


def is_same_dtype(spec: Spec, target: np.dtype[Any] | DType, options: Options) -> bool:
    """Whether the source's memory holds that dtype already, maybe under another name."""
    if isinstance(target, DType):
        return target is spec.dtype
    own = spec.own_dtype if spec.library == options.to else spec.numpy_dtype
    if own is None:  # to NumPy, None would equal float64
        return False
    return own == target or (target.kind in "MmSU" and target.isnative and spec.library != options.to)


def is_text(target: np.dtype[Any] | DType | None) -> bool:
    """Whether bytes or text were asked for, which have one dimension less than their numbers."""
    return isinstance(target, np.dtype) and target.kind in "SU"


def result_type(spec: Spec, options: Options) -> tuple[np.dtype[Any] | DType | None, tuple[int, ...]]:
    """Dtype and shape of the result; the dtype is ``None`` where only reading the source tells."""
    target = target_dtype(spec, options)
    if spec.library == options.to:
        return target or spec.own_dtype or spec.dtype, spec.shape
    shape = spec.view_shape
    if isinstance(target, np.dtype) and target.kind in "SU":
        return np.dtype(f"{target.byteorder.replace('|', '')}{target.kind}{shape[-1]}"), shape[:-1]
    return target or spec.dtype or spec.numpy_dtype, shape
