"""Map-style datasets: samples made one by one in Python, and the batches of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, StackDataset, Subset

from .. import _native
from .._collate import collate_into, is_table
from .._convert import to_torch
from .._errors import InvalidOptionError, NdtorchError, ShapeMismatchError, UnsupportedTypeError
from .._images import image_to_torch
from .._spec import describe
from .._structures import is_structure, take_apart
from .._torch_dtypes import BY_TORCH
from .._turns import Turns
from ..foreign import Foreign, library_of
from .ahead import is_ending
from .columns import Allocate, Column
from .orders import Rows
from .parts import SUBJECT
from .pictures import hint_at, is_picture_shape
from .wishes import ImageWish, Wishes

Fetch = Callable[[list[int]], Any]
Collate = Callable[[Sequence[Any]], Any]

_GUESS = 224 * 224 * 3  # bytes of a sample, which nobody knows before it is made
_SHOWN = 8


def is_dataset(data: Any) -> bool:
    """Whether data gives samples by number: a ``Dataset`` of torch, or what behaves like one and is nothing else."""
    if isinstance(data, Dataset):
        return True
    cls = type(data)
    if not hasattr(cls, "__getitem__") or not hasattr(cls, "__len__"):
        return False
    if isinstance(data, np.ndarray | torch.Tensor | str | Mapping | list) or is_structure(data):
        return False
    if isinstance(data, Foreign) or library_of(data) is not None or _is_buffer(data):
        return False
    return not any(
        hasattr(cls, name) for name in ("__array__", "__array_interface__", "__dlpack__", "__arrow_c_stream__")
    )


def _is_buffer(data: Any) -> bool:
    try:
        memoryview(data)
    except TypeError:
        return False
    return True


def refuse_stream(data: Any) -> None:
    """Refuse what gives its samples in an order of its own.

    Raises:
        UnsupportedTypeError: It is a stream.
    """
    if isinstance(data, IterableDataset | DataLoader | Iterator):
        name = type(data).__name__
        fact = f"{_with_article(name)} gives samples in an order of its own"
        hint = "torch.utils.data.DataLoader(data, batch_size, collate_fn=ndtorch.collate) makes batches of a stream"
        if isinstance(data, DataLoader):
            hint = "ndtorch.Loader(data.dataset, batch_size) takes its place"
        raise UnsupportedTypeError(SUBJECT, fact, expected="samples that have numbers", got=name, hint=hint)


class SamplesColumn(Column):
    """Samples of a dataset, made when a batch of them is wanted; its leaf is the whole batch.

    Args:
        dataset: Gives a sample for every number, or samples for a list of numbers.
        wishes: What is wanted of batches: ``pad_value`` has no meaning here, and unless ``threads`` is more than one
            they take turns, for a dataset made for processes may hold a file that only one can read from.
        path: Where in the data it is.

    Raises:
        InvalidOptionError: An option has no such value.
        UnsupportedTypeError: The dataset has no length.
    """

    is_slow = True
    nbytes = _GUESS

    def __init__(self, dataset: Any, wishes: Wishes, path: str = "") -> None:
        collate_fn, threads = wishes.options.collate_fn, wishes.options.threads
        if wishes.options.pad_value is not None:
            hint = (
                "collate_fn=lambda samples: ndtorch.stack(samples, pad_value=0) pads arrays, "
                "ndtorch.Loader([dataset[i] for i in range(len(dataset))], pad_value=0) those of samples"
            )
            raise InvalidOptionError(SUBJECT, "pad_value= has no meaning for the samples of a Dataset", hint=hint)
        if collate_fn is not None and not callable(collate_fn):
            raise InvalidOptionError(
                SUBJECT, f"collate_fn={collate_fn!r} cannot be called", expected="a function", got=repr(collate_fn)
            )
        self._dataset = dataset
        self._name = type(dataset).__name__
        self.length = _length_of(dataset)
        self._collate = collate_fn
        self._wishes = wishes
        self._path = path
        self._turns = Turns() if threads is None or threads < 2 else None

    def take(self, rows: Rows, allocate: Allocate) -> tuple[Any, _native.GatherJob | None]:
        """Make the samples and the batch of them."""
        numbers: list[int] = rows.tolist()
        if not numbers and self._collate is None:
            fact = f"batch_sampler= asks for a batch of no samples of {self._name}, and only samples say what is in one"
            hint = "collate_fn=lambda samples: ndtorch.collate(samples) if samples else None has None for it"
            raise InvalidOptionError(SUBJECT, fact, expected="at least one", got="none", hint=hint)
        with self._turns.taken() if self._turns is not None else nullcontext():
            samples = self._samples(numbers)
            if self._collate is not None:
                with _noting(f"in the batch of samples {_listed(numbers)}"):
                    return self._finished(self._collate(samples)), None
        return self._finished(self._collated(samples, numbers, allocate)), None

    def _samples(self, numbers: list[int]) -> Any:
        if _fetches_many(self._dataset):
            with _noting(f"at one of the samples {_listed(numbers)} of {self._name}"):
                return self._dataset.__getitems__(numbers)
        samples = []
        for number in numbers:
            if is_ending():
                raise SystemExit
            with _noting(f"at sample {number} of {self._name}"):
                samples.append(self._dataset[number])
        return samples

    def _collated(self, samples: Any, numbers: list[int], allocate: Allocate) -> Any:
        is_batch = is_table(samples)
        if isinstance(samples, Mapping | torch.Tensor | np.ndarray) or is_batch or not hasattr(samples, "__len__"):
            fact = f"__getitems__ of {self._name} gave {_with_article(type(samples).__name__)}"
            collate_fn = "ndtorch.collate" if is_batch else "lambda batch: batch"
            hint = f"collate_fn={collate_fn} takes it as the batch that it is"
            raise UnsupportedTypeError(
                SUBJECT, fact, expected="a list of samples", got=type(samples).__name__, hint=hint
            )
        samples = list(samples)
        if len(samples) != len(numbers):
            fact = f"__getitems__ of {self._name} was asked for {len(numbers)} samples and gave {len(samples)}"
            raise ShapeMismatchError(SUBJECT, fact, expected=len(numbers), got=len(samples))
        for number, sample in zip(numbers, samples, strict=True):
            if sample is None:
                fact = f"sample {number} of {self._name} is None"
                hint = "collate_fn= can leave samples out, sampler= never asks for them"
                raise UnsupportedTypeError(SUBJECT, fact, expected="a sample", got="None", hint=hint, index=number)
        try:
            return collate_into(samples, allocate)
        except NdtorchError as error:
            raise _numbered(error, numbers) from None

    def _finished(self, batch: Any) -> Any:
        """Cast and normalise what the samples left as it was."""
        if self._wishes.float_row is None and not self._wishes.has_image:
            return batch
        structure = take_apart(batch, SUBJECT, is_leaf=lambda leaf: isinstance(leaf, torch.Tensor))
        paths = structure.paths()
        self._wishes.check_batch(self._path, paths)
        found = [
            _wish_of(leaf, self._wishes.image_at(self._path + path))
            for path, leaf in zip(paths, structure.leaves, strict=True)
        ]
        if self._wishes.is_for_all and not any(found):
            raise _no_pictures([self._path + path for path in paths], structure.leaves)
        leaves = []
        for path, leaf, wish in zip(paths, structure.leaves, found, strict=True):
            try:
                leaves.append(self._finished_leaf(leaf, wish))
            except NdtorchError as error:
                raise error.at(path).renamed(SUBJECT) from None
        return structure.rebuild(leaves)

    def _finished_leaf(self, leaf: Any, wish: ImageWish | None) -> Any:
        if wish is not None:
            return image_to_torch(leaf[..., None] if leaf.ndim == 3 else leaf, **wish.words())
        if self._wishes.float_row is not None and isinstance(leaf, torch.Tensor):
            return to_torch(leaf, float_dtype=self._wishes.float_row.torch)
        return leaf


@contextmanager
def _noting(note: str) -> Iterator[None]:
    """Add a note to an exception, once."""
    try:
        yield
    except Exception as error:
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        raise


def _fetches_many(dataset: Any) -> bool:
    """Whether a dataset makes samples together. Torch's own parts and stacks do it as far as what is in them does."""
    if type(dataset) is Subset:
        return _fetches_many(dataset.dataset)
    if type(dataset) is StackDataset:
        parts = dataset.datasets.values() if isinstance(dataset.datasets, dict) else dataset.datasets
        return any(map(_fetches_many, parts))
    return callable(getattr(dataset, "__getitems__", None))


