"""torch.compile, torch.export and the modes and transforms under which torch runs other code than is written.

What a compiled function returns, writes and raises is compared with the same function uncompiled, and its graph breaks
with those of torch's own conversions. No backend here needs a C++ compiler.
"""

from __future__ import annotations

import contextlib
import copy
import os
import subprocess
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo
from comparison import assert_independent, assert_same, assert_shares
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

import ndtorch as nd
from ndtorch import _compile
from ndtorch._doctor import check_compile

A = np.arange(3.0)
FROZEN = np.arange(3.0)
FROZEN.flags.writeable = False
T = torch.arange(3.0)


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(function: Callable[..., Any], backend: Any = "eager", **options: Any) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, **options)


def graph_breaks(function: Callable[..., Any], *args: Any) -> int:
    torch._dynamo.reset()
    return torch._dynamo.explain(function)(*args).graph_break_count


def frozen() -> np.ndarray:
    array = np.arange(3.0)
    array.flags.writeable = False
    return array


def outcome(function: Callable[..., Any], *args: Any) -> Any:
    """What a call returns or raises."""
    try:
        return function(*args)
    except (nd.NdtorchError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def assert_same_outcome(function: Callable[..., Any], make: Callable[[], Any], backend: str, **options: Any) -> None:
    """Results and arguments are those of the uncompiled function, in the first call and in the next."""
    there, here = compiled(function, backend, **options), function
    argument, expected = make(), make()
    for _ in range(2):
        assert_same(outcome(there, argument), outcome(here, expected), strides=True)
        assert_same(argument, expected)


# ---- the graph ----

PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any], Any]] = {
    "array to tensor": (lambda a: torch.from_numpy(a) + 1, lambda a: nd.to_torch(a) + 1, A),
    "dtype=": (
        lambda a: torch.as_tensor(a, dtype=torch.float32) + 1,
        lambda a: nd.to_torch(a, dtype=torch.float32) + 1,
        A,
    ),
    "copy=": (lambda a: torch.asarray(a, copy=True) + 1, lambda a: nd.to_torch(a, copy=True) + 1, A),
    "global array": (lambda t: torch.from_numpy(A) * t, lambda t: nd.to_torch(A) * t, T),
    "tensor to array": (lambda t: (t + 1).numpy(), lambda t: nd.to_numpy(t + 1), T),
    "there and back": (lambda a: (torch.from_numpy(a) + 1).numpy(), lambda a: nd.to_numpy(nd.to_torch(a) + 1), A),
    "back and there": (
        lambda t: torch.from_numpy((t + 1).numpy()) * 2,
        lambda t: nd.to_torch(nd.to_numpy(t + 1)) * 2,
        T,
    ),
    "dict": (
        lambda d: {key: torch.from_numpy(a) for key, a in d.items()}["x"] + 1,
        lambda d: nd.to_torch(d)["x"] + 1,
        {"x": A, "y": A},
    ),
    "float_dtype= of a dict": (
        lambda d: {key: torch.from_numpy(a).float() for key, a in d.items()}["x"] + 1,
        lambda d: nd.to_torch(d, float_dtype="float32")["x"] + 1,
        {"x": A, "y": A},
    ),
    "list": (lambda s: [torch.from_numpy(a) for a in s][1] + 1, lambda s: nd.to_torch(s)[1] + 1, [A, A]),
    "tuple back": (lambda t: tuple(x.numpy() for x in (t, t + 1)), lambda t: nd.to_numpy((t, t + 1)), T),
    "numbers": (lambda t: torch.tensor([1.0, 2.0, 3.0]) * t, lambda t: nd.to_torch([1.0, 2.0, 3.0]) * t, T),
}


@pytest.mark.parametrize("case", PAIRS)
def test_conversion_breaks_the_graph_no_more_often_than_that_of_torch(case):
    plain, ours, argument = PAIRS[case]
    assert graph_breaks(ours, argument) <= graph_breaks(plain, argument)
    counter, plain_counter = CompileCounter(), CompileCounter()
    result = compiled(ours, counter, fullgraph=True)(argument)
    assert_same(result, compiled(plain, plain_counter, fullgraph=True)(argument))
    assert_same(result, ours(argument))
    assert counter.frame_count == plain_counter.frame_count == 1


