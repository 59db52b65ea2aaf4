"""What hurts people today, one by one: the trap on plain torch or NumPy where it is still open, then what ndtorch does.

Numbers such as pytorch#5442 are upstream issues. `still` and `still_refused` fail when a trap has been mended
upstream: then the trap is history, and its limit or workaround here may go.

`test_traps_elsewhere.py` has the traps around other libraries' objects, pictures, batches and files.
"""

from __future__ import annotations

import io
import itertools
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from comparison import assert_independent, assert_same, assert_shares, byte_addresses, tensor_holding
from torch.utils.data import default_collate
from upstream import alone, printed, still, still_refused

import ndtorch as nd

needs_cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CRASHES = {-signal.SIGSEGV, -signal.SIGBUS}
ML_DTYPES = ["bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"]


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


# ---- read-only memory ----


@pytest.mark.once
@pytest.mark.parametrize("route", ["from_numpy", "as_tensor", "asarray", "from_dlpack"])
def test_torch_warns_of_read_only_memory_at_most_once_per_process_and_then_writes_to_it(route: str) -> None:
    """pytorch#5442, pytorch#44027, pytorch#178261, ray#29808, datasets#616."""
    seen = printed(
        "import sys, warnings, numpy, torch\n"
        "array = numpy.arange(3.0)\n"
        "array.flags.writeable = False\n"
        "with warnings.catch_warnings(record=True) as seen:\n"
        "    warnings.simplefilter('always')\n"
        "    tensors = [getattr(torch, sys.argv[1])(array) for _ in range(3)]\n"
        "tensors[2][0] = 9\n"
        "print(len(seen), array[0])",
        route,
    )
    warned = 0 if route == "from_dlpack" else 1
    still(seen == f"{warned} 9.0", "pytorch#5442", f"torch.{route} warns {warned} times of three and writes through")


def test_read_only_source_is_never_written_through_the_tensor() -> None:
    """pytorch#5442, pytorch#178261: `from_dlpack` never warns at all."""
    victim = read_only(np.arange(3.0))
    torch.from_dlpack(victim)[0] = 9
    still(victim[0] == 9, "pytorch#178261", "from_dlpack lets a tensor write to read-only memory in silence")

    array = read_only(np.arange(3.0))
    tensor = nd.to_torch(array)
    assert_same(tensor, torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))
    tensor[0] = 9
    assert array.tolist() == [0, 1, 2]
    assert_independent(array, tensor)
    for nested in (nd.to_torch([array])[0], nd.to_torch({"x": (array,)})["x"][0]):
        assert_independent(array, nested)


def test_read_only_memory_is_shared_only_at_the_callers_word() -> None:
    """pytorch#5442."""
    array = read_only(np.arange(3.0))
    assert_shares(array, nd.to_torch(array, readonly="share"))
    for refused in ({"readonly": "error"}, {"copy": False}):
        with pytest.raises(nd.CopyRequiredError, match="it is read-only") as error:
            nd.to_torch(array, **refused)
        assert error.value.reason == nd.explain(array).reason == "it is read-only"
        assert 'readonly="share" insists' in error.value.hint


def test_immutable_bytes_are_never_shared() -> None:
    """pytorch#5442: a write would change a Python constant."""
    constant = b"abcd"
    tensor = nd.to_torch(np.frombuffer(constant, np.uint8))
    tensor.zero_()
    assert constant == bytes([97, 98, 99, 100])


def test_read_only_memory_map_survives_a_write_through_the_tensor(tmp_path: Path) -> None:
    """pytorch#5442: on plain torch the write kills the process."""
    path = tmp_path / "numbers.bin"
    np.arange(4096.0).tofile(path)
    before = path.read_bytes()
    script = "import sys, numpy, torch\narray = numpy.memmap(sys.argv[1], float, 'r')\ntorch.from_dlpack(array)[0] = 1"
    still(alone(script, path).returncode in CRASHES, "pytorch#5442", "a write through a read-only memory map crashes")

    seen = printed(
        "import sys, numpy, ndtorch\n"
        "array = numpy.memmap(sys.argv[1], float, 'r')\n"
        "tensor = ndtorch.to_torch(array)\n"
        "tensor[:2] = -1\n"
        "print(tensor[:3].tolist(), array[:3].tolist(), tensor.sum().item() - array.sum())",
        path,
    )
    assert seen == "[-1.0, -1.0, 2.0] [0.0, 1.0, 2.0] -3.0"
    assert path.read_bytes() == before


