"""Collate: a list of samples into one batch of the same structure, for `torch.utils.data.DataLoader`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from . import _bridge, _trace
from ._dtypes import DType
from ._errors import NdtorchError, ShapeMismatchError, UnsupportedDtypeError, UnsupportedTypeError
from ._objects import is_number
from ._stack import stack_into
from ._structures import take_apart

Allocate = Callable[[tuple[int, ...], DType], tuple[torch.Tensor, np.ndarray[Any, Any]]]

# Python's numbers have 64 bits, as in torch's default_collate.
_PLAIN_NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64}
_WIDTH = (torch.bool, torch.int64, torch.float64)
_LEAVES: dict[type, str] = {
    **dict.fromkeys(_PLAIN_NUMBERS, "number"),
    **dict.fromkeys((str, bytes), "text"),
    **dict.fromkeys((np.ndarray, torch.Tensor), "array"),
}


def collate(batch: Sequence[Any], /) -> Any:
    """Turn a list of samples into one batch: a drop-in ``collate_fn`` for a DataLoader.

    Arrays and tensors are stacked as by `stack`, numbers become a tensor as by torch's ``default_collate``, text and
    None become lists. Samples may be dicts, lists, tuples, named tuples, dataclasses or registered optree nodes.

    Memory:
        Always new memory, written once. In a worker process it is shared memory, so that the way to the parent
        process copies nothing.

    Args:
        batch: At least one sample; all have the structure of the first.

    Returns:
        The structure of one sample, each leaf with a new first dimension of ``len(batch)``.

    Raises:
        ShapeMismatchError: A sample has another structure or a leaf another shape: ``index`` says which sample,
            ``path`` which leaf.
        UnsupportedTypeError: A leaf is nothing that can be stacked.

    >>> import numpy as np, ndtorch as nd
    >>> nd.collate([{"x": np.zeros(2), "y": 1}, {"x": np.ones(2), "y": 0}])
    {'x': tensor([[0., 0.],
            [1., 1.]], dtype=torch.float64), 'y': tensor([1, 0])}
    """
    if isinstance(batch, Mapping | str | bytes) or not isinstance(batch, Iterable):
        fact = f"cannot collate a {type(batch).__name__}"
        hint = "ndtorch.collate([sample]) for one sample"
        raise UnsupportedTypeError("collate", fact, expected="a list of samples", got=type(batch).__name__, hint=hint)
    samples = list(batch)
    if not samples:
        raise ShapeMismatchError("collate", "the batch is empty", expected="at least one sample", got="none")
    try:
        return _batch_of(samples, _bridge.fresh if get_worker_info() is None else _shared)
    except RecursionError:
        fact = "a sample contains itself or is nested too deeply"
        raise NdtorchError("collate", fact, hint="collate its parts one by one") from None


def _batch_of(samples: list[Any], allocate: Allocate) -> Any:
    """One batch of samples, or of what all samples have in one place."""
    types = set(map(type, samples))
    cls = type(samples[0])
    if len(types) == 1 and cls in _LEAVES:
        return _batch_of_kind(_LEAVES[cls], samples, allocate)
    if types == {dict}:
        return {key: _batch_at(f"[{key!r}]", column, allocate) for key, column in _columns_by_key(samples).items()}
    if types == {list} or types == {tuple}:
        columns = _columns_by_position(samples)
        return cls(_batch_at(f"[{i}]", column, allocate) for i, column in enumerate(columns))
    first, *others = (take_apart(sample, "collate", lists_are_arrays=False) for sample in samples)
    for i, other in enumerate(others, 1):
        if other.treespec != first.treespec:
            raise _odd_sample(i, "another structure than sample 0", first.treespec, other.treespec)
    if first.treespec.is_leaf():
        return _batch_of_leaves(samples, allocate)
    leaves = zip(*(each.leaves for each in (first, *others)), strict=True)
    batches = [_batch_at(path, list(column), allocate) for path, column in zip(first.paths(), leaves, strict=True)]
    return first.rebuild(batches)


def _batch_at(path: str, column: list[Any], allocate: Allocate) -> Any:
    try:
        return _batch_of(column, allocate)
    except NdtorchError as error:
        raise error.at(path) from None


def _columns_by_key(samples: list[dict[Any, Any]]) -> dict[Any, list[Any]]:
    keys = samples[0].keys()
    for i, sample in enumerate(samples):
        if sample.keys() != keys:
            missing, extra = [*(keys - sample.keys())], [*(sample.keys() - keys)]
            fact = f"no {missing[0]!r}, which sample 0 has" if missing else f"{extra[0]!r}, which sample 0 has not"
            raise _odd_sample(i, fact, list(keys), list(sample))
    return {key: [sample[key] for sample in samples] for key in keys}


def _columns_by_position(samples: list[Any]) -> list[list[Any]]:
    for i, sample in enumerate(samples):
        if len(sample) != len(samples[0]):
            raise _odd_sample(i, "another length than sample 0", len(samples[0]), len(sample))
    return [list(column) for column in zip(*samples, strict=True)]


def _batch_of_leaves(column: list[Any], allocate: Allocate) -> Any:
    """One leaf of every sample as one tensor, or as a list where it is text or None."""
    kinds = [_kind_of(leaf) for leaf in column]
    odd = next((i for i, kind in enumerate(kinds) if kind != kinds[0]), None)
    if odd is not None:
        raise _odd_sample(odd, "another kind of leaf than sample 0", kinds[0], kinds[odd])
    return _batch_of_kind(kinds[0], column, allocate)


def _batch_of_kind(kind: str, column: list[Any], allocate: Allocate) -> Any:
    if kind in ("text", "None"):
        return column
    try:
        if kind == "array":
            return _stacked(allocate, column)
        if allocate is _bridge.fresh and set(map(type, column)) <= _PLAIN_NUMBERS.keys():
            dtype = max((_PLAIN_NUMBERS[cls] for cls in set(map(type, column))), key=_WIDTH.index)
            return torch.tensor(column, dtype=dtype)
        return stack_into(allocate, [_python_number(leaf) for leaf in column])
    except NdtorchError as error:
        raise _of_collate(error) from None
    except (OverflowError, RuntimeError, ValueError):
        fact = "an integer does not fit the 64 bits of an int64"
        raise UnsupportedDtypeError("collate", fact, hint="float(value) if it may round") from None


def _stacked(allocate: Allocate, column: list[Any]) -> Any:
    if not _trace.watching():
        return stack_into(allocate, column)
    reason = "one tensor of many arrays is new memory"
    return _trace.observe("collate", f"{len(column)} arrays", reason, lambda: stack_into(allocate, column))


def _of_collate(error: NdtorchError) -> NdtorchError:
    """The same error as this function's own: its leaf is in ``path``, the sample in ``index``."""
    path = error.path or ""
    if path and "index" not in error.facts:
        error.facts["index"] = int(path[1:].partition("]")[0])
    hint: str | None = None
    if isinstance(error, ShapeMismatchError):
        error.fact = f"sample {error.facts['index']} has an array of another shape than sample 0"
        hint = "give all one shape, or pad them with ndtorch.stack(arrays, pad_value=0) in a collate_fn of your own"
    return error.without_path().renamed("collate", hint=hint)


