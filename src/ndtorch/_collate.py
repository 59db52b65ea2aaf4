"""Collate: a list of samples into one batch of the same structure, for `torch.utils.data.DataLoader`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from . import _bridge
from ._dtypes import DType
from ._errors import NdtorchError, ShapeMismatchError, UnsupportedDtypeError
from ._objects import is_number
from ._stack import stack_into
from ._structures import take_apart


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
    samples = list(batch)
    if not samples:
        raise ShapeMismatchError("collate", "the batch is empty", expected="at least one sample", got="none")
    first = take_apart(samples[0], "collate", lists_are_arrays=False)
    columns: list[list[Any]] = [[leaf] for leaf in first.leaves]
    for i, sample in enumerate(samples[1:], 1):
        other = take_apart(sample, "collate", lists_are_arrays=False)
        if other.treespec != first.treespec:
            raise _odd_structure(i, first.treespec, other.treespec)
        for column, leaf in zip(columns, other.leaves, strict=True):
            column.append(leaf)
    allocate = _bridge.fresh if get_worker_info() is None else _shared
    results = []
    for position, column in enumerate(columns):
        try:
            results.append(_batch_of(column, allocate))
        except NdtorchError as error:
            error.path = ""  # the leaf is what counts; the sample is in `index`
            raise error.at(first.paths()[position]) from None
    return first.rebuild(results)


def _batch_of(column: list[Any], allocate: Any) -> Any:
    """One leaf of every sample as one tensor, or as a list where it is text or None."""
    kinds = [_kind_of(leaf) for leaf in column]
    odd = next((i for i, kind in enumerate(kinds) if kind != kinds[0]), None)
    if odd is not None:
        raise _odd_structure(odd, kinds[0], kinds[odd])
    if kinds[0] in ("text", "None"):
        return column
    leaves = column if kinds[0] == "array" else [_python_number(leaf) for leaf in column]
    try:
        return stack_into(allocate, leaves)
    except NdtorchError as error:
        raise _of_collate(error) from None


def _of_collate(error: NdtorchError) -> NdtorchError:
    """The same error as this function's own, with the sample in ``index``."""
    path = error.path or ""
    if path and "index" not in error.facts:
        error.facts["index"] = int(path[1:].partition("]")[0])
    return error.renamed("collate")


def _kind_of(leaf: Any) -> str:
    if leaf is None:
        return "None"
    if isinstance(leaf, str | bytes):
        return "text"
    return "number" if is_number(leaf) else "array"


def _python_number(value: Any) -> Any:
    """A number with the dtype that torch's ``default_collate`` gives it: Python's have 64 bits."""
    if isinstance(value, np.generic):
        return value
    try:
        return np.asarray(value, {bool: np.bool_, int: np.int64, float: np.float64}.get(type(value)))
    except OverflowError:
        fact = f"{value} does not fit the 64 bits of an int64"
        raise UnsupportedDtypeError("collate", fact, hint="float(value) if it may round") from None


def _odd_structure(index: int, expected: Any, got: Any) -> ShapeMismatchError:
    fact = f"sample {index} has another structure than sample 0"
    hint = "give every sample the same keys and kinds of leaves"
    return ShapeMismatchError("collate", fact, expected=expected, got=got, hint=hint, index=index)


def _shared(shape: tuple[int, ...], row: DType) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    """A tensor in memory that other processes can map, and the array over it."""
    tensor = torch.empty(shape, dtype=row.torch, device="cpu")
    if tensor.numel():
        storage = torch.UntypedStorage._new_shared(tensor.nbytes, device="cpu")  # type: ignore[no-untyped-call]
        tensor = torch.empty(0, dtype=row.torch, device="cpu").set_(storage, 0, tensor.shape, tensor.stride())
    return tensor, _bridge.alias(tensor, writable=True)
