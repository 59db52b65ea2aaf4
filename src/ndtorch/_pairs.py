"""Which files become which: sources are found, outputs named, and all of it is checked before anything is written.

An output has the name of its source with the suffix of its format. Below a folder or a pattern it keeps its path from
there: ``data/a/x.npy`` of ``data`` or of ``data/**/*.npy`` becomes ``DST/a/x.safetensors``.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import NamedTuple

from ._errors import FormatError, NdtorchError
from .files import FORMATS, AnyPath, Format, folders, format_to_write, remote, sharded
from .files.names import SEPARATOR, checked_path
from .files.remote import is_url, shown
from .files.target import why_not_replaced
from .files.upload import check_target

_KNOWN = {suffix: row for row in FORMATS for suffix in row.suffixes}


class Source(NamedTuple):
    """A file that is read.

    Attributes:
        path: Where it is.
        name: Its path below the folder or pattern that it was found by; of a file that was named itself its last step.
    """

    path: str
    name: str

    @property
    def stem(self) -> str:
        """Its name without a suffix that is known: any other suffix may be all that tells two files apart."""
        path = PurePath(self.name)
        return str(path.with_suffix("")) if path.suffix.lower() in _KNOWN else self.name


@dataclass(frozen=True, slots=True)
class Pair:
    """One file that is written, and what is read for it.

    Attributes:
        sources: What is read: one file, or all that are joined.
        target: What is written.
        format: In which format.
        folder: The folder that the target must not leave; empty where the caller named the target itself.
        is_joined: Whether arrays get the name of their source before their own.
    """

    sources: tuple[Source, ...]
    target: str
    format: Format
    folder: str = ""
    is_joined: bool = False

    @property
    def shown_target(self) -> str:
        """The target without what is secret in a URL."""
        return shown(self.target)

    def __str__(self) -> str:
        return shown(self.sources[0].path) if len(self.sources) == 1 else f"{len(self.sources)} files"


def pair_up(
    sources: Sequence[AnyPath], target: AnyPath, *, source_format: str | None = None, target_format: str | None = None
) -> list[Pair]:
    """Find the sources, and say what each is to become.

    Args:
        sources: Files, URLs, folders and patterns; a folder is all files of arrays in it.
        target: A file where its suffix is known or it is one already: all sources are joined into it. Else a folder,
            which gets one output for each source, in ``target_format``.
        source_format: Name of the sources' format. Patterns then find files of any suffix.
        target_format: Name of the format to write, where the suffix of the target does not tell.

    Raises:
        FormatError: A source names nothing, or a folder is to be written and no format was said.
    """
    text = remote.local_path(os.fspath(target))
    is_file = _is_file(text)
    if not is_file and target_format is None:
        known = ", ".join(suffix for row in FORMATS if row.target for suffix in row.suffixes)
        fact = f"{shown(text)!r} has none of the suffixes {known}, so it is a folder, which says no format"
        raise FormatError("convert", fact, hint="--to names the format of what is written into it")
    format = format_to_write(text, target_format)
    found = find_sources(sources, any_suffix=source_format is not None, outside=None if is_file else text)
    if is_file:
        is_joined = len(sources) > 1 or not _names_one_file(remote.local_path(os.fspath(sources[0])))
        return [Pair(tuple(found), text, format, is_joined=is_joined)]
    return [Pair((each,), _output(text, each, format), format, folder=text) for each in found]


def _is_file(target: str) -> bool:
    if is_url(target):
        return _suffix(target) in _KNOWN
    format = _KNOWN.get(_suffix(target))
    if target.endswith(SEPARATOR) and not (format is not None and format.target == "folder"):
        return False
    return format is not None or (os.path.exists(target) and not os.path.isdir(target))


def _output(folder: str, source: Source, format: Format) -> str:
    name = checked_path(source.stem.replace(os.sep, SEPARATOR)) + format.suffixes[0]
    return remote.member(folder, name) if is_url(folder) else os.path.join(folder, *name.split(SEPARATOR))


def _suffix(path: str) -> str:
    return PurePath((remote.name_in(path) if is_url(path) else path).rstrip("/")).suffix.lower()


# --- sources


def find_sources(arguments: Sequence[AnyPath], *, any_suffix: bool = False, outside: str | None = None) -> list[Source]:
    """Find the files that arguments name, each once, in the order of the arguments and then of their names.

    Args:
        arguments: Files, URLs, folders and patterns, where ``**`` is any number of folders.
        any_suffix: Whether files of unknown suffix are found too. Hidden ones never are.
        outside: A folder that is not looked into, because outputs go there.

    Raises:
        FormatError: An argument names nothing, or has no name itself: empty text is no word for the current folder.
    """
    if not all(os.fspath(argument) for argument in arguments):
        raise FormatError("convert", "a source has no name", hint="'.' is the current folder")

    def is_known(name: str) -> bool:
        return any_suffix or _suffix(name) in _KNOWN

    found: dict[str, Source] = {}
    for argument in arguments:
        for source in _found(remote.local_path(os.fspath(argument)), is_known, outside):
            found.setdefault(source.path if is_url(source.path) else os.path.abspath(source.path), source)
    return list(found.values())


def _found(argument: str, is_known: Callable[[str], bool], outside: str | None) -> Iterator[Source]:
    if _names_one_file(argument):
        plain = remote.name_in(argument) if is_url(argument) else os.path.abspath(argument)
        yield Source(argument, PurePath(plain).name)
        return
    paths = _listed(argument, is_known)
    if outside is not None:
        is_output = _output_test(outside, argument)
        paths = [(name, path) for name, path in paths if not is_output(path)]
    kept = [Source(path, name) for name, path in paths]
    if not kept:
        known = ", ".join(_KNOWN)
        hint = f"known are {known}; --from names the format of any other"
        raise FormatError("convert", f"no file of arrays is in, or matches, {shown(argument)!r}", hint=hint)
    yield from kept


def _listed(argument: str, is_known: Callable[[str], bool]) -> list[tuple[str, str]]:
    """Names in a folder or of a pattern, and their paths."""
    if is_url(argument):
        url, sizes, remote_stores = remote.files_in(argument, is_known)
        return [(name, remote.member(url, name)) for name in sorted([*sizes, *remote_stores])]
    list_files = folders.files_matching if folders.has_magic(argument) else folders.files_in
    folder, files, stores = list_files(argument, is_known)
    return [(name, os.path.join(folder, name)) for name in sorted([*files, *stores])]


def _names_one_file(argument: str) -> bool:
    if is_url(argument):
        may_be_folder = argument.endswith(SEPARATOR) or _suffix(argument) not in _KNOWN
        is_folder = may_be_folder and remote.kind_of(argument, "read") == "directory"
        if remote.has_magic(argument):
            return False
        return not is_folder or remote.is_zarr_store(argument) or sharded.remote_index(argument) is not None
    if folders.has_magic(argument):
        return False
    if os.path.isdir(argument) and sharded.local_index(argument) is not None:
        return True
    return not os.path.isdir(argument) or _suffix(argument) == ".zarr" or folders.is_zarr_store(argument)


def _output_test(folder: str, argument: str) -> Callable[[str], bool]:
    """What says of a path whether it lies in a folder of outputs: no place to look for sources unless that was asked.

    Links count as what they lead to, but that of the path itself: a link in the folder of sources is a source.
    """
    if is_url(argument) or is_url(folder):
        start = folder.rstrip(SEPARATOR) + SEPARATOR
        return lambda path: path.startswith(start) and not argument.startswith(folder)
    searched = folders.split_pattern(argument)[0] if folders.has_magic(argument) else argument
    outputs = os.path.realpath(folder)
    if _holds(outputs, os.path.realpath(searched or ".")):
        return lambda path: False

    @cache
    def is_inside(parent: str) -> bool:
        return _holds(outputs, os.path.realpath(parent))

    real = folders.real_path()
    return lambda path: is_inside(os.path.dirname(path)) or real(path) == outputs


def _holds(folder: str, path: str) -> bool:
    return os.path.commonpath((folder, path)) == folder


# --- what would go wrong


def why_not_written(pairs: Sequence[Pair], *, overwrite: bool) -> dict[Pair, NdtorchError]:
    """Say of every output what forbids writing it."""
    place_of = _places()
    sources = {place_of(source.path): source for pair in pairs for source in pair.sources}
    places = {place_of(pair.target) for pair in pairs}
    first: dict[str, Pair] = {}  # by place: links may lead two names to one
    refused: dict[Pair, NdtorchError] = {}
    for pair in pairs:
        place = place_of(pair.target)
        other = first.setdefault(place, pair)
        error = (
            _clash(pair, other)
            or _overwritten(pair, sources.get(place))
            or _within(pair, place, places)
            or why_not_target(pair, overwrite=overwrite)
        )
        if error is not None:
            refused[pair] = error
    return refused


def _clash(pair: Pair, other: Pair) -> NdtorchError | None:
    if pair is other:
        return None
    hint = "a quoted pattern from a folder above both, such as 'folder/**', keeps the folders"
    if os.path.dirname(pair.sources[0].path) == os.path.dirname(other.sources[0].path):
        hint = "convert them into different folders"
    return FormatError(
        "convert", f"{str(other)!r} and {str(pair)!r} would both become {pair.shown_target!r}", hint=hint
    )


def _within(pair: Pair, place: str, places: set[str]) -> NdtorchError | None:
    """A zarr store is replaced with all that is in it, so no other output may be."""
    if pair.format.target != "folder":
        return None
    folder = os.path.dirname(place)
    while folder not in places and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    if folder not in places:
        return None
    hint = "convert them into different folders"
    return FormatError("convert", f"cannot write {pair.shown_target!r}: it lies in another output", hint=hint)


def why_not_target(pair: Pair, *, overwrite: bool) -> NdtorchError | None:
    """Say what forbids writing one output; whoever writes asks again, for things may have changed."""
    target = pair.target
    if is_url(target):
        return _why_not_url(pair, overwrite)
    if pair.folder:
        outside = _why_outside(target, pair.folder)
        if outside is not None:
            return outside
    elif not os.path.isdir(os.path.dirname(os.path.realpath(target))):
        folder = os.path.dirname(os.path.abspath(target))
        hint = f"mkdir -p {shlex.quote(os.path.dirname(target))} makes it"
        return FormatError("convert", f"cannot write {target!r}: no folder {folder!r}", hint=hint)
    why = why_not_replaced(Path(target), is_folder=pair.format.target == "folder")
    if why and (overwrite or pair.format.target != "folder"):
        return FormatError("convert", f"cannot write {target!r}: {why}", hint="move it away first")
    if os.path.lexists(target) and not overwrite:
        return FormatError("convert", f"{target!r} exists", hint="--overwrite replaces it, all or nothing")
    return None


def _why_not_url(pair: Pair, overwrite: bool) -> NdtorchError | None:
    is_folder = pair.format.target == "folder"
    try:
        check_target(pair.target, is_folder=is_folder, overwrite=overwrite, subject="convert")
    except NdtorchError as error:
        return error
    return None


def _why_outside(target: str, folder: str) -> NdtorchError | None:
    """A link in the folder of outputs may lead anywhere; what is written has to stay."""
    root = os.path.realpath(folder)
    place = os.path.realpath(target)
    if not _holds(root, place) or place == root:
        return FormatError("convert", f"cannot write {target!r}: links lead from there to {place!r}, out of {folder!r}")
    step = os.path.dirname(place)
    while not os.path.lexists(step):
        step = os.path.dirname(step)
    if not os.path.isdir(step):
        return FormatError("convert", f"cannot write {target!r}: {step!r} is no folder")
    return None


def _overwritten(pair: Pair, source: Source | None) -> NdtorchError | None:
    if source is None and os.path.exists(pair.target):  # the same file by another name
        source = next((each for each in pair.sources if _is_same(each.path, pair.target)), None)
    if source is None:
        return None
    return FormatError(
        "convert", f"cannot write {pair.shown_target!r}: it is a source, {shown(source.path)!r}", hint="name another"
    )


def _places() -> Callable[[str], str]:
    """What says where paths and URLs lead."""
    real = folders.real_path()
    return lambda path: path if is_url(path) else real(path)


def _is_same(one: str, other: str) -> bool:
    return os.path.exists(one) and os.path.samefile(one, other)
