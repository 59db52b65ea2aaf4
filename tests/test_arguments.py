"""The arguments of a call: what of them is an array, what is left alone, and what each is called in an error."""

from __future__ import annotations

import dataclasses
import math
from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from comparison import assert_same

import ndtorch as nd

Pair = namedtuple("Pair", "first second")
BOTH = pytest.mark.parametrize("decorator", [nd.numpy_io, nd.torch_io])


@dataclasses.dataclass
class Sample:
    image: Any
    label: Any = "none"


def foreign(decorator: Any) -> Any:
    """What a decorated function has to convert."""
    return np.arange(3.0) if decorator is nd.numpy_io else torch.arange(3.0)


@BOTH
@pytest.mark.parametrize(
    "value",
    [
        *(7, 2.5, True, 1j, "text", b"bytes", None, math.sin, math, object(), Sample, slice(1, 2), range(3)),
        *([2, 3], (2, 3), [[1, 2], [3, 4]], [], {}, ["a", None], {"depth": 3, "sizes": [1, 2]}),
        *(Sample("no array"), Pair(1, "b"), torch.Size([2, 3]), torch.nn.Identity(), torch.float32),
        *(np.float64(2.5), np.int32(3), np.float32, np.dtype("f4")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_array_reaches_the_function_as_it_is(decorator, value):
    seen = []
    array = foreign(decorator)

    @decorator
    def function(x, positional, *rest, keyword, **others):
        seen.extend([positional, *rest, keyword, *others.values()])

    function(array, value, value, keyword=value, other=value)
    assert all(got is value for got in seen)
    assert len(seen) == 4


@BOTH
def test_a_generator_is_not_consumed(decorator):
    generator = (i for i in range(3))
    decorator(lambda g: None)(generator)
    assert next(generator) == 0


@BOTH
def test_the_same_array_twice_is_one_array_to_the_function(decorator):
    source = foreign(decorator)
    assert decorator(lambda x, tree: x is tree["y"])(source, {"y": source})


@BOTH
def test_a_structure_that_contains_itself_is_refused_by_the_name_of_its_parameter(decorator):
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(nd.NdtorchError, match="contains itself") as refused:
        decorator(lambda tree: tree)(loop)
    assert refused.value.path == "tree"


@pytest.mark.parametrize(
    ("call", "path"),
    [
        (lambda f, bad: f(bad), "image"),
        (lambda f, bad: f(0, 1, bad), "others[0]"),
        (lambda f, bad: f(0, 1, 2, {"x": [3, bad]}), "others[1]['x'][1]"),
        (lambda f, bad: f(image=Sample(bad)), "image.image"),
        (lambda f, bad: f(0, depth=bad), "depth"),
        (lambda f, bad: f(0, extra=[bad, "a"]), "extra[0]"),
    ],
)
def test_errors_name_the_function_and_the_parameter(call, path):
    @nd.numpy_io
    def draw(image, depth=0, *others, **words): ...

    with pytest.raises(nd.UnsupportedTypeError, match=r"^numpy_io\(draw\): cannot convert masked") as refused:
        call(draw, np.ma.masked_equal([1, 2], 1))
    assert refused.value.path == path
    assert refused.value.__notes__ == [f"at {path}"]


def test_parameters_without_a_signature_are_counted():
    with pytest.raises(nd.UnsupportedTypeError, match=r"numpy_io\(add\)") as refused:
        nd.numpy_io(torch.add)(np.ones(2), np.ma.masked_equal([1, 2], 1))
    assert refused.value.path == "args[1]"


def test_the_receiver_is_never_taken_apart():
    @dataclasses.dataclass
    class Model:
        weight: Any

        @nd.numpy_io
        def forward(self, x):
            assert self is model
            return x * torch.from_numpy(self.weight)

    model = Model(np.ones(2))
    assert_same(model.forward(np.ones(2)), np.ones(2))
    assert_same(Model.forward(self=model, x=np.ones(2)), np.ones(2))
    assert_same(Model.forward(model, torch.ones(2)), torch.ones(2, dtype=torch.float64))
