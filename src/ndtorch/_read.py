"""`read`: the arrays of a file as a lazy mapping; names, dtypes and shapes at once, elements when they are touched."""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import optree
import torch

from ._convert import explain, to_torch
from ._errors import FormatError, InvalidOptionError, NdtorchError, UnsupportedTypeError
from ._options import World
from .files import AnyPath, ArrayFile, MissingChunks, open_file
from .files.arrays import BLOCK, FileArray
from .files.names import SEPARATOR, nested
from .files.remote import shown


def read(
    path: AnyPath,
    /,
    *,
    to: World = "torch",
    name: str | None = None,
    format: str | None = None,
    verify: bool = True,
    missing_chunks: MissingChunks = "error",
) -> LazyArrays:
    """Open a file of arrays: names, dtypes and shapes are there at once, elements are read when they are touched.

    Of a folder, or of a pattern, all known files are opened in this way, each when its array is asked for. Its arrays
    have the names of their files, in a file of several with ``/`` and their own name after it.

    Memory:
        An array touched whole is a private memory map where the file has its elements as memory has them (``.npy``,
        ``.npz`` that is not compressed, ``.safetensors``, ``.pt``, contiguous ``.h5``): nothing is read before it is
        looked at, what is written stays in this process. Else it is read by several threads into memory of its own.
        ``to_torch(array)``, ``to_numpy(array)`` always read into memory of their own; a slice reads what it needs.
        A map dies with the bytes behind it: whoever truncates the file in place ends the process when it looks there
        (SIGBUS). To touch an array after that is a `FormatError`, and so is to read one with `to_torch` or `to_numpy`
        meanwhile; to replace or to delete the file is safe. Of more than 256 files only those used last are held open:
        of the others that is a `FormatError` too.
        Pickled, the mapping and its arrays are references to the file, which is opened again by its name.

    Args:
        path: The file; a folder or a pattern such as ``data/**/*.npy``; or a URL of one of these, such as
            ``s3://bucket/a.npy``, for which fsspec and its driver have to be installed.
        to: Whether touched arrays are tensors (``torch``) or NumPy arrays (``numpy``).
        name: What an array is called that has no name in its file, such as that of ``.npy``; else the stem of the
            file's name.
        format: Name of the format, where the suffix does not tell.
        verify: Whether an array that is touched whole is compared with the checksum that its format keeps (``.npz``,
            ``.pt``), once. That reads all of it.
        missing_chunks: Whether a chunk of ``.zarr`` that is not there is an error, for it may have been lost, or holds
            the fill value (``fill``): zarr leaves such chunks out unless it is told not to.

    Raises:
        FormatError: The file is missing, truncated, or not what it claims to be.
        UnsupportedTypeError: It holds pickled Python objects.
        MissingDependencyError: The format needs a library that is not installed.

    >>> import os, tempfile, numpy as np, ndtorch as nd
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(os.path.join(folder, "a.npz"), ages=np.array([3, 7]), names=np.array(["Ada", "Bo"]))
    ...     arrays = nd.read(os.path.join(folder, "a.npz"))
    ...     print(arrays)
    ...     print(arrays["ages"][1:])
    2 arrays
      ages   int64[2]
      names  <U3[2]
    tensor([7])
    """
    if to not in ("torch", "numpy"):
        raise InvalidOptionError("read", f"to={to!r}", expected="'torch' or 'numpy'", got=repr(to))
    file = open_file(path, format=format, name=name, missing_chunks=missing_chunks)
    return LazyArrays(file, to, verify=verify, name=name, missing_chunks=missing_chunks)


_NAMED = 10  # arrays that the error of an unknown name lists
_SHOWN = 100  # arrays that are listed: of a folder each is a file that is opened for that