def test_functions_that_need_the_arrays_themselves_run_outside_the_graph():
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for function, argument in (
        (lambda a: nd.stack([a, a]) + 1, A),
        (lambda a: nd.collate([{"x": a}, {"x": a}])["x"] + 1, A),
        (lambda p: nd.image_to_torch(p) * 2, picture),
        (lambda a: torch.tensor(nd.shares_memory(a, a)) * 2, A),
        (lambda a: torch.tensor(nd.explain(a).shares) * 2, A),
    ):
        counter = CompileCounter()
        assert_same(compiled(function, counter)(argument), function(argument))
        assert counter.frame_count <= 1, "a frame of ndtorch was compiled"


def test_reason_of_a_graph_break_can_be_read():
    with pytest.raises(torch._dynamo.exc.Unsupported, match="ndtorch needs the arrays or tensors themselves"):
        compiled(lambda a: nd.to_torch(a, casting="unsafe", dtype="int8"), fullgraph=True)(A)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="ndtorch copies read-only arrays"):
        compiled(lambda a: nd.to_torch(a), fullgraph=True)(frozen())


def test_trace_sees_the_conversions_of_a_compiled_function():
    there = compiled(lambda a: nd.to_numpy(nd.to_torch(a, copy=True) + 1))
    expected = there(A)
    with nd.trace() as seen:
        assert_same(there(A), expected)
    assert [record.shared for record in seen] == [False, True]
    with nd.trace(forbid_copies=True), pytest.raises(nd.CopyRequiredError):
        there(A)
    assert_same(there(A), expected)


# ---- results ----


def _writes_tensor(a: np.ndarray) -> Any:
    nd.to_torch(a).add_(1)
    return a * 1


def _writes_array(a: np.ndarray) -> Any:
    t = nd.to_torch(a)
    a[0] = 7
    return t * 1


def _writes_one_of_two(a: np.ndarray) -> Any:
    one, two = nd.to_torch(a), nd.to_torch(a)
    two[0] = 9
    return one + 1


def _writes_copy(a: np.ndarray) -> Any:
    t = nd.to_torch(a, copy=True)
    t[0] = 9
    return t + 1


def _writes_array_of_tensor(t: torch.Tensor) -> Any:
    a = nd.to_numpy(t)
    a[0] = 7
    return t * 2


def _writes_copy_of_tensor(t: torch.Tensor) -> Any:
    a = nd.to_numpy(t, copy=True)
    a[0] = 7
    return t * 2


def _changes_tensor_after(t: torch.Tensor) -> Any:
    a = nd.to_numpy(t)
    t.add_(1)
    return a


def _uses_bfloat16(t: torch.Tensor) -> Any:
    return nd.to_numpy(t.bfloat16()).astype("float32") + 1


def _uses_protected(t: torch.Tensor) -> Any:
    return nd.to_numpy(t * 2) + 1


def _uses_expanded(t: torch.Tensor) -> Any:
    return nd.to_numpy(t[:1].expand(4)) + 1


BATCH = {
    "x": np.zeros(2),
    "label": np.arange(2),
    "name": "digits",
    "step": 3,
    "none": None,
    "numbers": [1, 2.0],
    "nothing": [],
    "tensor": torch.ones(1),
    "inner": {"pair": (np.ones(1), np.zeros((1, 2), np.int16))},
}

