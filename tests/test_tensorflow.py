"""TensorFlow's tensors: immutable memory, shared read-only; never asked for what ends the process."""

from __future__ import annotations

import os
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from comparison import assert_independent, assert_same, tensor_holding

import ndtorch as nd

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf: Any = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

DTYPES = ["?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8", "c16", ml_dtypes.bfloat16]


def some(dtype: Any, shape: tuple[int, ...] = (3, 4)) -> np.ndarray:
    return np.asarray(np.random.default_rng(5).integers(0, 2, shape), np.float32).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 4), (), (0, 2)])
def test_tensor_of_every_dtype_comes_out_and_goes_back(dtype: Any, shape: tuple[int, ...]) -> None:
    values = some(dtype, shape)
    source = tf.constant(values)
    result = nd.to_torch(source)
    assert_same(result, tensor_holding(values))
    assert nd.explain(source).reason == ("it is read-only" if values.size else "")
    back = nd.to_numpy(result, like=source)
    assert isinstance(back, tf.Tensor)
    assert back.dtype == source.dtype
    assert_same(np.asarray(back.numpy()), values)


@pytest.mark.parametrize("dtype", ["f4", "?", ml_dtypes.bfloat16])
def test_memory_is_shared_at_the_callers_word_alone(dtype: Any) -> None:
    source = tf.constant(some(dtype))
    address = np.asarray(source).__array_interface__["data"][0]
    assert nd.to_torch(source, readonly="share").data_ptr() == address
    assert_independent(nd.to_torch(source), np.asarray(source))
    view = nd.to_numpy(source)
    assert (view.__array_interface__["data"][0], view.flags.writeable) == (address, False)
    assert "immutable" in nd.explain(source).notes[0]


def test_variable_gives_the_value_it_has_now() -> None:
    variable = tf.Variable([1.0, 2.0])
    result = nd.to_torch(variable, readonly="share")
    variable.assign_add([1.0, 1.0])
    assert_same(result, torch.tensor([1.0, 2.0]))
    assert "assigned later" in nd.explain(variable).notes[0]
    assert_same(nd.to_numpy(variable), np.array([2, 3], "f4"))


@pytest.mark.parametrize(
    ("make", "fact", "hint"),
    [
        (lambda: tf.constant(["a"]), "varying length", "tensor.numpy().astype('S')"),
        (lambda: tf.Variable(["a"]), "varying length", "tensor.numpy().astype('S')"),
        (lambda: tf.bitcast(tf.constant([1, 2], tf.int8), tf.qint8), "torch has no qint8", "tf.bitcast"),
        (lambda: tf.data.experimental.to_variant(tf.data.Dataset.range(3)), "no array of numbers", ""),
    ],
)
def test_what_has_no_numbers_is_refused_and_does_not_end_the_process(make: Any, fact: str, hint: str) -> None:
    with pytest.raises(nd.UnsupportedTypeError) as caught:
        nd.to_torch({"x": make()})
    assert fact in caught.value.fact
    assert hint in caught.value.hint
    assert nd.explain(make()).error is not None


def test_symbolic_tensor_is_refused() -> None:
    @tf.function
    def function(x: Any) -> Any:
        with pytest.raises(nd.UnsupportedTypeError, match="stands for a tensor inside tf"):
            nd.to_torch(x)
        return x

    function(tf.constant([1.0]))


def test_ragged_tensor_becomes_a_list() -> None:
    assert_same(nd.to_torch(tf.ragged.constant([[1.0], [], [2.0, 3.0]])), [torch.ones(1), torch.empty(0), THREE[1:]])
    nested = nd.to_torch(tf.ragged.constant([[[1], []], [[2, 3]]], dtype=tf.int64))
    empty = torch.empty(0, dtype=torch.int64)
    assert_same(nested, [[torch.tensor([1]), empty], [torch.tensor([2, 3])]])


THREE = torch.tensor([1.0, 2.0, 3.0])


def test_sparse_tensor_becomes_a_sparse_tensor() -> None:
    dense = np.array([[0, 1.5], [2.5, 0]], "f4")
    result = nd.to_torch(tf.sparse.from_dense(dense))
    assert result.layout is torch.sparse_coo
    assert_same(result.to_dense(), torch.from_numpy(dense))
    with pytest.raises(nd.LossyCastError):
        nd.to_torch(tf.sparse.from_dense(dense), dtype="int32")
