"""The three articles the project grew from: each code block as ndtorch writes it, next to the original.

"tutorial" is *How to convert a NumPy ndarray to a PyTorch Tensor and vice versa*, "approaches" is *How to Convert a
Numpy Array to Tensor?*, "methods" is *Converting Python NumPy Arrays to PyTorch Tensors*. Where an article prints
int32 it ran on Windows: the dtype is NumPy's default integer, whatever that is here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_independent, assert_same, assert_shares, tensor_holding

import ndtorch as nd
from ndtorch._options import Options
from ndtorch._plan import why_copy
from ndtorch._spec import describe

ROWS = [[1, 2, 3], [2, 1, 3], [2, 3, 5], [5, 6, 4]]

# Every way of the articles to make a tensor of an array: the original, ndtorch's, and whether memory is shared.
WAYS: dict[str, tuple[Callable[[np.ndarray], torch.Tensor], Callable[[np.ndarray], torch.Tensor], bool]] = {
    "torch.from_numpy(a)": (torch.from_numpy, nd.to_torch, True),
    "torch.from_numpy(a), insisting": (torch.from_numpy, lambda a: nd.to_torch(a, copy=False), True),
    "torch.tensor(a)": (torch.tensor, lambda a: nd.to_torch(a, copy=True), False),
    "torch.from_numpy(a).clone()": (
        lambda a: torch.from_numpy(a).clone(),
        lambda a: nd.to_torch(a, copy=True),
        False,
    ),
    "torch.Tensor(a)": (
        torch.Tensor,
        lambda a: nd.to_torch(a, dtype=torch.get_default_dtype(), copy=True),
        False,
    ),
}

ARRAYS: dict[str, Callable[[], np.ndarray]] = {
    "tutorial": lambda: np.array(ROWS),
    "approaches, torch.tensor": lambda: np.array([1, 2, 3, 4, 5]),
    "approaches, torch.from_numpy": lambda: np.array([1.0, 2.0, 3.0, 4.0, 5.0]),
    "approaches, multi-dimensional": lambda: np.array([[1, 2, 3], [4, 5, 6]]),
    "methods, 1": lambda: np.array([1, 2, 3]),
    "methods, 2": lambda: np.array([4, 5, 6]),
    "methods, 3": lambda: np.array([7, 8, 9]),
    "methods, 5": lambda: np.array([13, 14, 15], dtype=np.float32),
    "three dimensions": lambda: np.arange(24.0).reshape(2, 3, 4),
    "four dimensions": lambda: np.arange(120, dtype=np.uint8).reshape(2, 3, 4, 5),
    "no dimension": lambda: np.array(7.0),
    "a column": lambda: np.array(ROWS)[:, :1],
}


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def default_dtype(request: pytest.FixtureRequest) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


# ---- every way with every array ----


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ARRAYS)
def test_every_way_gives_the_same_tensor_as_the_article(name: str, way: str, default_dtype: torch.dtype) -> None:
    original, ours, _ = WAYS[way]
    array = ARRAYS[name]()
    assert_same(ours(array), original(array), strides=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ARRAYS)
def test_every_way_shares_exactly_what_the_article_says(name: str, way: str) -> None:
    original, ours, shares = WAYS[way]
    array = ARRAYS[name]()
    (assert_shares if shares else assert_independent)(array, ours(array))
    if original is torch.Tensor and array.dtype == np.float32:
        return  # where the article errs: see method 5
    (assert_shares if shares else assert_independent)(array, original(array))


# ---- "How to convert a NumPy ndarray to a PyTorch Tensor and vice versa?" ----


def test_tutorial_array_to_tensor() -> None:
    a = np.array(ROWS)
    t = nd.to_torch(a)
    assert_same(t, torch.from_numpy(a), strides=True)
    assert str(a) == "[[1 2 3]\n [2 1 3]\n [2 3 5]\n [5 6 4]]"
    assert (str(type(a)), str(type(t))) == ("<class 'numpy.ndarray'>", "<class 'torch.Tensor'>")
    assert t.tolist() == ROWS
    assert str(t.dtype) == f"torch.{a.dtype}"


def test_tutorial_tensor_to_array() -> None:
    t = torch.Tensor(ROWS)
    a = nd.to_numpy(t)
    assert_same(a, t.numpy(), strides=True)
    assert str(t) == "tensor([[1., 2., 3.],\n        [2., 1., 3.],\n        [2., 3., 5.],\n        [5., 6., 4.]])"
    assert str(a) == "[[1. 2. 3.]\n [2. 1. 3.]\n [2. 3. 5.]\n [5. 6. 4.]]"
    assert type(a) is np.ndarray
    assert_shares(a, t)


def test_tutorial_tensor_of_a_list_in_the_default_dtype() -> None:
    assert_same(nd.to_torch(ROWS, dtype=torch.get_default_dtype()), torch.Tensor(ROWS))
    assert_same(nd.to_torch(ROWS), torch.tensor(ROWS))


def test_tutorial_key_point_both_directions_share_memory() -> None:
    a = np.array(ROWS)
    t = nd.to_torch(a)
    back = nd.to_numpy(t)
    for x, y in ((a, t), (t, back), (a, back)):
        assert_shares(x, y)
        assert nd.shares_memory(x, y)
    assert nd.explain(a).shares
    assert nd.explain(t, to="numpy").shares


def test_tutorial_key_point_a_tensor_on_the_cpu_is_an_array_and_one_elsewhere_is_copied() -> None:
    t = torch.ones(3)
    assert_shares(nd.to_numpy(t, copy=False), t)
    elsewhere = replace(describe(t), device="cuda:0")
    assert why_copy(elsewhere, Options(to="numpy")) == "its memory is on cuda:0, where NumPy cannot reach"


def test_tutorial_key_point_a_tensor_without_values_says_what_to_call() -> None:
    t = torch.ones(3, device="meta")
    with pytest.raises(TypeError, match="meta"):
        t.numpy()
    with pytest.raises(nd.UnsupportedTypeError, match="a meta tensor has a shape but no values") as error:
        nd.to_numpy(t)
    assert "device='cpu'" in error.value.hint


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tutorial_key_point_a_tensor_on_the_gpu_needs_no_incantation() -> None:
    a = np.array(ROWS, dtype=np.float32)
    t = nd.to_torch(a, device="cuda")
    assert_same(t.cpu(), torch.from_numpy(a))
    with pytest.raises(TypeError, match="can't convert cuda"):
        t.numpy()
    back = nd.to_numpy(t)
    assert_same(back, t.cpu().numpy())
    assert_independent(a, back)
    with pytest.raises(nd.CopyRequiredError, match="where NumPy cannot reach"):
        nd.to_numpy(t, copy=False)
    with pytest.raises(nd.CopyRequiredError, match="was asked for and it is on cpu"):
        nd.to_torch(a, device="cuda", copy=False)


@pytest.mark.parametrize("code", "?bhilBHILefdFD")
def test_tutorial_key_point_data_types_are_preserved(code: str) -> None:
    a = np.array(ROWS).astype(code)
    t = nd.to_torch(a)
    assert_same(t, torch.from_numpy(a), strides=True)
    assert_same(nd.to_numpy(t), torch.from_numpy(a).numpy(), strides=True)
    assert_same(nd.to_numpy(t), a)
    assert_same(nd.to_torch(a, copy=True), torch.tensor(a))


# ---- "How to Convert a Numpy Array to Tensor?" ----


def test_approaches_torch_tensor_makes_an_independent_copy() -> None:
    numpy_array = np.array([1, 2, 3, 4, 5])
    tensor = nd.to_torch(numpy_array, copy=True)
    assert_same(tensor, torch.tensor(numpy_array))
    assert str(numpy_array) == "[1 2 3 4 5]"
    assert tensor.tolist() == [1, 2, 3, 4, 5]
    assert str(tensor.dtype) == f"torch.{numpy_array.dtype}"
    numpy_array[0] = 100
    assert tensor[0] == 1


def test_approaches_torch_from_numpy_follows_the_array() -> None:
    numpy_array = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    tensor = nd.to_torch(numpy_array)
    assert str(numpy_array) == "[1. 2. 3. 4. 5.]"
    assert str(tensor) == "tensor([1., 2., 3., 4., 5.], dtype=torch.float64)"
    numpy_array[0] = 100
    assert str(numpy_array) == "[100.   2.   3.   4.   5.]"
    assert str(tensor) == "tensor([100.,   2.,   3.,   4.,   5.], dtype=torch.float64)"
    tensor[1] = 200
    assert numpy_array[1] == 200


def test_approaches_multi_dimensional_arrays() -> None:
    numpy_2d = np.array([[1, 2, 3], [4, 5, 6]])
    tensor1 = nd.to_torch(numpy_2d, copy=True)
    tensor2 = nd.to_torch(numpy_2d)
    assert_same(tensor1, torch.tensor(numpy_2d), strides=True)
    assert_same(tensor2, torch.from_numpy(numpy_2d), strides=True)
    assert numpy_2d.shape == (2, 3)
    assert str(tensor1.shape) == str(tensor2.shape) == "torch.Size([2, 3])"
    assert tensor1.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert_independent(numpy_2d, tensor1)
    assert_shares(numpy_2d, tensor2)


@pytest.mark.parametrize("name", [name for name in ARRAYS if ARRAYS[name]().ndim > 1])
def test_approaches_multi_dimensional_views_keep_their_strides(name: str) -> None:
    array = ARRAYS[name]()
    for view in (array.T, array[1:], array[:, ::2], array[..., :1], array.swapaxes(0, 1)):
        tensor = nd.to_torch(view)
        assert_same(tensor, torch.from_numpy(view), strides=True)
        assert_shares(array, tensor)
        assert_same(nd.to_numpy(tensor), view, strides=True)
        assert_same(nd.to_torch(view, copy=True), torch.tensor(view))


def test_approaches_comparison_row_torch_tensor_copies_for_independent_operations() -> None:
    array = np.array([1.0, 2.0])
    plan = nd.explain(array, copy=True)
    assert (plan.shares, plan.reason, plan.nbytes_copied) == (False, "copy=True was asked for", array.nbytes)
    tensor = nd.to_torch(array, copy=True)
    tensor.mul_(10)
    assert array.tolist() == [1, 2]


def test_approaches_comparison_row_torch_from_numpy_shares_and_takes_no_memory() -> None:
    array = np.zeros(1000)
    plan = nd.explain(array)
    assert (plan.shares, plan.reason, plan.nbytes_copied) == (True, "", 0)
    with nd.trace() as seen:
        nd.to_torch(array)
    assert [(record.nbytes_shared, record.nbytes_copied) for record in seen] == [(8000, 0)]


# ---- "Converting Python NumPy Arrays to PyTorch Tensors" ----


def test_method_1_from_numpy() -> None:
    numpy_array = np.array([1, 2, 3])
    torch_tensor = nd.to_torch(numpy_array)
    assert_same(torch_tensor, torch.from_numpy(numpy_array))
    torch_tensor[0] = 9
    assert numpy_array[0] == 9
    numpy_array[1] = 8
    assert torch_tensor[1] == 8


def test_method_2_torch_tensor() -> None:
    numpy_array = np.array([4, 5, 6])
    torch_tensor = nd.to_torch(numpy_array, copy=True)
    assert_same(torch_tensor, torch.tensor(numpy_array))
    assert torch_tensor.tolist() == [4, 5, 6]
    torch_tensor[0] = 9
    numpy_array[1] = 8
    assert (numpy_array.tolist(), torch_tensor.tolist()) == ([4, 8, 6], [9, 5, 6])


def test_method_3_from_numpy_and_clone() -> None:
    numpy_array = np.array([7, 8, 9])
    torch_tensor = nd.to_torch(numpy_array).clone()
    assert_same(torch_tensor, torch.from_numpy(numpy_array).clone())
    assert_same(nd.to_torch(numpy_array, copy=True), torch_tensor)
    assert_independent(numpy_array, torch_tensor)


def test_method_4_numpy_in_reverse_and_back() -> None:
    tensor_a = torch.tensor([10.0, 11.0, 12.0])
    numpy_array = nd.to_numpy(tensor_a)
    numpy_array += 1
    tensor_b = nd.to_torch(numpy_array)
    assert str(tensor_b) == str(tensor_a) == "tensor([11., 12., 13.])"
    assert_same(tensor_b, torch.from_numpy(tensor_a.numpy()))
    assert_shares(tensor_a, tensor_b)
    assert_shares(tensor_a, numpy_array)


@pytest.mark.parametrize("name", ARRAYS)
def test_method_4_round_trip_from_either_side_is_the_same_memory(name: str) -> None:
    array = ARRAYS[name]()
    assert_same(nd.to_numpy(nd.to_torch(array)), array, strides=True)
    assert_shares(nd.to_numpy(nd.to_torch(array)), array)
    tensor = tensor_holding(array)
    assert_same(nd.to_torch(nd.to_numpy(tensor)), tensor, strides=True)
    assert_shares(nd.to_torch(nd.to_numpy(tensor)), tensor)


def test_method_5_cast_to_the_default_dtype() -> None:
    numpy_array = np.array([13, 14, 15], dtype=np.float32)
    torch_tensor = nd.to_torch(numpy_array, dtype=torch.get_default_dtype(), copy=True)
    assert_same(torch_tensor, torch.Tensor(numpy_array))
    assert str(torch_tensor) == "tensor([13., 14., 15.])"
    assert_independent(numpy_array, torch_tensor)


def test_method_5_assures_no_shared_memory_where_the_article_is_mistaken() -> None:
    """`torch.Tensor(array)` shares an array that has the default dtype already, as the article's own one does."""
    numpy_array = np.array([13, 14, 15], dtype=np.float32)
    original = torch.Tensor(numpy_array)
    original[0] = 0
    assert numpy_array[0] == 0, "torch.Tensor(array) copies now, as the article says: this test is out of date"
    torch_tensor = nd.to_torch(numpy_array, dtype=torch.get_default_dtype(), copy=True)
    torch_tensor[1] = 0
    assert numpy_array[1] == 14


