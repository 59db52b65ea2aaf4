"""Functions of one library called with the arrays of the other: `numpy_io` and `torch_io`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd.forward_ad import unpack_dual

from ._arguments import Arguments, Parameters, is_array, is_numpy_value, located
from ._casting import Casting
from ._convert import to_numpy, to_torch
from ._errors import InvalidOptionError, NdtorchError, UnsupportedTypeError
from ._options import World, numpy_options, torch_options
from ._structures import Structure, take_apart
from ._vjp import Call, NumpyFunction
from .foreign import library_of

_ARRAYS: dict[World, type] = {"torch": torch.Tensor, "numpy": np.ndarray}
# What a result takes after when there is no array among the arguments.
_DEFAULT_EXAMPLES: dict[World, Any] = {"torch": np.empty(0), "numpy": torch.empty(0, device="cpu")}


def numpy_io(
    function: Any = None,
    /,
    *,
    dtype: Any = None,
    float_dtype: Any = None,
    device: Any = None,
    copy: bool | None = None,
    casting: Casting = "same_kind",
    readonly: str = "copy",
    masked: str = "error",
) -> Any:
    """Let a function written with torch be called with NumPy arrays, and answer with them.

    Every array among the arguments, inside structures too, reaches the function as a tensor; numbers, lists of
    numbers, text and any other object as they are. The kind of the first array decides about the result: called with
    NumPy arrays, or with none at all, the function returns NumPy arrays, leaf by leaf; called with a pandas Series or
    another library's array, arrays of that library where they fit; called with tensors, it is the function as it was,
    autograd included. Methods are decorated like functions, outside or inside ``@staticmethod``.

    Memory:
        As `to_torch` for the arguments and `to_numpy` for the result: where memory is shared the caller sees what the
        function writes into its argument, and an argument that is returned comes back as the caller's own array.

    Args:
        function: The function; left away, the options make a decorator.
        dtype: As in `to_torch`, for the arguments, like all the others.
        float_dtype: As in `to_torch`.
        device: As in `to_torch`; NumPy results come back from there.
        copy: As in `to_torch`.
        casting: As in `to_torch`.
        readonly: As in `to_torch`.
        masked: As in `to_torch`.

    Raises:
        UnsupportedTypeError: When called with NumPy arrays, for a result that requires grad outside `torch.no_grad`.
        InvalidOptionError: For generators and ``async`` functions, which return before they are done.

    >>> import numpy as np, torch, ndtorch as nd
    >>> @nd.numpy_io(float_dtype="float32")
    ... def softmax(logits, dim=-1):
    ...     return torch.softmax(logits, dim)
    >>> softmax(np.zeros((1, 2)))
    array([[0.5, 0.5]], dtype=float32)
    """
    words: dict[str, Any] = {"dtype": dtype, "float_dtype": float_dtype, "copy": copy, "casting": casting}
    words |= {"readonly": readonly, "masked": masked}
    is_plain = torch_options(**words).asks_nothing and device is None  # a device may be missing until it is needed
    convert = to_torch if is_plain else partial(to_torch, **words, device=device)
    return _decorate(function, "numpy_io", partial(_Crossing, world="torch", convert=convert, is_plain=is_plain))


def torch_io(
    function: Any = None,
    /,
    *,
    vjp: Callable[..., Any] | None = None,
    dtype: Any = None,
    float_dtype: Any = None,
    copy: bool | None = None,
    casting: Casting = "same_kind",
) -> Any:
    """Let a function written with NumPy be called with tensors, and answer with them.

    The reverse of `numpy_io`: tensors among the arguments reach the function as arrays, and its arrays and NumPy
    scalars come back as tensors on the device of the first tensor. Called with arrays it is the function as it was;
    called without any array it returns tensors.

    With ``vjp=`` gradients pass through. ``vjp(grad, output, *args, **kwargs)`` is called in backward with arrays,
    read-only ones: what the function got, ``output`` that it returned, and in ``grad`` the gradient in the same
    structure, None where none exists (integers, text). It returns the gradient of the one positional argument
    that holds tensors, or a tuple with an entry for every positional argument (``self`` not counted): an array,
    the structure of the argument with arrays, or None for no gradient. Outside torch's graph there is no second one.

    Memory:
        As `to_numpy` for the arguments, `to_torch` for the result, and both ways as in `numpy_io`. Arrays of tensors
        that require grad are read-only. Results with a gradient are new memory, copied if they are not. Autograd does
        not see what the function writes into the array of another tensor, as with any array over a tensor.

    Args:
        function: The function; left away, the options make a decorator.
        vjp: The gradient of the function: a vector-Jacobian product.
        dtype: As in `to_numpy`, for the arguments, like all the others. Gradients get the dtype of their argument.
        float_dtype: As in `to_numpy`.
        copy: As in `to_numpy`.
        casting: As in `to_numpy`.

    Raises:
        UnsupportedTypeError: For an argument that requires grad, without ``vjp`` and outside `torch.no_grad`, or by
            keyword; for a second derivative.
        ShapeMismatchError: For gradients of another count, structure or shape than the arguments.
        InvalidOptionError: For generators and ``async`` functions, which return before they are done.

    >>> import numpy as np, torch, ndtorch as nd
    >>> nd.torch_io(np.median)(torch.tensor([1.0, 5.0, 2.0]))
    tensor(2.)
    >>> sin = nd.torch_io(np.sin, vjp=lambda grad, output, x: grad * np.cos(x))
    >>> x = torch.zeros(2, requires_grad=True)
    >>> sin(x).sum().backward()
    >>> x.grad
    tensor([1., 1.])
    """
    words: dict[str, Any] = {"dtype": dtype, "float_dtype": float_dtype, "copy": copy, "casting": casting}
    is_plain = numpy_options(**words).asks_nothing
    if vjp is not None and not callable(vjp):
        raise InvalidOptionError("torch_io", "vjp= is no function", expected="a function", got=type(vjp).__name__)
    convert = to_numpy if is_plain else partial(to_numpy, **words)
    make = partial(_Crossing, world="numpy", convert=convert, is_plain=is_plain, vjp=vjp)
    return _decorate(function, "torch_io", make)


# --- decorating


def _decorate(function: Any, decorator: str, make: Callable[..., _Crossing]) -> Any:
    if function is None:
        return lambda function: _decorate(function, decorator, make)
    if isinstance(function, classmethod | staticmethod):
        return type(function)(_decorate(function.__func__, decorator, make))
    subject = f"{decorator}({_name_of(function)})"
    _check_is_function(function, subject)
    crossing = make(function, subject=subject, parameters=Parameters.of(function))

    # Only a function's own attributes: those of a module or a class are what it is made of.
    @functools.wraps(function, updated=("__dict__",) if isinstance(function, FunctionType) else ())
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():
            return _outside_of_graphs(crossing, args, kwargs)
        return crossing.call(args, kwargs)

    return wrapper


def _name_of(function: Any) -> str:
    if isinstance(function, partial):
        return _name_of(function.func)
    return str(getattr(function, "__name__", type(function).__name__))


def _check_is_function(function: Any, subject: str) -> None:
    if not callable(function):
        raise InvalidOptionError(subject, f"a {type(function).__name__} is no function that could be called")
    call = type(function).__call__
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    if any(is_kind(candidate) for is_kind in kinds for candidate in (function, call)):
        raise InvalidOptionError(
            subject,
            "a generator or an async function returns before it has worked",
            expected="a function that returns its result",
            hint="decorate the functions that it calls",
            got="one that returns an iterator or an awaitable",
        )


# --- calling


class _Passage(NamedTuple):
    """One argument on its way in, and what it looked like before the function had it."""

    source: Any
    converted: Any
    form: tuple[Any, ...]

    def comes_back(self) -> bool:
        """Whether the converted argument is still the source in another guise: the same memory, the same form."""
        return _address(self.converted) == _address(self.source) and _form(self.converted) == self.form


@dataclass(frozen=True, slots=True)
class _Crossing:
    """A function, and how its arguments and its result cross from one library to the other.

    Attributes:
        function: The function as it was.
        world: The library whose arrays it works on.
        subject: The decorator and the function, for messages.
        convert: Makes its arrays of the caller's.
        is_plain: Whether it leaves those that are such arrays already.
        parameters: What its arguments are called.
        vjp: Its gradient.
    """

    function: Callable[..., Any]
    world: World
    subject: str
    convert: Callable[[Any], Any]
    is_plain: bool
    parameters: Parameters
    vjp: Callable[..., Any] | None = None

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function with converted arguments and convert its result."""
        arguments = Arguments(self.parameters, args, kwargs, self.subject)
        example = arguments.arrays[0] if arguments.arrays else _DEFAULT_EXAMPLES[self.world]
        if self.world == "numpy" and self._needs_gradient(arguments):
            return self._differentiable(arguments)
        passages: dict[int, _Passage] = {}
        arrays = [self._inside(array, index, arguments, passages) for index, array in enumerate(arguments.arrays)]
        result = self._run(arguments, arrays)
        if self._is_own(example):
            return result  # nothing to cross
        return self._outside(result, example, {id(passage.converted): passage for passage in passages.values()})

    def _is_own(self, array: Any) -> bool:
        """Whether the function takes it as it is; what NumPy functions make of other libraries is their affair."""
        return isinstance(array, _ARRAYS[self.world]) or (self.world == "numpy" and library_of(array) is not None)

    def _inside(self, source: Any, index: int, arguments: Arguments, passages: dict[int, _Passage]) -> Any:
        """What the function gets for an array; the same for the same array twice."""
        if self.is_plain and self._is_own(source):
            return source
        if id(source) in passages:
            return passages[id(source)].converted
        try:
            converted = self.convert(source)
        except NdtorchError as error:
            raise located(error, self.subject, arguments.path(index)) from None
        # Another library's object is made anew: it says more than its memory does.
        if converted is not source and library_of(source) is None and isinstance(converted, torch.Tensor | np.ndarray):
            passages[id(source)] = _Passage(source, converted, _form(converted))
        return converted

    def _run(self, arguments: Arguments, arrays: list[Any]) -> Any:
        args, kwargs = arguments.with_arrays(arrays)
        try:
            return self.function(*args, **kwargs)
        except ValueError as error:
            if type(error) is ValueError and "read-only" in str(error):
                self._explain_read_only(error, arguments, arrays)
            raise

    def _explain_read_only(self, error: ValueError, arguments: Arguments, arrays: list[Any]) -> None:
        """NumPy says that an array is read-only, but not which one, nor why."""
        for index, (source, array) in enumerate(zip(arguments.arrays, arrays, strict=True)):
            if array is not source and isinstance(array, np.ndarray) and not array.flags.writeable:
                path = arguments.path(index)
                why = "autograd could not see a write, nor an expanded tensor stand one"
                error.add_note(
                    f"{self.subject}: the array of {path} is read-only: {why}. Hint: {path}.detach().clone()."
                )

    def _outside(self, result: Any, example: Any, passages: dict[int, _Passage]) -> Any:
        """The result as the caller's kind, leaf by leaf; an argument that is returned as the caller's own object."""
        if is_array(result):
            return self._leaf_outside(result, example, passages, str)
        structure = take_apart(result, self.subject, lists_are_arrays=False)
        leaves = [
            self._leaf_outside(leaf, example, passages, partial(_path_in, structure, position))
            for position, leaf in enumerate(structure.leaves)
        ]
        if all(new is old for new, old in zip(leaves, structure.leaves, strict=True)):
            return result
        return structure.rebuild(leaves)

    def _leaf_outside(self, leaf: Any, example: Any, passages: dict[int, _Passage], path: Callable[[], str]) -> Any:
        if self.world == "torch" and isinstance(leaf, torch.Tensor) and _is_followed(leaf):
            fact = f"result{path()} requires grad, and an array cannot carry its gradient"
            raise UnsupportedTypeError(self.subject, fact, hint="torch.no_grad() around the call, or tensors in it")
        passage = passages.get(id(leaf))
        if passage is not None and passage.comes_back():
            return passage.source
        try:
            return _as_kind(leaf, example)
        except NdtorchError as error:
            raise located(error, self.subject, f"result{path()}") from None

    # --- gradients

    def _needs_gradient(self, arguments: Arguments) -> bool:
        followed = [i for i, a in enumerate(arguments.arrays) if isinstance(a, torch.Tensor) and _is_followed(a)]
        for index in followed:
            why = self._why_without_gradient(arguments, index)
            if why is not None:
                fact, hint = why
                error = UnsupportedTypeError(self.subject, f"{arguments.path(index)} requires grad {fact}", hint=hint)
                error.path = arguments.path(index)
                raise error
        return bool(followed)

    def _why_without_gradient(self, arguments: Arguments, index: int) -> tuple[str, str] | None:
        path, array = arguments.path(index), arguments.arrays[index]
        if _has_tangent(array):
            return "in forward mode, which NumPy cannot follow", f"{path}.detach()"
        if self.vjp is None:
            hint = "vjp=... gives the function a gradient, torch.no_grad() goes without"
            return "and autograd cannot see into a NumPy function", hint
        if not isinstance(arguments.arrays[0], torch.Tensor):
            fact = f"but the result becomes an array, as {arguments.path(0)} is one"
            return fact, f"a tensor for {arguments.path(0)}, or torch.no_grad()"
        if arguments.argument_of(index) >= arguments.positional:
            return "and is given by keyword, but vjp= gives gradients by position", f"pass {path} by position"
        return None

    def _differentiable(self, arguments: Arguments) -> Any:
        arrays: list[Any] = []
        tensors = []
        for index, array in enumerate(arguments.arrays):
            is_tensor = isinstance(array, torch.Tensor)
            arrays.append(None if is_tensor else self._inside(array, index, arguments, {}))
            tensors += [array] if is_tensor else []
        assert self.vjp is not None
        call = Call(self.subject, self._run, self.vjp, arguments, arrays, self.convert, _as_kind)
        return call.assembled(NumpyFunction.apply(call, *tensors))  # type: ignore[no-untyped-call]


