"""Act: carry out a plan. Nothing is decided here."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from . import _bridge, _memory, _trace
from ._casting import check_exact, copy_into
from ._dtypes import BY_NAME, DType
from ._errors import NdtorchError, UnsupportedDtypeError
from ._objects import array_of, numbers_of
from ._plan import Plan, is_protected, plan
from ._spec import describe, numbers_inside
from ._targets import result_type, target_dtype

AnyArray = npt.NDArray[Any]


class Masked(NamedTuple):
    """A masked array as two tensors (or arrays); ``mask`` is True where a value is missing.

    >>> import numpy as np, ndtorch as nd
    >>> nd.to_torch(np.ma.masked_equal([1, 9, 3], 9), masked="split").mask
    tensor([False,  True, False])
    """

    data: Any
    mask: Any


def carry_out(planned: Plan, source: Any, path: str = "") -> Any:
    """Do what a plan says with the source it was made for, leaf by leaf, watched by the open traces."""
    if planned.error is not None:
        raise planned.error
    if planned.action == "parts":
        return _carry_out_parts(planned, source, path)
    if not _trace.watching():
        return _act(planned, source)
    _trace.check(planned)
    start = time.perf_counter()
    result = _act(planned, source)
    _trace.record(planned, path, _nbytes(result), time.perf_counter() - start)
    return result


def _act(planned: Plan, source: Any) -> Any:
    if planned.action == "parse":
        planned, source = parsed(planned, source)
        if planned.error is not None:
            raise planned.error
    return _ACTS[planned.source.library, planned.options.to](planned, source)


def parsed(planned: Plan, source: Any) -> tuple[Plan, Any]:
    """Read Python objects into numbers and plan what happens to those."""
    read = array_of if planned.source.form == "object" else numbers_of
    fresh = read(source, planned.options)
    return plan(describe(fresh), planned.options.for_fresh_memory()), fresh


def _nbytes(result: Any) -> int:
    if isinstance(result, torch.Tensor) and result.layout is not torch.strided:
        return 0
    return int(result.nbytes)


# --- parts


def parts_of(planned: Plan, source: Any) -> dict[str, Any]:
    """The parts of a structured, masked or nested source, by the same steps as the plan's leaves."""
    if planned.source.form == "struct":
        array = np.asarray(source)  # a scalar's text would come out without the spaces that its field holds
        return {f"[{name!r}]": array[name] for name in array.dtype.names or ()}
    if planned.source.form == "nested":
        return {f"[{i}]": part for i, part in enumerate(source.unbind())}
    return {step: getattr(source, step[1:]) for step in planned.leaves}


def _carry_out_parts(planned: Plan, source: Any, path: str) -> Any:
    results = {}
    for step, part in parts_of(planned, source).items():
        try:
            results[step] = carry_out(planned.leaves[step], part, path + step)
        except NdtorchError as error:
            raise error.at(step) from None
    if planned.source.form == "struct":
        return dict(zip(source.dtype.names, results.values(), strict=True))
    if planned.source.form == "nested":
        return list(results.values())
    data = results[".data"]
    return Masked(data, results[".mask"] if ".mask" in results else _all_false(data))


def _all_false(data: Any) -> Any:
    if isinstance(data, dict):
        return {name: _all_false(part) for name, part in data.items()}
    return torch.zeros(data.shape, dtype=torch.bool, device=data.device)


# --- to torch


def _array_to_torch(planned: Plan, source: AnyArray) -> torch.Tensor:
    spec = planned.source
    view = numbers_inside(np.asarray(source))
    device = planned.options.device or "cpu"
    if spec.size == 0:
        return torch.empty(view.shape, dtype=BY_NAME[planned.dtype].torch, device=device)
    if planned.action == "map":
        assert spec.mapping is not None
        private = _memory.map_privately(view, spec.mapping)
        # Replaced since it was described: the array itself is then all that is left of the file.
        return _bridge.share(view.copy() if private is None else private)
    if planned.action == "copy distinct":
        one = tuple(slice(0, 1) if i in spec.broadcast_axes else slice(None) for i in range(view.ndim))
        return _fresh_tensor(planned, view[one]).to(device).expand(view.shape)
    return (_fresh_tensor(planned, view) if planned.action == "copy" else _bridge.share(view)).to(device)