def _length_of(dataset: Any) -> int:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError) as error:
        name = type(dataset).__name__
        fact = f"{_with_article(name)} does not say how many samples it has ({error})"
        hint = "define __len__"
        raise UnsupportedTypeError(SUBJECT, fact, expected="a length", got=name, hint=hint) from error


def _numbered(error: NdtorchError, numbers: list[int]) -> NdtorchError:
    """The error of `collate` with numbers of the data in the place of places in the batch."""

    def number(match: re.Match[str]) -> str:
        return f"sample {numbers[int(match[1])]}"

    error.fact = re.sub(r"\bsample (\d+)\b", number, error.fact)
    if isinstance(error.facts.get("index"), int):
        error.facts["index"] = numbers[error.facts["index"]]
    return error.renamed(SUBJECT)


def _wish_of(leaf: Any, wish: ImageWish | None) -> ImageWish | None:
    """The wish for a leaf of a batch, where it is meant: named, or pictures by the look of them."""
    if wish is None or not isinstance(leaf, torch.Tensor):
        return None
    are_pictures = leaf.dtype in (torch.uint8, torch.uint16) and is_picture_shape(leaf.shape[1:])
    return wish if wish.is_named or are_pictures else None


def _no_pictures(paths: list[str], leaves: list[Any]) -> InvalidOptionError:
    tensors = [
        f"{path} {describe(leaf)}".strip()
        for path, leaf in zip(paths, leaves, strict=True)
        if isinstance(leaf, torch.Tensor)
    ]
    return InvalidOptionError(
        SUBJECT,
        "image= finds no pictures in a batch",
        expected="uint8 or uint16 of NHW or NHWC with 1, 3 or 4 channels",
        got=", ".join(tensors) or "no tensors",
        hint=next(filter(None, map(_picture_hint, paths, leaves)), None),
    )


def _picture_hint(path: str, leaf: Any) -> str | None:
    row = BY_TORCH.get(leaf.dtype) if isinstance(leaf, torch.Tensor) else None
    if row is None or row.numpy is None:
        return None
    return hint_at(path, row.numpy, leaf.shape[1:], "numpy.moveaxis(image, 0, -1) in each sample")


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    return shown if len(numbers) <= _SHOWN else f"{shown} and {len(numbers) - _SHOWN} more"


def _with_article(name: str) -> str:
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