class LazyArrays(Mapping[str, Any]):
    """The arrays of a file by name. ``arrays["a/b"]`` is ``arrays["a"]["b"]``. A None in a checkpoint is None.

    Attributes:
        path: The file.
    """

    def __init__(
        self,
        file: ArrayFile,
        to: World,
        *,
        verify: bool = True,
        name: str | None = None,
        missing_chunks: MissingChunks = "error",
        prefix: str = "",
        root: LazyArrays | None = None,
    ) -> None:
        self.path = file.path
        self._file = file
        self._to: World = to
        self._verify = verify
        self._name = name
        self._missing_chunks: MissingChunks = missing_chunks
        self._prefix = prefix
        self._base = root  # None for the whole file: a reference to itself would keep the file open
        self._absolute = self.path if "://" in self.path else os.path.abspath(self.path)

    def __getitem__(self, name: str) -> Any:
        if not isinstance(name, str):
            raise KeyError(name)
        full = self._prefix + name
        if full in self._file:
            stored = self._file[full]
            return None if stored.is_none else LazyArray(stored, self._to, verify=self._verify, home=self._root)
        inner = _inner(self._root, full + SEPARATOR)
        if name and any(True for _ in inner):
            return inner
        known = [repr(each) for each in itertools.islice(self, _NAMED + 1)]
        known[_NAMED:] = ["..."] if known[_NAMED:] else []
        raise KeyError(f"{shown(self.path)!r} has no array {full!r}; expected one of {', '.join(known) or 'none'}")

    def stored(self, name: str) -> FileArray:
        """What the header of its file says of an array, or of the None in the place of one."""
        return self._file[self._prefix + name]

    def local_path(self, name: str) -> str | None:
        """The path of the file in a folder that holds this array alone; ``None`` for whatever else it may be."""
        return self._file.local_path(self._prefix + name)

    @property
    def _root(self) -> LazyArrays:
        return self if self._base is None else self._base

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        full = self._prefix + name
        return full in self._file or (bool(name) and any(each.startswith(full + SEPARATOR) for each in self._file))

    def __iter__(self) -> Iterator[str]:
        start = len(self._prefix)
        return (name[start:] for name in self._file if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self) if self._prefix else len(self._file)

    def nested(self) -> dict[str, Any]:
        """The arrays as dicts in dicts, by the steps of their names: ``a/b`` is ``nested()["a"]["b"]``."""
        return nested(dict(self.items()))

    def __repr__(self) -> str:
        names = list(itertools.islice(self, _SHOWN))
        lines = [(name, self._described(name)) for name in names]
        width = max((len(name) for name, _ in lines), default=0)
        count = f"{len(self)} array" + ("" if len(self) == 1 else "s")
        rest = [f"  and {len(self) - _SHOWN} more"] if len(self) > _SHOWN else []
        return "\n".join((count, *(f"  {name:{width}}  {text}" for name, text in lines), *rest))

    def _described(self, name: str) -> str:
        try:
            return str(self._file[self._prefix + name])
        except (NdtorchError, OSError) as error:  # of a folder, where each file is opened when it is asked for
            return f"cannot be read: {error}"

    def __copy__(self) -> LazyArrays:
        return self

    def __deepcopy__(self, memo: Any) -> LazyArrays:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self._prefix:
            return _inner, (self._root, self._prefix)
        options = (self._to, self._name, self._file.format.name, self._verify, self._missing_chunks)
        return _reopened, (self._absolute, *options)


def _inner(root: LazyArrays, prefix: str) -> LazyArrays:
    return LazyArrays(root._file, root._to, verify=root._verify, prefix=prefix, root=root)


def _reopened(
    path: str, to: World, name: str | None, format: str, verify: bool, missing_chunks: MissingChunks = "error"
) -> LazyArrays:
    return read(path, to=to, name=name, format=format, verify=verify, missing_chunks=missing_chunks)


def _found_again(home: LazyArrays, name: str, facts: str) -> LazyArray:
    stored = home._file.get(name)
    if str(stored) != facts:
        got = "no such array" if stored is None else str(stored)
        fact = f"{home.path!r} is not the file that {name!r} was pickled from"
        raise FormatError("read", fact, expected=facts, got=got)
    return cast(LazyArray, home[name])


