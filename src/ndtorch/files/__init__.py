"""Files of named arrays: read, written and converted, each format one module and one line in the table.

A format module has ``WORLD``, the library whose objects it writes, and three functions: ``read`` gives arrays or
tensors by name, ``check`` refuses what the format cannot hold before anything is written, ``write`` writes the rest.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from .._casting import Casting
from .._convert import explain, to_numpy, to_torch
from .._errors import FormatError, NdtorchError
from .._options import World
from .._plan import Plan
from . import npy, npz, safetensors

AnyPath = str | os.PathLike[str]


class Format(Protocol):
    """What every format module has."""

    WORLD: World

    def read(self, path: Path, *, mapped: bool = False) -> dict[str, Any]:
        """Read every array, after all that the file claims was checked against its size."""

    def check(self, values: Mapping[str, Any], plans: Mapping[str, Plan]) -> None:
        """Refuse what the format cannot hold."""

    def write(self, stream: BinaryIO, values: Mapping[str, Any]) -> None:
        """Write values that passed `check`."""


FORMATS: dict[str, Format] = {".npy": npy, ".npz": npz, ".safetensors": safetensors}


class Converted(NamedTuple):
    """What became of one array on its way into a file.

    Attributes:
        name: Its name in the file.
        plan: What was shared or copied, and why.
        nbytes: Bytes of its elements in the file.
        note: What else was done while it was written.
    """

    name: str
    plan: Plan
    nbytes: int
    note: str = ""


def convert_file(
    source: AnyPath,
    target: AnyPath,
    /,
    *,
    dtype: Any = None,
    float_dtype: Any = None,
    casting: Casting = "same_kind",
    overwrite: bool = False,
) -> list[Converted]:
    """Convert a file of arrays into another format; the suffixes say which.

    A killed or failed run leaves the target as it was: the new file is written beside it and then renamed.
    Nothing is ever unpickled.

    Memory:
        The source is read whole, into memory of its own. Arrays are then shared with what is written, or copied
        once where the result says so.

    Args:
        source: A ``.npy``, ``.npz`` or ``.safetensors`` file.
        target: Where the result goes, in a folder that exists.
        dtype: As in `to_torch`: casts every array of numbers.
        float_dtype: As in `to_torch`: casts floating arrays only.
        casting: As in `to_torch`.
        overwrite: Whether a target that exists is replaced. It keeps its permissions.

    Returns:
        What became of each array, in the order of the source.

    Raises:
        FormatError: The source is not what it claims to be, or the target cannot be named so.
        UnsupportedTypeError: The target's format cannot hold an array; nothing was written.
        LossyCastError: A cast that ``casting`` does not allow; nothing was written.
        OSError: The system refuses to read or to write.

    >>> import os, tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source, target = os.path.join(folder, "a.npy"), os.path.join(folder, "a.safetensors")
    ...     np.save(source, np.arange(6.0).reshape(2, 3).T)
    ...     [(c.name, c.plan.dtype, c.nbytes) for c in convert_file(source, target, dtype="float32")]
    [('a', 'float32', 24)]
    """
    _check_target(Path(target), overwrite, "convert_file")
    if os.path.exists(target) and os.path.exists(source) and os.path.samefile(source, target):
        raise FormatError("convert_file", f"source and target are the same file, {_quoted(source)}")
    arrays = read(source)
    return write(target, arrays, dtype=dtype, float_dtype=float_dtype, casting=casting, overwrite=overwrite)


def read(path: AnyPath, /, *, mapped: bool = False) -> dict[str, Any]:
    """Read every array of a file, by name; the array of an ``.npy`` file has the file's name.

    Memory:
        Independent memory of its own. ``mapped=True`` maps the file instead where its format allows: read-only
        arrays from ``.npy``, privately mapped tensors from ``.safetensors``, which must not outlive the file's bytes.

    Raises:
        FormatError: The file is missing, truncated, or not what it claims to be.
        UnsupportedTypeError: It holds pickled Python objects.

    >>> import os, tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(os.path.join(folder, "ages.npy"), np.array([3, 7]))
    ...     read(os.path.join(folder, "ages.npy"))
    {'ages': array([3, 7])}
    """
    found = _format_of(path, "read")
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError("read", f"{_quoted(path)}: no such file") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
        raise FormatError("read", f"{_quoted(path)} is {kind}", hint=f"a {_known()} file")
    return found.read(Path(path), mapped=mapped)


def write(
    path: AnyPath,
    arrays: Mapping[str, Any],
    /,
    *,
    dtype: Any = None,
    float_dtype: Any = None,
    casting: Casting = "same_kind",
    overwrite: bool = False,
) -> list[Converted]:
    """Write arrays or tensors by name into a file, all or nothing.

    Memory:
        As `to_torch` for ``.safetensors`` and `to_numpy` for the others; what has another layout than the format's
        is laid out anew, one array at a time.

    Raises:
        FormatError: The file cannot be named so, or exists.
        UnsupportedTypeError: The format cannot hold an array; nothing was written.
        LossyCastError: A cast that ``casting`` does not allow; nothing was written.
        OSError: The system refuses.

    >>> import os, tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(os.path.join(folder, "a.npz"), {"x": torch.ones(2)})[0].plan.shares
    True
    """
    target = Path(path)
    found = _format_of(target, "write")
    _check_target(target, overwrite, "write")
    _check_names(arrays)
    options = {"dtype": dtype, "float_dtype": float_dtype, "casting": casting}
    plans = {name: _planned(name, array, found.WORLD, options) for name, array in arrays.items()}
    values = {name: _converted(name, array, found.WORLD, options) for name, array in arrays.items()}
    found.check(values, plans)
    with atomic(target) as stream:
        found.write(stream, values)
    return [Converted(name, plans[name], int(value.nbytes), _note(value)) for name, value in values.items()]


def _planned(name: str, array: Any, world: World, options: dict[str, Any]) -> Plan:
    planned = explain(array, to=world, **options)
    if planned.error is not None:
        raise planned.error.at(f"[{name!r}]")
    return planned


def _converted(name: str, array: Any, world: World, options: dict[str, Any]) -> Any:
    try:
        return (to_torch if world == "torch" else to_numpy)(array, **options)
    except NdtorchError as error:
        raise error.at(f"[{name!r}]") from None


def _note(value: Any) -> str:
    relaid = hasattr(value, "is_contiguous") and not value.is_contiguous()
    return "laid out row by row in the file" if relaid else ""


def _format_of(path: AnyPath, subject: str) -> Format:
    suffix = Path(path).suffix
    found = FORMATS.get(suffix.lower())
    if found is None:
        raise FormatError(
            subject,
            f"{_quoted(path)} has " + (f"an unknown suffix, {suffix!r}" if suffix else "no suffix"),
            hint=f"known formats are {', '.join(FORMATS)}",
        )
    return found


def _check_names(arrays: Mapping[str, Any]) -> None:
    for name in arrays:
        try:
            str.encode(name)
        except (TypeError, UnicodeEncodeError):
            raise FormatError(
                "write", f"the array name {name!r} is not Unicode text", hint="rename the array, or its file"
            ) from None


def _check_target(target: Path, overwrite: bool, subject: str) -> None:
    _format_of(target, subject)
    folder = Path(os.path.realpath(target)).parent
    if not folder.is_dir():
        raise FormatError(subject, f"cannot write {_quoted(target)}: no folder {_quoted(folder)}")
    if target.is_dir():
        raise FormatError(subject, f"cannot write {_quoted(target)}: it is a folder")
    if target.exists() and not overwrite:
        raise FormatError(
            subject, f"{_quoted(target)} exists", hint="overwrite=True (--overwrite) replaces it, all or nothing"
        )


@contextmanager
def atomic(target: Path) -> Iterator[BinaryIO]:
    """Give a stream whose bytes appear under ``target`` when all of them are safe on the disk, or never.

    Any failure removes the temporary file; only a killed process leaves it, beside the old target.
    """
    place = Path(os.path.realpath(target))  # a link stays a link
    temporary = place.with_name(f".ndtorch-{secrets.token_hex(8)}.tmp")
    try:
        with _created(temporary, place) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, place)
        _sync_folder(place.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and not isinstance(error, NdtorchError):
            raise OSError(error.errno or errno.EIO, error.strerror or str(error), os.fspath(target)) from error
        raise


def _created(temporary: Path, place: Path) -> BinaryIO:
    """Open a new file with the permissions of the one it replaces, or those of any new file."""
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    with suppress(FileNotFoundError):
        os.chmod(temporary, stat.S_IMODE(place.stat().st_mode))
    return os.fdopen(descriptor, "wb")


def _sync_folder(folder: Path) -> None:
    """Make the new name itself last; file systems that cannot are left to themselves."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _quoted(path: AnyPath) -> str:
    return repr(os.fspath(path))


def _known() -> str:
    *most, last = FORMATS
    return f"{', '.join(most)} or {last}"
