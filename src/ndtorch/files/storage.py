"""Bytes that can be read at any place: of a local file, or of an object behind a URL."""

from __future__ import annotations

import errno
import io
import itertools
import os
import stat
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, BinaryIO, Protocol, cast

import numpy as np
import numpy.typing as npt
from isal.isal_zlib import crc32, crc32_combine

from .. import _native
from .._errors import FormatError, MissingFileError

AnyArray = npt.NDArray[Any]

_CHUNK = 1 << 20  # bytes read at a time: they are still in the cache when their checksum is taken
_BUFFER = 16 << 20
_TRANSPOSED = (1, 2, 4, 8, 16)  # bytes of items that are turned from columns to rows while they are read
_PARALLEL = 8 << 20  # bytes from which on a second thread pays
_AT_ONCE = 1 << 30  # bytes that one system call may be asked for; more than 2 GiB it refuses or cuts
_MAX_HELD = 256  # files held open at a time while nobody reads them; a process may often have 1,024
# A fifo would block when it is opened, and is refused afterwards.
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


class Storage(Protocol):
    """Where the bytes of one file are.

    Attributes:
        path: Its name, as the caller wrote it.
        size: Bytes there were when it was opened; what a header claims is measured by it.
    """

    path: str
    size: int

    def read(self, offset: int, nbytes: int) -> bytes:
        """Read bytes; fewer only where the file ends."""

    def read_into(self, target: memoryview, offset: int, *, checksum: bool = False) -> int:
        """Fill a buffer of bytes, large ones by several threads, and give their CRC-32 if that is wanted, else 0.

        Raises:
            FormatError: The file ends before the buffer is full.
        """

    def read_runs(self, target: AnyArray, offset: int, nbytes: int, step: int) -> None:
        """Fill an array of bytes with runs of ``nbytes`` that begin every ``step`` bytes."""

    def map(self, offset: int, nbytes: int, *, writable: bool = True) -> AnyArray | None:
        """Map bytes privately: writes stay in this process; or to be read alone. ``None`` where that cannot be."""

    def descriptor(self) -> AbstractContextManager[int | None]:
        """The descriptor of a local file, for the kernel to copy from; it stays open meanwhile."""

    def open_binary(self) -> BinaryIO:
        """A file object of its own position, for libraries that read from one."""

    def ends_early(self, expected: int) -> FormatError:
        """The error for a file that has become shorter than what was found in it."""