def _kind_of(leaf: Any) -> str:
    if leaf is None:
        return "None"
    if isinstance(leaf, str | bytes):
        return "text"
    if is_number(leaf):
        return "number"
    return "array"


def _python_number(value: Any) -> Any:
    """A number with the dtype that torch's ``default_collate`` gives it: Python's have 64 bits."""
    if isinstance(value, np.generic):
        return value
    return np.asarray(value, {bool: np.bool_, int: np.int64, float: np.float64}.get(type(value)))


def _odd_sample(index: int, what: str, expected: Any, got: Any) -> ShapeMismatchError:
    fact = f"sample {index} has {what}"
    hint = "give every sample the same keys and kinds of leaves"
    return ShapeMismatchError("collate", fact, expected=expected, got=got, hint=hint, index=index)


def _shared(shape: tuple[int, ...], row: DType) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    """A tensor in memory that other processes can map, and the array over it."""
    tensor = torch.empty(shape, dtype=row.torch, device="cpu")
    if tensor.numel():
        storage = torch.UntypedStorage._new_shared(tensor.nbytes, device="cpu")  # type: ignore[no-untyped-call]
        tensor = torch.empty(0, dtype=row.torch, device="cpu").set_(storage, 0, tensor.shape, tensor.stride())
    return tensor, _bridge.alias(tensor, writable=True)
