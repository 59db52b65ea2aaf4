"""Units of work: a few hundred files or some 256 MB each, so that ten million files are some ten thousand tasks.

Units are cut from the sorted list of sources, by their sizes alone: no header is read for that. The same sources give
the same units, wherever and by however many workers they are done. The order is that of the characters of their names:
``10.npy`` comes before ``9.npy``, and rows of the result are in that order.
"""

from __future__ import annotations

import hashlib
import os
import stat
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from .._errors import MissingFileError, NdtorchError
from .._pairs import Source
from ..files import open_file, sharded
from ..files.remote import is_url, located, member, reported, several, shown

UNIT_NBYTES = 256 << 20
UNIT_FILES = 500
_FEW = 8  # objects that are asked for one by one
_AT_ONCE = 16  # requests
_STORE = ".zarr"
_UNKNOWN = "unknown"
_STAMPS = ("ETag", "etag", "LastModified", "last_modified", "mtime", "created", "md5")


class SourceFile(NamedTuple):
    """A file that is read, as it was when it was listed.

    Attributes:
        path: Where it is.
        name: Its path below the folder or pattern that it was found by.
        nbytes: How long it is.
        stamp: What changes when it changes: the time of its last change, or what its store says instead.
        is_store: Whether it is a folder of many files, such as a store of zarr.
        claim: Of a shard what the index of its data set says of it.
    """

    path: str
    name: str
    nbytes: int
    stamp: str
    is_store: bool = False
    claim: sharded.Claim | None = None


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
        files = "".join([f"\0{each.path}\0{each.name}\0{each.nbytes}\0{each.stamp}" for each in self.files])
        files += "".join([f"\0{each.claim}" for each in self.files if each.claim is not None])
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

    A data set in shards counts as its shards, in the order of its index.

    Args:
        sources: What was found.
        skips: Whether a file of this machine that is not there, such as behind a link that leads nowhere, is listed
            all the same: who opens it says what is wrong.
    """
    found: list[tuple[Source, Sequence[SourceFile]]] = []
    folders: dict[str, list[Source]] = {}
    for source in sources:
        if is_url(source.path):
            folders.setdefault(source.path.removesuffix(source.name), []).append(source)
        else:
            found.append((source, _measured(source, skips=skips)))
    few = [source for inside in folders.values() if len(inside) <= _FEW for source in inside]
    for root, inside in folders.items():
        found += _listed(root, inside) if len(inside) > _FEW else ()
    if few:
        found += zip(few, several(_asked, few, [source.path for source in few], _AT_ONCE), strict=True)
    found.sort(key=lambda one: (one[0].name, one[0].path))
    return [file for _, files in found for file in files]


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
        return (_asked(source) if is_url(file.path) else _measured(source)) != [file._replace(claim=None)]
    except (OSError, NdtorchError):
        return True


# --- on this machine


def _measured(source: Source, *, skips: bool = False) -> list[SourceFile]:
    try:
        found = os.stat(source.path)
    except OSError as error:
        if skips:
            return [SourceFile(source.path, source.name, 0, _UNKNOWN)]
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            open_file(source.path)  # which says so
        raise
    if not stat.S_ISDIR(found.st_mode):
        return [SourceFile(source.path, source.name, found.st_size, str(found.st_mtime_ns))]
    index = sharded.local_index(source.path)
    if index is not None:
        shards = _shards(source, index)
        return [each._replace(claim=claim) for shard, claim in shards for each in _measured(shard, skips=skips)]
    inside = []
    for folder, _, names in os.walk(source.path):
        for name in names:
            entry = os.stat(os.path.join(folder, name))
            inside.append((os.path.join(folder, name), entry.st_size, str(entry.st_mtime_ns)))
    return [_store(source, inside)]


def _shards(source: Source, index: sharded.Index) -> Iterator[tuple[Source, sharded.Claim]]:
    """The shards of a data set, and what its index says of each."""
    where, join = shown(source.path), member if is_url(source.path) else os.path.join
    for number, name in enumerate(index.names):
        yield Source(join(source.path, name), f"{source.name.rstrip('/')}/{name}"), index.claim(where, number)


def _store(source: Source, inside: Iterable[tuple[str, int, str]]) -> SourceFile:
    """A store of many files: their names, lengths and stamps."""
    inside = sorted(inside)
    stamp = hashlib.blake2s(repr(inside).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return SourceFile(source.path, source.name, sum(nbytes for _, nbytes, _ in inside), stamp, is_store=True)


# --- behind URLs


def _listed(root: str, sources: Sequence[Source]) -> Iterator[tuple[Source, list[SourceFile]]]:
    """Facts of objects from one listing of the folder that they are in: a request for each might take days."""
    fs, path = located(root, "convert")
    with reported(root, "convert"):
        listed = fs.find(path, detail=True)
    start = len(path.rstrip("/")) + 1
    facts = sorted((name[start:], *_facts_of(each)) for name, each in listed.items() if each.get("type") == "file")
    yield from ((source, _found(source, facts)) for source in sources)


def _asked(source: Source) -> list[SourceFile]:
    fs, path = located(source.path, "convert")
    with reported(source.path, "convert"):
        fs.invalidate_cache()
        facts = fs.info(path)  # of an object one request; whether a name is a folder takes a listing
        if facts.get("type") == "file" and (not path.endswith(_STORE) or not fs.isdir(path)):
            return [SourceFile(source.path, source.name, *_facts_of(facts))]
        start = len(path.rstrip("/")) - len(source.name.rstrip("/"))
        found = fs.find(path, detail=True)
    return _found(source, sorted((name[start:], *_facts_of(each)) for name, each in found.items()))


def _found(source: Source, facts: Sequence[tuple[str, int, str]]) -> list[SourceFile]:
    """An object, a store of many, or the shards of a data set, looked up in a sorted listing."""
    name = source.name.rstrip("/")
    begin, end = bisect_left(facts, (name,)), bisect_left(facts, (f"{name}0",))  # 0 comes after /
    if begin < end and facts[begin][0] == name:
        return [SourceFile(source.path, source.name, *facts[begin][1:])]
    inside = facts[bisect_left(facts, (f"{name}/",)) : end]
    if not inside:
        raise MissingFileError("convert", f"{shown(source.path)!r}: no such file", filename=shown(source.path))
    at = bisect_left(inside, (f"{name}/{sharded.NAME}",))
    is_set = at < len(inside) and inside[at][0] == f"{name}/{sharded.NAME}"
    index = sharded.remote_index(source.path) if is_set else None
    if index is None:
        return [_store(source, inside)]
    shards = _shards(source, index)
    return [each._replace(claim=claim) for shard, claim in shards for each in _found(shard, inside)]


def _facts_of(facts: Mapping[str, Any]) -> tuple[int, str]:
    stamp = next((facts[key] for key in _STAMPS if facts.get(key) is not None), "")
    if isinstance(stamp, datetime):  # of which some drivers give the seconds where they list
        stamp = stamp.timestamp()
    return int(facts.get("size") or 0), str(stamp)