def test_read_only_memory_map_becomes_a_private_mapping_and_nothing_is_copied(tmp_path: Path) -> None:
    """pytorch#5442."""
    path = tmp_path / "numbers.npy"
    np.save(path, np.arange(20000, dtype=np.int32).reshape(100, 200))
    whole = np.load(path, mmap_mode="r")
    for array in (whole, whole[7:9], whole.T[5:, 3:], whole[1, 2], np.asarray(whole)[::2]):
        array = np.asarray(array) if array.ndim else whole[1:2, 2]
        plan = nd.explain(array)
        assert (plan.action, plan.shares, plan.nbytes_copied, plan.reason) == ("map", False, 0, "it is read-only")
        tensor = nd.to_torch(array)
        assert_same(tensor, tensor_holding(array))
        assert tensor.stride() == tuple(s // 4 for s in array.strides)
        assert_independent(array, tensor)
    with pytest.raises(nd.CopyRequiredError):
        nd.to_torch(whole, copy=False)


def test_memory_map_whose_file_is_gone_or_replaced_is_copied(tmp_path: Path) -> None:
    """pytorch#5442: the name alone would lead to another file's numbers."""
    for name in ("gone", "replaced", "impersonated"):
        path = tmp_path / name
        np.arange(1000.0).tofile(path)
        array = np.memmap(path, float, "r")
        np.zeros(1000).tofile(tmp_path / "other")
        if name == "replaced":
            os.replace(tmp_path / "other", path)
        else:
            path.unlink()
        if name == "impersonated":  # Linux lists a mapping of a deleted file under this very name
            os.replace(tmp_path / "other", f"{path} (deleted)")
        assert nd.explain(array).action == "copy"
        tensor = nd.to_torch(array)
        assert_same(tensor, torch.arange(1000, dtype=torch.float64))
        assert_independent(np.asarray(array), tensor)


# ---- masks ----


@pytest.mark.parametrize("route", ["from_numpy", "tensor", "as_tensor", "asarray", "from_dlpack"])
def test_mask_is_never_dropped(route: str) -> None:
    """Every route of torch forgets which values are missing."""
    array = np.ma.masked_equal([1.0, 9.0, 3.0], 9)
    still(getattr(torch, route)(array).tolist() == [1, 9, 3], "the mask trap", f"torch.{route} drops the mask")

    with pytest.raises(nd.UnsupportedTypeError, match="a tensor has no mask") as error:
        nd.to_torch(array)
    assert "masked='split'" in error.value.hint
    split = nd.to_torch(array, masked="split")
    assert_same(split, nd.Masked(torch.tensor([1, 9, 3], dtype=torch.float64), torch.tensor([False, True, False])))
    assert_shares(array.data, split.data)
    assert_shares(array.mask, split.mask)
    assert_same(nd.to_numpy(split, like=array), array)


def test_masked_array_is_refused_even_when_nothing_is_masked_yet() -> None:
    """Code must not break on the day something is."""
    array = np.ma.MaskedArray([1.0, 2.0])
    with pytest.raises(nd.UnsupportedTypeError, match="a tensor has no mask"):
        nd.to_torch(array)
    assert_same(nd.to_torch(array, masked="split").mask, torch.tensor([False, False]))


def test_masked_array_in_a_structure_is_refused_with_its_path() -> None:
    with pytest.raises(nd.UnsupportedTypeError, match="a tensor has no mask") as error:
        nd.to_torch({"x": np.zeros(2), "y": [np.ma.MaskedArray([1.0])]})
    assert error.value.path == "['y'][0]"


# ---- memory that moves away ----


def test_array_over_memory_of_torch_dangles_after_share_memory() -> None:
    """pytorch#51849, open since 2021: a limit that ndtorch can only document."""
    script = (
        "import torch\ntensor = torch.ones(1 << 20)\narray = tensor.numpy()\ntensor.share_memory_()\nprint(array.sum())"
    )
    done = alone(script)
    dangles = done.returncode in CRASHES or done.stdout.strip() != "1048576.0"
    still(dangles, "pytorch#51849", "an array over a tensor that moved to shared memory dangles")
    for documented in (nd.to_torch, nd.to_numpy, nd.trace):
        assert "pytorch#51849" in (documented.__doc__ or ""), f"{documented.__name__} does not say so"


def test_array_that_became_a_tensor_stays_valid_after_share_memory() -> None:
    """pytorch#51849: NumPy owns that memory, so torch has nothing to free."""
    seen = printed(
        "import numpy, ndtorch\n"
        "array = numpy.ones(1 << 20)\n"
        "tensor = ndtorch.to_torch(array)\n"
        "again = ndtorch.to_numpy(tensor)\n"
        "tensor.share_memory_()\n"
        "tensor[0] = 5\n"
        "print(array.sum(), again.sum(), tensor.sum().item(), ndtorch.shares_memory(array, tensor))"
    )
    assert seen == "1048576.0 1048576.0 1048580.0 False"


# ---- autograd ----


def test_autograd_never_misses_a_write_through_numpy() -> None:
    """pytorch#6597: w * x, then the array changes, then backward: the wrong gradient and no error."""
    array = np.array([3.0])
    weight = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    product = (weight * torch.from_numpy(array)).sum()
    array[:] = 5
    product.backward()
    still(weight.grad.item() == 5, "pytorch#6597", "autograd misses a write through NumPy")

    weight = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    view = nd.to_numpy(weight)
    square = (weight * weight).sum()
    with pytest.raises(ValueError, match="read-only"):
        view[:] = 5
    square.backward()
    assert weight.grad.item() == 4
    assert_shares(view, weight)


def test_view_of_a_tensor_that_requires_grad_cannot_be_made_writable() -> None:
    """pytorch#6597."""
    leaf = torch.ones(3, requires_grad=True)
    for tensor in (leaf, leaf * 2, torch.nn.Parameter(torch.ones(3)), leaf[1:]):
        view = nd.to_numpy(tensor)
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True
    assert nd.to_numpy(leaf.detach()).flags.writeable
    assert nd.to_numpy(leaf, copy=True).flags.writeable


# ---- values lost in casts ----

LOST = {
    "NaN to the smallest int64": (np.array([[0.0, 1.0], [np.nan, 3.0]]), "int64", (1, 0), -(2**63)),
    "-1 to 255": (np.array([[0, 1], [2, -1]]), "uint8", (1, 1), 255),
    "1e300 to inf": (np.array([[0.0, 1e300], [2.0, 1e300]]), "float32", (0, 1), np.inf),
    "2**53 + 1 through float32": (np.array([[0, 1], [2, 2**53 + 1]]), "float32", (1, 1), 2**53),
}


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("direction", ["to_torch", "to_numpy"])
def test_value_lost_in_a_cast_is_named_with_its_index(name: str, direction: str) -> None:
    """Torch casts in silence whatever is lost."""
    array, dtype, index, became = LOST[name]
    tensor = tensor_holding(array)
    still(tensor.to(getattr(torch, dtype))[index] == became, "the cast trap", f"torch turns {name} in silence")

    source = array if direction == "to_torch" else tensor
    with pytest.raises(nd.LossyCastError) as error:
        getattr(nd, direction)(source, dtype=dtype, casting="exact")
    found = error.value
    assert found.index == index
    assert_same(np.asarray(found.value), np.asarray(array[index]))
    assert found.dtype == dtype
    assert f"index {index}: {array[index]} would become" in str(found)


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("direction", ["to_torch", "to_numpy"])
def test_cast_that_loses_nothing_is_allowed_by_exact(name: str, direction: str) -> None:
    array, dtype, _, _ = LOST[name]
    harmless = array[:1, :1]
    source = harmless if direction == "to_torch" else tensor_holding(harmless)
    expected = harmless.astype(dtype)
    result = getattr(nd, direction)(source, dtype=dtype, casting="exact")
    assert_same(result, tensor_holding(expected) if direction == "to_torch" else expected)


@pytest.mark.parametrize("name", ["NaN to the smallest int64", "-1 to 255"])
def test_cast_to_a_lesser_kind_has_to_be_insisted_on(name: str) -> None:
    array, dtype, index, became = LOST[name]
    with pytest.raises(nd.LossyCastError, match="is not a same_kind cast") as error:
        nd.to_torch(array, dtype=dtype)
    assert "casting='unsafe' insists" in error.value.hint
    assert nd.to_torch(array, dtype=dtype, casting="unsafe")[index] == became


@pytest.mark.parametrize("value", [np.float64(1e300), np.uint64(2**64 - 1), np.float64("nan"), np.int64(2**53 + 1)])
def test_dtype_is_kept_so_that_no_value_can_be_lost(value: Any) -> None:
    """A data set's torch format makes float64 1e300 inf and uint64's largest number -1."""
    array = np.array([value, value])
    assert_same(nd.to_torch(array), tensor_holding(array))
    assert_same(nd.to_torch({"x": value}), {"x": tensor_holding(np.array(value))})
    assert_same(nd.to_numpy(nd.to_torch(array)), array)


# ---- promotion ----


def test_dtype_does_not_depend_on_the_order_of_samples() -> None:
    """Collate gives float32 for [1, 2.5] and float64 for [2.5, 1]."""
    dtypes = {default_collate([1, 2.5]).dtype, default_collate([2.5, 1]).dtype}
    still(len(dtypes) == 2, "the collate trap", "the dtype of a batch depends on the order of its samples")

    assert_same(nd.to_torch([1, 2.5]), torch.tensor([1, 2.5]))
    assert_same(nd.to_torch([2.5, 1]), torch.tensor([2.5, 1]))


MIXED: dict[str, list[Any]] = {
    "Python numbers": [True, 1, 2.5],
    "a complex number": [1j, 2, 2.5],
    "widths": [np.int8(1), np.int32(2), np.float32(3)],
    "NumPy and Python": [1, 2.5, np.float32(3)],
    "signedness": [np.uint8(1), np.int8(2), np.int64(3)],
    "bool and bytes": [np.bool_(True), np.uint8(1), np.float16(2)],
}


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("container", ["list", "object array", "object array of arrays"])
def test_every_order_of_mixed_numbers_gives_one_dtype(name: str, container: str) -> None:
    found = {}
    for order in itertools.permutations(MIXED[name]):
        source: Any = list(order)
        if container == "object array":
            source = np.array(order, dtype=object)
        if container == "object array of arrays":
            source = np.empty(len(order), dtype=object)
            source[:] = [np.full(2, value) for value in order]
        tensor = nd.to_torch(source)
        found.setdefault(tensor.dtype, order)
        values = tensor if tensor.ndim == 1 else tensor[:, 0]
        assert values.tolist() == [complex(value) for value in order]
    assert len(found) == 1, f"the dtype depends on the order: {found}"


# ---- tensors whose memory is not what they are ----


def test_negative_bit_is_resolved() -> None:
    """Through DLPack the sign is lost."""
    tensor = torch.tensor([1 + 2j, 3 - 4j]).conj().imag
    assert tensor.is_neg()
    still(np.from_dlpack(tensor).tolist() == [2, -4], "the neg-bit trap", "DLPack ignores the neg bit")

    assert_same(nd.to_numpy(tensor), np.array([-2, 4], np.float32))
    assert_independent(nd.to_numpy(tensor), tensor)
    assert nd.explain(tensor, to="numpy").reason == "its neg bit is set: memory holds other values than the tensor"


def test_conjugate_bit_is_resolved() -> None:
    """`.numpy()` refuses what one copy answers."""
    tensor = torch.tensor([1 + 2j, 3 - 4j]).conj()
    with still_refused("the conj-bit trap", RuntimeError):
        tensor.numpy()

    assert_same(nd.to_numpy(tensor), np.array([1 - 2j, 3 + 4j], np.complex64))
    assert_independent(nd.to_numpy(tensor), tensor)
    assert nd.explain(tensor, to="numpy").reason == "its conj bit is set: memory holds other values than the tensor"


def test_functional_tensor_is_refused_because_it_has_no_memory() -> None:
    """`.numpy()` gives memory that nobody wrote."""
    tensor = torch._to_functional_tensor(torch.ones(3))
    garbage = tensor.numpy()
    still(garbage.shape == (3,), "the functional-tensor trap", "numpy() of a functional tensor gives garbage")

    with pytest.raises(nd.UnsupportedTypeError, match="functionalize stands for another") as error:
        nd.to_numpy(tensor)
    assert error.value.hint


def test_emptied_storage_is_refused() -> None:
    """`.numpy()` gives memory that is not there."""
    tensor = torch.ones(3)
    tensor.untyped_storage().resize_(0)
    still(tensor.numpy().nbytes == 12, "the emptied-storage trap", "numpy() of an emptied storage gives garbage")

    emptied = torch.ones(3)
    emptied.untyped_storage().resize_(0)
    for tensor in (emptied, torch.nn.Parameter(emptied)):
        with pytest.raises(nd.UnsupportedTypeError, match="its storage was emptied") as error:
            nd.to_numpy(tensor)
        assert "resize_" in error.value.hint
    emptied.untyped_storage().resize_(12)
    assert_same(nd.to_numpy(emptied.fill_(2)), np.full(3, 2, np.float32))


def test_write_never_lands_in_many_elements_of_an_expanded_tensor() -> None:
    """`.numpy()` of an expanded tensor is writable, and one write changes all."""
    victim = torch.zeros(2, 1).expand(2, 3)
    victim.numpy()[0, 0] = 5
    still(victim[0].tolist() == [5, 5, 5], "the expanded-tensor trap", "one write changes many elements")

    tensor = torch.zeros(2, 1).expand(2, 3)
    array = nd.to_numpy(tensor)
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 5
    assert_same(array, np.zeros((2, 3), np.float32))
    assert array.strides == (4, 0)
    assert_shares(array, tensor)
    assert nd.to_numpy(tensor, copy=True).flags.writeable


# ---- layout ----


@pytest.mark.parametrize("dtype", [np.float64, np.int16, np.complex64, ml_dtypes.bfloat16])
def test_unaligned_memory_is_copied(dtype: Any) -> None:
    """Torch takes it as it is, which is undefined behaviour."""
    buffer = np.zeros(64, np.uint8)
    array = np.ndarray((3,), dtype, buffer, offset=1)
    array[:] = [1, 2, 3]
    assert not array.flags.aligned
    if dtype is not ml_dtypes.bfloat16:
        still(torch.from_numpy(array).data_ptr() % 2 == 1, "the unaligned trap", "torch takes unaligned memory")

    tensor = nd.to_torch(array)
    assert tensor.data_ptr() % tensor.itemsize == 0
    assert_same(tensor, tensor_holding(array))
    assert_independent(buffer, tensor)
    assert nd.explain(array).reason == "it is unaligned: its address is no multiple of what its dtype needs"
    with pytest.raises(nd.CopyRequiredError, match="unaligned"):
        nd.to_torch(array, copy=False)


def test_conversion_never_changes_its_source() -> None:
    """`torch.asarray(t, requires_grad=True)` changes the tensor it was given."""
    victim = torch.zeros(2)
    torch.asarray(victim, requires_grad=True)
    still(victim.requires_grad, "the asarray trap", "torch.asarray changes its input")

    source = torch.zeros(2)
    version = source._version
    for options in ({}, {"copy": True}, {"dtype": "float64"}, {"device": "cpu"}, {"float_dtype": "bfloat16"}):
        nd.to_torch(source, **options)
        nd.to_numpy(source)
    assert (source.requires_grad, source._version, source.tolist()) == (False, version, [0, 0])
    leaf = torch.zeros(2, requires_grad=True)
    nd.to_numpy(leaf)
    assert leaf.requires_grad
    array = np.arange(6).reshape(2, 3)[:, ::-1]
    facts = array.flags.writeable, array.strides, array.tolist()
    nd.to_torch(array)
    assert (array.flags.writeable, array.strides, array.tolist()) == facts


def test_negative_strides_never_reach_dlpack() -> None:
    """pytorch#188023: on torch 2.13 they abort the process."""
    done = alone("import numpy, torch\ntorch.from_dlpack(numpy.arange(4.0)[::-1])")
    still(done.returncode == -signal.SIGABRT, "pytorch#188023", "DLPack with a negative stride aborts the process")

    seen = printed(
        "import numpy, ndtorch\n"
        "array = numpy.arange(6.0).reshape(2, 3)\n"
        "views = [array[::-1], array[:, ::-1], array[::-1, ::-2], array.T[::-1], array[0, ::-1]]\n"
        "tensors = ndtorch.to_torch(views)\n"
        "print(all(t.tolist() == v.tolist() for t, v in zip(tensors, views)), len(tensors))"
    )
    assert seen == "True 5"


@pytest.mark.parametrize("route", ["from_numpy", "as_tensor", "asarray", "tensor"])
def test_negative_strides_are_laid_out_in_one_copy(route: str) -> None:
    """pytorch#99297: torch refuses, even where it copies anyway."""
    base = np.arange(6.0).reshape(2, 3)
    array = base[:, ::-1]
    with still_refused("pytorch#99297", ValueError):
        getattr(torch, route)(array)

    tensor = nd.to_torch(array)
    assert_same(tensor, torch.tensor([[2, 1, 0], [5, 4, 3]], dtype=torch.float64), strides=True)
    assert_independent(base, tensor)
    assert nd.explain(array).nbytes_copied == array.nbytes
    with pytest.raises(nd.CopyRequiredError, match=r"axis 1 has a negative stride \(-8 bytes\)"):
        nd.to_torch(array, copy=False)


def test_negative_stride_along_one_element_is_shared() -> None:
    """numpy#23349: not even `ascontiguousarray` makes torch take it."""
    array = np.arange(3.0).reshape(1, 3)[::-1]
    assert array.strides[0] < 0
    with still_refused("numpy#23349", ValueError):
        torch.from_numpy(np.ascontiguousarray(array))

    tensor = nd.to_torch(array, copy=False)
    assert_same(tensor, torch.tensor([[0, 1, 2]], dtype=torch.float64))
    assert all(stride >= 0 for stride in tensor.stride())
    assert_shares(array, tensor)


@pytest.mark.parametrize("code", ["i2", "i4", "u8", "f2", "f4", "f8", "c8", "c16", "M8[s]", "U2"])
def test_bytes_in_the_other_order_are_swapped(code: str) -> None:
    """pytorch#9508, deepmd-kit#4099."""
    native = np.array(["ab", "cd"] if code == "U2" else [1, 258]).astype(code)
    array = native.astype(native.dtype.newbyteorder())
    assert not array.dtype.isnative
    with still_refused("pytorch#9508", ValueError, TypeError):
        torch.from_numpy(array)

    tensor = nd.to_torch(array)
    assert_same(tensor, nd.to_torch(native))
    assert_independent(array, tensor)
    assert nd.explain(array).reason == "its bytes are in the other order"
    assert_same(nd.to_numpy(tensor, like=array), array)


# ---- dtypes that torch refuses ----


@pytest.mark.parametrize("code", "bBhHiIlLqQ?efdFD")
def test_every_c_name_of_a_number_format_is_shared(code: str) -> None:
    """Torch refuses `numpy.ulonglong`, though it is equal to uint64."""
    array = np.array([0, 1, 1]).astype(code)
    if code == "Q":
        with still_refused("the ulonglong trap", TypeError):
            torch.from_numpy(np.zeros(3, np.ulonglong))

    tensor = nd.to_torch(array, copy=False)
    assert_same(tensor, tensor_holding(array))
    assert_shares(array, tensor)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_small_floats_are_shared_on_the_way_to_torch(name: str) -> None:
    """pytorch#110285, pytorch#109873."""
    array = np.array([[1, 2, np.nan], [0.5, 8, 1]], np.float32).astype(getattr(ml_dtypes, name))
    for route in (torch.from_numpy, torch.tensor, torch.as_tensor):
        with still_refused("pytorch#110285", TypeError):
            route(array)

    tensor = nd.to_torch(array, copy=False)
    assert tensor.dtype == getattr(torch, name)
    assert_same(tensor.float(), torch.tensor([[1, 2, float("nan")], [0.5, 8, 1]]))
    assert_shares(array, tensor)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_small_floats_are_shared_on_the_way_to_numpy(name: str) -> None:
    """pytorch#109873, pytorch#101781: not even `force=True` helps."""
    tensor = torch.tensor([[1, 2, float("nan")], [0.5, 8, 1]]).to(getattr(torch, name))
    for options in ({}, {"force": True}):
        with still_refused("pytorch#109873", TypeError):
            tensor.numpy(**options)

    array = nd.to_numpy(tensor, copy=False)
    assert array.dtype == getattr(ml_dtypes, name)
    assert_same(array.astype(np.float32), np.array([[1, 2, np.nan], [0.5, 8, 1]], np.float32))
    assert_shares(array, tensor)
    assert_same(nd.to_torch(array), tensor)


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn"])
def test_small_floats_that_a_file_turned_into_void_are_refused_with_the_way_back(name: str) -> None:
    """`.npy` forgets the dtype of ml_dtypes and loads void bytes."""
    dtype = getattr(ml_dtypes, name)
    stream = io.BytesIO()
    np.save(stream, np.array([1, 2, 3], dtype))
    stream.seek(0)
    loaded = np.load(stream)
    still(loaded.dtype.kind == "V", "the .npy trap", f".npy of {name} loads as void")

    with pytest.raises(nd.UnsupportedTypeError, match="void bytes have no meaning as numbers") as error:
        nd.to_torch(loaded)
    assert ".view(ml_dtypes.bfloat16)" in error.value.hint
    assert_same(nd.to_torch(loaded.view(dtype)), tensor_holding(np.array([1, 2, 3], dtype)))


@pytest.mark.parametrize(
    ("elements", "dtype"), [([1, 2, 3], "int64"), ([1, 2.5, True], "float64"), ([2**63, 1, 0], "uint64")]
)
def test_object_array_of_numbers_becomes_an_exact_tensor(elements: list[Any], dtype: str) -> None:
    """Plain torch: "can't convert np.ndarray of type numpy.object_", any tutorial reader's first error."""
    array = np.array(elements, dtype=object)
    for route in (torch.from_numpy, torch.tensor):
        with still_refused("the object_ trap", TypeError):
            route(array)

    assert_same(nd.to_torch(array), tensor_holding(np.array(elements, dtype=dtype)))


def test_object_array_of_equal_arrays_is_stacked() -> None:
    array = np.empty(2, dtype=object)
    array[:] = [np.arange(3), np.arange(3) + 10]
    assert_same(nd.to_torch(array), torch.tensor([[0, 1, 2], [10, 11, 12]]))


@pytest.mark.parametrize(
    ("elements", "index", "got"),
    [([1, None, 3], (1,), "None"), ([1.5, 2, "x"], (2,), "a str"), ([[1, 2], [3, {}]], (1, 1), "a dict")],
)
def test_object_array_of_something_else_names_the_element(elements: list[Any], index: Any, got: str) -> None:
    array = np.array(elements, dtype=object)
    with pytest.raises(nd.UnsupportedTypeError) as error:
        nd.to_torch(array)
    where = index[0] if len(index) == 1 else index
    assert f"the element at index {where} is {got}" in str(error.value)
    assert error.value.index == index


def test_integer_that_float64_cannot_hold_is_never_rounded_in_an_object_array() -> None:
    with pytest.raises(nd.LossyCastError, match=r"9007199254740993 at index 1 does not fit float64") as error:
        nd.to_torch(np.array([0.5, 2**53 + 1], dtype=object))
    assert (error.value.index, error.value.value) == ((1,), 2**53 + 1)


def test_structured_array_becomes_a_dict_of_shared_fields() -> None:
    """Plain torch: "can't convert np.ndarray of type numpy.void"."""
    dtype = np.dtype([("x", "f4"), ("label", "i8"), ("inner", [("a", "i2"), ("b", "u1", (2,))])], align=True)
    array = np.zeros(4, dtype)
    array["x"], array["label"], array["inner"]["b"] = [1, 2, 3, 4], [5, 6, 7, 8], 9
    for route in (torch.from_numpy, torch.tensor):
        with still_refused("the structured-array trap", TypeError):
            route(array)

    fields = nd.to_torch(array, copy=False)
    assert_same(
        fields,
        {
            "x": torch.tensor([1.0, 2.0, 3.0, 4.0]),
            "label": torch.tensor([5, 6, 7, 8]),
            "inner": {"a": torch.zeros(4, dtype=torch.int16), "b": torch.full((4, 2), 9, dtype=torch.uint8)},
        },
    )
    for field in (fields["x"], fields["label"], fields["inner"]["a"], fields["inner"]["b"]):
        assert_shares(array, field)
    assert_same(nd.to_numpy(fields, like=array), array)


def test_packed_fields_that_torch_cannot_address_are_copied_one_by_one() -> None:
    """A 9-byte record has float64 fields at no multiple of 8."""
    array = np.zeros(3, [("flag", "u1"), ("x", "f8")])
    array["x"] = [1, 2, 3]
    fields = nd.to_torch(array)
    assert_shares(array, fields["flag"])
    assert_independent(array, fields["x"])
    assert_same(fields["x"], torch.tensor([1, 2, 3], dtype=torch.float64))
    assert nd.explain(array).reason.startswith("1 of 2 leaves, the first at ['x']: axis 0 has a stride of 9 bytes")


@pytest.mark.parametrize("code", ["M8[D]", "M8[ns]", "m8[s]", "m8[us]"])
def test_time_is_shared_as_integers_and_comes_back_with_its_unit_and_nat(code: str) -> None:
    """Plain torch: "can't convert np.ndarray of type numpy.datetime64"."""
    array = np.array([0, 1, -5, -(2**63)]).view(code)
    assert np.isnat(array).tolist() == [False, False, False, True]
    for route in (torch.from_numpy, torch.tensor):
        with still_refused("the datetime trap", TypeError):
            route(array)

    tensor = nd.to_torch(array, copy=False)
    assert_same(tensor, torch.tensor([0, 1, -5, -(2**63)]))
    assert_shares(array, tensor)
    for back in (nd.to_numpy(tensor, dtype=code), nd.to_numpy(tensor, like=array)):
        assert_same(back, array)
        assert_shares(back, array)


@pytest.mark.parametrize(
    ("array", "dtype"), [(np.array([b"ab", b"", b"xyz"]), "uint8"), (np.array(["ab", "", "€𝄞z"]), "int32")]
)
def test_text_is_shared_as_characters_and_comes_back(array: np.ndarray, dtype: str) -> None:
    """Plain torch: "can't convert np.ndarray of type numpy.str_"."""
    for route in (torch.from_numpy, torch.tensor):
        with still_refused("the text trap", TypeError):
            route(array)

    tensor = nd.to_torch(array, copy=False)
    ords = [list(word if isinstance(word, bytes) else map(ord, word)) for word in array.tolist()]
    padded = [word + [0] * (3 - len(word)) for word in ords]
    assert_same(tensor, torch.tensor(padded, dtype=getattr(torch, dtype)))
    assert_shares(array, tensor)
    for back in (nd.to_numpy(tensor, dtype=array.dtype), nd.to_numpy(tensor, like=array)):
        assert_same(back, array)
        assert_shares(back, array)


# ---- one call for every tensor ----


@pytest.mark.parametrize(
    ("make", "values"),
    [
        pytest.param(lambda: torch.tensor([1.0, 2.0], requires_grad=True), [1, 2], id="requires grad"),
        pytest.param(lambda: torch.tensor([1.0, 2.0], requires_grad=True) * 2, [2, 4], id="computed"),
        pytest.param(lambda: torch.nn.Parameter(torch.ones(2)), [1, 1], id="parameter"),
        pytest.param(lambda: torch.tensor([1 + 2j]).conj(), [1 - 2j], id="conj"),
        pytest.param(lambda: torch.tensor([1 + 2j]).conj().imag, [-2], id="neg"),
        pytest.param(lambda: torch.ones(2, dtype=torch.bfloat16), [1, 1], id="bfloat16"),
        pytest.param(lambda: torch.tensor([1 + 2j], requires_grad=True).conj(), [1 - 2j], id="conj requires grad"),
        pytest.param(
            lambda: torch.ones(2, dtype=torch.bfloat16, requires_grad=True), [1, 1], id="bfloat16 requires grad"
        ),
        pytest.param(lambda: torch.ones(2, device="cuda", requires_grad=True), [1, 1], id="cuda", marks=needs_cuda),
    ],
)
def test_one_call_gives_the_array_of_any_tensor(make: Callable[[], torch.Tensor], values: list[Any]) -> None:
    """Cuda, requires grad and conj each have their own incantation."""
    with still_refused("the incantation trap", RuntimeError, TypeError):
        make().numpy()

    tensor = make()
    array = nd.to_numpy(tensor)
    assert str(tensor.dtype) == f"torch.{array.dtype.name}"
    assert array.tolist() == values


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copy_from_a_device_is_finished_before_anybody_reads_it() -> None:
    """pytorch#137951: after a `non_blocking` copy, `.numpy()` reads what has not arrived yet."""
    source = torch.ones(1 << 20, device="cuda")

    def on_its_way() -> torch.Tensor:
        host = torch.zeros(1 << 20, pin_memory=True)
        torch.cuda.synchronize()
        torch.cuda._sleep(1 << 30)
        return host.copy_(source, non_blocking=True)

    early = on_its_way().numpy().copy()
    torch.cuda.synchronize()
    still(not early.all(), "pytorch#137951", "numpy() does not wait for a copy from the device")

    assert nd.to_numpy(on_its_way()).all()
    assert nd.to_numpy([on_its_way()])[0].all()
    torch.cuda._sleep(1 << 30)
    assert nd.to_numpy(source.mul(2)).min() == 2


# ---- lists, files, checkpoints, warnings ----


def test_ragged_lists_stay_lists() -> None:
    """pytorch#27617, pytorch#65156."""
    ragged = [[1, 2], [3]]
    with still_refused("pytorch#27617", ValueError):
        torch.tensor(ragged)
    with still_refused("pytorch#65156", RuntimeError):
        default_collate(ragged)

    assert_same(nd.to_torch(ragged), [torch.tensor([1, 2]), torch.tensor([3])])
    arrays = [np.zeros((2, 3)), np.ones((1, 3))]
    tensors = nd.to_torch(arrays)
    assert_same(tensors, [torch.zeros(2, 3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)])
    for array, tensor in zip(arrays, tensors, strict=True):
        assert_shares(array, tensor)
    assert_same(nd.to_numpy(tensors), arrays)


def test_list_of_equal_arrays_stays_a_list_without_a_copy_or_a_warning() -> None:
    """pytorch#13918: `torch.tensor` warns that it "is extremely slow"."""
    arrays = [np.arange(3.0), np.arange(3.0) + 10]
    tensors = nd.to_torch(arrays, copy=False)
    assert isinstance(tensors, list)
    for array, tensor in zip(arrays, tensors, strict=True):
        assert_shares(array, tensor)


def test_transposed_array_reaches_a_safetensors_file_as_it_is(tmp_path: Path) -> None:
    """safetensors#825: the library stores the memory of an array, whatever its strides say."""
    array = np.arange(6.0).reshape(2, 3).T
    stored = safetensors.numpy.load(safetensors.numpy.save({"x": array}))["x"]
    still(not np.array_equal(stored, array), "safetensors#825", "a transposed array is stored wrong")

    np.save(tmp_path / "x.npy", array)
    with open(tmp_path / "x.npy", "rb") as file:
        assert b"'fortran_order': True" in file.read(100)
    np.savez(tmp_path / "many.npz", transposed=array, every_other=np.arange(6)[::2], cube=np.ones((2, 3, 4)).T)
    for name in ("x.npy", "many.npz"):
        target = tmp_path / "out.safetensors"
        nd.convert_file(tmp_path / name, target, overwrite=True)
        loaded = np.load(tmp_path / name)
        expected = {"x": loaded} if name == "x.npy" else dict(loaded)
        found = safetensors.numpy.load_file(target)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)


