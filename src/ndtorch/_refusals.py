"""Refusals: conversions that have no sound result, and the errors that say so and what to call instead."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._casting import why_not_cast
from ._dtypes import DType
from ._errors import LossyCastError, MissingDependencyError, NdtorchError, UnsupportedDtypeError, UnsupportedTypeError
from ._options import Options
from ._spec import MAX_DIMS, Spec
from ._targets import is_same_dtype, target_dtype
from .foreign.sparse import is_scipy_installed

_INT64_MAX = 2**63 - 1


def why_refused(spec: Spec, options: Options) -> NdtorchError | None:
    """Make the error of a conversion that has no sound result; ``None`` when it has one."""
    if spec.device == "meta" and options.device not in (None, "meta"):
        fact = f"cannot move {spec} to {options.device}: a meta tensor has a shape but no values"
        return UnsupportedTypeError(options.subject, fact, hint=f"torch.empty_like(tensor, device={options.device!r})")
    if spec.library == options.to:
        return _why_dtype_refused(spec, options)
    if spec.opaque is not None:
        fact, hint = spec.opaque
        return spec.error(options.subject, f"cannot convert {spec}: {fact}", hint=hint)
    if len(spec.view_shape) > MAX_DIMS:
        fact = f"cannot convert {spec.library} data of {len(spec.view_shape)} dimensions"
        return UnsupportedTypeError(options.subject, fact, expected=f"at most {MAX_DIMS}", got=len(spec.view_shape))
    if spec.extent > _INT64_MAX:
        return NdtorchError(
            options.subject,
            f"cannot convert {spec}: its strides {spec.strides} reach past any memory",
            expected="an extent below 2**63 bytes",
            got=spec.extent,
        )
    if spec.form == "masked":
        fact = f"cannot convert {spec}: a tensor has no mask" + (f" and {spec.nulls}" if spec.nulls else "")
        nan = "" if spec.library == "numpy" else "masked='nan' makes them NaN"
        ways = ("masked='split' gives Masked(data, mask)", nan, spec.remedy)
        hint = ", ".join(way for way in ways if way)
        return UnsupportedTypeError(options.subject, fact, hint=hint, remedy=spec.remedy)
    return _why_dtype_refused(spec, options)


def why_not_filled(spec: Spec, options: Options) -> NdtorchError | None:
    """Make the error of ``masked="nan"`` where there is no NaN."""
    data = spec.parts[".data"]
    if data.form not in ("number", "foreign number", "time"):
        fact = f"cannot make the missing values of {spec} NaN: it holds {data.form}"
        return UnsupportedDtypeError(options.subject, fact, hint="masked='split' gives Masked(data, mask)")
    if options.dtype is not None and options.dtype.kind not in ("float", "complex"):
        fact = f"cannot make the missing values of {spec} NaN: dtype={options.dtype.name} has none"
        hint = "a floating dtype, or masked='split'"
        return UnsupportedDtypeError(options.subject, fact, hint=hint, dtype=options.dtype.name)
    return None


def why_not_assembled(spec: Spec, dtype: str, options: Options) -> NdtorchError | None:
    """Make the error of sparse parts that scipy.sparse is not there to hold, or whose values it cannot compute on."""
    if options.to == "numpy" and not is_scipy_installed():
        fact = f"cannot convert {spec}: scipy is not installed, and NumPy has no sparse arrays"
        return MissingDependencyError(options.subject, fact, hint="pip install scipy, or tensor.to_dense()")
    data = spec.parts[".data"]
    is_own = data.own_dtype is not None and data.own_dtype.name == dtype  # what is SciPy's already stays what it is
    if options.to != "numpy" or is_own or not dtype or dtype in _COMPUTED_BY_SCIPY:
        return None
    hint = "dtype='float32' casts it" if data.dtype is not None and data.dtype.kind == "float" else "leave dtype= away"
    fact = f"cannot convert {spec}: scipy.sparse does not compute on {dtype}"
    return UnsupportedDtypeError(options.subject, fact, hint=hint, dtype=dtype)


_COMPUTED_BY_SCIPY = {
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float32", "float64", "complex64", "complex128", np.dtype("g").name, np.dtype("G").name),
}


def truncated(spec: Spec, options: Options) -> NdtorchError:
    """Make the error for a memory map whose file has shrunk: reading it would kill the process."""
    path = spec.mapping.path if spec.mapping is not None else ""
    fact = f"cannot convert {spec}: its file {path!r} has become shorter than the array"
    return NdtorchError(options.subject, fact, hint="open the file anew")


def _why_dtype_refused(spec: Spec, options: Options) -> NdtorchError | None:
    target = target_dtype(spec, options)
    if target is None:
        return _why_not_kept(spec, options)
    if spec.form == "object" and options.to == "torch":
        return None  # what its numbers can become is known when they are read
    if spec.library == options.to == "numpy":
        return _why_not_astype(spec, target, options)
    if isinstance(target, np.dtype) and target.kind in "MmSU":
        return _why_not_renamed(spec, target, options)
    if is_same_dtype(spec, target, options):
        return None
    if spec.form in ("time", "bytes", "text"):
        return UnsupportedDtypeError(
            options.subject,
            f"dtype={target.name} cannot apply to {spec}: it holds {spec.form}, not numbers",
            hint="leave dtype= away, or use float_dtype=, which casts floating leaves only",
            dtype=target.name,
        )
    return _why_not_cast(spec, target, options)


def _why_not_kept(spec: Spec, options: Options) -> NdtorchError | None:
    """Nothing was asked for: the dtype has to exist on the other side."""
    if spec.form != "foreign number" or options.to != "torch":
        return None
    is_float = spec.numpy_dtype is not None and spec.numpy_dtype.kind in "fc"
    name = {"f": "float64", "c": "complex128"}[spec.numpy_dtype.kind] if is_float and spec.numpy_dtype else ""
    hint = (
        f"dtype={name!r} casts it, casting='exact' proves that nothing is lost" if name else "dtype= names one it has"
    )
    fact = f"cannot convert {spec}: torch has no {spec.text}"
    return UnsupportedDtypeError(options.subject, fact, hint=hint, dtype=spec.text)


def _why_not_cast(spec: Spec, target: np.dtype[Any] | DType, options: Options) -> NdtorchError | None:
    if spec.library == "torch" and spec.form != "number":
        return _why_not_cast_whole(spec, target, options)
    wanted: np.dtype[Any] | None = target.numpy if isinstance(target, DType) else target
    source = spec.numpy_dtype
    if source is None and spec.dtype is not None:
        source = spec.dtype.numpy or np.dtype(np.complex64)
    if wanted is None and spec.library == "numpy":
        fact = f"cannot cast {spec} to {target.name}: NumPy has no such dtype"
        return UnsupportedDtypeError(options.subject, fact, hint=f"to_torch(array).to(torch.{target.name})")
    if wanted is None or source is None:
        return None  # complex32, quantized and the like: torch itself knows what they can become
    why = why_not_cast(source, wanted, options.casting)
    return _lossy(spec, wanted, why, options) if why else None


def _why_not_cast_whole(spec: Spec, target: np.dtype[Any] | DType, options: Options) -> NdtorchError | None:
    """Tensors without plain memory: torch casts them itself, if it can, and no value can be checked."""
    if spec.dtype is None:
        fact = f"cannot cast {spec} to {target.name}: torch does not cast {spec.text}"
        return UnsupportedDtypeError(options.subject, fact, hint=spec.opaque[1] if spec.opaque else None)
    if options.casting == "exact":
        fact = f"cannot prove that no value of {spec} changes: it has no plain memory to read"
        return UnsupportedTypeError(options.subject, fact, hint="tensor.to_dense() or casting='same_kind'")
    wanted = target.numpy if isinstance(target, DType) else target
    if wanted is None or spec.dtype.numpy is None:
        return None
    why = why_not_cast(spec.dtype.numpy, wanted, options.casting)
    return _lossy(spec, wanted, why, options) if why else None


def _why_not_astype(spec: Spec, target: np.dtype[Any] | DType, options: Options) -> NdtorchError | None:
    """Arrays to arrays: numbers to numbers as ever, time and text to their own kind by NumPy's rules."""
    if isinstance(target, DType) or spec.own_dtype is None or is_same_dtype(spec, target, options):
        return None
    if spec.form in ("number", "foreign number", "object") and target.kind not in "MmSU":
        return None if spec.form == "object" else _why_not_cast(spec, target, options)
    if spec.form not in ("time", "bytes", "text") or spec.own_dtype.kind != target.kind:
        return UnsupportedDtypeError(
            options.subject,
            f"dtype={target.name} cannot apply to {spec}: it holds {spec.form}",
            hint="array.astype(dtype) converts by NumPy's own rules",
            dtype=target.name,
        )
    casting: Any = "same_kind" if options.casting == "exact" else options.casting
    if np.can_cast(spec.own_dtype, target, casting):
        return None
    return _lossy(spec, target, f"{spec.own_dtype} to {target} is not a {casting} cast", options)


