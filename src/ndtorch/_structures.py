"""Structures: dicts, lists, tuples, named tuples, dataclasses and registered nodes of arrays or tensors."""

from __future__ import annotations

import copy
import dataclasses
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import optree
import torch

from ._errors import NdtorchError, ShapeMismatchError, UnsupportedTypeError
from ._objects import is_list_of_numbers, is_number
from .foreign import Foreign, library_of

NAMESPACE = "ndtorch"
"""optree's namespace for nodes that only ndtorch should see; nodes registered globally are seen as well."""

_register_lock = threading.Lock()


def is_structure(value: Any) -> bool:
    """Whether a value is a container whose leaves are converted one by one."""
    if isinstance(value, np.ndarray | torch.Tensor | np.generic) or _is_one_array(value):
        return False
    if is_number(value) or isinstance(value, str | bytes):
        return False
    return _is_unknown_container(value) or not optree.tree_is_leaf(value, none_is_leaf=True, namespace=NAMESPACE)


def passes_through(leaf: object) -> bool:
    """Whether a leaf inside a structure is left as it is: strings, None and Python scalars."""
    return leaf is None or (
        isinstance(leaf, str | bytes | bool | int | float | complex) and not isinstance(leaf, np.number)
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Structure:
    """A structure taken apart: its leaves in order, and how to put others in their place."""

    leaves: list[Any]
    treespec: optree.PyTreeSpec

    def rebuild(self, leaves: list[Any]) -> Any:
        """Put new leaves into the same structure."""
        return optree.tree_unflatten(self.treespec, leaves)

    def rebuilder(self) -> Callable[[list[Any]], Any]:
        """Give what does `rebuild` many times: plain tuples, lists and dicts of leaves need no more than their type."""
        shape = self.rebuild(list(range(len(self.leaves))))
        if type(shape) in (tuple, list) and list(shape) == list(range(len(self.leaves))):
            return tuple if type(shape) is tuple else list
        if type(shape) is not dict or any(type(at) is not int for at in shape.values()):
            return self.rebuild
        places = list(shape.items())
        return lambda leaves: {key: leaves[at] for key, at in places}

    def paths(self) -> list[str]:
        """Spell the path of every leaf, such as ``['image'][3]``."""
        return [accessor.codify("") for accessor in self.treespec.accessors()]

    def arrays(self) -> Iterator[tuple[str, Any]]:
        """Paths and leaves without those that pass through."""
        return ((path, leaf) for path, leaf in zip(self.paths(), self.leaves, strict=True) if not passes_through(leaf))

    def subtrees_of(self, other: Any, subject: str) -> list[Any]:
        """Take apart another object of the same structure: one subtree for each of our leaves."""
        try:
            parts: list[Any] = self.treespec.flatten_up_to(other)
        except ValueError:
            got = optree.tree_structure(other, is_leaf=_is_one_array, none_is_leaf=True, namespace=NAMESPACE)
            raise ShapeMismatchError(
                subject,
                "like= has another structure than the source",
                expected=self.treespec,
                got=got,
                hint="give like= the structure that was converted",
            ) from None
        return parts


def take_apart(
    tree: Any, subject: str, *, lists_are_arrays: bool = True, is_leaf: Callable[[Any], bool] | None = None
) -> Structure:
    """Flatten a structure. Lists of numbers are leaves, since each is one array, unless every number is to be one.

    ``is_leaf`` says in the place of that what is not to be taken apart.
    """
    if is_leaf is None and lists_are_arrays:
        is_leaf = _is_one_array
    while True:
        try:
            leaves, treespec = optree.tree_flatten(tree, is_leaf=is_leaf, none_is_leaf=True, namespace=NAMESPACE)
        except RecursionError:
            raise NdtorchError(
                subject, "the structure contains itself or is nested too deeply", hint="convert its parts one by one"
            ) from None
        unknown = {type(leaf) for leaf in leaves if _is_unknown_container(leaf) and not (is_leaf and is_leaf(leaf))}
        if not unknown:
            return Structure(leaves, treespec)
        for cls in unknown:
            _register(cls)


def map_leaves(convert: Callable[[Any, str], Any], tree: Any, subject: str, *, with_paths: bool) -> Any:
    """Convert every array in a structure and put the results into the same structure.

    Args:
        convert: Converts one leaf, given its path.
        tree: The structure.
        subject: The function that was called, for messages.
        with_paths: Whether ``convert`` wants paths; else it gets ``""``, since spelling them takes longer than sharing.

    Raises:
        NdtorchError: From ``convert``, with the path of the leaf in its note.
    """
    structure = take_apart(tree, subject)
    paths = structure.paths() if with_paths else [""] * len(structure.leaves)
    results = []
    for position, leaf in enumerate(structure.leaves):
        try:
            is_kept = passes_through(leaf)
            results.append(kept(leaf, subject) if is_kept else convert(leaf, paths[position]))
        except NdtorchError as error:
            raise error.at(structure.paths()[position]) from error.__cause__
    return structure.rebuild(results)


def kept(leaf: Any, subject: str) -> Any:
    """What becomes of a leaf that passes through.

    Python's own text, for tensors: a checkpoint with one NumPy object in it is refused by ``weights_only``.
    """
    return leaf.item() if subject == "to_torch" and isinstance(leaf, np.str_ | np.bytes_) else leaf


def not_convertible(value: object, subject: str) -> UnsupportedTypeError:
    """Make the error for an object that is no array, no number and no known structure."""
    cls = type(value)
    name = f"{cls.__module__}.{cls.__qualname__}".removeprefix("builtins.")
    article = "an" if name[0].lower() in "aeiou" else "a"
    return UnsupportedTypeError(
        subject,
        "cannot convert None" if value is None else f"cannot convert {article} {name}",
        expected="an array, a tensor, numbers, or a structure of them",
        got=cls.__qualname__,
        hint=next(hint for known, hint in _HINTS if isinstance(value, known)),
    )


_HINTS: tuple[tuple[Any, str], ...] = (
    (type(None), "leave it out; inside a structure None stays None"),
    ((str, os.PathLike), "ndtorch.read(path) opens a file, numpy.array(text) makes text an array"),
    (np.lib.npyio.NpzFile, "dict(source) reads its arrays"),
    (torch.nn.Module, "module.state_dict() has its tensors"),
    ((set, frozenset, range, Iterator), "list(source) gives it an order"),
    (Mapping, "dict(source) is a structure"),
    (Iterable, "list(source), if its elements are numbers or arrays"),
    (object, "optree.register_pytree_node(...) if it is a container, numpy.asarray(source) if it is an array"),
)


def _is_one_array(value: object) -> bool:
    return type(value) in (list, tuple) and is_list_of_numbers(value)


def _is_unknown_container(value: object) -> bool:
    """A dataclass, a subclass of dict or a tuple with attributes that nobody has registered yet."""
    cls = type(value)
    if cls is np.ndarray or cls is torch.Tensor:
        return False
    if not (dataclasses.is_dataclass(cls) or isinstance(value, dict) or (isinstance(value, tuple) and _is_bunch(cls))):
        return False
    if isinstance(value, Foreign) or library_of(value) is not None:  # scipy's DOK matrices are dicts
        return False
    return optree.register_pytree_node.get(cls, namespace=NAMESPACE) is None


def _is_bunch(cls: Any) -> bool:
    """A tuple with named attributes beside its items, as scipy.stats returns: more than a named tuple."""
    return isinstance(getattr(cls, "_extra_fields", None), tuple)


def _register(cls: Any) -> None:
    with _register_lock:
        if optree.register_pytree_node.get(cls, namespace=NAMESPACE) is not None:
            return
        is_dict, is_bunch = issubclass(cls, dict), issubclass(cls, tuple) and _is_bunch(cls)
        take: Any = _items_of if is_dict else _bunch_of if is_bunch else _fields_of
        put: Any = _with_items if is_dict else _with_bunch if is_bunch else _with_fields
        entry = optree.MappingEntry if is_dict else optree.GetAttrEntry
        optree.register_pytree_node(cls, take, put, path_entry_type=entry, namespace=NAMESPACE)


class _Template:
    """The container that leaves came from. Two are equal when leaves of one fit into the other."""

    __slots__ = ("container", "keys")

    def __init__(self, container: Any, keys: tuple[Any, ...]) -> None:
        self.container, self.keys = container, keys

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Template) and self.keys == other.keys

    def __hash__(self) -> int:
        return hash(self.keys)