def test_reversed_array_reaches_a_safetensors_file_as_it_is(tmp_path: Path) -> None:
    """safetensors#825: the library would read outside a reversed array, so the trap itself is not run here."""
    arrays = {"reversed": np.arange(6)[::-1], "expanded": np.broadcast_to(np.float32(3), (2, 2))}
    nd.write(tmp_path / "a.safetensors", arrays | {"transposed": torch.arange(6).reshape(2, 3).T})
    found = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    assert_same(found["reversed"], np.array([5, 4, 3, 2, 1, 0]))
    assert_same(found["expanded"], np.full((2, 2), 3, np.float32))
    assert_same(found["transposed"], np.array([[0, 3], [1, 4], [2, 5]]))


def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    """`torch.save` writes checksums that `torch.load` never looks at."""
    path = tmp_path / "a.pt"
    torch.save({"w": torch.full((1000,), 7.0)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(np.full(1000, 7, np.float32).tobytes()) + 2000] ^= 1
    path.write_bytes(data)
    loaded = torch.load(path, weights_only=True)["w"]
    still(not bool((loaded == 7).all()), "the checkpoint trap", "a flipped bit is loaded without a word")

    array = nd.read(path)["w"]
    for whole in (lambda: array[...], lambda: nd.to_torch(array), lambda: nd.write(tmp_path / "b.npz", {"w": array})):
        with pytest.raises(nd.FormatError, match="array 'w' is damaged: its bytes do not add up to their checksum"):
            whole()


def test_numpy_never_warns_about_the_copy_keyword() -> None:
    """pytorch#136264: `Tensor.__array__` has no `copy`, which NumPy 2 deprecates."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        np.array(torch.ones(2), copy=True)
    still(
        "copy keyword" in "".join(str(w.message) for w in seen), "pytorch#136264", "NumPy warns about the copy keyword"
    )

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for dtype in (torch.float32, torch.bfloat16, torch.complex64):
            tensor = torch.ones(2, dtype=dtype)
            for source in (tensor, torch.nn.Parameter(tensor), tensor.conj(), tensor.expand(3, 2), [tensor]):
                for copy in (None, True):
                    nd.to_numpy(source, copy=copy)
            nd.to_numpy(tensor, copy=False)
            nd.to_torch(np.array([nd.to_numpy(tensor), nd.to_numpy(tensor)], dtype=object))
    assert [str(w.message) for w in seen] == []


def save_and_load(checkpoint: Any) -> Any:
    stream = io.BytesIO()
    torch.save(checkpoint, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def test_checkpoint_holds_no_numpy_objects_after_conversion() -> None:
    """fairseq#5603, nerfstudio#3702: one `np.float64` and `weights_only` refuses the whole file."""
    with still_refused("fairseq#5603", Exception):
        save_and_load({"loss": np.float64(0.5)})

    checkpoint = {
        "weights": np.ones((2, 3), np.float32),
        "loss": np.float64(0.5),
        "epoch": np.int32(7),
        "done": np.bool_(True),
        "history": [np.float32(1), 2.5],
        "started": np.datetime64("2024-02-29", "D"),
        "phase": np.complex64(1j),
        "small": ml_dtypes.bfloat16(1.5),
        "name": "run",
        "note": None,
        "rate": 0.25,
    }
    tensors = nd.to_torch(checkpoint)
    assert_same(
        save_and_load(tensors),
        {
            "weights": torch.ones(2, 3),
            "loss": torch.tensor(0.5, dtype=torch.float64),
            "epoch": torch.tensor(7, dtype=torch.int32),
            "done": torch.tensor(True),
            "history": torch.tensor([1, 2.5]),
            "started": torch.tensor(19782),
            "phase": torch.tensor(1j, dtype=torch.complex64),
            "small": torch.tensor(1.5, dtype=torch.bfloat16),
            "name": "run",
            "note": None,
            "rate": 0.25,
        },
    )


@pytest.mark.parametrize("scalar", [np.str_("run"), np.bytes_(b"run")])
def test_numpy_text_in_a_checkpoint_becomes_python_text(scalar: Any) -> None:
    """fairseq#5603: `np.str_` is a `str`, but `weights_only` refuses it too."""
    with still_refused("fairseq#5603", Exception):
        save_and_load({"name": scalar})

    name = save_and_load(nd.to_torch({"name": scalar}))["name"]
    assert name in ("run", b"run")
    assert type(name) in (str, bytes)


def test_weights_only_refuses_one_numpy_number_and_takes_it_from_a_checkpoint() -> None:
    """fairseq#5603, nerfstudio#3702: `to_checkpoint` gives Python's own number, and says so."""
    tree = {"optim": {"lr": np.float64(0.1)}, "done": np.bool_(True), "best": [np.float32(0.5)]}
    for path in ("optim", "done", "best"):
        with still_refused("fairseq#5603", Exception):
            save_and_load({path: tree[path]})

    checkpoint = nd.to_checkpoint(tree)
    assert_same(save_and_load(checkpoint.state), {"optim": {"lr": 0.1}, "done": True, "best": [0.5]})
    assert [change.path for change in checkpoint.changes] == ["['optim']['lr']", "['done']", "['best'][0]"]


# ---- waste ----


def test_saving_a_one_element_view_writes_that_element_only() -> None:
    """pytorch#33101: `torch.save` writes the whole storage, 40 MB."""
    whole = torch.zeros(10_000_000)
    stream = io.BytesIO()
    torch.save({"one": whole[:1]}, stream)
    still(stream.tell() > 40_000_000, "pytorch#33101", "a view is saved with its whole storage")

    stream = io.BytesIO()
    torch.save(nd.to_checkpoint({"one": whole[:1]}).state, stream)
    assert len(stream.getvalue()) < 4096


def test_broadcast_array_copies_its_distinct_elements_only() -> None:
    """DESIGN.md: `np.broadcast_to` gives an expanded tensor over a compact copy."""
    array = np.broadcast_to(np.arange(3, dtype=np.float32), (1000, 3))
    tensor = nd.to_torch(array)
    assert nd.explain(array).nbytes_copied == byte_addresses(tensor).size == 12
    assert_same(tensor, torch.arange(3, dtype=torch.float32).expand(1000, 3))
    assert_independent(array, tensor)