@pytest.mark.parametrize("code", "?bhilBHILefd")
def test_method_5_casts_every_real_dtype_as_torch_does(code: str, default_dtype: torch.dtype) -> None:
    numpy_array = np.array([0, 1, 1]).astype(code)
    torch_tensor = nd.to_torch(numpy_array, dtype=torch.get_default_dtype(), copy=True)
    assert torch_tensor.dtype == default_dtype
    assert_same(torch_tensor, torch.Tensor(numpy_array))
    assert_independent(numpy_array, torch_tensor)


def test_method_5_conversion_errors_are_caught_when_exactness_is_asked_for() -> None:
    numpy_array = np.array([0.5, 0.1])
    assert_same(nd.to_torch(numpy_array, dtype=torch.float32, copy=True), torch.Tensor(numpy_array))
    with pytest.raises(nd.LossyCastError, match=r"index 1: 0\.1 would become"):
        nd.to_torch(numpy_array, dtype=torch.float32, copy=True, casting="exact")


# The summary, bullet by bullet: what may be modified without the other side noticing.
SUMMARY: dict[str, tuple[Callable[[np.ndarray], torch.Tensor], bool]] = {
    "1: from_numpy shares": (nd.to_torch, True),
    "2: torch.tensor isolates": (lambda a: nd.to_torch(a, copy=True), False),
    "3: clone isolates after sharing": (lambda a: nd.to_torch(a).clone(), False),
    "4: numpy in reverse stays linked": (lambda a: nd.to_torch(nd.to_numpy(nd.to_torch(a))), True),
    "5: casting isolates": (lambda a: nd.to_torch(a, dtype=torch.get_default_dtype(), copy=True), False),
}


@pytest.mark.parametrize("bullet", SUMMARY)
@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_summary_says_what_is_shared(bullet: str, dtype: type) -> None:
    convert, shares = SUMMARY[bullet]
    array = np.array([1, 2, 3], dtype)
    tensor = convert(array)
    (assert_shares if shares else assert_independent)(array, tensor)
    tensor[0] = 50
    array[1] = 60
    assert array.tolist() == ([50, 60, 3] if shares else [1, 60, 3])
    assert tensor.tolist() == ([50, 60, 3] if shares else [50, 2, 3])


def test_pixels_and_sensor_samples_of_the_problem_formulation() -> None:
    pixels = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
    samples = np.linspace(-1, 1, 5)
    batch = nd.to_torch({"pixels": pixels, "samples": samples})
    assert_same(batch, {"pixels": torch.from_numpy(pixels), "samples": torch.from_numpy(samples)})
    assert_shares(pixels, batch["pixels"])
    assert_shares(samples, batch["samples"])
    training = nd.to_torch({"pixels": pixels, "samples": samples}, float_dtype=torch.float32)
    assert_same(training, {"pixels": torch.from_numpy(pixels), "samples": torch.from_numpy(samples).float()})