def _fields_of(value: Any) -> tuple[list[Any], _Template, tuple[str, ...]]:
    names = tuple(field.name for field in dataclasses.fields(value) if hasattr(value, field.name))
    return [getattr(value, name) for name in names], _Template(value, names), names


def _with_fields(template: Any, values: Any) -> Any:
    """A shallow copy with other fields: ``__init__`` may check or change what it is given, so it does not run."""
    result = copy.copy(template.container)
    for name, value in zip(template.keys, values, strict=True):
        object.__setattr__(result, name, value)
    return result


def _items_of(value: Any) -> tuple[list[Any], _Template, tuple[Any, ...]]:
    keys = tuple(value)
    return [value[key] for key in keys], _Template(value, keys), keys


def _with_items(template: Any, values: Any) -> Any:
    result = copy.copy(template.container)
    for key, value in zip(template.keys, values, strict=True):
        result[key] = value
    return result


def _bunch_of(value: Any) -> tuple[list[Any], _Template, tuple[str, ...]]:
    extra = tuple(name for name in value._extra_fields if name in vars(value))
    names = (*value._fields, *extra)
    return [*value, *(vars(value)[name] for name in extra)], _Template(value, names), names


def _with_bunch(template: Any, values: Any) -> Any:
    container, values = template.container, list(values)
    count = len(container)
    result = tuple.__new__(type(container), values[:count])
    vars(result).update(vars(container) | dict(zip(template.keys[count:], values[count:], strict=True)))
    return result
