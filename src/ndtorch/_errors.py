"""Every error ndtorch raises.

    NdtorchError
    ├── CopyRequiredError       (ValueError)    sharing was demanded and is not sound
    ├── UnsupportedTypeError    (TypeError)     the other side has nothing to hold this object
    │   └── UnsupportedDtypeError (TypeError)   ... or this dtype
    ├── LossyCastError          (ValueError)    a cast that ``casting`` does not allow
    ├── ShapeMismatchError      (ValueError)    shapes that had to agree do not
    ├── InvalidOptionError      (ValueError)    an option has no such value, or two exclude each other
    ├── FormatError             (ValueError)    a file is not what it claims to be
    │   └── MissingFileError    (FileNotFoundError) ... or is not there
    └── MissingDependencyError  (ImportError)   an optional library is not installed

Each also inherits the builtin that a caller would catch. The message is
``subject: fact; expected X, got Y. Hint: the call that fixes it.`` and every fact in it is an attribute too.
"""

from __future__ import annotations

import errno
from typing import Any


class NdtorchError(Exception):
    """Base of all errors raised by ndtorch.

    Attributes:
        subject: Where it happened, usually the function that was called.
        fact: What is wrong, with its value.
        expected: What would have been right, or ``None``.
        got: What was found instead, or ``None``.
        hint: The exact call that helps, or ``None``.
        path: Where in a structure the failing leaf sits, such as ``['image'][3]``; empty for a single array.
        facts: Further facts by name (``index``, ``value``, ``dtype`` ...), each also readable as an attribute.

    >>> from ndtorch import CopyRequiredError
    >>> error = CopyRequiredError("to_torch", "it is read-only", hint="copy=None copies")
    >>> str(error)
    'to_torch: it is read-only. Hint: copy=None copies.'
    >>> isinstance(error, ValueError)
    True
    """

    def __init__(
        self,
        subject: str,
        fact: str = "",
        *,
        expected: object = None,
        got: object = None,
        hint: str | None = None,
        **facts: Any,
    ) -> None:
        super().__init__()  # first: ImportError sets a path of its own
        self.subject = subject
        self.fact = fact
        self.expected = expected
        self.got = got
        self.hint = hint
        self.path: str | None = ""
        self.facts = facts
        self.args = (self._message(),)

    def _message(self) -> str:
        if not self.fact:  # a DataLoader makes the error of its worker anew, from the message alone
            return self.subject
        text = f"{self.subject}: {self.fact}"
        if self.expected is not None:
            text += f"; expected {self.expected}, got {self.got}"
        return f"{text}." if self.hint is None else f"{text}. Hint: {self.hint}."

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["facts"][name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no fact {name!r}") from None

    def __reduce__(self) -> tuple[Any, ...]:
        # Exception pickles only its args; worker processes need the facts as well.
        return (_rebuild, (type(self), str(self), self.__dict__))

    def at(self, path: str) -> NdtorchError:
        """Say which leaf of a structure failed: put ``path`` before what is known, in one note."""
        if path:
            notes = self.__dict__.get("__notes__", [])
            self.__notes__ = [note for note in notes if note != f"at source{self.path}"]
            self.path = path + (self.path or "")
            self.add_note(f"at source{self.path}")
        return self

    def renamed(self, subject: str, *, hint: str | None = None) -> NdtorchError:
        """Say that it happened in ``subject``, which called what raised this, and what helps there."""
        self.subject = subject
        self.hint = self.hint if hint is None else hint
        self.args = (self._message(),)
        return self

    def without_path(self) -> NdtorchError:
        """Forget which leaf failed, for a caller that counts its leaves in another way."""
        self.__notes__ = [note for note in self.__dict__.get("__notes__", []) if note != f"at source{self.path}"]
        self.path = ""
        return self


def _rebuild(cls: type[NdtorchError], message: str, state: dict[str, Any]) -> NdtorchError:
    error = cls(message)
    error.args = (message,)
    error.__dict__.update(state)
    return error


class CopyRequiredError(NdtorchError, ValueError):
    """Sharing memory was demanded where only a copy is sound; ``reason`` says why.

    >>> import numpy as np, ndtorch as nd
    >>> try:
    ...     nd.to_torch(np.zeros(3)[::-1], copy=False)
    ... except nd.CopyRequiredError as error:
    ...     error.reason
    'axis 0 has a negative stride (-8 bytes)'
    """


class UnsupportedTypeError(NdtorchError, TypeError):
    """The other side has nothing that could hold this object.

    >>> import numpy as np, ndtorch as nd
    >>> try:
    ...     nd.to_torch(np.ma.masked_equal([1, 9], 9))
    ... except nd.UnsupportedTypeError as error:
    ...     error.hint
    "masked='split' gives Masked(data, mask), array.filled(value) fills them"
    """


class UnsupportedDtypeError(UnsupportedTypeError):
    """The other side has nothing that could hold this dtype.

    >>> import numpy as np, ndtorch as nd
    >>> try:
    ...     nd.to_torch(np.zeros(2, dtype='datetime64[s]'), dtype='float32')
    ... except nd.UnsupportedDtypeError as error:
    ...     error.fact
    'dtype=float32 cannot apply to M8[s][2](numpy): it holds time, not numbers'
    """


class LossyCastError(NdtorchError, ValueError):
    """A cast that ``casting`` forbids; under ``exact`` it carries ``index`` and ``value``.

    >>> import numpy as np, ndtorch as nd
    >>> try:
    ...     nd.to_torch(np.array([1.0, 2.5]), dtype='int64', casting='exact')
    ... except nd.LossyCastError as error:
    ...     error.index, float(error.value)
    ((1,), 2.5)
    """


class ShapeMismatchError(NdtorchError, ValueError):
    """Shapes that had to agree do not.

    >>> import numpy as np, ndtorch as nd
    >>> ragged = np.empty(2, dtype=object)
    >>> ragged[:] = [np.zeros(2), np.zeros(3)]
    >>> try:
    ...     nd.to_torch(ragged)
    ... except nd.ShapeMismatchError as error:
    ...     error.index, error.expected, error.got
    ((1,), (2,), (3,))
    """


class InvalidOptionError(NdtorchError, ValueError):
    """An option has no such value, or two options exclude each other.

    >>> import numpy as np, ndtorch as nd
    >>> try:
    ...     nd.to_torch(np.zeros(2), casting='gently')
    ... except nd.InvalidOptionError as error:
    ...     error.expected
    'one of no, equiv, safe, same_kind, unsafe, exact'
    """


class FormatError(NdtorchError, ValueError):
    """A file is not what it claims to be.

    >>> from ndtorch import FormatError
    >>> str(FormatError("read", "'x.npy' is truncated", expected="128 bytes", got=100))
    "read: 'x.npy' is truncated; expected 128 bytes, got 100."
    """


class MissingFileError(FormatError, FileNotFoundError):
    """There is no such file.

    >>> from ndtorch import MissingFileError
    >>> error = MissingFileError("read", "'x.npy': no such file", filename="x.npy")
    >>> str(error), error.filename, isinstance(error, FileNotFoundError)
    ("read: 'x.npy': no such file.", 'x.npy', True)
    """

    errno = errno.ENOENT
    __str__ = Exception.__str__  # not that of OSError, which knows no subject

    @property
    def filename(self) -> str | None:
        """Its name, without what is secret in a URL."""
        return self.facts.get("filename")


class MissingDependencyError(NdtorchError, ImportError):
    """An optional library that this call needs is not installed.

    >>> from ndtorch import MissingDependencyError
    >>> str(MissingDependencyError("read", "h5py is not installed", hint="pip install h5py"))
    'read: h5py is not installed. Hint: pip install h5py.'
    """


# Tracebacks and pickles show the public name.
for _cls in (NdtorchError, *NdtorchError.__subclasses__(), UnsupportedDtypeError, MissingFileError):
    _cls.__module__ = "ndtorch"