def _lossy(spec: Spec, target: np.dtype[Any], why: str, options: Options) -> LossyCastError:
    return LossyCastError(
        options.subject,
        f"cannot cast {spec} to {target.name}: {why}",
        hint="casting='unsafe' insists, casting='exact' insists unless a value would change",
        dtype=target.name,
    )


_NUMBERS_OF: dict[str, np.dtype[Any]] = {
    "M": np.dtype(np.int64),
    "m": np.dtype(np.int64),
    "S": np.dtype(np.uint8),
    "U": np.dtype(np.int32),
}


def _why_not_renamed(spec: Spec, target: np.dtype[Any], options: Options) -> NdtorchError | None:
    """Time and text are other names for numbers; the numbers have to be those."""
    numbers = _NUMBERS_OF[target.kind]
    if spec.numpy_dtype is None or spec.numpy_dtype.newbyteorder("=") != numbers:
        return UnsupportedDtypeError(
            options.subject,
            f"dtype={target} cannot name the numbers of {spec}",
            expected=numbers.name,
            got=spec.text,
            hint=f"cast to {numbers.name} first if these are codes",
        )
    if target.kind in "SU":
        length = target.itemsize // numbers.itemsize
        if not spec.view_shape or (length and spec.view_shape[-1] != length):
            got = spec.view_shape[-1] if spec.view_shape else "no dimension"
            return UnsupportedDtypeError(
                options.subject,
                f"dtype={target} cannot name the numbers of {spec}",
                expected=f"a last dimension of {length}",
                got=got,
                hint=f"dtype='{target.kind}' takes the length from the last dimension",
            )
    return None
