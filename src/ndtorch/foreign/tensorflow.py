"""TensorFlow's tensors: immutable memory, shared read-only; ragged and sparse ones part by part."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from .._dtypes import from_numpy_dtype
from .forms import Foreign, Inner, Memory, Parts, Refused, Restore, ragged
from .protocols import from_dlpack

AnyArray = npt.NDArray[Any]

_NOTE = "TensorFlow's tensors are immutable: others may share their memory and do not expect it to change"


def take(source: Any, inner: Inner) -> Foreign:
    """Take a tensor or the value of a variable: on the CPU its own memory, which must not be written.

    Asked through DLPack, TensorFlow ends the process where the dtype is text, so nobody asks for that.
    """
    tf: Any = sys.modules["tensorflow"]
    text, shape = source.dtype.name, tuple(source.shape) if source.shape.rank is not None else ()
    if not hasattr(source, "numpy") or tf.is_symbolic_tensor(source):
        fact = f"a {type(source).__name__} stands for a tensor inside tf.function, and has no values yet"
        return Refused("tensorflow", text, shape, fact, "convert outside of tf.function, or within tf.py_function")
    if source.dtype == tf.string:
        fact, hint = "text of varying length has no tensor form", "tensor.numpy().astype('S') gives its bytes"
        return Refused("tensorflow", text, shape, fact, hint)
    if source.dtype in (tf.resource, tf.variant):
        fact, hint = f"a {text} is no array of numbers", "convert the tensors that it holds"
        return Refused("tensorflow", text, shape, fact, hint)
    if source.dtype.is_quantized or from_numpy_dtype(np.dtype(source.dtype.as_numpy_dtype)) is None:
        fact, hint = f"torch has no {text}", "tf.cast(tensor, tf.int32), or tf.bitcast for quantized ones"
        return Refused("tensorflow", text, shape, fact, hint)
    note = _NOTE
    if isinstance(source, tf.Variable):
        source, note = source.value(), "the value that the variable has now: what is assigned later is not seen"
    if "CPU" not in source.device.upper():
        return from_dlpack(source, "tensorflow")
    array = np.asarray(source if shape else source.numpy()).view()  # bfloat16 without dimensions is no array for it
    array.flags.writeable = False
    return Memory("tensorflow", array, note=note)


def take_ragged(source: Any, inner: Inner) -> Foreign:
    """Take a ragged tensor: all its values, and where each row begins and ends in them."""
    text = f"ragged {source.dtype.name}"
    if not hasattr(source, "numpy") or not hasattr(source.row_splits, "numpy"):
        return Refused("tensorflow", text, (), "it has no values inside tf.function", "convert outside of tf.function")
    return ragged("tensorflow", text, inner(source.values), np.asarray(source.row_splits))


def take_sparse(source: Any, inner: Inner) -> Foreign:
    """Take a sparse tensor: its values and their coordinates."""
    indices = inner(source.indices)
    shape = tuple(int(n) for n in source.shape) if source.shape.is_fully_defined() else ()
    text = f"coo {source.dtype.name}"
    if not isinstance(indices, Memory) or not isinstance(indices.array, np.ndarray):
        fact = "its indices are not in the CPU's memory"
        return Refused("tensorflow", text, shape, fact, "tf.sparse.to_dense(tensor) gives a plain tensor")
    parts = {".coords": Memory("tensorflow", indices.array.T), ".data": inner(source.values)}
    return Parts("tensorflow", "sparse", text, shape, parts, layout="coo", original=source)


def restore(source: Any, like: Any, inner: Restore) -> Any:
    """Give an array the class and dtype of a TensorFlow tensor.

    Memory:
        Always copied: TensorFlow takes memory for immutable, and a tensor's can be written.
    """
    tf: Any = sys.modules["tensorflow"]
    array = inner(source, np.empty((0,), like.dtype.as_numpy_dtype))
    with tf.device(like.device):
        return tf.constant(array, dtype=like.dtype)


def wrap(array: AnyArray, like: Any) -> Any:
    """Make a tensor of an array, in the array's own dtype."""
    return sys.modules["tensorflow"].constant(array)
