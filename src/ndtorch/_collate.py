"""Collate: a list of samples into one batch of the same structure, for `torch.utils.data.DataLoader`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from . import _bridge, _trace
from ._convert import to_torch
from ._dtypes import DType
from ._errors import NdtorchError, ShapeMismatchError, UnsupportedDtypeError, UnsupportedTypeError
from ._objects import is_number
from ._stack import stack_into
from ._structures import take_apart
from .foreign import Parts, Refused, library_of, recognise

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
        Of samples always new memory, written once. In a worker process it is shared memory, so that the way to the
        parent process copies nothing. Of a dict of arrays the memory of those that may be written.

    Args:
        batch: At least one sample; all have the structure of the first, and one that is a table or a record is the
            dict of its columns. Or a dict of arrays of one length or a table, which is a batch already, such as those
            of Ray Data (``batch_format="numpy"`` or ``"pandas"``): a frame of pandas, polars or Arrow, a ``Dataset`` of
            xarray, a structured array.

    Returns:
        The structure of one sample, each leaf with a new first dimension of ``len(batch)``. Of a dict of arrays the
        same dict: a tensor for each array of numbers, as `to_torch` makes it, a list of text. Of a table the dict of
        tensors that `to_torch` makes of its columns.

    Raises:
        ShapeMismatchError: A sample has another structure or a leaf another shape: ``index`` says which sample,
            ``path`` which leaf. Or the arrays of a dict, or the columns of a table, are of several lengths.
        UnsupportedTypeError: A leaf is nothing that can be stacked.

    >>> import numpy as np, ndtorch as nd
    >>> nd.collate([{"x": np.zeros(2), "y": 1}, {"x": np.ones(2), "y": 0}])
    {'x': tensor([[0., 0.],
            [1., 1.]], dtype=torch.float64), 'y': tensor([1, 0])}
    >>> nd.collate({"x": np.arange(2), "name": np.array(["a", "b"])})
    {'x': tensor([0, 1]), 'name': ['a', 'b']}
    """
    if isinstance(batch, Mapping) and _is_batch(batch):
        return _batch_of_columns(batch)
    if is_table(batch):
        return _batch_of_table(batch)
    if isinstance(batch, Mapping | str | bytes) or not isinstance(batch, Iterable):
        fact = f"cannot collate a {type(batch).__name__}"
        hint = "ndtorch.collate([sample]) for one sample"
        raise UnsupportedTypeError(
            "collate", fact, expected="a list of samples, or a dict of arrays", got=type(batch).__name__, hint=hint
        )
    samples = list(batch)
    if not samples:
        raise ShapeMismatchError("collate", "the batch is empty", expected="at least one sample", got="none")
    return collate_into(samples, _bridge.fresh if get_worker_info() is None else _shared)


def _is_batch(batch: Mapping[Any, Any]) -> bool:
    """Whether a dict is one batch already: arrays with rows, and nothing else."""
    arrays = batch.values()
    return bool(batch) and all(isinstance(array, np.ndarray | torch.Tensor) and array.ndim > 0 for array in arrays)


def _batch_of_columns(batch: Mapping[Any, Any]) -> dict[Any, Any]:
    first, length = next((key, len(column)) for key, column in batch.items())
    result = {}
    for key, column in batch.items():
        if len(column) != length:
            fact = f"column {key!r} has another length than column {first!r}"
            hint = "ndtorch.collate([sample]) for one sample"
            raise ShapeMismatchError("collate", fact, expected=length, got=len(column), hint=hint)
        try:
            result[key] = _column(column)
        except NdtorchError as error:
            raise error.renamed("collate").at(f"[{key!r}]") from None
    return result


def is_table(value: Any) -> bool:
    """Whether it is columns by name, which iterating over it would not give: a frame, or records."""
    if isinstance(value, np.ndarray | np.void):
        return value.dtype.names is not None
    if library_of(value) is None:
        return False
    taken = recognise(value)
    if isinstance(taken, Parts):
        return taken.form == "table"
    # A frame may be refused, such as for two columns of one name: `to_torch` says so.
    return isinstance(taken, Refused) and hasattr(type(value), "columns")


def _batch_of_table(table: Any) -> Any:
    """The batch that a table is: a column of another length would be no column of it, such as those of xarray."""
    result = _columns_of(table)
    columns = {key: column for key, column in result.items() if isinstance(column, torch.Tensor)}
    first = next(iter(columns), None)
    for key, column in columns.items():
        if not column.ndim or not columns[first].ndim or len(column) != len(columns[first]):
            fact = f"columns {first!r} and {key!r} are not of one length"
            hint = "ndtorch.to_torch(batch) takes them as they are, ndtorch.collate([batch]) as one sample"
            shapes = (tuple(columns[each].shape) for each in (first, key))
            raise ShapeMismatchError("collate", fact, expected=next(shapes), got=next(shapes), hint=hint)
    return result


def _columns_of(table: Any) -> dict[Any, Any]:
    """The columns of a table by name, as tensors."""
    if isinstance(table, np.void):
        return {name: table[name] for name in table.dtype.names or ()}
    try:
        columns: dict[Any, Any] = to_torch(table)
    except NdtorchError as error:
        is_masked = error.hint is not None and "masked=" in error.hint
        hint = "ndtorch.to_torch(batch, masked='split') gives Masked(data, mask), masked='nan' makes them NaN"
        raise error.renamed("collate", hint=hint if is_masked else None) from None
    return columns