# A function and what to call it with; arguments are copied for each call.
CASES: dict[str, tuple[Callable[[Any], Any], Any]] = {
    "write to the tensor": (_writes_tensor, A),
    "write to the array": (_writes_array, A),
    "write to one of two tensors": (_writes_one_of_two, A),
    "write to a copy": (_writes_copy, A),
    "write to the array of a tensor": (_writes_array_of_tensor, T),
    "write to a copy of a tensor": (_writes_copy_of_tensor, T),
    "write to the tensor of an array": (_changes_tensor_after, T),
    "batch": (nd.to_torch, BATCH),
    "floats of a batch": (lambda d: nd.to_torch(d, float_dtype="float32"), BATCH),
    "batch back": (nd.to_numpy, {"x": T, "list": [T], "name": "digits", "array": A, "none": None}),
    "list with a number": (nd.to_torch, [A, 3.0]),
    "list of NumPy scalars": (nd.to_torch, [np.float32(1), np.float32(2)]),
    "scalars made inside": (lambda a: nd.to_torch([a.sum(), a.max()]), A),
    "scalar made inside": (lambda a: nd.to_torch(a.sum()), A),
    "nested numbers": (nd.to_torch, [[1, 2], [3, 4]]),
    "ragged numbers": (nd.to_torch, [[1, 2], [3]]),
    "text": (nd.to_torch, "text"),
    "None": (nd.to_torch, None),
    "0-d": (lambda a: nd.to_torch(a).add_(1), np.array(3.0)),
    "empty": (nd.to_torch, np.ones((0, 3))),
    "negative strides": (lambda a: nd.to_torch(a) + 1, A[::-1]),
    "byte-swapped": (lambda a: nd.to_torch(a) + 1, A.astype(">f8")),
    "datetime": (lambda a: nd.to_torch(a) + 1, np.array(["2020-01-01"], "datetime64[D]")),
    "text array": (lambda a: nd.to_torch(a) + 1, np.array(["ab"])),
    "structured": (nd.to_torch, np.zeros(2, [("a", "f4")])),
    "masked": (lambda a: nd.to_torch(a, masked="split").data + 1, np.ma.masked_equal(A, 1)),
    "objects": (nd.to_torch, np.array([1, 2.5], object)),
    "uint64": (lambda a: nd.to_torch(a, dtype="float32"), np.array([2**63 + 5], np.uint64)),
    "integers cast": (lambda a: nd.to_torch(a, dtype=np.float32), np.array([2**24 + 1, -3])),
    "extremes cast": (lambda a: nd.to_torch(a, float_dtype="float32"), np.array([1e300, -0.0, 1e-320, np.nan])),
    "bfloat16 cast": (lambda a: nd.to_torch(a, dtype="bfloat16"), A),
    "complex cast": (lambda a: nd.to_torch(a, float_dtype="float32"), np.array([1.5 + 2j])),
    "exact cast": (lambda a: nd.to_torch(a, dtype="float32", casting="exact"), np.array([0.1])),
    "strides kept": (nd.to_torch, np.asfortranarray(np.ones((2, 3)))),
    "strides of a copy": (lambda a: nd.to_torch(a, copy=True), np.asfortranarray(np.ones((2, 3)))),
    "strides of a cast": (lambda a: nd.to_torch(a, dtype="float32"), np.asfortranarray(np.ones((2, 3)))),
    "copy forbidden": (lambda a: nd.to_torch(a, copy=False), A[::-1]),
    "like=": (lambda a: nd.to_numpy(nd.to_torch(a), like=a), np.array(["2020-01-01"], "datetime64[D]")),
    "bfloat16": (_uses_bfloat16, T),
    "conjugate": (lambda t: nd.to_numpy((t + 1j).conj()), T),
    "negative": (lambda t: nd.to_numpy((t + 1j).conj().imag), T),
    "expanded": (_uses_expanded, T),
    "needs grad": (_uses_protected, torch.ones(3, requires_grad=True)),
    "parameter without grad": (nd.to_numpy, torch.nn.Parameter(torch.ones(3), requires_grad=False)),
    "meta": (lambda t: nd.to_numpy(t.to("meta")), T),
    "sparse": (lambda t: nd.to_numpy(t.to_sparse()).toarray(), T),
    "wrong cast": (lambda a: nd.to_torch(a, dtype="int32"), A),
    "wrong value": (lambda a: nd.to_torch(a, copy="no"), A),
    "wrong keyword": (lambda a: nd.to_torch(a, speed=1), A),
    "two dtypes": (lambda a: nd.to_torch(a, dtype="float32", float_dtype="float32"), A),
}


@pytest.mark.parametrize("case", CASES)
def test_compiled_function_returns_writes_and_raises_what_the_function_does(case):
    function, argument = CASES[case]
    assert_same_outcome(function, lambda: copy.deepcopy(argument), "eager")


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_compiled_function_does_so_behind_aot_autograd_and_with_dynamic_shapes(case, dynamic):
    function, argument = CASES[case]
    assert_same_outcome(function, lambda: copy.deepcopy(argument), "aot_eager", dynamic=dynamic)