class LazyArray:
    """An array in a file, read when it is touched; to torch's and NumPy's functions the tensor or array that it holds.

    ``array[...]`` is that tensor or array, other indices read what they select and little else. Operators, functions
    and methods work on ``array[...]``. The file is never written: what would change it in place is refused.

    Attributes:
        name: Its name in the file.
        stored: What the file's header says of it.
    """

    __array_priority__ = 1000  # NumPy's operators leave it to ours

    def __init__(self, stored: FileArray, to: World, *, verify: bool = True, home: LazyArrays | None = None) -> None:
        self.name = stored.name
        self.stored = stored
        self._to: World = to
        self._verify = verify
        self._home = home

    @property
    def dtype(self) -> Any:
        """The dtype of what it gives: torch's or NumPy's."""
        if self._to == "numpy":
            return self.stored.dtype
        return getattr(torch, self._planned().dtype, None)

    @property
    def shape(self) -> Any:
        """The sizes of what it gives; text has one more dimension in torch."""
        return self.stored.shape if self._to == "numpy" else torch.Size(self._planned().shape)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements in memory."""
        return self.stored.nbytes

    def _planned(self) -> Any:
        planned = explain(self, to="torch")
        if planned.error is not None:
            raise planned.error
        return planned

    def __getitem__(self, key: Any) -> Any:
        if key is ... or (isinstance(key, tuple) and not key) or (_is_all(key) and self.stored.shape):
            return self._given(self._whole())
        return self._given(self.stored.select(key))

    def _whole(self) -> Any:
        self.stored.require()
        mapped = self.stored.map()
        if mapped is None:
            return self.stored.read()  # which compares
        if self._verify:
            self.stored.check()
        return mapped

    def _given(self, array: Any) -> Any:
        return to_torch(array) if self._to == "torch" else array

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array of no dimensions has no length")
        return int(self.shape[0])

    def __iter__(self) -> Iterator[Any]:
        rows = len(self)
        step = max(BLOCK // max(self.nbytes // max(rows, 1), 1), 1)
        return (row for start in range(0, rows, step) for row in self[start : start + step])

    def __contains__(self, value: Any) -> bool:
        return value in self[...]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        array = self.stored.read() if copy else self._whole()
        return array if dtype is None else np.asarray(array).astype(dtype, copy=False)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        written = options.get("out", ()) if method != "at" else inputs[:1]
        _refuse_to_write(written, ufunc.__name__)
        return getattr(ufunc, method)(*(_held(each) for each in inputs), **options)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: Any = (args, kwargs or {})
        name = getattr(function, "__name__", "")
        _refuse_to_write((kwargs or {}).get("out", args[:1] if _is_in_place(name) else ()), name)
        args, kwargs = optree.tree_map(_held, given)
        return function(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in _IN_PLACE_IN_NUMPY if self._to == "numpy" else _is_in_place(name):
            kind = "array" if self._to == "numpy" else "tensor"
            raise AttributeError(
                f"{self.name!r} is in a file, which is never written. Hint: {kind} = array[...]; {kind}.{name}(...)"
            )
        if not name.startswith("_") and hasattr(torch.Tensor if self._to == "torch" else np.ndarray, name):
            return getattr(self[...], name)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def __bool__(self) -> bool:
        return bool(self[...])

    def __float__(self) -> float:
        return float(self[...])

    def __int__(self) -> int:
        return int(self[...])

    def __complex__(self) -> complex:
        return complex(self[...])

    def __index__(self) -> int:
        return operator.index(self[...])

    def __copy__(self) -> LazyArray:
        return self

    def __deepcopy__(self, memo: Any) -> LazyArray:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self._home is None:
            raise UnsupportedTypeError("read", f"{self.name!r} has no file to be opened again", hint="array[...]")
        return _found_again, (self._home, self.name, str(self.stored))

    def __repr__(self) -> str:
        return f"<{self.name!r}: {self.stored}, not read>"


_IN_PLACE_IN_NUMPY = ("byteswap", "fill", "partition", "put", "resize", "setfield", "setflags", "sort")
_HARMLESS = ("requires_grad_", "share_memory_")  # wanted for what they return


def _is_in_place(name: str) -> bool:
    """Whether it is a function of torch that changes its first argument."""
    return name.endswith("_") and not name.startswith("_") and name not in _HARMLESS


def _refuse_to_write(targets: Any, function: str) -> None:
    for target in targets if isinstance(targets, tuple | list) else (targets,):
        if isinstance(target, LazyArray):
            fact = f"{function} cannot write to {target.name!r}: it is in a file, which is never written"
            raise UnsupportedTypeError("read", fact, hint="array[...] is memory of your own")


def _is_all(key: Any) -> bool:
    return isinstance(key, slice) and key.start is key.stop is key.step is None


def _held(value: Any) -> Any:
    return value[...] if isinstance(value, LazyArray) else value


def _works_on_what_it_holds(function: Callable[..., Any], *, swapped: bool = False) -> Callable[..., Any]:
    def method(self: LazyArray, *others: Any) -> Any:
        operands = (_held(self), *map(_held, others))
        return function(*(reversed(operands) if swapped else operands))

    return method


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor", "lshift", "rshift")
_OTHERS = ("eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "abs", "invert")
for _name in (*_BINARY, *_OTHERS):
    _function = getattr(operator, _name)
    setattr(LazyArray, f"__{_name.strip('_')}__", _works_on_what_it_holds(_function))
    if _name in _BINARY:
        setattr(LazyArray, f"__r{_name.strip('_')}__", _works_on_what_it_holds(_function, swapped=True))
LazyArray.__hash__ = object.__hash__  # type: ignore[method-assign]
