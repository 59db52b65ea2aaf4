"""Files behind URLs of any driver of fsspec: ``s3://``, ``gs://``, ``https://``, ``memory://``, ``simplecache::...``.

Reading asks for ranges of bytes, large ones several at a time. Nothing tells when what is behind a URL is replaced
while it is read: what a header claims is measured by the size there was at first. Credentials are fsspec's affair: the
environment, or ``fsspec.config.conf``. What is in a URL before its host or after a ``?`` never shows in an error.
"""

from __future__ import annotations

import errno
import io
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast
from urllib.parse import unquote

from isal.isal_zlib import crc32

from .._errors import FormatError, MissingDependencyError, MissingFileError, NdtorchError
from .folders import ZARR_MARKS, regex_of, split_pattern
from .storage import AnyArray, StorageStream, join_checksums

REQUEST = 8 << 20
"""Bytes that are asked for or sent at once: with fewer the way counts, with more there are too few at a time."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://|[A-Za-z][A-Za-z0-9+.\-]*::.*://")
_SECRETS = re.compile(r"(?<=://)[^/@\s'\"]*@|[?#][^\s'\")]*")
_REQUESTS = 8  # at a time
_BLOCK = 256 << 10  # of headers, which are read in small pieces
_BLOCKS = 64  # kept of all files together

_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, in the environment name some"
_CREDENTIALS = {  # what the driver of S3 raises, which may not be installed
    "NoCredentialsError": f"{_KEYS}; FSSPEC_S3_ANON=true asks for none, of a public bucket",
    "PartialCredentialsError": _KEYS,
}

_Step = TypeVar("_Step")
_Result = TypeVar("_Result")


def is_url(path: str) -> bool:
    """Whether a path is a URL, or a chain of them.

    >>> is_url("s3://bucket/a.npy"), is_url("simplecache::s3://bucket/a.npy"), is_url("a::b.npy"), is_url("C:/a.npy")
    (True, True, False, False)
    """
    return _URL.match(path) is not None


def local_path(path: str) -> str:
    """The path that a ``file://`` URL means; any other as it is.

    >>> local_path("file:///data/a.npy"), local_path("a.npy")
    ('/data/a.npy', 'a.npy')
    """
    if "::" in path:
        return path
    return path.removeprefix("file://").removeprefix("local://")


def shown(path: str) -> str:
    """A path as errors show it: of a URL neither user, password nor query.

    >>> shown("https://me:secret@host/a.npy?signature=1"), shown("a?.npy")
    ('https://host/a.npy', 'a?.npy')
    """
    return _SECRETS.sub("", path) if is_url(path) else path


def name_in(url: str) -> str:
    """The part of a URL that is the path of the file, of a chain of the first that has one.

    >>> name_in("simplecache::https://host/data/a%20b.npy?token=1")
    'host/data/a b.npy'
    """
    scheme, _, path = url.split("::")[_place(url)].partition("://")
    if scheme in ("http", "https"):
        path = unquote(re.split(r"[?#]", path)[0])
    return path.partition("?versionId=")[0]


def member(url: str, path: str) -> str:
    """The URL of a file in the folder that a URL names."""
    parts = url.split("::")
    parts[_place(url)] = f"{parts[_place(url)].rstrip('/')}/{path}"
    return "::".join(parts)


def _place(url: str) -> int:
    """Which link of a chain has the path."""
    return next(n for n, part in enumerate(url.split("::")) if "://" in part)


def is_http(url: str) -> bool:
    """Whether a web server has it."""
    return url.split("::")[_place(url)].startswith(("http://", "https://"))


# --- drivers


def located(url: str, subject: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    try:
        import fsspec.core
    except ImportError:
        hint = "pip install fsspec"
        raise MissingDependencyError(
            subject, f"{shown(url)!r} needs fsspec, which is not installed", hint=hint
        ) from None
    with reported(url, subject):
        fs, path = fsspec.core.url_to_fs(url)
        fs.invalidate_cache(path)  # what was listed a while ago may not be there any more
    return fs, path


@contextmanager
def reported(url: str, subject: str) -> Iterator[None]:
    """Errors of drivers, which may be anything, become ours or the system's, name the URL and tell no secrets."""
    try:
        yield
    except NdtorchError:
        raise
    except ValueError as error:  # of an unknown protocol, or of what a driver cannot do
        raise FormatError(subject, f"{shown(url)!r}: {scrubbed(error)}") from None
    except ImportError as error:
        hint = f"pip install {_package(error)}"
        fact = f"{shown(url)!r} needs a driver that is not installed: {scrubbed(error)}"
        raise MissingDependencyError(subject, fact, hint=hint) from None
    except FileNotFoundError:
        missing = "no such bucket or folder" if subject == "write" else "no such file"
        if is_http(url):  # its driver says so of whatever fails
            missing += ", or its server does not answer"
        raise MissingFileError(subject, f"{shown(url)!r}: {missing}", filename=shown(url)) from None
    except OSError as error:
        kind = type(error) if type(error).__module__ == "builtins" else OSError
        raise kind(error.errno or errno.EIO, scrubbed(error), shown(url)) from None
    except Exception as error:
        refusal = OSError(errno.EIO, f"{type(error).__name__}: {scrubbed(error)}", shown(url))
        if type(error).__name__ in _CREDENTIALS:
            refusal.add_note(f"Hint: {_CREDENTIALS[type(error).__name__]}.")
        raise refusal from None


