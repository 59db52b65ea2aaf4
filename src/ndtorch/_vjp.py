"""Gradients through NumPy functions: one autograd node per call, whose backward is a function on arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ._arguments import Arguments, is_numpy_value, located
from ._convert import to_numpy, to_torch
from ._errors import NdtorchError, ShapeMismatchError, UnsupportedDtypeError, UnsupportedTypeError
from ._structures import Structure, take_apart


class Call:
    """One call of a NumPy function on tensors: everything about it but the tensors, which autograd keeps.

    Attributes:
        subject: The decorated function, for messages.
        function: Runs it on positional and keyword arguments, given the arrays among them.
        vjp: ``vjp(grad, output, *args, **kwargs)`` gives the gradients of the positional arguments.
        arguments: What it was called with.
        arrays: The arrays among the arguments, ``None`` where a tensor goes.
        as_array: Makes an array of a tensor argument.
        as_tensor: Makes a tensor of a result, given a tensor argument to lie beside.
    """

    def __init__(
        self,
        subject: str,
        function: Callable[[Arguments, list[Any]], Any],
        vjp: Callable[..., Any],
        arguments: Arguments,
        arrays: list[Any],
        as_array: Callable[[Any], Any],
        as_tensor: Callable[[Any, Any], Any],
    ) -> None:
        self.subject, self.function, self.vjp = subject, function, vjp
        self.arguments, self.arrays, self.as_array, self.as_tensor = arguments, arrays, as_array, as_tensor
        self.slots = [index for index, array in enumerate(arrays) if array is None]
        self.protected = [slot for slot in self.slots if arguments.arrays[slot].requires_grad]
        for slot in self.slots:  # autograd alone holds the tensors, and lets go of them when the graph is freed
            arguments.forget(slot)
        self.result: Structure | None = None
        self.outputs: list[int] = []

    def forward(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Run the function; what its result holds beside arrays stays in ``result``."""
        arrays = self._arrays_of(tensors)
        result = self.function(self.arguments, arrays)
        structure = take_apart(result, self.subject, lists_are_arrays=False)
        taken, outputs = [array for array in arrays if isinstance(array, np.ndarray)], []
        for position, leaf in enumerate(structure.leaves):
            if not is_numpy_value(leaf):
                continue
            # Autograd takes every output for new memory, and an array that is returned twice would be two of them.
            if isinstance(leaf, np.ndarray) and any(np.may_share_memory(leaf, other) for other in taken):
                leaf = leaf.copy()
            taken.append(leaf)
            outputs.append(self._tensor_of(leaf, tensors[0], "result" + structure.paths()[position]))
            self.outputs.append(position)
            structure.leaves[position] = None
        self.result = structure
        return tuple(outputs)

    def _arrays_of(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        arrays = list(self.arrays)
        for slot, tensor in zip(self.slots, tensors, strict=True):
            try:
                arrays[slot] = self.as_array(tensor)
            except NdtorchError as error:
                raise located(error, self.subject, self.arguments.path(slot)) from None
            if not isinstance(arrays[slot], np.ndarray):
                fact = f"{self.arguments.path(slot)} is a nested tensor, and no gradient goes through its parts"
                raise UnsupportedTypeError(self.subject, fact, hint="tensor.unbind() gives a list of them")
        for slot in self.protected:
            arrays[slot].flags.writeable = False
        return arrays

    def _tensor_of(self, leaf: Any, example: torch.Tensor, path: str) -> torch.Tensor:
        try:
            tensor = self.as_tensor(leaf, example)
        except NdtorchError as error:
            raise located(error, self.subject, path) from None
        if not isinstance(tensor, torch.Tensor):
            fact = f"{path} has fields or a mask, and no gradient goes through those"
            raise UnsupportedDtypeError(self.subject, fact, hint="return its parts as arrays")
        return tensor

    def assembled(self, outputs: Sequence[Any]) -> Any:
        """The result of the function with these in the place of its arrays."""
        assert self.result is not None
        leaves = list(self.result.leaves)
        for position, output in zip(self.outputs, outputs, strict=True):
            leaves[position] = output
        return self.result.rebuild(leaves)

    def backward(
        self,
        tensors: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
        grads: Sequence[torch.Tensor],
        needs: Sequence[bool],
    ) -> tuple[torch.Tensor | None, ...]:
        """One gradient for each tensor, or None for none; always memory of its own."""
        arrays = self._arrays_of(tensors)
        for slot in self.slots:
            arrays[slot].flags.writeable = False
        args, kwargs = self.arguments.with_arrays(arrays)
        grad = self.assembled([_read_only(g) if is_differentiable(g) else None for g in grads])
        found = self.vjp(grad, self.assembled([_read_only(output) for output in outputs]), *args, **kwargs)
        gradients = self._gradients_by_slot(self._entries(found))
        return tuple(
            self._gradient(gradients.get(slot), tensor, slot) if is_needed else None
            for slot, tensor, is_needed in zip(self.slots, tensors, needs, strict=True)
        )

    def _entries(self, found: Any) -> dict[int, Any]:
        """The gradients that vjp returned, by position of the argument."""
        count = self.arguments.positional
        owners = {self.arguments.argument_of(slot) for slot in self.slots}
        positional = [position for position in owners if position < count]
        if len(positional) == 1:
            (position,) = positional
            # A function of one tensor and some numbers may also return the long form.
            is_long = type(found) is tuple and len(found) == count and self.arguments.is_one_array(position)
            return {position: found[position] if is_long else found}
        if not isinstance(found, tuple | list) or len(found) != count:
            names = ", ".join(self.arguments.name(position) for position in range(count))
            raise ShapeMismatchError(
                self.subject,
                "vjp returned another number of gradients than there are positional arguments",
                expected=f"a tuple of {count} for {names}",
                got=f"{type(found).__name__} of {len(found)}" if isinstance(found, tuple | list) else _kind_of(found),
                hint="None stands for no gradient",
            )
        return dict(enumerate(found))

    def _gradients_by_slot(self, entries: dict[int, Any]) -> dict[int, Any]:
        gradients: dict[int, Any] = {}
        for position, entry in entries.items():
            slots = [index for index in range(len(self.arrays)) if self.arguments.argument_of(index) == position]
            parts = self.arguments.parts_like(position, entry) if slots else []
            if parts is None:
                raise ShapeMismatchError(
                    self.subject,
                    f"vjp returned a gradient for {self.arguments.name(position)} with another structure",
                    expected="that of the argument, None for what has no gradient",
                    got=_kind_of(entry),
                )
            gradients |= dict(zip(slots, parts, strict=True))
        return gradients

    def _gradient(self, value: Any, tensor: torch.Tensor, slot: int) -> torch.Tensor | None:
        if value is None:
            return None
        path = self.arguments.path(slot)
        try:
            gradient = to_torch(value)
        except NdtorchError as error:
            raise located(error, self.subject, f"the gradient of {path}") from None
        shape = tuple(gradient.shape) if isinstance(gradient, torch.Tensor) else _kind_of(value)
        if shape != tuple(tensor.shape):
            fact = f"vjp returned a gradient of another shape for {path}"
            raise ShapeMismatchError(self.subject, fact, expected=tuple(tensor.shape), got=shape)
        if gradient.is_complex() and not tensor.is_complex():
            gradient = gradient.real  # as autograd does for real inputs of complex functions
        # A copy even of fresh memory: vjp may return grad itself, or keep what it returns, and autograd adds in place.
        own: torch.Tensor = gradient.to(device=tensor.device, dtype=tensor.dtype, copy=True)
        return own


def _kind_of(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def is_differentiable(tensor: torch.Tensor) -> bool:
    """Whether gradients go through numbers of this dtype."""
    return tensor.is_floating_point() or tensor.is_complex()


def _read_only(tensor: torch.Tensor) -> Any:
    """An array over a tensor that belongs to autograd."""
    array = to_numpy(tensor)
    array.flags.writeable = False
    return array


class NumpyFunction(torch.autograd.Function):
    """The node of a NumPy function in torch's graph: ``apply(call, *tensors)``."""

    @staticmethod
    def forward(call: Call, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the function."""
        return call.forward(tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
        """Keep what backward needs. Autograd notices when any of it has been written meanwhile."""
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.mark_non_differentiable(*[tensor for tensor in output if not is_differentiable(tensor)])

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        """Run vjp."""
        gradients = _Gradient.apply(ctx.call, ctx.needs_input_grad[1:], *ctx.saved_tensors, *grads)  # type: ignore[no-untyped-call]
        return None, *gradients

    @staticmethod
    def vmap(info: Any, in_dims: Any, call: Call, *rest: Any) -> Any:
        """Refuse: the function was not written for one dimension more."""
        fact = "a NumPy function cannot run inside vmap: it would get arrays of one dimension more"
        raise UnsupportedTypeError(call.subject, fact, hint="call it on the whole batch, outside vmap")


class _Gradient(torch.autograd.Function):
    """The backward of a call as a node of its own, which under ``create_graph=True`` refuses a second derivative.

    torch's once_differentiable would cut the graph in silence where the incoming gradient does not require grad.
    """

    @staticmethod
    def forward(call: Call, needs: Sequence[bool], *tensors: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, outputs = len(call.slots), len(call.outputs)
        given, grads = tensors[:inputs], tensors[inputs + outputs :]
        return call.backward(given, tensors[inputs : inputs + outputs], grads, needs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.subject = inputs[0].subject

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        fact = "the gradient that vjp gives has no gradient of its own"
        raise UnsupportedTypeError(ctx.subject, fact, hint="create_graph=False, or write the function with torch")

    vmap = NumpyFunction.vmap