class LocalStorage:
    """A local file, held open: what replaces it under its name does not disturb those who read.

    Of very many files only those that were used last are held open. The others are opened again by their names, and
    are an error if those have become names of other files meanwhile.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            self._absolute = os.path.abspath(self.path)  # should the working folder change
            descriptor = _open(self._absolute)
        except (FileNotFoundError, NotADirectoryError):
            raise MissingFileError("read", f"{self.path!r}: no such file", filename=self.path) from None
        except ValueError as error:  # a NUL in the name
            raise FormatError("read", f"{self.path!r} is no name of a file: {error}") from None
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(descriptor)
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
            raise FormatError("read", f"{self.path!r} is {kind}")
        self.size = found.st_size
        self._id = (found.st_dev, found.st_ino)
        self._mtime = found.st_mtime_ns
        self._users = 0
        self._held: int | None = None
        self._file = _native.OpenFile(descriptor)  # a finalizer in Python would swallow a Ctrl-C that comes within it
        _held.hold(self, descriptor)

    @property
    def identity(self) -> tuple[str, int, int]:
        """Its absolute name, and the device and the number of the file that had it when it was opened."""
        return self._absolute, *self._id

    def close(self) -> None:
        """Let go of the file; it is opened again if it is read again. Without this it closes when nobody needs it."""
        _held.let_go(self)

    def size_now(self) -> int:
        """How long the file is now, which others may have cut short."""
        size = _held.size(self)
        if size is not None:
            return size
        with self.descriptor() as descriptor:
            return os.fstat(descriptor).st_size

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """The descriptor, which stays open meanwhile."""
        descriptor = _held.take(self)
        try:
            yield descriptor
        finally:
            _held.give_back(self)

    def _reopened(self) -> int:
        try:
            descriptor = _open(self._absolute)
        except (FileNotFoundError, NotADirectoryError):
            raise FormatError("read", f"{self.path!r} is gone since it was opened") from None
        found = os.fstat(descriptor)
        if (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) != (*self._id, self.size, self._mtime):
            os.close(descriptor)
            fact = f"{self.path!r} has been replaced since its header was read"
            raise FormatError("read", fact, hint="read it again")
        return descriptor

    def read(self, offset: int, nbytes: int) -> bytes:
        """Read bytes; fewer only where the file ends."""
        parts = []
        with self.descriptor() as descriptor:
            while nbytes > 0:
                part = os.pread(descriptor, min(nbytes, _AT_ONCE), offset)
                if not part:
                    break
                parts.append(part)
                offset, nbytes = offset + len(part), nbytes - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_into(self, target: memoryview, offset: int, *, checksum: bool = False) -> int:
        """Fill a buffer of bytes, large ones by several threads, and give their CRC-32 if that is wanted, else 0."""

        with self.descriptor() as descriptor:
            if checksum:
                return in_parts(
                    lambda begin, end: self._checked_part(descriptor, target[begin:end], offset + begin), len(target)
                )
            if len(target) and not _native.read_file(descriptor, offset, target, thread_count()):
                raise self.ends_early(offset + len(target))
            return 0

    def _checked_part(self, descriptor: int, target: memoryview, offset: int) -> int:
        done, crc = 0, 0
        while done < len(target):
            part = target[done : done + _CHUNK]
            count = os.preadv(descriptor, [part], offset + done)
            if not count:
                raise self.ends_early(offset + len(target))
            crc = crc32(part[:count], crc)
            done += count
        return crc

    def read_runs(self, target: AnyArray, offset: int, nbytes: int, step: int) -> None:
        """Fill an array of bytes with runs of ``nbytes`` that begin every ``step`` bytes."""
        view = memoryview(cast(Any, target))
        with self.descriptor() as descriptor:
            for begin in range(0, len(view), nbytes):
                if not _native.read_file(descriptor, offset, view[begin : begin + nbytes], thread_count()):
                    raise self.ends_early(offset + nbytes)
                offset += step

    def map(self, offset: int, nbytes: int, *, writable: bool = True) -> AnyArray | None:
        """Map bytes privately: writes stay in this process; or to be read alone, which no limit of memory counts."""
        if not nbytes:
            return None
        with self.descriptor() as descriptor:
            if os.fstat(descriptor).st_size < offset + nbytes:
                raise self.ends_early(offset + nbytes)
            # The name may belong to another file by now, the descriptor cannot.
            opened = f"/proc/self/fd/{descriptor}" if os.path.exists("/proc/self/fd") else self._absolute
            map_file = _native.map_private if writable else _native.map_shared
            return map_file(opened, offset, nbytes, *self._id)

    def open_binary(self) -> BinaryIO:
        """A file object of its own position, for libraries that read from one."""
        return io.BufferedReader(StorageStream(self), _CHUNK >> 4)

    def ends_early(self, expected: int) -> FormatError:
        """The error for a file that has become shorter than what was found in it."""
        with self.descriptor() as descriptor:
            got = os.fstat(descriptor).st_size
        return FormatError("read", f"{self.path!r} ends before its array", expected=f"{expected} bytes", got=got)


@contextmanager
def descriptors(storages: Sequence[LocalStorage]) -> Iterator[list[int]]:
    """The descriptors of several files, which stay open meanwhile."""
    taken: list[LocalStorage] = []
    try:
        yield _held.take_all(storages, taken)
    finally:
        _held.give_all_back(taken)


class MemoryStorage:
    """A small file of which all bytes have been read at once: nothing is held open, nothing is read twice.

    Args:
        path: Its name.
        content: Its bytes.
    """

    def __init__(self, path: str, content: bytes) -> None:
        self.path = path
        self.size = len(content)
        self._content = content

    def read(self, offset: int, nbytes: int) -> bytes:
        """Give bytes; fewer only where the file ends."""
        return self._content[offset : offset + nbytes]

    def read_into(self, target: memoryview, offset: int, *, checksum: bool = False) -> int:
        """Fill a buffer of bytes, and give their CRC-32 if that is wanted, else 0."""
        end = offset + len(target)
        if end > self.size:
            raise self.ends_early(end)
        target[:] = memoryview(self._content)[offset:end]
        return crc32(target) if checksum else 0

    def read_runs(self, target: AnyArray, offset: int, nbytes: int, step: int) -> None:
        """Fill an array of bytes with runs of ``nbytes`` that begin every ``step`` bytes."""
        view = memoryview(cast(Any, target))
        for number, begin in enumerate(range(0, len(view), nbytes)):
            self.read_into(view[begin : begin + nbytes], offset + number * step)

    def map(self, offset: int, nbytes: int, *, writable: bool = True) -> AnyArray | None:
        """It is in memory already, of which others have a part."""
        return None

    def descriptor(self) -> AbstractContextManager[None]:
        """The kernel cannot copy it."""
        return nullcontext()

    def open_binary(self) -> BinaryIO:
        """A file object of its own position, for libraries that read from one."""
        return io.BytesIO(self._content)

    def ends_early(self, expected: int) -> FormatError:
        """The error for a header that claims more than there is."""
        return FormatError("read", f"{self.path!r} ends before its array", expected=f"{expected} bytes", got=self.size)


class _Held:
    """The descriptors of files that nobody reads at the moment: those used last are kept, the others closed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may run while it is held
        self._idle: OrderedDict[int, weakref.ref[LocalStorage]] = OrderedDict()

    def hold(self, storage: LocalStorage, descriptor: int) -> None:
        with self._lock:
            storage._held = descriptor
            self._idle.pop(id(storage), None)  # maybe of one that is gone and had the same address
            self._idle[id(storage)] = weakref.ref(storage)
            self._close_oldest()

    def take(self, storage: LocalStorage) -> int:
        with self._lock:
            if storage._held is None:
                storage._held = storage._reopened()
                storage._file = _native.OpenFile(storage._held)
            self._idle.pop(id(storage), None)
            storage._users += 1
            return storage._held

    def size(self, storage: LocalStorage) -> int | None:
        """How long a file is now; ``None`` where it has been closed."""
        with self._lock:
            return None if storage._held is None else os.fstat(storage._held).st_size

    def give_back(self, storage: LocalStorage) -> None:
        with self._lock:
            storage._users -= 1
            if not storage._users and storage._held is not None:
                self.hold(storage, storage._held)

    def take_all(self, storages: Sequence[LocalStorage], taken: list[LocalStorage]) -> list[int]:
        """Take several, and note each that is taken."""
        found = []
        with self._lock:
            for storage in storages:
                found.append(self.take(storage))
                taken.append(storage)
        return found

    def give_all_back(self, storages: Sequence[LocalStorage]) -> None:
        with self._lock:
            for storage in storages:
                self.give_back(storage)

    def let_go(self, storage: LocalStorage) -> None:
        with self._lock:
            if not storage._users:
                self._idle.pop(id(storage), None)
                storage._held = None
                storage._file.close()

    def close_idle(self) -> bool:
        """Close what nobody reads at the moment; whether there was any."""
        with self._lock:
            found = bool(self._idle)
            self._close_oldest(0)
            return found

    def _close_oldest(self, kept: int = _MAX_HELD) -> None:
        while len(self._idle) > kept:
            _, reference = self._idle.popitem(last=False)
            storage = reference()
            if storage is not None:
                self.let_go(storage)