def test_tensor_from_a_compiled_function_shares_the_memory_of_the_array():
    array, tensor = A.copy(), T.clone()
    assert_shares(compiled(nd.to_torch)(array), array)
    assert_shares(compiled(lambda d: nd.to_torch(d))({"x": array})["x"], array)
    assert_shares(compiled(nd.to_numpy)(tensor), tensor)
    assert_independent(compiled(lambda a: nd.to_torch(a, copy=True))(array), array)
    assert_independent(compiled(lambda t: nd.to_numpy(t, copy=True))(tensor), tensor)


def test_other_shapes_and_dtypes_are_compiled_anew_and_right():
    function = compiled(lambda a: nd.to_torch(a) * 2)
    for array in (A, np.ones((2, 2)), np.arange(4, dtype=np.int16), np.array([True]), A.astype(np.float16)):
        assert_same(function(array), nd.to_torch(array) * 2)


def test_gradients_flow_through_what_lies_beside_a_conversion():
    weight = torch.ones(3, requires_grad=True)
    compiled(lambda w: (w * nd.to_torch(FROZEN.copy()).float() * nd.to_torch(w)).sum(), "aot_eager")(weight).backward()
    assert_same(weight.grad, 2 * torch.arange(3.0))


# ---- memory that is not ours to write ----


def _adds(a: np.ndarray) -> Any:
    return nd.to_torch(a).add_(1)


def _adds_later(a: np.ndarray) -> Any:
    total = a.sum()
    return nd.to_torch(a).add_(1) + total


def _adds_in_dict(a: np.ndarray) -> Any:
    return nd.to_torch({"x": [a]}, casting="exact")["x"][0].add_(1)


def _adds_in_helper(a: np.ndarray) -> Any:
    return _adds(a) * 2


@pytest.mark.parametrize("function", [_adds, _adds_later, _adds_in_dict, _adds_in_helper])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_read_only_array_is_neither_written_nor_made_writable(function, backend):
    expected, there = function(frozen()), compiled(function, backend)
    for array in (frozen(), np.arange(3.0), frozen()):  # each a new call of the same compiled function
        is_writable, before = array.flags.writeable, array.copy()
        assert_same(there(array), expected)
        assert array.flags.writeable == is_writable
        if not is_writable:
            assert_same(array, before)


def test_function_that_was_compiled_for_writable_arrays_spares_a_read_only_one():
    there, writable, spared = compiled(_adds), np.arange(3.0), frozen()
    assert_shares(there(writable), writable)
    assert_same(writable, np.arange(3.0) + 1)
    assert_same(there(spared), torch.arange(3.0, dtype=torch.float64) + 1)
    assert_same(spared, np.arange(3.0))


def test_read_only_memory_that_dynamo_cannot_make_writable_is_copied(tmp_path):
    constant = np.frombuffer(b"\1\2\3", np.uint8)
    assert_same(compiled(_adds)(constant), torch.tensor([2, 3, 4], dtype=torch.uint8))
    np.save(tmp_path / "a.npy", np.arange(3.0))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    assert_same(compiled(_adds)(mapped), torch.arange(3.0, dtype=torch.float64) + 1)
    assert_same(np.load(tmp_path / "a.npy"), np.arange(3.0))
    assert_same(compiled(_adds)(np.broadcast_to(np.array([1.0]), (2, 1))[0]), torch.tensor([2.0], dtype=torch.float64))


@pytest.mark.parametrize("words", [{"copy": False}, {"readonly": "error"}])
def test_read_only_array_is_refused_where_it_would_be(words):
    with pytest.raises(nd.CopyRequiredError, match="read-only"):
        compiled(lambda a: nd.to_torch(a, **words))(frozen())


def test_array_over_a_tensor_that_requires_grad_is_read_only():
    weight = torch.ones(3, requires_grad=True)
    array = compiled(lambda w: nd.to_numpy(w))(weight)
    assert not array.flags.writeable
    assert_shares(array, weight)
    with pytest.raises(ValueError, match="read-only"):
        compiled(_writes_array_of_tensor)(weight)


# ---- modes ----


@contextlib.contextmanager
def _default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], Any]] = {
    "torch.device": lambda: torch.device("meta"),
    "set_default_device": _default_device,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu"),
    "deterministic": _deterministic,
}