def _column(column: Any) -> Any:
    if isinstance(column, np.ndarray) and column.dtype.kind in "SUT":
        return column.tolist()
    if isinstance(column, np.ndarray) and column.dtype.kind == "O" and len(column):
        return collate_into(list(column), _bridge.fresh)
    return to_torch(column)


def collate_into(samples: list[Any], allocate: Allocate) -> Any:
    """Make the batch of at least one sample, in memory that the caller makes."""
    try:
        return _batch_of(samples, allocate)
    except RecursionError:
        fact = "a sample contains itself or is nested too deeply"
        raise NdtorchError("collate", fact, hint="collate its parts one by one") from None


def _batch_of(samples: list[Any], allocate: Allocate) -> Any:
    """One batch of samples, or of what all samples have in one place."""
    types = set(map(type, samples))
    cls = type(samples[0])
    if is_table(samples[0]):
        return _batch_of(_as_dicts(samples), allocate)
    if len(types) == 1 and cls in _LEAVES:
        return _batch_of_kind(_LEAVES[cls], samples, allocate)
    if types == {dict}:
        return {key: _batch_at(f"[{key!r}]", column, allocate) for key, column in columns_by_key(samples).items()}
    if types == {list} or types == {tuple}:
        columns = columns_by_position(samples)
        return cls(_batch_at(f"[{i}]", column, allocate) for i, column in enumerate(columns))
    first, *others = (take_apart(sample, "collate", lists_are_arrays=False) for sample in samples)
    for i, other in enumerate(others, 1):
        if other.treespec != first.treespec:
            raise odd_sample(i, "another structure than sample 0", first.treespec, other.treespec)
    if first.treespec.is_leaf():
        return _batch_of_leaves(samples, allocate)
    leaves = zip(*(each.leaves for each in (first, *others)), strict=True)
    batches = [_batch_at(path, list(column), allocate) for path, column in zip(first.paths(), leaves, strict=True)]
    return first.rebuild(batches)


def _as_dicts(samples: list[Any]) -> list[dict[Any, Any]]:
    """Samples that are tables, each as the dict of its columns."""
    odd = next((i for i, sample in enumerate(samples) if not is_table(sample)), None)
    if odd is not None:
        raise odd_sample(odd, "another kind than sample 0", type(samples[0]).__name__, type(samples[odd]).__name__)
    found = []
    for i, sample in enumerate(samples):
        try:
            found.append(_columns_of(sample))
        except NdtorchError as error:
            error.facts.setdefault("index", i)
            raise
    return found


def _batch_at(path: str, column: list[Any], allocate: Allocate) -> Any:
    try:
        return _batch_of(column, allocate)
    except NdtorchError as error:
        raise error.at(path) from None


def columns_by_key(samples: Sequence[dict[Any, Any]]) -> dict[Any, list[Any]]:
    """Turn dicts of one set of keys into a dict of lists."""
    keys = samples[0].keys()
    for i, sample in enumerate(samples):
        if sample.keys() != keys:
            missing, extra = [*(keys - sample.keys())], [*(sample.keys() - keys)]
            fact = f"no {missing[0]!r}, which sample 0 has" if missing else f"{extra[0]!r}, which sample 0 has not"
            raise odd_sample(i, fact, list(keys), list(sample))
    return {key: [sample[key] for sample in samples] for key in keys}


def columns_by_position(samples: Sequence[Any]) -> list[list[Any]]:
    """Turn tuples or lists of one length into lists of what is at one position."""
    for i, sample in enumerate(samples):
        if len(sample) != len(samples[0]):
            raise odd_sample(i, "another length than sample 0", len(samples[0]), len(sample))
    return [list(column) for column in zip(*samples, strict=True)]


def _batch_of_leaves(column: list[Any], allocate: Allocate) -> Any:
    """One leaf of every sample as one tensor, or as a list where it is text or None."""
    kinds = [_kind_of(leaf) for leaf in column]
    odd = next((i for i, kind in enumerate(kinds) if kind != kinds[0]), None)
    if odd is not None:
        raise odd_sample(odd, "another kind of leaf than sample 0", kinds[0], kinds[odd])
    return _batch_of_kind(kinds[0], column, allocate)


def _batch_of_kind(kind: str, column: list[Any], allocate: Allocate) -> Any:
    if kind in ("text", "None"):
        return column
    if kind == "number":
        return numbers_of(column, allocate)
    try:
        return _stacked(allocate, column)
    except NdtorchError as error:
        raise _of_collate(error) from None


def numbers_of(column: Sequence[Any], allocate: Allocate) -> torch.Tensor:
    """Make one tensor of numbers; Python's have 64 bits, as in torch's ``default_collate``."""
    try:
        if allocate is _bridge.fresh and set(map(type, column)) <= _PLAIN_NUMBERS.keys():
            dtype = max((_PLAIN_NUMBERS[cls] for cls in set(map(type, column))), key=_WIDTH.index)
            return torch.tensor(column, dtype=dtype, device="cpu")
        result: torch.Tensor = stack_into(allocate, [_python_number(leaf) for leaf in column])
        return result
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


def odd_sample(index: int, what: str, expected: Any, got: Any) -> ShapeMismatchError:
    """Make the error for a sample that is not like the first."""
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
