"""What holds for every array and tensor that Hypothesis can think of."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from comparison import array_holding, assert_independent, assert_same, assert_shares, byte_addresses, tensor_holding
from hypothesis import event, given, settings
from hypothesis import strategies as st
from strategies import DTYPES, arrays, tensors

import ndtorch as nd

MANY = settings(max_examples=400)
COPY = st.sampled_from([None, None, True])


def state(x: Any) -> tuple[Any, ...]:
    """Everything about a source that a conversion could change: values, bytes, layout, flags, version."""
    if isinstance(x, np.ndarray):
        return x.tobytes(), x.dtype, x.shape, x.strides, x.flags.num, x.__array_interface__["data"]
    facts = x.dtype, x.shape, x.stride(), x.data_ptr(), x.requires_grad, x.is_conj(), x.is_neg(), x._version
    return array_holding(x).tobytes(), *facts


def is_addressable(array: np.ndarray) -> bool:
    """Whether torch can describe these very bytes: worked out from address, strides and byte order alone."""
    steps = [s for n, s in zip(array.shape, array.strides, strict=True) if n > 1]
    aligned = array.__array_interface__["data"][0] % array.dtype.alignment == 0
    return array.dtype.isnative and aligned and all(s >= 0 and s % array.itemsize == 0 for s in steps)


@MANY
@given(arrays(), COPY)
def test_array_becomes_what_torch_makes_of_its_values(array: np.ndarray, copy: bool | None) -> None:
    before = state(array)
    tensor = nd.to_torch(array, copy=copy)
    assert_same(tensor, tensor_holding(array))
    assert state(array) == before


@MANY
@given(arrays())
def test_array_is_shared_exactly_when_torch_can_address_it_and_may_write(array: np.ndarray) -> None:
    shared = is_addressable(array) and array.flags.writeable
    event(f"shared: {shared}")
    tensor = nd.to_torch(array)
    if not array.size:
        assert nd.to_torch(array, copy=False).shape == array.shape
    elif shared:
        assert_shares(tensor, array)
        assert_same(nd.to_torch(array, copy=False), tensor, strides=True)
        assert [s * array.itemsize for n, s in zip(array.shape, tensor.stride(), strict=True) if n > 1] == [
            s for n, s in zip(array.shape, array.strides, strict=True) if n > 1
        ]
    else:
        assert not np.intersect1d(byte_addresses(tensor), byte_addresses(array)).size
    assert nd.explain(array).shares is (shared or not array.size)


@given(arrays(of=st.sampled_from([np.dtype(c) for c in "?bBhHiIlLefdFD"])))
def test_shared_tensor_is_that_of_torch_itself(array: np.ndarray) -> None:
    if is_addressable(array) and array.flags.writeable and not any(s < 0 or s % array.itemsize for s in array.strides):
        theirs = torch.from_numpy(array)
        assert_same(nd.to_torch(array), theirs, strides=True)
        assert array.size == 0 or nd.to_torch(array).data_ptr() == theirs.data_ptr()
    native = np.array(np.ascontiguousarray(array), dtype=array.dtype.newbyteorder("=")).reshape(array.shape)
    assert_same(nd.to_torch(array), torch.tensor(native))


@MANY
@given(arrays())
def test_copy_is_independent_writable_and_never_larger_than_needed(array: np.ndarray) -> None:
    tensor = nd.to_torch(array, copy=True)
    assert_independent(tensor, array)
    assert tensor.untyped_storage().nbytes() <= array.nbytes
    tensor.detach().fill_(1)


@MANY
@given(arrays())
def test_way_there_and_back_gives_the_array_again(array: np.ndarray) -> None:
    before = state(array)
    back = nd.to_numpy(nd.to_torch(array), like=array)
    assert_same(back, array)
    if array.size and is_addressable(array) and array.flags.writeable:
        assert back.__array_interface__["data"][0] == array.__array_interface__["data"][0]
    assert_same(nd.to_numpy(nd.to_torch(array)), array.astype(array.dtype.newbyteorder("=")))
    assert state(array) == before


@MANY
@given(tensors(), COPY)
def test_tensor_becomes_what_its_bytes_say(tensor: torch.Tensor, copy: bool | None) -> None:
    before = state(tensor)
    array = nd.to_numpy(tensor, copy=copy)
    assert_same(array, array_holding(tensor))
    assert state(tensor) == before
    if copy:
        assert array.flags.writeable
        assert_independent(array, tensor.detach().resolve_conj().resolve_neg())


@MANY
@given(tensors())
def test_tensor_is_shared_unless_it_is_lazy_and_writable_only_where_sound(tensor: torch.Tensor) -> None:
    array = nd.to_numpy(tensor)
    lazy = tensor.is_conj() or tensor.is_neg()
    event(f"lazy: {lazy}, requires grad: {tensor.requires_grad}")
    if not tensor.numel():
        return
    expanded = any(n > 1 and s == 0 for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    if lazy:
        assert array.__array_interface__["data"][0] != tensor.data_ptr()
    else:
        assert array.__array_interface__["data"][0] == tensor.data_ptr()
        assert array.flags.writeable is not (tensor.requires_grad or expanded)
        assert_shares(array, tensor.detach())


@given(tensors())
def test_shared_array_is_that_of_torch_itself(tensor: torch.Tensor) -> None:
    name = str(tensor.dtype).removeprefix("torch.")
    if name == "bfloat16" or name.startswith("float8"):
        integers = tensor.detach().view(torch.uint8 if tensor.itemsize == 1 else torch.int16).numpy()
        theirs = integers.view(DTYPES[name][0])
    else:
        theirs = tensor.numpy(force=True)
    assert_same(nd.to_numpy(tensor), theirs)


@given(tensors())
def test_tensor_survives_the_way_there_and_back(tensor: torch.Tensor) -> None:
    again = nd.to_torch(nd.to_numpy(tensor))
    assert_same(again, tensor.detach().resolve_conj().resolve_neg())
    assert nd.to_torch(tensor) is tensor


@st.composite
def structures(draw: st.DrawFn) -> Any:
    leaves = st.one_of(arrays(max_side=2), st.none(), st.text(max_size=3), st.integers(), st.floats())
    return draw(
        st.recursive(
            leaves.map(lambda leaf: {"leaf": leaf}),
            lambda inner: st.one_of(
                st.lists(inner, min_size=1, max_size=3),
                st.tuples(inner, inner),
                st.dictionaries(st.one_of(st.text(max_size=2), st.integers()), inner, min_size=1, max_size=3),
            ),
            max_leaves=6,
        )
    )


@given(structures())
def test_structure_survives_the_way_there_and_back(tree: Any) -> None:
    assert_same(nd.to_numpy(nd.to_torch(tree), like=tree), tree)


@MANY
@given(arrays(), st.sampled_from(list(DTYPES)))
def test_unsafe_cast_is_that_of_numpy(array: np.ndarray, target: str) -> None:
    numpy = DTYPES[target][0]
    real = array.real if array.dtype.kind == "c" and numpy.kind != "c" else array
    native = np.ascontiguousarray(real).reshape(array.shape)
    with np.errstate(all="ignore"):
        try:
            expected = native.astype(native.dtype.newbyteorder("=")).astype(numpy)
        except TypeError:
            return  # NumPy has no such cast: from one float8 to another kind of it
    if array.dtype.kind in "fcV" and numpy.kind in "iu":
        finite = np.isfinite(native.astype("f8")) & (abs(native.astype("f8")) < 100)  # else the hardware decides
        assert_same(nd.to_numpy(nd.to_torch(array, dtype=target, casting="unsafe"))[finite], expected[finite])
    else:
        assert_same(nd.to_torch(array, dtype=target, casting="unsafe"), tensor_holding(expected))