def _sum_of_parts(d: dict[str, Any]) -> Any:
    batch = nd.to_torch(d)
    return nd.to_numpy(batch["x"] + batch["t"] + nd.to_torch([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "inference_mode"])
def test_result_is_the_same_in_every_mode_around_the_compiled_function(mode):
    parts, expected = {"x": A, "t": T}, A + A + [1, 2, 3]
    with MODES[mode]():
        assert_same(_sum_of_parts(parts), expected)
        result = compiled(_sum_of_parts)(parts)
    assert_same(result, expected)


@pytest.mark.parametrize("mode", MODES)
def test_result_is_the_same_in_every_mode_inside_the_compiled_function(mode):
    def function(array: np.ndarray, tensor: torch.Tensor) -> Any:
        with MODES[mode]():
            return nd.to_torch(array) * 2, nd.to_numpy(tensor * 2), nd.to_torch([1.5])

    expected = (torch.from_numpy(A) * 2, (T * 2).numpy(), torch.tensor([1.5]))
    assert_same(compiled(function)(A, T), expected)


def test_array_in_inference_mode_is_right_where_torch_can_take_it():
    """Dynamo fails its own guard on any array that a function is given there; tensors go through."""

    def result_or_bug(function: Callable[..., Any]) -> Any:
        try:
            return compiled(function)(A)
        except AssertionError as error:
            return str(error).split(".")[0]

    with torch.inference_mode():
        assert_same(result_or_bug(lambda a: nd.to_torch(a) + 1), result_or_bug(lambda a: torch.from_numpy(a) + 1))
        assert_same(compiled(lambda t: nd.to_numpy(t + 1))(T), (T + 1).numpy())


FAKED: dict[str, Any] = {
    "array": A,
    "read-only": FROZEN,
    "reversed": A[::-1],
    "list": [A, A],
    "dict": {"x": A},
    "numbers": [1.0, 2.0],
    "text": np.array(["a"]),
    "structured": np.zeros(2, [("a", "f4"), ("b", "i8")]),
    "broadcast": np.broadcast_to(A[:1], (2, 1)),
}


@pytest.mark.parametrize("case", FAKED)
def test_fake_mode_gets_fake_tensors_of_the_real_shapes_and_dtypes(case):
    real = nd.to_torch(FAKED[case])
    with FakeTensorMode():
        fake = nd.to_torch(FAKED[case])
    facts = [[(x.shape, x.dtype, x.device) for x in torch.utils._pytree.tree_leaves(tree)] for tree in (real, fake)]
    assert facts[0] == facts[1]
    assert {type(x).__name__ for x in torch.utils._pytree.tree_leaves(fake)} == {"FakeTensor"}


@pytest.mark.parametrize("words", [{}, {"copy": True}, {"dtype": "float64"}])
def test_fake_mode_has_no_values_for_an_array(words):
    with FakeTensorMode():
        with pytest.raises(nd.UnsupportedTypeError, match="a fake tensor has a shape but no values"):
            nd.to_numpy(torch.ones(2), **words)
        with pytest.raises(nd.UnsupportedTypeError, match="FakeTensorMode lets nobody read a real tensor"):
            nd.to_numpy(T, **words)
        with pytest.raises(nd.UnsupportedDtypeError, match="torch cannot copy"):
            nd.to_torch(T, dtype="float64")


# ---- transforms ----

TRANSFORMS: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "vmap": lambda f: torch.vmap(f)(torch.ones(2, 3, dtype=torch.float64)),
    "grad": lambda f: torch.func.grad(lambda x: f(x).sum())(torch.ones(3, dtype=torch.float64)),
    "jacrev": lambda f: torch.func.jacrev(f)(torch.ones(3, dtype=torch.float64)),
    "functionalize": lambda f: torch.func.functionalize(f)(torch.ones(3, dtype=torch.float64)),
    "vmap of grad": lambda f: torch.vmap(torch.func.grad(lambda x: f(x).sum()))(torch.ones(2, 3).double()),
}
CONSTANTS: dict[str, Callable[[], Any]] = {
    "array": lambda: nd.to_torch(A),
    "read-only": lambda: nd.to_torch(FROZEN),
    "reversed": lambda: nd.to_torch(A[::-1].copy()[::-1]),
    "cast": lambda: nd.to_torch(np.arange(3), dtype="float64"),
    "list": lambda: nd.to_torch([A])[0],
    "dict": lambda: nd.to_torch({"x": A})["x"],
}