def scrubbed(error: BaseException) -> str:
    """The first line of what an error says, without what is secret in URLs."""
    text = getattr(error, "strerror", None) or str(error)
    return _SECRETS.sub("", str(text).partition("\n")[0])[:300]


def _package(error: ImportError) -> str:
    """The package that fsspec asks for, "Install s3fs to access S3"."""
    found = re.search(r"[Ii]nstall `?([A-Za-z0-9_.\-]+)", str(error))
    return found[1] if found else error.name or "the driver"


def kind_of(url: str, subject: str) -> str:
    """What a URL names: ``file``, ``directory``, or nothing, which is empty."""
    fs, path = located(url, subject)
    with reported(url, subject):
        try:
            return str(fs.info(path)["type"])
        except FileNotFoundError:
            return ""


def several(
    do: Callable[[_Step], _Result], steps: Sequence[_Step], urls: Iterable[str], count: int = _REQUESTS
) -> Iterator[_Result]:
    """Do steps at the same time, where the drivers stand that, and give what comes of them in their order.

    Args:
        do: What is done with each.
        steps: The steps.
        urls: Where they ask.
        count: How many there are at a time.
    """
    if len(steps) < 2 or not _stand_several(urls):
        yield from map(do, steps)
        return
    pool = ThreadPoolExecutor(min(count, len(steps)))
    try:
        yield from pool.map(do, steps)
    finally:
        pool.shutdown(cancel_futures=True)  # what is on its way would come when somebody has tidied up


def _stand_several(urls: Iterable[str]) -> bool:
    one_of_each = {url.rpartition("://")[0]: url for url in urls}
    return all(getattr(located(url, "read")[0], "async_impl", False) for url in one_of_each.values())


# --- reading


