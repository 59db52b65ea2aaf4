"""Checkpoints: structures that `torch.save` writes small and ``torch.load(weights_only=True)`` takes back."""

from __future__ import annotations

import argparse
import array
import collections
import dataclasses
import enum
import itertools
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import optree
import torch

from ._act import Masked
from ._compact import compact
from ._convert import to_torch
from ._errors import NdtorchError, UnsupportedTypeError
from ._options import torch_options
from ._plain import (
    LEAVES,
    SUBJECT,
    array_detail,
    attributes_of,
    dressed_like,
    is_plain,
    name_of,
    plain_leaf,
    plain_tensor,
    refused,
)
from ._refusals import truncated
from ._spec import Spec, describe
from ._structures import NAMESPACE
from .foreign import library_of, recognise

AnyArray = npt.NDArray[Any]

_REFUSED = "refused by weights_only"
_BY_FIELD = "its fields by name"


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One thing that differs between a tree and its checkpoint.

    Attributes:
        path: Where in the tree, such as ``['optim']['lr']``; empty for the tree itself.
        was: Class, or dtype and shape, before.
        now: The same after.
        why: The reason, and what else to know.
    """

    path: str
    was: str
    now: str
    why: str


class Changes(tuple[Change, ...]):
    """All changes in the order of the tree; prints as a table.

    Attributes:
        nbytes_saved: Bytes that `torch.save` writes less because storages hold no more than is used.
    """

    nbytes_saved: int

    def __new__(cls, changes: Iterable[Change], nbytes_saved: int = 0) -> Changes:
        self = super().__new__(cls, changes)
        self.nbytes_saved = nbytes_saved
        return self

    def __getnewargs__(self) -> tuple[Any, ...]:
        return tuple(self), self.nbytes_saved

    def __str__(self) -> str:
        if not self:
            return "no changes"
        rows = [("path", "was", "now", "why"), *((c.path or "source", c.was, c.now, c.why) for c in self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows]
        count = "1 change" if len(self) == 1 else f"{len(self)} changes"
        return "\n".join([*lines, f"{count}, {self.nbytes_saved:,} bytes saved"])


class Checkpoint(NamedTuple):
    """What `to_checkpoint` makes: ``state`` for `torch.save`, and the ``changes`` that it took.

    >>> import numpy as np, ndtorch as nd
    >>> checkpoint = nd.to_checkpoint({"epoch": np.int64(3)})
    >>> checkpoint.state
    {'epoch': 3}
    >>> print(checkpoint)
    path       was          now  why
    ['epoch']  numpy.int64  int  refused by weights_only
    1 change, 0 bytes saved
    """

    state: Any
    changes: Changes

    def __str__(self) -> str:
        return str(self.changes)

    def __repr__(self) -> str:
        return f"<checkpoint with {len(self.changes)} changes, {self.changes.nbytes_saved:,} bytes saved>"


def to_checkpoint(tree: Any, /) -> Checkpoint:
    """Make a structure safe for ``torch.save(state)`` and ``torch.load(weights_only=True)``, and say what changed.

    ``weights_only`` refuses a file with one NumPy object in it, and `torch.save` writes the whole storage of a view.
    Arrays, those of other libraries and tables too, become tensors by the rules of `to_torch`, masked ones
    ``{"data", "mask"}``, NumPy scalars Python numbers.
    Named tuples, dataclasses and registered optree nodes become dicts by field, other mappings dicts, other sequences
    lists, enums their values, paths, dtypes and dates text. Parameters, gradient flags, and objects that occur
    twice stay what they are, and so does the ``_metadata`` of a module's ``state_dict()``.

    Memory:
        Shares the memory of arrays and tensors, read-only ones too: save it before you change them. Tensors whose
        storage holds 4096 bytes more than they use, or twice as much, are copied without the rest, channels_last
        still channels_last. Tensors that overlap keep one storage between them, so tied weights stay tied; arrays
        over one memory become tensors over one. This holds on the CPU and on CUDA; sparse, quantized, nested and
        meta tensors, and other devices, are left alone. The tree itself never changes.

    Args:
        tree: A ``state_dict()`` or any structure; what the defaults of ``weights_only`` take needs no
            ``add_safe_globals``, and what you added there yourself counts as refused.

    Returns:
        ``Checkpoint(state, changes)``. ``changes`` prints as a table; where it is empty, ``state`` has the very
        leaves of ``tree``.

    Raises:
        UnsupportedTypeError: Something that cannot be loaded and has no plain form, with its path and class.
        LossyCastError: A longdouble that float does not hold.
        CopyRequiredError: A `trace` forbids copies.
        NdtorchError: The structure contains itself, or two keys become one.

    >>> import io, numpy as np, torch, ndtorch as nd
    >>> checkpoint = nd.to_checkpoint({"lr": np.float64(0.1), "first": torch.zeros(10_000)[:1]})
    >>> print(checkpoint.changes)
    path       was            now            why
    ['lr']     numpy.float64  float          refused by weights_only
    ['first']  f32[1](torch)  f32[1](torch)  its storage has 40,000 bytes, it uses 4
    2 changes, 39,996 bytes saved
    >>> file = io.BytesIO()
    >>> torch.save(checkpoint.state, file)
    >>> torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    {'lr': 0.1, 'first': tensor([0.])}
    """
    walk = _Walk()
    try:
        state = walk.convert(tree, "")
        compacted = compact(walk.tensors())
        if compacted.tensors:
            state = _Exchange({key: tensor for key, (tensor, _) in compacted.tensors.items()}).within(state)
    except RecursionError:
        raise NdtorchError(SUBJECT, "the structure is nested too deeply", hint="save its parts one by one") from None
    walk.note_compacted(compacted.tensors)
    return Checkpoint(state, Changes(walk.changes(), compacted.nbytes_saved))


class _Walk:
    """One pass through a tree: plain containers of plain leaves, every tensor found, every change noted."""

    def __init__(self) -> None:
        self._order = itertools.count()
        self._done: dict[int, tuple[Any, Any]] = {}  # with the source, so that its id stays its own
        self._open: set[int] = set()
        self._found: dict[int, tuple[int, str, torch.Tensor]] = {}
        self._changes: dict[int, Change] = {}

    def tensors(self) -> list[tuple[str, torch.Tensor]]:
        """Paths and tensors, in the order of the tree."""
        return [(path, tensor) for _, path, tensor in self._found.values()]

    def changes(self) -> list[Change]:
        """What was noted, in the order of the tree."""
        return [self._changes[order] for order in sorted(self._changes)]

    def note_compacted(self, replaced: Mapping[int, tuple[torch.Tensor, str]]) -> None:
        """Add what became of the tensors' memory."""
        for key, (tensor, why) in replaced.items():
            order, path, old = self._found[key]
            known = self._changes.get(order, Change(path, str(describe(old)), "", ""))
            why = f"{known.why}; {why}" if known.why else why
            self._changes[order] = dataclasses.replace(known, now=str(describe(tensor)), why=why)

    def _note(self, path: str, was: str, now: str, detail: str = "") -> int:
        order = next(self._order)
        self._changes[order] = Change(path, was, now, f"{_REFUSED}; {detail}" if detail else _REFUSED)
        return order

    def convert(self, value: Any, path: str) -> Any:
        """Give the plain form of a subtree; the same object gives the same object."""
        if is_plain(value):
            return value
        if id(value) in self._done:
            return self._done[id(value)][1]
        if id(value) in self._open:
            raise NdtorchError(SUBJECT, "the structure contains itself", hint="leave the reference to it out")
        self._open.add(id(value))
        result = self._convert(value, path)
        self._open.discard(id(value))
        self._done[id(value)] = value, result
        return result

    def _convert(self, value: Any, path: str) -> Any:
        if library_of(value) is not None:
            return self._foreign(value, path)
        for cls, convert in _BY_CLASS:
            if isinstance(value, cls):
                return convert(self, value, path)
        return self._object(value, path)

    def _child(self, value: Any, path: str, step: str) -> Any:
        try:
            return self.convert(value, path + step)
        except NdtorchError as error:
            raise error.at(step) from None

    # ---- containers ----

    def _mapping(self, value: Mapping[Any, Any], path: str) -> Any:
        cls: Any = type(value)
        if cls not in (dict, collections.OrderedDict, collections.Counter):
            self._note(path, name_of(value), "dict", _what_is_lost(value))
            cls = dict
        made = self._dict(value.items(), path)
        if cls is dict:
            return made
        result = cls(made)
        vars(result).update(self._attributes(vars(value), path))  # a module's state_dict() has its versions there
        return result

    def _dict(self, items: Iterable[tuple[Any, Any]], path: str) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        for key, value in list(items):
            step = f"[{_key_text(key)}]"
            plain = self._hashable(key, path, step, made)
            made[plain] = self._child(value, path, step)
        return made

    def _hashable(self, key: Any, path: str, step: str, known: Mapping[Any, Any]) -> Any:
        """The plain form of a key or an element of a set."""
        plain = self._child(key, path, step)
        try:
            is_new = plain not in known
        except TypeError:
            fact = f"cannot save a {name_of(key)} as a key or in a set: it becomes a {name_of(plain)}"
            raise UnsupportedTypeError(SUBJECT, fact, hint="use text, numbers or tuples of them").at(step) from None
        if not is_new:
            fact = f"two keys become one: {_key_text(plain)}"
            raise NdtorchError(SUBJECT, fact, hint="rename one of them").at(step)
        return plain

    def _attributes(self, attributes: Mapping[str, Any], path: str) -> dict[str, Any]:
        return {name: self._child(value, path, f".{name}") for name, value in list(attributes.items())}

    def _fields(self, value: Any, path: str, names: Iterable[str], detail: str = _BY_FIELD) -> dict[str, Any]:
        self._note(path, name_of(value), "dict", detail)
        return self._attributes({name: getattr(value, name) for name in names}, path)

    def _namespace(self, value: Any, path: str) -> dict[str, Any]:
        return self._fields(value, path, list(vars(value)), "its attributes by name")

    def _tuple(self, value: tuple[Any, ...], path: str) -> Any:
        if optree.is_namedtuple(value):
            return self._fields(value, path, optree.namedtuple_fields(value))
        if optree.is_structseq(value):
            return self._fields(value, path, optree.structseq_fields(value))
        return self._items(value, path, tuple)

    def _list(self, value: Sequence[Any], path: str) -> Any:
        return self._items(value, path, list)

    def _items(self, value: Sequence[Any], path: str, cls: Any) -> Any:
        if type(value) is not cls:
            self._note(path, name_of(value), cls.__name__, _what_is_lost(value))
        return cls([self._child(item, path, f"[{position}]") for position, item in enumerate(list(value))])

    def _set(self, value: Iterable[Any], path: str) -> set[Any]:
        if type(value) is not set:
            self._note(path, name_of(value), "set")
        made: dict[Any, None] = {}
        for item in list(value):
            made[self._hashable(item, path, f"{{{_key_text(item)}}}", made)] = None
        return set(made)

    def _enum(self, value: enum.Enum, path: str) -> Any:
        order = self._note(path, name_of(value), "", f"the value of {value!s}")
        plain = self.convert(value.value, path)
        self._changes[order] = dataclasses.replace(self._changes[order], now=name_of(plain))
        return plain

    def _object(self, value: Any, path: str) -> Any:
        """Dataclasses and nodes registered with optree; all else ends here."""
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = (field.name for field in dataclasses.fields(value))
            return self._fields(value, path, [name for name in fields if hasattr(value, name)])
        if optree.tree_is_leaf(value, none_is_leaf=True, namespace=NAMESPACE):
            raise refused(value)
        children, metadata, entries, _ = optree.tree_flatten_one_level(value, none_is_leaf=True, namespace=NAMESPACE)
        detail = "its children by name" + ("" if metadata is None else ", without its metadata")
        self._note(path, name_of(value), "dict", detail)
        return self._dict(zip(entries, children, strict=True), path)

    def _refuse(self, value: Any, path: str) -> Any:
        raise refused(value)

    # ---- leaves ----

    def _leaf(self, value: Any, path: str) -> Any:
        plain, detail = plain_leaf(value)
        if plain is not value:
            self._note(path, name_of(value), name_of(plain), detail)
        return plain

    def _record(self, value: np.void, path: str) -> Any:
        if value.dtype.names is None:
            raise refused(value)
        self._note(path, name_of(value), "dict", _BY_FIELD)
        return self._dict(((name, value[name]) for name in value.dtype.names), path)

    def _array(self, value: AnyArray, path: str) -> Any:
        spec = describe(value)
        _check_mapped(spec)
        try:
            made = to_torch(value, readonly="share", masked="split")
        except NdtorchError as error:
            raise error.renamed(SUBJECT, hint=_ARRAY_HINTS.get(spec.form)) from None
        is_one = isinstance(made, torch.Tensor)
        order = self._note(path, str(spec), str(describe(made)) if is_one else "dict", array_detail(spec))
        return self._parts(made, path, order)

    def _foreign(self, value: Any, path: str) -> Any:
        taken = recognise(value)
        try:
            made = to_torch(taken, readonly="share", masked="split")
        except NdtorchError as error:
            raise error.renamed(SUBJECT) from None
        now = str(describe(made)) if isinstance(made, torch.Tensor) else "list" if isinstance(made, list) else "dict"
        detail = "its values only: to_numpy(..., like=) restores the rest from an example"
        return self._parts(made, path, self._note(path, str(describe(taken)), now, detail))

    def _parts(self, made: Any, path: str, order: int | None) -> Any:
        if isinstance(made, torch.Tensor):
            return self._seen(made, path, order)
        if isinstance(made, list):
            return [self._parts(part, f"{path}[{position}]", None) for position, part in enumerate(made)]
        named = made._asdict() if isinstance(made, Masked) else made
        plain: dict[Any, Any] = {}
        for name, part in named.items():
            step = f"[{_key_text(name)}]"
            plain[self._hashable(name, path, step, plain)] = self._parts(part, path + step, None)
        return plain

    def _tensor(self, value: torch.Tensor, path: str) -> torch.Tensor:
        plain, order = plain_tensor(value), None
        if plain is not value:
            order = self._note(path, name_of(value), name_of(plain))
        attributes = attributes_of(value)
        if attributes:
            converted = self._attributes(attributes, path)
            if any(converted[name] is not attributes[name] for name in attributes):
                plain = dressed_like(plain, plain.detach())
                vars(plain).update(converted)
        return self._seen(plain, path, order)

    def _seen(self, tensor: torch.Tensor, path: str, order: int | None) -> torch.Tensor:
        self._found[id(tensor)] = (next(self._order) if order is None else order), path, tensor
        return tensor


