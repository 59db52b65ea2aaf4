"""Functions of one library called from the other: what crosses, what does not, and where the gradients go."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import pickle
import warnings
from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from comparison import array_holding, assert_independent, assert_same, assert_shares, tensor_holding
from hypothesis import given
from strategies import DTYPES, UNSHAREABLE, arrays, filled, read_only
from torch.autograd import gradcheck

import ndtorch as nd

Pair = namedtuple("Pair", "first second")
BOTH = pytest.mark.parametrize("decorator", [nd.numpy_io, nd.torch_io])


@dataclasses.dataclass
class Sample:
    image: Any
    label: Any = "none"


class Result(dict):
    """A result with attributes, as the optimizers of SciPy return."""

    __getattr__ = dict.__getitem__


class Significance(tuple):
    """A tuple with an attribute beside its items, as the tests of SciPy return."""

    _fields = ("statistic",)
    _extra_fields = ("df",)

    def __new__(cls, statistic: Any, **extra: Any) -> Significance:
        return tuple.__new__(cls, (statistic,))

    def __init__(self, statistic: Any, **extra: Any) -> None:
        vars(self).update(extra)


def returned(*args: Any, **kwargs: Any) -> Any:
    return (args, kwargs) if kwargs else args[0] if len(args) == 1 else args


@nd.numpy_io
def doubled(x: torch.Tensor) -> torch.Tensor:
    """Twice as much."""
    return x * 2


@nd.torch_io
def largest(x: np.ndarray) -> Any:
    return x.max()


def foreign(decorator: Any) -> Any:
    """What a decorated function has to convert."""
    return np.arange(3, dtype=np.float32) if decorator is nd.numpy_io else torch.arange(3.0)


def native(decorator: Any) -> Any:
    return torch.arange(3.0) if decorator is nd.numpy_io else np.arange(3, dtype=np.float32)


# ---- what reaches the function ----


@BOTH
def test_arrays_reach_the_function_as_its_own_kind_over_the_same_memory(decorator):
    seen = []
    source = foreign(decorator)
    decorator(lambda x: seen.append(x))(source)
    (got,) = seen
    assert isinstance(got, type(native(decorator)))
    assert_shares(got, source)


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_crosses_both_ways(name):
    array = filled(DTYPES[name][0])
    assert nd.numpy_io(returned)(array) is array
    assert_same(nd.numpy_io(torch.clone)(array), array)
    tensor = tensor_holding(array)
    assert nd.torch_io(returned)(tensor) is tensor
    assert_same(nd.torch_io(np.copy)(tensor), tensor)


@BOTH
@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: {"b": x, "a": "text", "sizes": [2, 3]},
        lambda x: [x, None, 3],
        lambda x: (x, (x, "deep")),
        lambda x: Pair(x, 2),
        lambda x: Sample(x),
        lambda x: OrderedDict(z=x, a=[x]),
        lambda x: Result(x=x, message="fine"),
    ],
    ids=["dict", "list", "tuple", "named tuple", "dataclass", "ordered dict", "subclass of dict"],
)
def test_structures_of_arrays_cross_leaf_by_leaf(decorator, wrap):
    source, other = foreign(decorator), native(decorator)

    def function(tree, *, keyword):
        assert type(tree) is type(wrap(other))
        if not isinstance(tree, Sample):
            assert_same(tree, wrap(other))
            assert_same(keyword, wrap(other))
        return tree

    result = decorator(function)(wrap(source), keyword=wrap(source))
    assert result == wrap(source)  # the very same arrays, so that == need not look inside
    assert type(result) is type(wrap(source))


def test_options_are_for_the_arguments():
    seen = []

    @nd.numpy_io(float_dtype="float32", copy=True)
    def torch_function(x, labels):
        seen.append((x.dtype, labels.dtype))
        x += 1
        return x

    source = np.zeros(2)
    assert_same(torch_function(source, np.arange(2)), np.ones(2, np.float32))
    assert source.sum() == 0
    numpy_function = nd.torch_io(lambda x: seen.append(x.dtype) or x, dtype="float64")
    assert_same(numpy_function(torch.ones(2)), torch.ones(2, dtype=torch.float64))
    assert_same(numpy_function(np.ones(2, np.float32)), np.ones(2))
    assert seen == [(torch.float32, torch.int64), np.float64, np.float64]


def test_wrong_options_are_refused_where_the_function_is_decorated():
    with pytest.raises(nd.InvalidOptionError, match="casting='gently'"):
        nd.numpy_io(casting="gently")
    with pytest.raises(nd.InvalidOptionError, match="float_dtype=int8"):
        nd.torch_io(float_dtype="int8")
    with pytest.raises(nd.InvalidOptionError, match="vjp="):
        nd.torch_io(np.sin, vjp=3)
    with pytest.raises(TypeError, match="gently"):
        nd.numpy_io(gently=True)


def test_a_device_is_looked_for_when_it_is_needed():
    function = nd.numpy_io(returned, device="nonsense")
    assert function(3) == 3
    with pytest.raises(nd.InvalidOptionError, match="device='nonsense'"):
        function(np.zeros(2))
    assert_same(nd.numpy_io(returned, device="cpu")(np.ones(2)), np.ones(2))


# ---- memory ----


@BOTH
def test_a_write_of_the_function_into_its_argument_is_seen_by_the_caller(decorator):
    def function(tree):
        tree["x"][1] = 9

    source = foreign(decorator)
    decorator(function)({"x": source})
    assert source[1] == 9


@BOTH
def test_a_view_of_an_argument_is_a_view_for_the_caller(decorator):
    source = foreign(decorator)
    result = decorator(lambda x: x[1:])(source)
    assert isinstance(result, type(source))
    assert_shares(result, source)


@BOTH
def test_an_argument_that_is_returned_is_the_object_of_the_caller(decorator):
    source, other = foreign(decorator), foreign(decorator)
    result = decorator(lambda x, y: {"y": [y, 3], "x": x, "twice": x})(source, other)
    assert result["x"] is result["twice"] is source
    assert result["y"][0] is other
    empty = source[:0]
    assert_same(decorator(returned)(empty), empty)


def test_what_the_other_side_cannot_hold_comes_back_when_it_is_returned():
    days = np.array(["2024-02-29", "NaT"], dtype="datetime64[D]")
    text = np.array(["ab", "c"])
    assert nd.numpy_io(returned)(days) is days
    assert nd.numpy_io(returned)(text) is text


@pytest.mark.parametrize("layout", UNSHAREABLE)
def test_a_copied_argument_that_was_written_does_not_come_back_as_the_original(layout):
    source = UNSHAREABLE[layout](filled("int32"))
    before = source.copy()
    result = nd.numpy_io(lambda x: x.add_(1))(source)
    assert_same(result, np.asarray(before + 1, result.dtype))
    assert_same(source, before)
    assert_independent(result, source)


@BOTH
def test_an_argument_whose_form_was_changed_in_place_comes_back_in_its_new_form(decorator):
    def turned(x):
        if isinstance(x, torch.Tensor):
            return x.unsqueeze_(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # NumPy 2.5 says that one should not
            x.shape = (1, *x.shape)
        return x

    source = foreign(decorator)
    result = decorator(turned)(source)
    assert tuple(result.shape) == (1, 3)
    assert tuple(source.shape) == (3,)
    assert_shares(result, source)


def test_an_argument_given_other_memory_comes_back_with_that():
    def moved(x):
        x.data = x.data + 1
        return x

    source = np.zeros(3)
    assert_same(nd.numpy_io(moved)(source), np.ones(3))
    assert source.sum() == 0


def test_a_read_only_array_is_never_written():
    source = read_only(np.zeros(3))
    assert_same(nd.numpy_io(lambda x: x.add_(1))(source), np.ones(3))
    assert source.sum() == 0


@given(array=arrays())
def test_any_array_comes_back_with_its_values(array):
    result = nd.numpy_io(returned)(array)
    assert_same(np.asarray(result, result.dtype.newbyteorder("=")), np.asarray(array, array.dtype.newbyteorder("=")))
    assert (result is array) or not np.shares_memory(result, array)


def test_traces_see_what_crosses():
    with nd.trace() as seen:
        doubled(np.zeros(3))
    assert [(record.function, record.shared) for record in seen] == [("to_torch", True), ("to_numpy", True)]
    assert all(record.site.startswith("test_functions.py:") for record in seen)


# ---- what comes back ----


def test_the_first_array_decides_about_the_result():
    array, tensor = np.ones(2), torch.ones(2, dtype=torch.float64)
    for decorator in (nd.numpy_io, nd.torch_io):
        added = decorator(lambda x, y: x + y)
        assert_same(added(array, tensor), array + array)
        assert_same(added(tensor, array), tensor + tensor)
        assert_same(added(x=array, y=tensor), array + array)
        assert_same(decorator(lambda n, tree: tree[1] * n)(2, [tensor, array]), tensor * 2)


def test_without_an_array_the_result_is_what_the_decorator_is_for():
    assert_same(nd.numpy_io(torch.ones)(3), np.ones(3, np.float32))
    assert_same(nd.torch_io(np.ones)(3), torch.ones(3, dtype=torch.float64))
    assert_same(nd.torch_io(lambda: {"mean": np.float32(2)})(), {"mean": torch.tensor(2.0)})
    assert nd.numpy_io(lambda: "text")() == "text"


def test_numbers_of_numpy_become_tensors_without_dimensions():
    x = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    assert_same(largest(x), torch.tensor(6.0, dtype=torch.float64))
    assert_same(nd.torch_io(lambda x: (x.mean(), x.argmax()))(x), (x.mean(), torch.tensor(2)))
    assert_same(nd.torch_io(list)(x), list(x))
    assert nd.torch_io(lambda x: (float(x[0]), x.size, np.str_("a")))(x) == (1.0, 3, "a")
    assert_same(nd.torch_io(lambda x: np.datetime64(3, "s"))(x), torch.tensor(3))


def test_tensors_without_dimensions_become_arrays_without_dimensions():
    assert_same(nd.numpy_io(torch.sum)(np.ones(3)), np.array(3.0))


@BOTH
def test_called_with_its_own_kind_a_function_is_as_it_was(decorator):
    result = {"number": np.float64(2), "tensor": torch.ones(2), "array": np.ones(2)}
    assert decorator(lambda x: result)(native(decorator)) is result


@BOTH
def test_results_that_hold_no_array_are_the_same_object(decorator):
    for value in ({"a": [1, 2]}, [1.5, 2.5], Sample("x"), object(), None, Pair(1, 2), iter([])):
        assert decorator(lambda x, value=value: value)(foreign(decorator)) is value


def test_structures_that_a_library_returns_are_kept():
    maximum = nd.numpy_io(torch.max)(np.array([[1.0, 3.0], [4.0, 2.0]]), 1)
    assert type(maximum) is torch.return_types.max
    assert_same(maximum.values, np.array([3.0, 4.0]))
    decomposed = nd.torch_io(np.linalg.svd)(torch.eye(2))
    assert type(decomposed).__name__ == "SVDResult"
    assert_same(decomposed.S, torch.ones(2))
    optimum = nd.torch_io(lambda x: Result(x=x * 2, message="fine"))(torch.ones(2))
    assert_same(optimum.x, torch.ones(2) * 2)
    assert optimum.message == "fine"
    tested = nd.torch_io(lambda x: Significance(x.mean(), df=x.size - np.ones(())))(torch.ones(2))
    assert type(tested) is Significance
    assert_same([tested[0], tested.df], [torch.tensor(1.0), torch.tensor(1.0, dtype=torch.float64)])


def test_a_result_that_a_tensor_cannot_hold_is_named():
    with pytest.raises(nd.UnsupportedTypeError, match=r"torch_io\(<lambda>\): cannot convert masked") as refused:
        nd.torch_io(lambda x: {"m": [np.ma.masked_equal(x, 1)]})(torch.ones(2))
    assert refused.value.path == "result['m'][0]"
    assert refused.value.__notes__ == ["at result['m'][0]"]
    with pytest.raises(nd.UnsupportedTypeError, match="meta") as refused:
        nd.numpy_io(lambda x: x.to("meta"))(np.ones(2))
    assert refused.value.path == "result"


# ---- errors ----


@BOTH
def test_errors_of_the_function_pass_unchanged(decorator):
    error = nd.ShapeMismatchError("mine", "too long")

    def function(x):
        raise error

    with pytest.raises(nd.ShapeMismatchError) as raised:
        decorator(function)(foreign(decorator))
    assert raised.value is error
    assert str(error) == "mine: too long."
    with pytest.raises(TypeError, match="missing 1 required positional"):
        decorator(function)()


# ---- what can be decorated ----


class Scaler:
    """Methods of every sort, and a state that must not be taken apart."""

    weight = 3.0

    def __init__(self) -> None:
        self.state = np.ones(2)

    @nd.numpy_io
    def method(self, x):
        assert isinstance(self.state, np.ndarray)
        return x.mul(self.weight)

    @nd.numpy_io
    @classmethod
    def class_method(cls, x):
        assert cls is Scaler
        return x.mul(cls.weight)

    @classmethod
    @nd.numpy_io
    def class_method_inside(cls, x):
        assert cls is Scaler
        return x.mul(cls.weight)

    @nd.numpy_io
    @staticmethod
    def static_method(x):
        return x.mul(3.0)

    @staticmethod
    @nd.numpy_io(float_dtype="float64")
    def static_method_inside(x):
        return x.mul(3.0)

    @nd.numpy_io
    def __call__(self, x):
        return x.mul(3.0)


@pytest.mark.parametrize(
    "method",
    [
        Scaler().method,
        functools.partial(Scaler.method, Scaler()),
        Scaler().class_method,
        Scaler.class_method,
        Scaler().class_method_inside,
        Scaler.class_method_inside,
        Scaler().static_method,
        Scaler.static_method,
        Scaler.static_method_inside,
        Scaler(),
        nd.numpy_io(Scaler()),
    ],
)
def test_methods_of_every_sort_are_decorated(method):
    assert_same(method(np.ones(2)), np.ones(2) * 3)
    assert_same(method(x=torch.ones(2, dtype=torch.float64)), torch.ones(2, dtype=torch.float64) * 3)


def test_the_forward_of_a_module_and_a_module_itself_are_decorated():
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 2)

        @nd.numpy_io(float_dtype="float32")
        def forward(self, x):
            return self.linear(x)

    net, x = Net(), np.random.default_rng(0).normal(size=(4, 3))
    expected = net.linear(torch.tensor(x, dtype=torch.float32))
    with torch.no_grad():
        assert_same(net(x), array_holding(expected))
        assert_same(nd.numpy_io(net.linear, dtype="float32")(x), array_holding(expected))
    net(torch.tensor(x)).sum().backward()
    assert net.linear.weight.grad is not None


def test_partials_builtins_ufuncs_and_classes_are_decorated():
    x = torch.tensor([1.0, 4.0])
    assert_same(nd.torch_io(functools.partial(np.power, 2.0))(x), torch.tensor([2.0, 16.0]))
    assert_same(nd.torch_io(np.sqrt)(x), x.sqrt())
    assert_same(nd.torch_io(np.dot)(x, x), x.dot(x))
    assert_same(nd.torch_io(np.ndarray.sum)(x), x.sum())
    assert_same(nd.torch_io(np.vectorize(lambda v: v + 1))(x), x + 1)
    assert_same(nd.numpy_io(torch.relu)(np.array([-1.0, 1.0])), np.array([0.0, 1.0]))
    assert nd.torch_io(len)(x) == 2
    assert isinstance(nd.torch_io(Sample)(x).image, torch.Tensor)


def test_an_out_argument_is_written_and_returned():
    x, out = torch.ones(3), torch.zeros(3)
    assert nd.torch_io(np.negative)(x, out=out) is out
    assert_same(out, -x)


def test_a_decorated_function_looks_like_the_function():
    assert doubled.__name__ == "doubled"
    assert doubled.__doc__ == "Twice as much."
    assert list(inspect.signature(doubled).parameters) == ["x"]
    assert_same(doubled.__wrapped__(torch.ones(2)), torch.ones(2) * 2)
    assert pickle.loads(pickle.dumps(doubled)) is doubled

    def marked(x): ...

    marked.attribute = 3
    assert nd.torch_io(marked).attribute == 3
    assert not vars(nd.numpy_io(torch.nn.Linear(1, 1))).keys() & {"_parameters", "training"}


@BOTH
def test_decorators_work_bare_with_options_and_as_calls(decorator):
    for decorated in (decorator(returned), decorator()(returned), decorator(copy=None)(returned)):
        source = foreign(decorator)
        assert decorated(source) is source


@BOTH
def test_generators_and_async_functions_are_refused_where_they_are_decorated(decorator):
    def generator(x):
        yield x

    async def coroutine(x):
        return x

    async def async_generator(x):
        yield x

    class Callable:
        async def __call__(self, x):
            return x

    for function in (generator, coroutine, async_generator, functools.partial(generator, 1), Callable()):
        with pytest.raises(nd.InvalidOptionError, match="returns before it has worked"):
            decorator(function)
    with pytest.raises(nd.InvalidOptionError, match="a ndarray is no function"):
        decorator(np.zeros(2))


# ---- gradients of functions written with torch ----


def test_gradients_flow_through_a_torch_function_as_if_undecorated():
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    function = nd.numpy_io(lambda x: (x * x).sum(), float_dtype="float32")
    function(x).backward()
    assert_same(x.grad, torch.full((3,), 2.0, dtype=torch.float64))
    assert gradcheck(doubled, x)
    assert gradcheck(lambda x: torch.autograd.grad(doubled(x * x).sum(), x, create_graph=True), x)


def test_an_array_result_that_requires_grad_is_refused():
    linear = torch.nn.Linear(2, 1, dtype=torch.float64)
    function = nd.numpy_io(lambda x: {"y": [linear(x)]})
    with pytest.raises(nd.UnsupportedTypeError, match=r"result\['y'\]\[0\] requires grad.*torch.no_grad\(\)"):
        function(np.ones(2))
    with pytest.raises(nd.UnsupportedTypeError, match="requires grad"):
        nd.numpy_io(lambda: linear.weight)()
    for quiet in (torch.no_grad, torch.inference_mode):
        with quiet():
            assert_same(function(np.ones(2)), {"y": [array_holding(linear(torch.ones(2, dtype=torch.float64)))]})
            assert_same(nd.numpy_io(lambda: linear.weight)(), array_holding(linear.weight))


def test_a_gradient_beside_an_array_is_not_lost():
    w = torch.ones(2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(nd.UnsupportedTypeError, match="result requires grad"):
        nd.numpy_io(torch.mul)(np.ones(2), w)
    assert_same(nd.numpy_io(torch.mul)(w, np.ones(2)).detach(), torch.ones(2, dtype=torch.float64))


# ---- torch's compiler and devices ----


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_code_calls_the_function_as_it_is():
    square, median = (
        nd.torch_io(np.square, vjp=lambda grad, output, x: 2 * x * grad),
        nd.torch_io(lambda tree: {"m": np.median(tree["x"])}),
    )

    def function(x):
        y = x * 2
        return (square(y) * 3).sum() + median({"x": y.detach()})["m"]

    x = torch.arange(4.0, requires_grad=True)
    compiled = torch.compile(function, backend="eager")
    assert_same(torch.autograd.grad(compiled(x), x), torch.autograd.grad(function(x), x))
    assert_same(compiled(x).detach(), function(x).detach())
    assert_same(torch.compile(doubled, backend="eager")(np.ones(2)), np.ones(2) * 2)


@pytest.mark.cuda
def test_results_come_back_to_the_device_of_the_first_tensor():
    x = torch.ones(3, device="cuda", dtype=torch.float64)
    assert_same(nd.torch_io(np.negative)(x), -x)
    assert_same(nd.torch_io(np.add)(x, torch.ones(3)), x + 1)
    assert_same(nd.numpy_io(lambda x: x * 2, device="cuda")(np.ones(3)), np.ones(3) * 2)
    x.requires_grad_()
    assert gradcheck(nd.torch_io(np.square, vjp=lambda grad, output, x: 2 * x * grad), x)