class _Blocks:
    """The blocks of files that were read last, so that a header in small pieces is one request."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[object, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[object, int], fetch: Callable[[], bytes]) -> bytes:
        with self._lock:
            block = self._found.get(key)
            if block is not None:
                self._found.move_to_end(key)
                return block
        block = fetch()
        with self._lock:
            self._found[key] = block
            while len(self._found) > _BLOCKS:
                self._found.popitem(last=False)
        return block


_blocks = _Blocks()


class RemoteStorage:
    """A file behind a URL, read by ranges. The whole of it is never kept.

    Args:
        url: Where it is.
        size: Its bytes, where the listing of a folder has told them.
    """

    def __init__(self, url: str, size: int | None = None) -> None:
        self.path = shown(url)
        self._url = url
        self._key = object()
        self._fs, self._path = located(url, "read")
        with reported(url, "read"):
            info: dict[str, Any] = {"size": size, "type": "file"} if size is not None else self._fs.info(self._path)
        if info["type"] == "directory":
            raise FormatError("read", f"{self.path!r} is a folder")
        if info.get("size") is None:
            raise self._without_ranges("its server does not say how long it is")
        self.size = int(info["size"])
        if is_http(url) and size is None and "http" in str(self._fs.protocol):
            self._check_ranges()

    def _check_ranges(self) -> None:
        """A server that knows no ranges would send all of a file for each of them."""
        with reported(self._url, "read"), self._fs.open(self._path, "rb", block_size=1, cache_type="none") as stream:
            try:
                stream.seek(max(self.size - 1, 0))
                stream.read(1)
            except ValueError:
                raise self._without_ranges("its server sends whole files only") from None

    def _without_ranges(self, reason: str) -> FormatError:
        hint = f"'simplecache::{self.path}' fetches it once, whole"
        return FormatError("read", f"{self.path!r} cannot be read in parts: {reason}", hint=hint)

    def _fetch(self, begin: int, end: int) -> bytes:
        if begin >= end:
            return b""
        with reported(self._url, "read"):
            data = self._fs.cat_file(self._path, start=begin, end=end)
        if len(data) > end - begin:
            raise self._without_ranges("its server has sent more than was asked for")
        if len(data) < end - begin:
            raise self.ends_early(end)
        return cast(bytes, data)

    def _block(self, number: int) -> bytes:
        begin = number * _BLOCK
        return _blocks.get((self._key, number), lambda: self._fetch(begin, min(begin + _BLOCK, self.size)))

    def read(self, offset: int, nbytes: int) -> bytes:
        """Read bytes; fewer only where the file ends."""
        end = max(min(offset + nbytes, self.size), offset)
        if end - offset > _BLOCK:
            return self._fetch(offset, end)
        numbers = range(offset // _BLOCK, -(-end // _BLOCK))
        start = numbers.start * _BLOCK
        return b"".join(self._block(number) for number in numbers)[offset - start : end - start]

    def whole(self) -> bytes:
        """Read all of it by one request."""
        return self._fetch(0, self.size)

    def read_into(self, target: memoryview, offset: int, *, checksum: bool = False) -> int:
        """Fill a buffer of bytes by several requests at a time, and give their CRC-32 if that is wanted."""
        if offset + len(target) > self.size:
            raise self.ends_early(offset + len(target))

        def read(begin: int) -> tuple[int, int]:
            part = target[begin : begin + REQUEST]
            is_small = self.size <= _BLOCK or len(part) < _BLOCK >> 2
            part[:] = (
                self.read(offset + begin, len(part))
                if is_small
                else self._fetch(offset + begin, offset + begin + len(part))
            )
            return crc32(part) if checksum else 0, len(part)

        crc = 0
        for found, count in several(read, range(0, len(target), REQUEST), [self._url]):
            crc = join_checksums(crc, found, count) if checksum else 0
        return crc

    def read_runs(self, target: AnyArray, offset: int, nbytes: int, step: int) -> None:
        """Fill an array of bytes with runs of ``nbytes`` that begin every ``step`` bytes, a request for each."""
        view = memoryview(cast(Any, target))

        def read(number: int) -> None:
            begin = offset + number * step
            view[number * nbytes : (number + 1) * nbytes] = self._fetch(begin, begin + nbytes)

        for _ in several(read, range(len(view) // nbytes), [self._url]):
            pass

    def map(self, offset: int, nbytes: int, *, writable: bool = True) -> AnyArray | None:
        """What is remote cannot be mapped."""
        return None

    def descriptor(self) -> AbstractContextManager[None]:
        """The kernel cannot copy it."""
        return nullcontext()

    def open_binary(self) -> BinaryIO:
        """A file object of its own position, for libraries that read from one."""
        return io.BufferedReader(StorageStream(self), _BLOCK >> 2)

    def ends_early(self, expected: int) -> FormatError:
        """The error for a file that has become shorter than what was found in it."""
        return FormatError("read", f"{self.path!r} ends before its array", expected=f"{expected} bytes", got="fewer")


# --- folders


def has_magic(url: str) -> bool:
    """Whether a URL is a pattern; ``?`` begins a query."""
    return not is_http(url) and re.search(r"[*\[]", url.split("::")[_place(url)]) is not None


def is_zarr_store(url: str) -> bool:
    """Whether a folder is one array or group of zarr."""
    fs, path = located(url, "read")
    with reported(url, "read"):
        return any(fs.exists(f"{path}/{mark}") for mark in ZARR_MARKS)


class Listing(NamedTuple):
    """What is in a folder, by path in it.

    Attributes:
        url: The folder.
        sizes: The known files, and their bytes where the listing says that.
        stores: The zarr stores.
    """

    url: str
    sizes: dict[str, int | None]
    stores: set[str]


def files_in(url: str, is_known: Callable[[str], bool]) -> Listing:
    """List all known files and zarr stores in a folder, or those that a pattern names."""
    url, matches, depth = _pattern(url)
    fs, path = located(url, "read")
    with reported(url, "read"):
        listed = fs.find(path, maxdepth=depth, detail=True)
    start = len(path.rstrip("/")) + 1
    sizes = {name[start:]: info.get("size") for name, info in listed.items() if info.get("type") == "file"}
    marked = {name.rpartition("/")[0] for name in sizes if name.rpartition("/")[2] in ZARR_MARKS} - {""}

    def is_wanted(name: str) -> bool:
        return not _is_hidden(name) and not _parents(name) & marked and bool(matches(name))

    found = {name: size for name, size in sizes.items() if is_known(name) and is_wanted(name)}
    return Listing(url, found, {store for store in marked if is_wanted(store)})


def _pattern(url: str) -> tuple[str, Callable[[str], Any], int | None]:
    """Split a URL into its folder, a test of paths in it, and how many steps these may have."""
    if not has_magic(url):
        return url, bool, None
    parts = url.split("::")
    scheme, mark, path = parts[_place(url)].partition("://")
    folder, pattern = split_pattern(path)
    parts[_place(url)] = f"{scheme}{mark}{folder}"
    depth = None if "**" in pattern else pattern.count("/") + 2  # a zarr store is told by what is in it
    return "::".join(parts), regex_of(pattern).fullmatch, depth


def _parents(name: str) -> set[str]:
    steps = name.split("/")
    return {"/".join(steps[:count]) for count in range(1, len(steps))}


def _is_hidden(name: str) -> bool:
    return any(step.startswith(".") for step in name.split("/"))