def _call(crossing: _Crossing, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return crossing.call(args, kwargs)


# A graph break for torch.compile. torch.compiler.disable does the same, but imports the compiler here and now.
_outside_of_graphs = torch._disable_dynamo(_call)  # type: ignore[attr-defined]


def _as_kind(result: Any, example: Any) -> Any:
    """One leaf of a result as the kind of array that the caller gave; what is no array as it is."""
    if isinstance(example, torch.Tensor):
        is_foreign = library_of(result) is not None
        if not is_numpy_value(result) and not is_foreign:
            return result
        array = result if is_foreign else np.asanyarray(result)  # to_torch would read a scalar as a Python object
        return to_torch(array) if example.device.type == "cpu" else to_torch(array, device=example.device)
    array = to_numpy(result) if isinstance(result, torch.Tensor) else result
    library = library_of(example)
    if library is None or library.wrap is None or not isinstance(array, np.ndarray):
        return array
    return library.wrap(array, example)


def _path_in(structure: Structure, position: int) -> str:
    return structure.paths()[position]


def _address(array: Any) -> int:
    return int(array.data_ptr() if isinstance(array, torch.Tensor) else array.__array_interface__["data"][0])


def _form(array: Any) -> tuple[Any, ...]:
    """What a function may change about an array without writing into it."""
    return array.shape, array.stride() if isinstance(array, torch.Tensor) else array.strides, array.dtype


def _is_followed(tensor: torch.Tensor) -> bool:
    """Whether autograd would miss something if a result did not depend on this tensor."""
    return (tensor.requires_grad and torch.is_grad_enabled()) or _has_tangent(tensor)


def _has_tangent(tensor: torch.Tensor) -> bool:
    return unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]
