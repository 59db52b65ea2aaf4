"""Gradients through NumPy functions: right by gradcheck, refused where there are none, never lost."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_independent, assert_same
from torch.autograd import forward_ad, gradcheck

import ndtorch as nd


def square() -> Any:
    return nd.torch_io(np.square, vjp=lambda grad, output, x: 2 * x * grad)


def needing_grad(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, dtype=dtype, requires_grad=True)


# ---- without a gradient ----


def test_a_tensor_that_requires_grad_is_refused_by_name():
    @nd.torch_io
    def function(n, tree, *, weight=None): ...

    x = needing_grad(2)
    for call, path in (
        (lambda: function(1, {"x": [x]}), "tree['x'][0]"),
        (lambda: function(torch.ones(1), x), "tree"),
        (lambda: function(1, 2, weight=x), "weight"),
        (lambda: nd.torch_io(map)(1, x), "args[1]"),
    ):
        with pytest.raises(nd.UnsupportedTypeError, match="requires grad") as refused:
            call()
        assert str(refused.value).endswith("Hint: vjp=... gives the function a gradient, torch.no_grad() goes without.")
        assert refused.value.path == path
        assert f": {path} requires grad" in str(refused.value)


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode_a_tensor_that_requires_grad_is_an_array_like_any_other(quiet):
    x = needing_grad(3)
    with quiet():
        assert_same(nd.torch_io(np.square)(x), x.square().clone())
        assert_same(square()(x), x.square().clone())
        assert nd.torch_io(lambda x: x)(x) is x


def test_a_write_into_a_tensor_that_requires_grad_fails_with_its_name():
    def function(x, scale):
        x *= scale
        return x

    x = needing_grad(3)
    before = x.detach().clone()
    with torch.no_grad(), pytest.raises(ValueError, match="read-only") as refused:
        nd.torch_io(function)(x, 2.0)
    assert refused.value.__notes__[0].startswith("torch_io(function): the array of x is read-only")
    with pytest.raises(ValueError, match="read-only") as refused:
        nd.torch_io(function, vjp=lambda *a: None)(x, 2.0)
    assert refused.value.__notes__[0].startswith("torch_io(function): the array of x is read-only")
    assert_same(x.detach(), before)


# ---- right gradients ----


def test_the_gradient_of_one_array_is_right():
    assert gradcheck(square(), needing_grad(3, 2))
    assert gradcheck(square(), needing_grad(0))
    assert gradcheck(square(), needing_grad())
    assert gradcheck(square(), needing_grad(2, 3).T)
    assert gradcheck(lambda x: square()(x[::2]) * x[1::2], needing_grad(6))
    assert gradcheck(nd.torch_io(np.conj, vjp=lambda g, output, z: g.conj()), needing_grad(2, dtype=torch.complex128))


def test_the_gradients_of_several_arguments_are_right():
    product = nd.torch_io(np.dot, vjp=lambda grad, output, a, b: (grad @ b.T, a.T @ grad))
    a, b = needing_grad(2, 3), needing_grad(3, 4)
    assert gradcheck(product, (a, b))
    assert gradcheck(product, (a, b.detach()))
    assert gradcheck(product, (a.detach(), b))
    result = product(a, b.detach())
    result.sum().backward()
    assert b.grad is None
    assert_same(a.grad, torch.ones(2, 4, dtype=torch.float64) @ b.detach().T)


def test_numbers_and_keywords_reach_the_gradient_too():
    def vjp(grad, output, x, power, *, scale):
        assert type(power) is int
        return grad * scale * power * x ** (power - 1)

    function = nd.torch_io(lambda x, power, *, scale: scale * x**power, vjp=vjp)
    assert gradcheck(lambda x: function(x, 3, scale=2.0), needing_grad(3))
    long = nd.torch_io(lambda x, n: x * n, vjp=lambda grad, output, x, n: (grad * n, None))
    assert gradcheck(lambda x: long(x, 3), needing_grad(3))
    short = nd.torch_io(lambda n, x, y: n * x * y, vjp=lambda grad, output, n, x, y: (None, grad * n * y, grad * n * x))
    assert gradcheck(lambda x, y: short(3, x, y), (needing_grad(3), needing_grad(3)))


def test_a_result_with_parts_has_gradients_with_the_same_parts():
    def function(x):
        return {"sum": x.sum(), "parts": [x * 2, "text"], "order": x.argsort()}

    def vjp(grad, output, x):
        assert output["parts"][1] == grad["parts"][1] == "text"
        assert grad["order"] is None
        assert_same(output["order"], x.argsort())
        assert isinstance(grad["sum"], np.ndarray)
        return grad["sum"] + grad["parts"][0] * 2

    decorated = nd.torch_io(function, vjp=vjp)
    assert gradcheck(lambda x: (decorated(x)["sum"], decorated(x)["parts"][0]), needing_grad(3))
    result = decorated(needing_grad(3))
    assert result["parts"][1] == "text"
    assert result["sum"].requires_grad
    assert result["order"].dtype == torch.int64
    assert not result["order"].requires_grad


def test_arguments_with_parts_have_gradients_with_the_same_parts():
    def weighted(tree, bias):
        return tree["x"] * tree["w"][0] + bias

    def vjp(grad, output, tree, bias):
        return {"x": grad * tree["w"][0], "w": [grad * tree["x"], None], "name": None}, grad

    decorated = nd.torch_io(weighted, vjp=vjp)
    x, w, bias = needing_grad(3), needing_grad(3), needing_grad(3)
    assert gradcheck(lambda x, w, b: decorated({"x": x, "w": [w, "text"], "name": "n"}, b), (x, w, bias))
    lone = nd.torch_io(lambda pair: pair[0] * pair[1], vjp=lambda grad, output, pair: (grad * pair[1], grad * pair[0]))
    assert gradcheck(lambda a, b: lone((a, b)), (x, w))


def test_arrays_beside_tensors_are_constants():
    scale = nd.torch_io(lambda x, w: x * w, vjp=lambda grad, output, x, w: (grad * w, grad * x))
    w = np.array([1.0, 2.0, 3.0])
    assert gradcheck(lambda x: scale(x, w), needing_grad(3))
    with pytest.raises(nd.UnsupportedTypeError, match="w requires grad but the result becomes an array, as x is one"):
        scale(w, needing_grad(3))


def test_no_gradient_is_what_none_means():
    x, y = needing_grad(2), needing_grad(2)
    function = nd.torch_io(lambda x, y: x + y, vjp=lambda grad, output, x, y: (None, grad))
    function(x, y).sum().backward()
    assert x.grad is None
    assert_same(y.grad, torch.ones(2, dtype=torch.float64))


def test_methods_have_gradients_and_the_receiver_does_not_count():
    class Scale:
        factor = 3.0

        def gradient(grad, output, self, x, y):
            return grad * self.factor, grad

        @nd.torch_io(vjp=gradient)
        def apply(self, x, y):
            return x * self.factor + y

    assert gradcheck(Scale().apply, (needing_grad(2), needing_grad(2)))


def test_gradients_get_the_dtype_of_their_argument():
    seen = []

    def vjp(grad, output, x, y):
        seen.append((grad.dtype, output.dtype, x.dtype))
        return grad * 1j, np.ones(2, np.int32)

    function = nd.torch_io(lambda x, y: x * 2 + y, vjp=vjp, float_dtype="float64")
    x, y = needing_grad(2, dtype=torch.bfloat16), needing_grad(2, dtype=torch.float32)
    result = function(x, y)
    assert result.dtype == torch.float64
    result.sum().backward()
    assert_same(x.grad, torch.zeros(2, dtype=torch.bfloat16))
    assert_same(y.grad, torch.ones(2))
    assert seen == [(np.float64,) * 3]


@pytest.mark.parametrize(
    ("gradients", "message"),
    [
        ((np.ones(3),), "another number of gradients.*expected a tuple of 2 for x, y, got tuple of 1"),
        (np.ones(3), "another number of gradients.*got ndarray"),
        (None, "another number of gradients.*got None"),
        ((np.ones(3), np.ones(3)), "a gradient for y with another structure.*got ndarray"),
        ((np.ones((3, 1)), {"y": None}), r"a gradient of another shape for x; expected \(3,\), got \(3, 1\)"),
        ((2.0, {"y": None}), r"a gradient of another shape for x; expected \(3,\), got \(\)"),
        (([np.ones(3), {}], {"y": None}), "a gradient of another shape for x; .*got list"),
        ((None, {"y": np.ones(2)}), r"a gradient of another shape for y\['y'\]; expected \(3,\), got \(2,\)"),
        ((None, {"z": np.ones(3)}), "a gradient for y with another structure.*got dict"),
    ],
)
def test_wrong_gradients_are_named(gradients, message):
    function = nd.torch_io(lambda x, y: x + y["y"], vjp=lambda grad, output, x, y: gradients)
    x = needing_grad(3)
    with pytest.raises(nd.ShapeMismatchError, match=rf"torch_io\(<lambda>\): vjp returned {message}"):
        function(x, {"y": x}).sum().backward()
    assert x.grad is None


def test_a_gradient_that_is_no_array_is_named():
    function = nd.torch_io(np.square, vjp=lambda grad, output, x: object())
    with pytest.raises(nd.UnsupportedTypeError, match="object") as refused:
        function(needing_grad(3)).sum().backward()
    assert refused.value.path == "the gradient of x"


def test_a_keyword_that_requires_grad_is_refused():
    function = nd.torch_io(lambda x, w: x * w, vjp=lambda grad, output, x, w: grad * w)
    with pytest.raises(nd.UnsupportedTypeError, match=r"w requires grad and is given by keyword.*pass w by position"):
        function(needing_grad(2), w=needing_grad(2))
    assert gradcheck(lambda x: function(x, w=torch.full((2,), 3.0, dtype=torch.float64)), needing_grad(2))


def test_a_second_derivative_is_refused_and_never_zero():
    x = needing_grad(3)
    (first,) = torch.autograd.grad(square()(x).sum(), x, create_graph=True)
    assert_same(first.detach(), (2 * x).detach())
    with pytest.raises(nd.UnsupportedTypeError, match=r"torch_io\(square\).*no gradient of its own"):
        (first.sum() + x.sum()).backward()
    (first,) = torch.autograd.grad((square()(x) * x).sum(), x, create_graph=True)
    with pytest.raises(nd.UnsupportedTypeError, match="no gradient of its own"):
        first.sum().backward()


def test_backward_twice_works_where_the_graph_is_kept():
    x = needing_grad(3)
    loss = square()(x).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    assert_same(x.grad, (2 * x).detach() * 2)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


# ---- gradients and memory ----


@pytest.mark.parametrize(
    ("function", "vjp"),
    [
        (lambda x: x, lambda grad, output, x: grad),
        (lambda x: x[::-1], lambda grad, output, x: grad[::-1]),
        (lambda x: x.reshape(3, 1), lambda grad, output, x: grad.reshape(3)),
        (lambda x: np.broadcast_to(x, (2, 3)), lambda grad, output, x: grad.sum(0)),
    ],
    ids=["itself", "reversed", "reshaped", "broadcast"],
)
def test_results_with_a_gradient_never_lie_in_their_argument(function, vjp):
    x = needing_grad(3)
    before = x.detach().clone()
    result = nd.torch_io(function, vjp=vjp)(x)
    assert_independent(result.detach(), x.detach())
    with torch.no_grad():
        result.add_(1)
    assert_same(x.detach(), before)
    assert gradcheck(nd.torch_io(function, vjp=vjp), x)


def test_an_array_returned_twice_gives_two_tensors():
    def vjp(grad, output, x):
        return (grad[0] + grad[1]) * 2

    def function(x):
        y = x * 2
        return y, y

    a, b = nd.torch_io(function, vjp=vjp)(needing_grad(3))
    assert_independent(a.detach(), b.detach())
    assert gradcheck(nd.torch_io(function, vjp=vjp), needing_grad(3))


def test_gradients_are_memory_of_their_own():
    kept = np.ones(3)
    x, y, z = needing_grad(3), needing_grad(3), needing_grad(3)
    function = nd.torch_io(lambda x, y, z: x + y + z, vjp=lambda grad, output, x, y, z: (grad, grad, kept))
    for _ in range(2):
        function(x, y, z).sum().backward()  # the second time adds in place
    for tensor in (x, y, z):
        assert_same(tensor.grad, torch.full((3,), 2.0, dtype=torch.float64))
    assert_same(kept, np.ones(3))
    assert_independent(x.grad, y.grad)


def test_what_the_gradient_is_given_cannot_be_written():
    writable = []

    def vjp(grad, output, x, y):
        writable.extend(array.flags.writeable for array in (grad, output, x, y))
        return grad, None

    x = needing_grad(3)
    function = nd.torch_io(lambda x, y: x + y, vjp=vjp)
    (function(x, torch.ones(3)) * 2).sum().backward()
    assert writable == [False] * 4


def test_autograd_notices_a_write_before_backward():
    for written in ("argument", "result"):
        x = needing_grad(3)
        y = x * 2
        z = square()(y)
        with torch.no_grad():
            (y if written == "argument" else z).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.sum().backward()


def test_nothing_is_kept_alive_after_the_graph():
    x = needing_grad(3)
    y = x * 2
    function = nd.torch_io(lambda tree: {"z": tree["y"] + 1}, vjp=lambda grad, output, tree: {"y": grad["z"]})
    z = function({"y": y})["z"]
    watched = weakref.ref(y), weakref.ref(z.grad_fn)
    del y, z
    gc.disable()
    try:
        assert [reference() for reference in watched] == [None, None]
    finally:
        gc.enable()


def test_results_without_an_array_have_no_gradient():
    function = nd.torch_io(lambda x: ("text", x.size), vjp=lambda grad, output, x: grad)
    assert function(needing_grad(3)) == ("text", 3)
    with pytest.raises(nd.UnsupportedDtypeError, match="result has fields or a mask"):
        nd.torch_io(lambda x: np.zeros(2, "f4,i4"), vjp=lambda *a: None)(needing_grad(3))


# ---- torch's transforms ----


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, at the first dual tensor
def test_forward_mode_is_refused():
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(2), torch.ones(2))
        for function in (nd.torch_io(np.square), square()):
            with pytest.raises(nd.UnsupportedTypeError, match=r"x requires grad in forward mode.*x.detach\(\)"):
                function(dual)
            assert_same(function(dual.detach()), torch.ones(2))


def test_gradients_by_transform_are_right_and_maps_are_refused():
    x = torch.arange(3.0)
    assert_same(torch.func.grad(lambda x: square()(x).sum())(x), 2 * x)
    for function in (square(), nd.torch_io(np.square)):
        with pytest.raises(nd.UnsupportedTypeError, match="vmap"):
            torch.func.vmap(function)(x)
    with pytest.raises(nd.UnsupportedTypeError, match="vmap"):
        torch.func.jacrev(square())(x)
    with pytest.raises(nd.UnsupportedTypeError, match="no gradient of its own"):
        torch.func.grad(torch.func.grad(lambda x: square()(x)))(torch.tensor(1.0))
