"""What must not kill the interpreter or pass in silence, in `stack`, `collate` and the pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import ndtorch as nd

READERS: dict[str, Callable[[Any], Any]] = {
    "stack": lambda a: nd.stack([a]),
    "collate": lambda a: nd.collate([a]),
    "image_to_torch": nd.image_to_torch,
    "image_to_numpy": lambda a: nd.image_to_numpy(a.transpose(2, 0, 1)),
}


@pytest.mark.parametrize("view", [lambda a: a, np.asarray], ids=["memmap", "array"])
@pytest.mark.parametrize("reader", READERS)
def test_truncated_memory_map_is_an_error(reader: str, view: Any, tmp_path: Path) -> None:
    file = tmp_path / "pixels"
    np.zeros((100, 100, 3), np.uint8).tofile(file)
    array = view(np.memmap(file, np.uint8, "r+", shape=(100, 100, 3)))
    os.truncate(file, 10)
    with pytest.raises(nd.NdtorchError, match="has become shorter than the array"):
        READERS[reader](array)


@pytest.mark.parametrize("read", [*[READERS[name] for name in READERS if name != "image_to_numpy"], nd.image_to_numpy])
def test_tensor_whose_storage_has_shrunk_is_an_error(read: Callable[[Any], Any]) -> None:
    tensor = torch.zeros(3, 40, 3)
    tensor.untyped_storage().resize_(16)
    with pytest.raises(nd.UnsupportedTypeError, match="its storage is smaller than itself"):
        read(tensor)


def test_pictures_of_several_dtypes_are_refused_since_white_differs() -> None:
    white = np.full((1, 1), 255, np.uint8), np.full((1, 1), 65535, np.uint16)
    with pytest.raises(nd.UnsupportedDtypeError, match="picture 1 is uint16 and picture 0 uint8") as caught:
        nd.image_to_torch(white)
    assert caught.value.index == 1
    with pytest.raises(nd.UnsupportedDtypeError, match="picture 1 is uint8"):
        nd.image_to_numpy([torch.ones(1, 1, 1), torch.ones(1, 1, 1, dtype=torch.uint8)])
    with pytest.raises(nd.ShapeMismatchError, match="a list of batches"):
        nd.image_to_numpy([torch.zeros(2, 3, 4, 4)] * 2)


@pytest.mark.parametrize(
    ("dtype", "pad"),
    [(ml_dtypes.float8_e4m3fn, np.inf), (np.float32, 2**24 + 1), (np.float16, 1e6), (np.uint8, "zero")],
)
def test_padding_that_would_become_another_value_is_refused(dtype: Any, pad: Any) -> None:
    with pytest.raises(nd.LossyCastError):
        nd.stack([np.zeros(2, dtype), np.zeros(1, dtype)], pad_value=pad)


def test_negative_zero_is_not_taken_for_zero() -> None:
    pixels = np.full((1, 1), -0.0, np.float32)
    for mean in (0.0, -0.0, 0.0):
        expected = torch.tensor([-0.0]).sub(torch.tensor(mean))
        assert torch.equal(nd.image_to_torch(pixels, mean=mean).signbit().ravel(), expected.signbit())


REFUSED: dict[str, tuple[Callable[[], Any], type[Exception]]] = {
    "an integer beyond 64 bits": (lambda: nd.collate([2**64]), nd.UnsupportedDtypeError),
    "an integer beyond int64 among others": (lambda: nd.collate([2**63, 1]), nd.UnsupportedDtypeError),
    "no batch": (lambda: nd.collate(None), nd.UnsupportedTypeError),
    "65 dimensions": (lambda: nd.stack([np.zeros((1,) * 64)]), nd.ShapeMismatchError),
    "more than memory": (lambda: nd.stack([np.broadcast_to(np.uint8(0), (1 << 62,))] * 3), MemoryError),
    "a dtype without a hash": (
        lambda: nd.image_to_torch(np.zeros((1, 1), np.uint8), dtype=[]),
        nd.UnsupportedDtypeError,
    ),
    "the same on the way back": (lambda: nd.image_to_numpy(torch.zeros(1, 1), dtype={}), nd.InvalidOptionError),
    "an endless scale": (lambda: nd.image_to_torch(np.zeros((1, 1)), scale=10**400), nd.InvalidOptionError),
    "an endless mean": (lambda: nd.image_to_torch(np.zeros((1, 1)), mean=10**400), nd.InvalidOptionError),
    "an endless std": (lambda: nd.image_to_torch(np.zeros((1, 1)), std=1e300), nd.InvalidOptionError),
    "a mean in words": (lambda: nd.image_to_numpy(torch.zeros(1, 1), mean="0.5"), nd.InvalidOptionError),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused_in_our_words(name: str) -> None:
    call, error = REFUSED[name]
    with pytest.raises(error):
        call()


def test_sample_that_contains_itself_is_refused() -> None:
    sample: list[Any] = []
    sample.append(sample)
    with pytest.raises(nd.NdtorchError, match="contains itself"):
        nd.collate([sample])


def test_out_of_a_wrapper_is_refused() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        out = torch.zeros(1, 2, dtype=torch.float64)
    with pytest.raises(nd.InvalidOptionError, match="out"):
        nd.stack([np.zeros(2)], out=out)


def test_large_copy_is_made_where_torch_may_not_make_it() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    array = np.arange(1_500_007.0)
    with Watching():
        copies = [nd.to_numpy(array, dtype="float32"), nd.to_numpy(nd.to_torch(array, dtype="float32"))]
        copies.append(nd.to_numpy(nd.to_torch(array, copy=True)))
    for copy in copies:
        np.testing.assert_array_equal(copy, array.astype(copy.dtype))