_BY_CLASS: tuple[tuple[Any, Callable[[_Walk, Any, str], Any]], ...] = (
    (torch.Tensor, _Walk._tensor),
    (np.ndarray, _Walk._array),
    (np.void, _Walk._record),
    (enum.Enum, _Walk._enum),
    ((torch.nn.Module, memoryview, array.array), _Walk._refuse),
    (LEAVES, _Walk._leaf),
    (Mapping, _Walk._mapping),
    (tuple, _Walk._tuple),
    ((Sequence, collections.deque), _Walk._list),
    ((set, frozenset), _Walk._set),
    ((argparse.Namespace, types.SimpleNamespace), _Walk._namespace),
)
"""The first that fits decides."""

_ARRAY_HINTS = {
    "foreign number": "array.astype(numpy.float64) rounds it; to_torch(array, dtype='float64', casting='exact') first",
    "object": "array.tolist() is a list, saved element by element",
}


def _check_mapped(spec: Spec) -> None:
    """Refuse a memory map whose file has shrunk, which torch.save would die of."""
    if spec.mapping is not None and spec.mapping.truncated:
        raise truncated(spec, torch_options()).renamed(SUBJECT)
    for part in spec.parts.values():
        _check_mapped(part)


def _key_text(key: object) -> str:
    """A key as a path has it; the class of what has no short text of its own."""
    if isinstance(key, np.generic) and key.dtype.kind in "biufcSU":
        key = key.item()
    if type(key) is tuple:
        return "(" + ", ".join(map(_key_text, key)) + ")"
    is_short = is_plain(key) and not isinstance(key, torch.Size | bytearray)
    return repr(key) if is_short or type(key) is bytes else name_of(key)


