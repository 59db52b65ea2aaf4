"""Units of work: a few hundred files or some 256 MB each, so that ten million files are some ten thousand tasks.

Units are cut from the sorted list of sources, by their sizes alone: no header is read for that. The same sources give
the same units, wherever and by however many workers they are done. The order is that of the characters of their names:
``10.npy`` comes before ``9.npy``, and rows of the result are in that order.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import stat
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .._errors import FormatError, NdtorchError
from .._pairs import Source
from ..files import open_file, sharded
from ..files.remote import is_url, located, member, reported, several, shown

UNIT_NBYTES = 256 << 20
UNIT_FILES = 500
_FEW = 8  # objects that are asked for one by one
_AT_ONCE = 16  # requests
_STORE = ".zarr"
_STAMPS = ("ETag", "etag", "LastModified", "last_modified", "mtime", "created", "md5")


class SourceFile(NamedTuple):
    """A file that is read, as it was when it was listed.

    Attributes:
        path: Where it is.
        name: Its path below the folder or pattern that it was found by.
        nbytes: How long it is.
        stamp: What changes when it changes: the time of its last change, or what its store says instead.
        is_store: Whether it is a folder of many files, such as a store of zarr.
    """

    path: str
    name: str
    nbytes: int
    stamp: str
    is_store: bool = False


@dataclass(frozen=True, slots=True)
class Unit:
    """Files that one task converts.

    Attributes:
        number: Which of all units it is.
        files: Its files.
    """

    number: int
    files: tuple[SourceFile, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that are read for it."""
        return sum(file.nbytes for file in self.files)

    def key(self, options: str) -> str:
        """What it is to become, as a short text: the same only for the same files, unchanged, and the same options."""
        files = "".join([f"\0{path}\0{name}\0{nbytes}\0{stamp}" for path, name, nbytes, stamp, _ in self.files])
        return hashlib.blake2s((options + files).encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()


def units_of(files: Iterable[SourceFile], *, nbytes: int = UNIT_NBYTES, count: int = UNIT_FILES) -> Iterator[Unit]:
    """Cut a list of files into units, in order.

    >>> files = [SourceFile(f"{n}.npy", f"{n}.npy", 100, "") for n in range(5)]
    >>> [len(unit.files) for unit in units_of(files, nbytes=200)]
    [2, 2, 1]
    """
    number, taken, size = 0, list[SourceFile](), 0
    for file in files:
        if taken and (len(taken) == count or size + file.nbytes > nbytes):
            yield Unit(number, tuple(taken))
            number, taken, size = number + 1, [], 0
        taken.append(file)
        size += file.nbytes
    if taken:
        yield Unit(number, tuple(taken))


def source_files(sources: Sequence[Source], *, skips: bool = False) -> list[SourceFile]:
    """Measure the sources, sorted by name, so that the order in which they were found does not count.

    A data set in shards counts as its shards.

    Args:
        sources: What was found.
        skips: Whether a file of this machine that is not there, such as behind a link that leads nowhere, is listed
            all the same: who opens it says what is wrong.
    """
    found: list[SourceFile] = []
    folders: dict[str, list[Source]] = {}
    for source in sources:
        if is_url(source.path):
            folders.setdefault(source.path.removesuffix(source.name), []).append(source)
        else:
            found += _measured_or_listed(source, skips=skips)
    few = [source for inside in folders.values() if len(inside) <= _FEW for source in inside]
    for root, inside in folders.items():
        found += _listed(root, inside) if len(inside) > _FEW else ()
    if few:
        found += itertools.chain.from_iterable(several(_asked, few, [source.path for source in few], _AT_ONCE))
    return sorted(found, key=lambda file: (file.name, file.path))


def changed_files(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Those that are no longer what they were when they were listed."""
    remote = [file for file in files if is_url(file.path)]
    if not remote:
        return [file for file in files if _has_changed(file)]
    asked = dict(zip(remote, several(_has_changed, remote, [file.path for file in remote], _AT_ONCE), strict=True))
    return [file for file in files if (asked[file] if file in asked else _has_changed(file))]


def _has_changed(file: SourceFile) -> bool:
    source = Source(file.path, file.name)
    try:
        return (_asked(source) if is_url(file.path) else _measured(source)) != [file]
    except (OSError, NdtorchError):
        return True


# --- on this machine


def _measured_or_listed(source: Source, *, skips: bool) -> list[SourceFile]:
    try:
        return _measured(source)
    except NdtorchError:
        raise
    except OSError as error:
        if skips:
            return [SourceFile(source.path, source.name, 0, "unknown")]
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            open_file(source.path)  # which says so
        raise


def _measured(source: Source) -> list[SourceFile]:
    found = os.stat(source.path)
    if not stat.S_ISDIR(found.st_mode):
        return [SourceFile(source.path, source.name, found.st_size, str(found.st_mtime_ns))]
    if sharded.local_index(source.path) is not None:
        return [each for shard in _shards(source) for each in _measured(shard)]
    entries = [os.stat(os.path.join(folder, name)) for folder, _, names in os.walk(source.path) for name in names]
    newest = max((entry.st_mtime_ns for entry in entries), default=found.st_mtime_ns)
    nbytes = sum(entry.st_size for entry in entries)
    return [SourceFile(source.path, source.name, nbytes, f"{newest}-{len(entries)}", is_store=True)]


def _shards(source: Source) -> list[Source]:
    is_remote = is_url(source.path)
    index = sharded.remote_index(source.path) if is_remote else sharded.local_index(source.path)
    join = member if is_remote else os.path.join
    return [Source(join(source.path, name), f"{source.name}/{name}") for name in (index.names if index else ())]


# --- behind URLs


def _listed(root: str, sources: Sequence[Source]) -> Iterator[SourceFile]:
    """Facts of objects from one listing of the folder that they are in: a request for each might take days."""
    fs, path = located(root, "convert")
    with reported(root, "convert"):
        listed = fs.find(path, detail=True)
    start = len(path.rstrip("/")) + 1
    facts = {name[start:]: _facts_of(each) for name, each in listed.items() if each.get("type") == "file"}
    names = sorted(facts)
    for source in sources:
        name = source.name.rstrip("/")
        if name in facts:
            yield SourceFile(source.path, source.name, *facts[name])
            continue
        begin, end = bisect_left(names, f"{name}/"), bisect_left(names, f"{name}0")  # 0 comes after /
        yield from _store(source, [(each, *facts[each]) for each in names[begin:end]])


def _asked(source: Source) -> Iterable[SourceFile]:
    fs, path = located(source.path, "convert")
    with reported(source.path, "convert"):
        fs.invalidate_cache()
        facts = fs.info(path)  # of an object one request; whether a name is a folder takes a listing
        if facts.get("type") == "file" and (not path.endswith(_STORE) or not fs.isdir(path)):
            return [SourceFile(source.path, source.name, *_facts_of(facts))]
        start = len(path.rstrip("/")) - len(source.name.rstrip("/"))
        found = fs.find(path, detail=True)
    return list(_store(source, sorted((name[start:], *_facts_of(each)) for name, each in found.items())))


def _store(source: Source, inside: Sequence[tuple[str, int, str]]) -> Iterator[SourceFile]:
    """A store of many objects, or the shards of a data set."""
    if any(name == f"{source.name.rstrip('/')}/{sharded.NAME}" for name, _, _ in inside):
        for shard in _shards(source):
            yield from _asked(shard)
        return
    if not inside:
        raise FormatError("convert", f"{shown(source.path)!r}: no such file")
    stamp = hashlib.blake2s(repr(inside).encode(), digest_size=8).hexdigest()
    yield SourceFile(source.path, source.name, sum(nbytes for _, nbytes, _ in inside), stamp, is_store=True)


def _facts_of(facts: Mapping[str, Any]) -> tuple[int, str]:
    stamp = next((str(facts[key]) for key in _STAMPS if facts.get(key) is not None), "")
    return int(facts.get("size") or 0), stamp