_held = _Held()
if hasattr(os, "register_at_fork"):
    # A lock that another thread holds while this one forks is never given back in the child.
    os.register_at_fork(after_in_child=lambda: setattr(_held, "_lock", threading.RLock()))


def _open(path: str) -> int:
    try:
        return os.open(path, _FLAGS)
    except OSError as error:
        # This process may hold fewer files open than are held here.
        if error.errno not in (errno.EMFILE, errno.ENFILE) or not _held.close_idle():
            raise
    return os.open(path, _FLAGS)


class StorageStream(io.RawIOBase):
    """A storage as a file that is read from front to back, or from wherever one seeks to."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a byte, which may lie past the end."""
        position = (0, self._position, self._storage.size)[whence] + offset
        if position < 0:
            raise ValueError(f"seek to {position}, before the start")
        self._position = position
        return position

    def readinto(self, buffer: Any) -> int:
        """Read what fits into the buffer; less where the file ends."""
        target = memoryview(buffer).cast("B")
        count = max(min(len(target), self._storage.size - self._position), 0)
        if count:
            self._storage.read_into(target[:count], self._position)
        self._position += count
        return count


def in_parts(read: Callable[[int, int], int], nbytes: int) -> int:
    """Have several threads do ``read(begin, end)``, a part each, and join the checksums that it returns."""
    count = min(thread_count(), max(nbytes // (_PARALLEL // 2), 1))
    if count == 1:
        return read(0, nbytes)
    page = os.sysconf("SC_PAGESIZE")
    ends = [nbytes * i // count // page * page for i in range(count)] + [nbytes]
    parts = list(itertools.pairwise(ends))
    with ThreadPoolExecutor(count - 1) as pool:
        others = [pool.submit(read, *part) for part in parts[1:]]
        crc = read(*parts[0])
        for other, (begin, end) in zip(others, parts[1:], strict=True):
            crc = join_checksums(crc, other.result(), end - begin)
    return crc


def read_transposed(storage: Storage, target: AnyArray, offset: int, step: int) -> None:
    """Fill a matrix, of which a file has the columns one after the other, each ``step`` bytes after the one before."""
    rows, columns = target.shape
    with storage.descriptor() as descriptor:
        if descriptor is not None and target.itemsize in _TRANSPOSED:
            plain, itemsize = target.reshape(-1).view(np.uint8), target.itemsize
            if not _native.read_transposed(descriptor, offset, step, itemsize, rows, columns, plain, thread_count()):
                raise storage.ends_early(offset + (columns - 1) * step + rows * itemsize)
            return
    raw = empty(target.nbytes)
    storage.read_runs(raw, offset, rows * target.itemsize, step)
    target[...] = raw.view(target.dtype).reshape(columns, rows).T


def checksum_of(storage: Storage, offset: int, nbytes: int) -> int:
    """The CRC-32 of a range of bytes, which are not kept."""
    buffer, crc = empty(min(nbytes, _BUFFER)), 0
    for begin in range(0, nbytes, _BUFFER):
        part = buffer[: min(_BUFFER, nbytes - begin)]
        found = storage.read_into(memoryview(cast(Any, part)), offset + begin, checksum=True)
        crc = join_checksums(crc, found, part.nbytes)
    return crc


def join_checksums(first: int, second: int, nbytes: int) -> int:
    """The CRC-32 of two ranges of bytes in a row; the second has ``nbytes``."""
    return int(crc32_combine(first, second, nbytes)) if nbytes else first


def thread_count() -> int:
    """How many threads read one array: four are as many as memory can feed."""
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def empty(nbytes: int) -> AnyArray:
    """Memory for bytes that are about to be read; NumPy asks for huge pages itself where it is large."""
    return np.empty(nbytes, np.uint8)