@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_constant_array_can_be_converted_inside_a_transform(transform, constant):
    make, run = CONSTANTS[constant], TRANSFORMS[transform]
    assert_same(run(lambda x: x * make()), run(lambda x: x * torch.arange(3.0).double()))


@pytest.mark.parametrize("constant", ["array", "read-only", "cast", "list"])
@pytest.mark.parametrize("transform", [transform for transform in TRANSFORMS if "vmap" not in transform])
def test_converted_constant_can_be_written_inside_a_transform_as_one_of_torch_can(transform, constant, monkeypatch):
    monkeypatch.setitem(globals(), "A", A.copy())
    make, run = CONSTANTS[constant], TRANSFORMS[transform]
    assert_same(run(lambda x: make().mul_(x)), run(lambda x: torch.from_numpy(np.arange(3.0)).mul_(x)))


@pytest.mark.parametrize("words", [{}, {"copy": True}, {"dtype": "float32"}])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transformed_tensor_is_no_array(transform, words):
    with pytest.raises(nd.UnsupportedTypeError, match="inside vmap, grad or functionalize stands for another"):
        TRANSFORMS[transform](lambda x: torch.from_numpy(nd.to_numpy(x, **words)))


@pytest.mark.parametrize("transform", ["vmap", "grad"])
def test_compiled_transform_takes_constants_and_is_right_about_arrays(transform):
    run = TRANSFORMS[transform]
    expected = run(lambda x: x * torch.arange(3.0).double())
    assert_same(compiled(lambda: run(lambda x: x * nd.to_torch(A)))(), expected)
    there = compiled(lambda: run(lambda x: nd.to_torch(nd.to_numpy(x)) * 2))
    if transform == "vmap":
        assert_same(there(), torch.full((2, 3), 2.0, dtype=torch.float64))
    else:  # an array has no derivative
        with pytest.raises(nd.UnsupportedTypeError, match="stands for another"):
            there()


# ---- export ----


class Module(torch.nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function, self.array, self.weight = function, A.copy(), torch.nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def exported(function: Callable[..., Any], *, strict: bool) -> Any:
    program = torch.export.export(Module(function), (torch.zeros(3),), strict=strict)
    return program.module()(torch.ones(3))


@pytest.mark.parametrize(
    "function",
    [
        lambda module, x: x + nd.to_torch(module.array),
        lambda module, x: x + nd.to_torch(FROZEN),
        lambda module, x: x + nd.to_torch({"x": module.array[::-1]}, float_dtype="float32")["x"].flip(0),
        lambda module, x: nd.to_torch(module.array, copy=True).add_(x),
    ],
)
def test_exported_module_keeps_constant_arrays(function):
    result = exported(function, strict=False)
    assert_same(result, (torch.ones(3) + torch.arange(3.0)).to(result.dtype))


@pytest.mark.parametrize("function", [lambda m, x: nd.to_numpy(x + 1), lambda m, x: nd.to_numpy(m.weight)])
def test_module_that_makes_arrays_cannot_be_exported_and_says_why(function):
    with pytest.raises(nd.UnsupportedTypeError, match="a fake tensor has a shape but no values"):
        exported(function, strict=False)


def test_strict_export_traces_or_says_why_not():
    round_trip = exported(lambda module, x: nd.to_torch(nd.to_numpy(x + 1)) * 2, strict=True)
    assert_same(round_trip, torch.full((3,), 4.0))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="would lose the values of the array: strict=False"):
        exported(lambda module, x: x + nd.to_torch(module.array), strict=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="ndtorch makes a read-only array"):
        exported(lambda module, x: nd.to_torch(nd.to_numpy(module.weight)) * x, strict=True)


# ---- registration ----