def _what_is_lost(container: object) -> str:
    """Say what a plain container does not have of this one."""
    lost = []
    if isinstance(container, dict | list | tuple):
        lost = [name for name in getattr(container, "__dict__", ()) if name not in container]
    if isinstance(container, collections.defaultdict) and container.default_factory is not None:
        lost.append("default_factory")
    if isinstance(container, collections.deque) and container.maxlen is not None:
        lost.append("maxlen")
    return "without its " + ", ".join(lost) if lost else ""


class _Exchange:
    """Puts other tensors into a plain structure; the same object gives the same object."""

    def __init__(self, tensors: Mapping[int, torch.Tensor]) -> None:
        self._tensors = tensors
        self._done: dict[int, Any] = {}

    def within(self, value: Any) -> Any:
        """Give the same structure with the other tensors in it."""
        if id(value) not in self._done:
            self._done[id(value)] = self._within(value)
        return self._done[id(value)]

    def _within(self, value: Any) -> Any:
        cls = type(value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if cls in (dict, collections.OrderedDict, collections.Counter):
            result: Any = cls({self.within(key): self.within(child) for key, child in value.items()})
            if cls is not dict:
                vars(result).update({name: self.within(child) for name, child in vars(value).items()})
            return result
        return cls(map(self.within, value)) if cls in (list, tuple, set) else value

    def _tensor(self, value: torch.Tensor) -> torch.Tensor:
        result = self._tensors.get(id(value), value)
        attributes = attributes_of(result)
        exchanged = {name: self.within(child) for name, child in attributes.items()}
        if any(exchanged[name] is not attributes[name] for name in attributes):
            result = result if result is not value else dressed_like(value, value.detach())
            vars(result).update(exchanged)
        return result
