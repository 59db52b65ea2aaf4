"""Names of the arrays in a file: a structure is taken apart into them, with ``/`` between its steps, and put together.

=====================  ==================================================================
structure              names
=====================  ==================================================================
``{"a": {"b": x}}``    ``a/b``
``{"a": [x, y]}``      ``a/0``, ``a/1``; read back as a dict with the keys ``0`` and ``1``
``{0: x}``             ``0``
``{"a": [1, 2]}``      ``a``: a list of numbers is one array
``x``                  the stem of the file's name, or ``name=``
=====================  ==================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from .._errors import FormatError, UnsupportedTypeError

SEPARATOR = "/"
_MAX_DEPTH = 100


def flatten(tree: Any, name: str) -> dict[str, Any]:
    """Take a structure apart into its leaves, by name.

    Args:
        tree: A mapping, list, tuple, named tuple or dataclass of such or of anything else; or one leaf.
        name: What one leaf alone is called.

    Raises:
        FormatError: Two leaves would have one name, or a name could not be kept.

    >>> flatten({"a": {"b": 1}, "c": [2, 3], "d": ["e", 4]}, "x")
    {'a/b': 1, 'c': [2, 3], 'd/0': 'e', 'd/1': 4}
    """
    if _members(tree) is None:
        return {checked(name): tree}
    leaves: dict[str, Any] = {}
    for path, leaf in _leaves(tree, (), 0):
        full = SEPARATOR.join(path)
        if full in leaves:
            hint = "a key that has a '/' in it is like a dict in a dict: rename one"
            raise FormatError("write", f"two arrays would have the name {full!r}", hint=hint)
        leaves[checked(full)] = leaf
    return leaves


def _leaves(tree: Any, path: tuple[str, ...], depth: int) -> Iterator[tuple[tuple[str, ...], Any]]:
    members = _members(tree)
    if members is None:
        yield path, tree
        return
    if depth > _MAX_DEPTH:
        raise FormatError(
            "write", f"the structure is more than {_MAX_DEPTH} levels deep at {SEPARATOR.join(path)[:80]!r}"
        )
    for key, member in members:
        yield from _leaves(member, (*path, key), depth + 1)


def _members(tree: Any) -> Iterator[tuple[str, Any]] | None:
    if isinstance(tree, Mapping):
        return ((_key(key), member) for key, member in tree.items())
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return zip(tree._fields, tree, strict=True)
    if isinstance(tree, list | tuple) and not _is_numbers(tree):
        return ((str(index), member) for index, member in enumerate(tree))
    if is_dataclass(tree) and not isinstance(tree, type):
        return ((field.name, getattr(tree, field.name)) for field in fields(tree))
    return None


def _is_numbers(tree: Any, depth: int = 0) -> bool:
    """Whether it is a list of nothing but numbers, or of such lists: one array."""

    def is_number(each: Any) -> bool:
        return isinstance(each, bool | int | float | complex | np.number | np.bool_)

    if depth > _MAX_DEPTH:  # it may hold itself
        return False
    return bool(tree) and all(
        is_number(each) or (isinstance(each, list | tuple) and _is_numbers(each, depth + 1)) for each in tree
    )


def _key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, int) and not isinstance(key, bool):
        return str(key)
    raise UnsupportedTypeError(
        "write",
        f"the key {key!r} is no name of an array: it is a {type(key).__name__}",
        hint="text or integers as keys",
    )


def checked(name: str) -> str:
    """Refuse a name that not every file could keep, or that leads out of a folder.

    Raises:
        FormatError: It is empty, has an empty step, ``.`` or ``..``, a NUL, or is not Unicode text.
    """
    check_text(name)
    return checked_path(name, "no array can be named")


def checked_path(name: str, what: str = "no file can be named") -> str:
    """Refuse a name that leads out of a folder; what is no Unicode text names a file all the same.

    Raises:
        FormatError: It is empty, has an empty step, ``.`` or ``..``, or a NUL.
    """
    steps = name.split(SEPARATOR)
    bad = next((step for step in steps if step in ("", ".", "..") or "\0" in step), None)
    if bad is not None:
        raise FormatError("write", f"{what} {name!r}: {bad!r} is no step of a name", hint="rename it")
    return name


def check_text(name: str) -> None:
    """Refuse a name that is not Unicode text, such as the stem of a file whose name is other bytes.

    Raises:
        FormatError: Names it.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        hint = "name='array' (--name array) is for an array that has the name of its file; rename others"
        raise FormatError("write", f"the array name {name!r} is not Unicode text", hint=hint) from None


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Put leaves together into dicts of dicts, by the steps of their names.

    Raises:
        FormatError: A name is that of an array and of a dict at once.

    >>> nested({"a/b": 1, "c": 2})
    {'a': {'b': 1}, 'c': 2}
    """
    root: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *folders, key = name.split(SEPARATOR)
        home: Any = root
        for step in folders:
            home = home.setdefault(step, {})
            if type(home) is not dict:
                break
        if type(home) is not dict or key in home:
            raise FormatError("read", f"{name!r} would be the name of an array and of what holds other arrays")
        home[key] = leaf
    return root


def check_tree(names: Sequence[str]) -> None:
    """Refuse names of which one is that of an array and of what holds other arrays.

    Raises:
        FormatError: Names both.
    """
    known = set(names)
    for name in names:
        for end in (index for index, letter in enumerate(name) if letter == SEPARATOR):
            if name[:end] in known:
                fact = f"{name[:end]!r} would be the name of an array and of what holds {name!r}"
                raise FormatError("write", fact, hint="rename one of them")