def run_python(code: str, **env: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


USE = """
import numpy as np
f = lambda a: nd.to_torch(a, float_dtype="float32") + 1
assert torch.compile(f, backend="eager", fullgraph=FULL)(np.arange(3.0)).tolist() == [1, 2, 3]
check = next(check for check in nd.doctor().checks if check.name == "torch.compile")
print(check.status, check.fact)
"""


@pytest.mark.once
@pytest.mark.slow
def test_dynamo_is_not_imported_with_ndtorch_and_registered_with_when_it_is():
    code = """
import importlib.util, sys, torch, ndtorch as nd
assert "torch._dynamo" not in sys.modules and "ndtorch._polyfills" not in sys.modules
found = importlib.util.find_spec("torch.nn"), sys.meta_path[0]
import torch._dynamo
assert type(found[1]).__name__ == "_DynamoFinder" and found[1] not in sys.meta_path
loader = torch._dynamo.__spec__.loader
assert loader is torch._dynamo.__loader__ and type(loader) is type(torch.nn.__spec__.loader)
"""
    assert run_python(code + USE.replace("FULL", "True")) == "ok traces to_torch and to_numpy"


@pytest.mark.once
@pytest.mark.slow
@pytest.mark.parametrize("setting", ["0", "1"])
def test_dynamo_that_was_imported_before_is_registered_with_at_once(setting):
    code = "import sys, torch, torch._dynamo, ndtorch as nd; assert 'ndtorch._polyfills' in sys.modules"
    assert run_python(code + USE.replace("FULL", "True"), NDTORCH_FAST=setting) == "ok traces to_torch and to_numpy"


@pytest.mark.slow
def test_torch_that_cannot_be_registered_with_breaks_its_graph_and_gives_the_same():
    code = """
import sys, torch, warnings, ndtorch as nd
warnings.simplefilter("ignore")  # dynamo's, about a builtin that it does not know
sys.modules["ndtorch._polyfills"] = None
import torch._dynamo
"""
    printed = run_python(code + USE.replace("FULL", "False"))
    assert printed.startswith("warn breaks its graph at to_torch and to_numpy: ModuleNotFoundError: ")


class _Recorder:
    def __init__(self) -> None:
        self.ran: list[str] = []

    def create_module(self, spec: Any) -> None:
        self.ran.append("create")

    def exec_module(self, module: Any) -> None:
        assert module.__loader__ is module.__spec__.loader is self, "the module sees the loader that stands in"
        self.ran.append("exec")


def test_finder_leaves_the_loader_as_it_found_it(monkeypatch):
    recorder, finder = _Recorder(), _compile._DynamoFinder()
    spec = types.SimpleNamespace(loader=recorder)
    other = types.SimpleNamespace(find_spec=lambda *args: spec)
    monkeypatch.setattr(sys, "meta_path", [finder, object(), other, PathFinder])
    monkeypatch.setattr(_compile, "_register", lambda: recorder.ran.append("register"))
    assert finder.find_spec("torch", None) is None
    assert finder.find_spec("torch._dynamo", None) is spec
    assert _compile.is_waiting()
    module = types.SimpleNamespace(__spec__=spec, __loader__=spec.loader)
    spec.loader.create_module(spec)
    spec.loader.exec_module(module)
    assert recorder.ran == ["create", "exec", "register"]
    assert not _compile.is_waiting()


def test_import_of_dynamo_that_fails_leaves_the_finder_waiting(monkeypatch):
    finder = _compile._DynamoFinder()
    spec = types.SimpleNamespace(loader=None)
    monkeypatch.setattr(sys, "meta_path", [finder])
    assert finder.find_spec("torch._dynamo", None) is None
    monkeypatch.setattr(sys, "meta_path", [finder, types.SimpleNamespace(find_spec=lambda *args: spec)])
    assert finder.find_spec("torch._dynamo", None) is spec
    assert _compile.is_waiting()


def test_doctor_tells_tracing_from_graph_breaks():
    assert check_compile("", False).status == check_compile("", True).status == "ok"
    assert "once torch._dynamo is imported" in check_compile("", True).fact
    broken = check_compile("ImportError: no comptime", False)
    assert broken.status == "warn"
    assert "ImportError: no comptime" in broken.fact


def test_conversion_outside_of_torch_compile_knows_nothing_of_all_this():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_shares(nd.to_torch(A), A)
        assert not nd.to_numpy(torch.ones(1).expand(2)).flags.writeable