def _fresh_tensor(planned: Plan, view: AnyArray) -> torch.Tensor:
    """One pass into new row-major memory of the target's dtype."""
    row = BY_NAME[planned.dtype]
    tensor, fresh = _bridge.fresh(view.shape, row)
    options = planned.options
    copy_into(fresh, view, casting=options.casting, subject=options.subject, what=planned.source)
    return tensor


def _fresh_copy(planned: Plan, view: AnyArray) -> AnyArray:
    """The same as an array, for dtypes that torch does not have as well."""
    spec, options = planned.source, planned.options
    target = target_dtype(spec, options)
    dtype = target.numpy if isinstance(target, DType) else target
    if dtype is None or dtype.kind in "MmSU":
        dtype = view.dtype.newbyteorder("=")
    fresh = np.empty(view.shape, dtype)
    copy_into(fresh, view, casting=options.casting, subject=options.subject, what=spec)
    return fresh


def _tensor_to_torch(planned: Plan, source: torch.Tensor) -> torch.Tensor:
    spec, options = planned.source, planned.options
    target = target_dtype(spec, options)
    dtype = target.torch if isinstance(target, DType) else source.dtype
    device = options.device or source.device
    if planned.action == "share" and dtype == source.dtype:
        return source.to(device)  # the tensor itself, unless it is empty and elsewhere
    drops_imaginary = source.is_complex() and not dtype.is_complex and dtype != torch.bool
    real = source.real if drops_imaginary else source
    try:
        result = real.to(dtype=dtype, copy=True)
    except (RuntimeError, TypeError) as error:
        fact = f"torch cannot copy {spec} as {dtype}: {str(error).splitlines()[0]}"
        raise UnsupportedDtypeError(options.subject, fact, hint="convert a plain tensor of its values") from None
    if options.casting == "exact" and dtype != source.dtype and not source.is_meta:
        check_exact(_host_array(source), _host_array(result), subject=options.subject, what=spec)
    return result.to(device)


# --- to NumPy


def _tensor_to_numpy(planned: Plan, source: torch.Tensor) -> AnyArray:
    spec, options = planned.source, planned.options
    target = target_dtype(spec, options)
    if spec.size == 0:
        dtype, shape = result_type(spec, options)
        return np.empty(shape, dtype.numpy if isinstance(dtype, DType) else dtype)
    if planned.action == "share":
        _wait_for_device(source)
        array = _bridge.alias(source, writable=not is_protected(spec))
    else:
        array = _host_array(source)
        if array.__array_interface__["data"][0] == spec.address or (target is not None and array.dtype != target):
            array = _fresh_copy(planned, array)
    return _renamed(array, target)


def _host_array(tensor: torch.Tensor) -> AnyArray:
    """The values of a tensor on any device as an array; its own memory where that holds them already."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    if plain.dtype == torch.complex32:
        plain = plain.to(torch.complex64)
    if plain.device.type == "cpu":
        _wait_for_device(plain)
    return _bridge.alias(plain.cpu(), writable=True)


def _wait_for_device(tensor: torch.Tensor) -> None:
    """Let a ``non_blocking`` copy into this pinned tensor finish before anybody reads it (pytorch#137951)."""
    if torch.cuda.is_initialized() and tensor.is_pinned():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()


def _renamed(array: AnyArray, target: Any) -> AnyArray:
    """View integers as the time or text that was asked for."""
    if not isinstance(target, np.dtype) or target.kind not in "MmSU":
        return array
    if target.kind in "Mm":
        named = array.view(target.newbyteorder("="))
    else:
        named = array.view(np.dtype((target.kind, array.shape[-1])))[..., 0]
    return named if target.isnative else named.astype(named.dtype.newbyteorder())


def _array_to_numpy(planned: Plan, source: AnyArray) -> AnyArray:
    spec, options = planned.source, planned.options
    target = target_dtype(spec, options)
    if planned.action == "share" and (target is None or target == source.dtype):
        return source
    if not isinstance(target, np.dtype) or target == source.dtype:
        return np.array(source) if spec.is_scalar else source.copy()  # np.array would share a mask
    if spec.form not in ("number", "foreign number"):
        return source.astype(target)
    fresh = np.empty(source.shape, target)
    copy_into(fresh, np.asarray(source), casting=options.casting, subject=options.subject, what=spec)
    return fresh


_ACTS: dict[tuple[str, str], Callable[[Plan, Any], Any]] = {
    ("numpy", "torch"): _array_to_torch,
    ("torch", "torch"): _tensor_to_torch,
    ("torch", "numpy"): _tensor_to_numpy,
    ("numpy", "numpy"): _array_to_numpy,
}
