"""The arguments of a call taken apart: which arrays are in them, under what name, and how to put others there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ._errors import NdtorchError
from ._structures import Structure, is_structure, passes_through, take_apart
from .foreign import library_of


def is_array(leaf: object) -> bool:
    """Whether a leaf is an array of any library. Numbers and lists of numbers are not: they may be sizes."""
    return isinstance(leaf, torch.Tensor | np.ndarray) or library_of(leaf) is not None


def is_numpy_value(leaf: object) -> bool:
    """Whether NumPy made a leaf: an array, or the scalar that it makes of an array without dimensions."""
    return isinstance(leaf, np.ndarray) or (isinstance(leaf, np.generic) and not isinstance(leaf, str | bytes))


def located(error: NdtorchError, subject: str, path: str) -> NdtorchError:
    """Say which function and which argument or result an error is about."""
    inner = error.path or ""
    error.renamed(subject).without_path()
    error.path = path + inner
    error.add_note(f"at {error.path}")
    return error


@dataclass(frozen=True, slots=True)
class Parameters:
    """What the arguments of a function are called.

    Attributes:
        names: Parameters that may be given by position, in order, without the receiver.
        rest: What takes the other positional arguments.
        receiver: ``self`` or ``cls`` where that is the first parameter, else empty.
    """

    names: tuple[str, ...] = ()
    rest: str = "args"
    receiver: str = ""

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Parameters:
        """Read them from the signature, where there is one.

        >>> Parameters.of(lambda self, x, *others, scale=1: None)
        Parameters(names=('x',), rest='others', receiver='self')
        """
        try:
            known = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # many functions written in C have none
            return cls()
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = tuple(parameter.name for parameter in known if parameter.kind in positional)
        rest = next(
            (parameter.name for parameter in known if parameter.kind is inspect.Parameter.VAR_POSITIONAL), "args"
        )
        # The self of a method written in C is the array that it works on, as in numpy.ndarray.sum.
        has_receiver = names[:1] in (("self",), ("cls",)) and not inspect.ismethoddescriptor(function)
        return cls(names[1:], rest, names[0]) if has_receiver else cls(names, rest)

    def name(self, position: int) -> str:
        """The name of a positional argument."""
        count = len(self.names)
        return self.names[position] if position < count else f"{self.rest}[{position - count}]"


class Arguments:
    """The arguments of one call.

    Attributes:
        arrays: The arrays and tensors among them, in order, those inside structures included.
        positional: How many arguments were given by position, the receiver not counted.
    """

    def __init__(self, parameters: Parameters, args: tuple[Any, ...], kwargs: dict[str, Any], subject: str) -> None:
        receivers = 1 if parameters.receiver and args else 0
        self.arrays: list[Any] = []
        self.positional = len(args) - receivers
        self._parameters = parameters
        self._receiver = args[:receivers]
        self._values = [*args[receivers:], *kwargs.values()]
        self._keywords = tuple(kwargs)
        self._places: list[tuple[int, int]] = []
        self._structures: dict[int, Structure] = {}
        for position, value in enumerate(self._values):
            if is_array(value):
                self.arrays.append(value)
                self._places.append((position, 0))
            elif not passes_through(value) and is_structure(value) and not self._is_receiver(position):
                self._take_apart(position, value, subject)

    def _is_receiver(self, position: int) -> bool:
        return position >= self.positional and self.name(position) == self._parameters.receiver

    def _take_apart(self, position: int, value: Any, subject: str) -> None:
        try:
            structure = take_apart(value, subject)
        except NdtorchError as error:
            raise located(error, subject, self.name(position)) from None
        found = [(position, leaf) for leaf, value in enumerate(structure.leaves) if is_array(value)]
        if found:  # else it reaches the function as it is
            self._structures[position] = structure
            self._places += found
            self.arrays += [structure.leaves[leaf] for _, leaf in found]

    def name(self, position: int) -> str:
        """What the function calls an argument."""
        if position < self.positional:
            return self._parameters.name(position)
        return self._keywords[position - self.positional]

    def argument_of(self, index: int) -> int:
        """The position of the argument that one of `arrays` is in; keywords count after the positional ones."""
        return self._places[index][0]

    def is_one_array(self, position: int) -> bool:
        """Whether an argument is an array itself, not a structure of some."""
        return position not in self._structures

    def path(self, index: int) -> str:
        """Spell where one of `arrays` is, such as ``batch['image'][3]``."""
        position, leaf = self._places[index]
        inside = self._structures[position].paths()[leaf] if position in self._structures else ""
        return self.name(position) + inside

    def with_arrays(self, arrays: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and keyword arguments with others in the place of `arrays`."""
        values = list(self._values)
        leaves: dict[int, list[Any]] = {}
        for (position, leaf), old, new in zip(self._places, self.arrays, arrays, strict=True):
            if new is old:
                continue
            if position in self._structures:
                leaves.setdefault(position, list(self._structures[position].leaves))[leaf] = new
            else:
                values[position] = new
        for position, changed in leaves.items():
            values[position] = self._structures[position].rebuild(changed)
        count = self.positional
        return (*self._receiver, *values[:count]), dict(zip(self._keywords, values[count:], strict=True))

    def forget(self, index: int) -> None:
        """Let go of one of `arrays`, so that it lives no longer than its other owners want."""
        position, leaf = self._places[index]
        self.arrays[index] = None
        self._values[position] = None
        if position in self._structures:
            self._structures[position].leaves[leaf] = None

    def parts_like(self, position: int, other: Any) -> list[Any] | None:
        """The parts of another object in the place of each array of an argument; None if it has another structure."""
        structure = self._structures.get(position)
        if structure is None:
            return [other]
        if other is None:
            return [None] * sum(1 for place in self._places if place[0] == position)
        try:
            parts = structure.treespec.flatten_up_to(other)
        except ValueError:
            return None
        return [parts[leaf] for at, leaf in self._places if at == position]
